"""Use glide for programs that were written for StickyInvoc, an extension of Parsl. Only one line of a program changes:

    from glide.parsl import load_variable_from_state_manager, python_app

A call of an app returns a future, as in Parsl. An app may have a parameter `parsl_spec`, which describes the state
that a call needs: `parsl_spec["template"]` is a dict with the keys "fn", "args" and "kwargs". All calls of a program
share one session (glide.Session), which begins with the first call and ends with the program.

Apps call `load_variable_from_state_manager` on nodes, so nodes import this module. Therefore it must not import
packages that nodes do not have.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from glide.server.engines.python import resident


def load_variable_from_state_manager(name: str) -> Any:
    """Return one value of the state that the running app uses. Call this only inside an app.

    Raises:
        KeyError: the template's function returned no value with this name.
    """
    if name not in resident:
        raise KeyError(f"the state has no {name!r}; it has {', '.join(sorted(resident)) or 'nothing'}")
    return resident[name]


def python_app(function: Callable[..., Any]) -> Callable[..., Future]:
    """Turn a function into an app. A call runs on a lane that has loaded the state that `parsl_spec` describes."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def app(*arguments: Any, **keywords: Any) -> Future:
        bound = signature.bind(*arguments, **keywords)
        spec = bound.arguments.get("parsl_spec")
        if spec is not None:
            # The function gets None as `parsl_spec`. It does not need the spec, because the state is already loaded.
            bound.arguments["parsl_spec"] = None
        return _session().submit(_invocation(function, spec), *bound.args, **bound.kwargs)

    return app


_invocations: dict[tuple[Callable[..., Any], int], tuple[Any, Any]] = {}


def _invocation(function: Callable[..., Any], spec: Any) -> Any:
    from glide.sweep.functions import NO_STATE, Invocation, StickyState

    key = (function, id(spec))
    if key not in _invocations:
        template = spec["template"] if spec else None
        state = StickyState(template["fn"], tuple(template["args"]), template["kwargs"]) if template else NO_STATE
        # The key contains id(spec). Keep a reference to the spec, so that Python does not delete the spec. Otherwise
        # another object could get the same id.
        _invocations[key] = (Invocation(function, state), spec)
    return _invocations[key][0]


@functools.cache
def _session() -> Any:
    from glide.sweep.session import Session

    return Session()
