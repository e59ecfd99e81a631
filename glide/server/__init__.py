"""The model server of a glidein loads templates, serves records, and advertises its state in the ads of its lanes.

The engines need other packages. All other code of this package needs only the standard library.
"""
