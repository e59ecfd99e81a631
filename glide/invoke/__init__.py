"""Records on their way to warm lanes and back: packing, the client on the lane, gathering.

Exports nothing: glide.invoke.client runs on the lane, where importing its neighbours would cost more than the
work itself. Import the module you need.
"""
