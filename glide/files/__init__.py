"""Bring a template's files to a node. The files come from the node's cache, from other nodes, or from a source."""

from glide.files.cache import Cache, CacheFull
from glide.files.tree import Tree

__all__ = ["Cache", "CacheFull", "Tree"]
