"""The model server of a glidein loads templates, serves records, and advertises its state in the ads of its lanes.

The package imports only the standard library. Only its engines need other packages.
"""
