"""The program that turns an outer job into a glidein: it starts HTCondor's daemons and the model server on a node."""
