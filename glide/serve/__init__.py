"""`glide serve`: an HTTP server with OpenAI's API, whose answers come from the warm models of the pool.

Live calls go over connections that the model servers of standing jobs keep open (lane_listener). Batches are sweeps.
"""
