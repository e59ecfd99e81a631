"""What to load on a node: the template, its digest, and where its files come from."""

from glide.template.spec import Parcel, Template

__all__ = ["Parcel", "Template"]
