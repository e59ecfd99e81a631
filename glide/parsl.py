"""Programs written for StickyInvoc in Parsl, unchanged but for the import: `python_app` and its `parsl_spec`.

    from glide.parsl import load_variable_from_state_manager, python_app

An app's call returns a future, as there. Its state is that of `parsl_spec["template"]`: {"fn", "args", "kwargs"}. All
calls of a program are one session (glide.Session), which is there from the first of them to the program's end. Nodes
import this module too, for the second name; so it imports nothing that they lack.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from glide.server.engines.python import resident


def load_variable_from_state_manager(name: str) -> Any:
    """A value of the state that the running app uses; KeyError when the template's function returned none of that name.

    In this process, where no app runs, there is none.
    """
    if name not in resident:
        raise KeyError(f"the state has no {name!r}; it has {', '.join(sorted(resident)) or 'nothing'}")
    return resident[name]


def python_app(function: Callable[..., Any]) -> Callable[..., Future]:
    """Make a function an app: called, it runs where its `parsl_spec`'s state is warm."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def app(*arguments: Any, **keywords: Any) -> Future:
        bound = signature.bind(*arguments, **keywords)
        spec = bound.arguments.get("parsl_spec")
        if spec is not None:
            bound.arguments["parsl_spec"] = None  # it says what to load, and that is loaded
        return _session().submit(_invocation(function, spec), *bound.args, **bound.kwargs)

    return app


_invocations: dict[tuple[Callable[..., Any], int], tuple[Any, Any]] = {}


def _invocation(function: Callable[..., Any], spec: Any) -> Any:
    from glide.sweep.functions import NO_STATE, Invocation, State

    key = (function, id(spec))
    if key not in _invocations:
        template = spec["template"] if spec else None
        state = State(template["fn"], tuple(template["args"]), template["kwargs"]) if template else NO_STATE
        _invocations[key] = (Invocation(function, state), spec)  # the spec too, so that its id remains its own
    return _invocations[key][0]


@functools.cache
def _session() -> Any:
    from glide.sweep.session import Session

    return Session()
