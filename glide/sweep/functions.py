"""Python functions as sticky state and as invocations of it.

After StickyInvoc (Phung and Thain): the user splits `infer` into what loads and what infers, and no more.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, overload

from glide.errors import InputError
from glide.files.environment import environment
from glide.template import Template
from glide.template.canonical import Known
from glide.template.function import known, pickled, template_of

TIMEOUT = 600.0  # seconds that a call may take, unless its invocation says something else


class Sticky:
    """A function that makes state: called, it is not run, but describes the state (`glide.sticky`)."""

    def __init__(self, function: Callable[..., dict[str, Any]], environment: str | None = None):
        functools.update_wrapper(self, function)
        self.function = function
        self.environment = environment

    def __call__(self, *arguments: Any, **keywords: Any) -> State:
        call = inspect.signature(self.function).bind(*arguments, **keywords)  # wrong here already, not on a node
        call.apply_defaults()  # which may name files too
        return State(self.function, call.args, call.kwargs, environment=self.environment)


class State:
    """What a sticky function makes of its arguments, on each node that needs it, once."""

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        keywords: Mapping[str, Any],
        name: str = "",
        environment: str | None = None,
    ):
        self.name = name or function.__name__
        self.function = function
        self.arguments = arguments
        self.keywords = keywords
        self.environment = environment

    @functools.cached_property
    def here(self) -> dict[str, Any]:
        """The state in this process, made on first use."""
        return self.function(*self.arguments, **self.keywords)

    def template(self, owner: str) -> Template:
        """How nodes know it; InputError or OSError when it cannot be sent to them."""
        template = template_of(self.name, self.function, self.arguments, self.keywords, owner)
        if self.environment is None:
            return template
        try:
            return replace(template, environment=environment(self.environment, Path()))
        except ValueError as error:
            raise InputError(f"the environment of {self.name}: {error}") from None


NO_STATE = State(dict, (), {}, "stateless")


class Invocation:
    """A function that uses sticky state: parameters named like the state's keys are filled from it.

    Called directly it runs in this process, on state of this process: for trying out.
    """

    def __init__(self, function: Callable[..., Any], state: State = NO_STATE, timeout: float = TIMEOUT):
        functools.update_wrapper(self, function)
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.function = function
        self.state = state
        self.timeout = timeout
        self.signature = _signature(function)
        self._generate = {"function": ""}

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        given = self.signature.bind_partial(*arguments, **keywords).arguments
        filled = {name: value for name, value in self.state.here.items() if name in self.signature.parameters}
        return self.function(*arguments, **{**{k: v for k, v in filled.items() if k not in given}, **keywords})

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self.__name__} is an invocation, and a node calls functions: use {self.__name__}.function")

    @property
    def generate(self) -> dict[str, str]:
        """What records of the python engine have with them (glide.server.engines.python).

        The function as it is now: helpers may have been redefined, in a notebook say. One object while it is the same.
        """
        text = pickled(self.function, self.__name__, self._known)
        if text != self._generate["function"]:
            self._generate = {"function": text}
        return self._generate

    @functools.cached_property
    def _known(self) -> Known:
        return known(self.function, self.__name__)

    def prompt(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> str:
        """The same for one call; TypeError when the function does not take such arguments, InputError as `pickled`."""
        self.signature.bind_partial(*arguments, **keywords)
        call, name = (arguments, dict(keywords)), f"the arguments of {self.__name__}"
        return pickled(call, name, known(call, name))


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError:  # a builtin function that does not tell
        return inspect.signature(lambda *arguments, **keywords: None)


@overload
def sticky(function: Callable[..., dict[str, Any]]) -> Sticky: ...
@overload
def sticky(*, environment: str | None = None) -> Callable[[Callable[..., dict[str, Any]]], Sticky]: ...
def sticky(function: Callable[..., dict[str, Any]] | None = None, *, environment: str | None = None) -> Any:
    """Make a function that returns a dict one of sticky state: run once per glidein, its values kept in memory.

    Arguments that name files (a Path, or a text with a slash, of something that is there) count by their content, and
    are where the files lie on the node.

    Args:
        environment: what it and its invocations run in on nodes, by default their own Python: a packed environment, an
            image, or a folder (glide.files.environment), with the Python version of this process.
    """
    return Sticky(function, environment) if function else functools.partial(Sticky, environment=environment)


def invocation(*, state: State = NO_STATE, timeout: float = TIMEOUT) -> Callable[[Callable[..., Any]], Invocation]:
    """Make a function one that runs where `state` is warm, by `glide.Session`.

    Args:
        timeout: seconds that a call may take.
    """
    if not isinstance(state, State):
        raise TypeError(f"state is a {type(state).__name__}; it is what a function decorated with glide.sticky returns")
    return lambda function: Invocation(function, state, timeout)
