"""Compute calls whose callers wait: on the lanes of standing jobs, over connections that the nodes open.

`glide serve` and sessions use this package.
"""
