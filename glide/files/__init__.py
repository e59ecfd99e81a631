"""Getting a template's files to the node: its cache, other nodes that have them, and where they come from at first."""

from glide.files.cache import Cache, NoRoom
from glide.files.tree import Tree

__all__ = ["Cache", "NoRoom", "Tree"]
