"""Templates. A template describes the state that a node loads, and lists the files of this state."""

from glide.template.spec import FileSet, Template

__all__ = ["FileSet", "Template"]
