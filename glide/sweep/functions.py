"""Decorators for functions that load sticky state, and for functions that use this state (invocations).

The design follows StickyInvoc (Phung and Thain). The user only has to split an inference function into two functions.
The first function loads the state, and the second function infers with the loaded state.
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
from glide.template.canonical import CapturedValue
from glide.template.function import capture, pickled, template_of

TIMEOUT = 600.0  # default time limit of one call, in seconds


class Sticky:
    """A function decorated with `glide.sticky`. A call returns a StickyState instead of running the function."""

    def __init__(self, function: Callable[..., dict[str, Any]], environment: str | None = None):
        functools.update_wrapper(self, function)
        self.function = function
        self.environment = environment

    def __call__(self, *arguments: Any, **keywords: Any) -> StickyState:
        call = inspect.signature(self.function).bind(*arguments, **keywords)  # wrong arguments fail here, not on a node
        call.apply_defaults()  # a parameter's default value may be the path of a file that nodes need
        return StickyState(self.function, call.args, call.kwargs, environment=self.environment)


class StickyState:
    """A description of sticky state. To load the state, a glidein calls a function once.

    Args:
        function: the function that returns the state as a dict.
        arguments, keywords: the positional arguments and the keyword arguments of the function.
        name: name of the template; by default the function's name.
        environment: the Python environment on nodes, as in `sticky`. None means the node's own Python.
    """

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
    def local_value(self) -> dict[str, Any]:
        """The state, loaded in this process. The first access to this property loads the state."""
        return self.function(*self.arguments, **self.keywords)

    def template(self, owner: str) -> Template:
        """Return the template from which nodes load this state.

        Args:
            owner: name of the only user whose jobs may use glideins with this template.

        Raises:
            InputError, OSError: the function, its arguments or the environment cannot be sent to nodes.
        """
        template = template_of(self.name, self.function, self.arguments, self.keywords, owner)
        if self.environment is None:
            return template
        try:
            return replace(template, environment=environment(self.environment, Path()))
        except ValueError as error:
            raise InputError(f"the environment of {self.name}: {error}") from None


NO_STATE = StickyState(dict, (), {}, "stateless")


class Invocation:
    """A function that uses sticky state. The state is a dict.

    A parameter with the same name as a key of the state gets the value of this key. To try the function, call it
    directly: the call loads the state and runs the function in this process.
    """

    def __init__(self, function: Callable[..., Any], state: StickyState = NO_STATE, timeout: float = TIMEOUT):
        functools.update_wrapper(self, function)
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.function = function
        self.state = state
        self.timeout = timeout
        self.signature = _signature(function)
        self._generate = {"function": ""}

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        given = self.signature.bind_partial(*arguments, **keywords).arguments
        filled = {name: value for name, value in self.state.local_value.items() if name in self.signature.parameters}
        return self.function(*arguments, **{**{k: v for k, v in filled.items() if k not in given}, **keywords})

    def __reduce__(self) -> NoReturn:
        name = self.__name__
        raise TypeError(f"{name} has the decorator @glide.invocation, so a node cannot call it; use {name}.function")

    @property
    def generate(self) -> dict[str, str]:
        """The `generate` options for the python engine (glide.server.engines.python), with the pickled function.

        Helper functions may be redefined at any time, for example in a notebook. So each access to this property
        pickles the function again. As long as the pickled text stays the same, all accesses return the same dict.
        """
        text = pickled(self.function, self.__name__, self._captured)
        if text != self._generate["function"]:
            self._generate = {"function": text}
        return self._generate

    @functools.cached_property
    def _captured(self) -> CapturedValue:
        return capture(self.function, self.__name__)

    def prompt(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> str:
        """Return the pickled arguments of one call. They are the `prompt` of a record for the python engine.

        Raises:
            TypeError: the function does not take these arguments.
            InputError: the arguments cannot be pickled, or are too large.
        """
        self.signature.bind_partial(*arguments, **keywords)
        call, name = (arguments, dict(keywords)), f"the arguments of {self.__name__}"
        return pickled(call, name, capture(call, name))


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError:  # some builtin functions have no signature
        return inspect.signature(lambda *arguments, **keywords: None)


@overload
def sticky(function: Callable[..., dict[str, Any]]) -> Sticky: ...
@overload
def sticky(*, environment: str | None = None) -> Callable[[Callable[..., dict[str, Any]]], Sticky]: ...
def sticky(function: Callable[..., dict[str, Any]] | None = None, *, environment: str | None = None) -> Any:
    """Decorate a function that returns a dict. A glidein runs the function once, and then keeps the dict in memory.

    An argument of the function can be the path of an existing file or folder, as a Path or as a text with a slash. Then
    nodes get this file or folder, and the function gets its path on the node. The template's digest depends on the
    content of the file or folder, not on its path.

    Args:
        environment: the Python environment in which nodes run the function and its invocations: a packed environment,
            an image or a folder (see glide.files.environment). The environment and this process must have the same
            Python version. By default, the node's own Python is used.
    """
    return Sticky(function, environment) if function else functools.partial(Sticky, environment=environment)


def invocation(
    *, state: StickyState = NO_STATE, timeout: float = TIMEOUT
) -> Callable[[Callable[..., Any]], Invocation]:
    """Decorate a function so that `glide.Session` runs the function on glideins that have loaded `state`.

    Args:
        state: the return value of a call to a sticky function. By default, the function needs no state.
        timeout: time limit of one call, in seconds.
    """
    if not isinstance(state, StickyState):
        raise TypeError(f"state is a {type(state).__name__}; pass the return value of a call to a sticky function")
    return lambda function: Invocation(function, state, timeout)
