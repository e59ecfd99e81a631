"""glide keeps models in the memory of HTCondor glideins, and runs each invocation where its model is already loaded."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glide.sweep.functions import invocation as invocation
    from glide.sweep.functions import sticky as sticky
    from glide.sweep.session import Session as Session

_PUBLIC = {
    "sticky": "glide.sweep.functions", "invocation": "glide.sweep.functions", "Session": "glide.sweep.session",
}  # fmt: skip
__all__ = ["Session", "invocation", "sticky"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used.

    Nodes import this package, too, but do not have the packages that these names need.
    """
    if name not in _PUBLIC:
        raise AttributeError(f"module 'glide' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
