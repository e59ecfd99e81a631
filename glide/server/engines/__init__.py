"""Engines: each turns a template into resident state and serves records from it, one file each.

An engine's module imports nothing heavy before `load`, so that an access point without torch can check
options. An engine need not catch a record's failure: the process around it isolates the culprit by calling again
with fewer records. One for which that costs more than time answers with `Completion.failed` for that record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from glide.template import Template

MESSAGE_LENGTH = 2000  # characters of an error's message


@dataclass(frozen=True)
class Record:
    """One prompt to serve. `key` is the server's own number for it, unique per server."""

    key: int
    prompt: str
    generate: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """What became of a record.

    Attributes:
        text: what was generated; None with an error.
        tokens: how many tokens that is.
        extra: further fields of the record's result.
        error: its type and message, where the engine itself knows which record of the call has failed.
    """

    text: str | None
    tokens: int
    extra: dict[str, Any] = field(default_factory=dict)
    error: dict[str, str] | None = None

    @classmethod
    def failed(cls, error: BaseException) -> Completion:
        """A record that has failed alone: what `call` raises instead has the others of the call served again."""
        return cls(None, 0, error=described(error))


def described(error: BaseException) -> dict[str, str]:
    """Return type and message of an exception, as a result has them, whatever its own methods do."""
    try:
        message = str(error)[:MESSAGE_LENGTH]
    except BaseException as another:
        message = f"its message cannot be had: {type(another).__name__}"
    return {"type": printable(type(error).__name__), "message": printable(message)}


def printable(text: str) -> str:
    """Return a text that can be encoded: a lone surrogate becomes its escape sequence."""
    return text.encode(errors="backslashreplace").decode()


class RecordError(Exception):
    """A record that this engine refuses; the class's name is the error's type in the results."""


class WrongOption(RecordError):
    """An option of `generate` has a value that can't work."""

    def __init__(self, option: str, why: str):
        super().__init__(f"{option}: {why}")
        self.option = option


class UnknownOption(WrongOption):
    """The engine has no such option of `generate`."""


class Engine(Protocol):
    """The one extension point.

    Attributes:
        batch: how many records make a good call; the server waits for no more than that.
        window: how many records it can make use of at once (to sort them by length, say).
    """

    batch: int
    window: int

    def prepare(self) -> None:
        """Import what loading needs, while the template's files are still coming."""

    def load(self, folder: str | None, phase: Callable[[str], None]) -> None:
        """Materialise the state of the files in a folder of this node, announcing Loading and Warming as they begin."""

    def plan(self, records: Sequence[Record]) -> list[list[Record]]:
        """Divide records into calls, in the order in which they are to be made."""

    def call(self, records: Sequence[Record]) -> list[Completion]:
        """Serve one call; any exception, BaseExceptions too, concerns these records and leaves the state as it was."""

    def describe(self) -> dict[str, Any]:
        """Facts about the loaded state for the machine ad: `gpu`, `batching`, and `prefix_hits` so far, where known."""


def engine_class(name: str) -> Any:
    """The class of an engine: called with a template it makes an Engine, and `.Options` is its options.

    Raises ValueError, naming those there are, when there is none of that name.
    """
    if name == "noop":
        from glide.server.engines.noop import Noop

        return Noop
    if name == "python":
        from glide.server.engines.python import Python

        return Python
    if name == "transformers":
        from glide.server.engines.transformers import Transformers

        return Transformers
    if name == "openai":
        from glide.server.engines.openai import OpenAI

        return OpenAI
    raise ValueError(f"no engine {name!r}; there are noop, openai, python and transformers")


def check_generate(engine: str, generate: Mapping[str, Any], folder: Path | None = None) -> None:
    """Check a sweep's options of `generate` before anything is submitted.

    Args:
        folder: the model's, where this machine has it.

    Raises:
        WrongOption: no record could be served with this option.
    """
    check = getattr(engine_class(engine), "check_generate", None)  # an engine without one, as noop, has no options
    if check is not None:
        check(generate, folder)


def build(template: Template) -> Engine:
    """The engine that a template asks for, not yet loaded."""
    chosen = engine_class("openai" if template.service else template.engine)
    return chosen(template, chosen.Options(**(template.service or template.options)))
