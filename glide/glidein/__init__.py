"""The code that turns an outer job into a glidein with lanes. The code runs on a node before the model server."""
