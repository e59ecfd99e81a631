"""The model server of a glidein loads templates, serves records, and advertises its state in the ads of its lanes.

Some engines import packages such as torch. All other code in this folder needs only the standard library.
"""
