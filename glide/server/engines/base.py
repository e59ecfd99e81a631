"""The interface of an engine, and the classes for the records, outcomes and errors that all engines use."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

INTERRUPT = signal.SIGUSR1  # signal that makes the running call raise RecordTimeout
MESSAGE_LENGTH = 2000  # maximum length of an error message in a result, in characters


@dataclass(frozen=True)
class EngineRecord:
    """A record that an engine serves.

    Attributes:
        key: number that the server gives to the record. The number is unique while the engine's process lives.
        prompt: the record's text, or the messages of a chat (a list of dicts with `role` and `content`). For
            embeddings, it may also be a list of texts.
        generate: the record's options of `generate`. Records that the server passes to `plan` together may differ in
            these options.
        task: "embed" if the record asks for embeddings, "complete" if its prompt must not become a chat message; empty
            if the engine's options decide.
        adapter: name of the LoRA adapter with which the record is computed; empty for the model itself.
        live: whether somebody waits for this single record. An engine should serve such records first.
        stream: whether the text is wanted in pieces, while it is generated. An engine may ignore this.
    """

    key: int
    prompt: str | list[Any]
    generate: dict[str, Any] = field(default_factory=dict)
    task: str = ""
    adapter: str = ""
    live: bool = False
    stream: bool = False


@dataclass(frozen=True)
class Completion:
    """The outcome of serving one record.

    Attributes:
        text: the generated text; empty if the engine generates no text; None if the record failed.
        tokens: number of generated tokens; 0 if the record failed; None if it is unknown.
        extra: further fields of the record's result. Their values must be writable as JSON.
        error: the error's type and message, as `error_fields` returns them; None if the record did not fail.
    """

    text: str | None
    tokens: int | None
    extra: dict[str, Any] = field(default_factory=dict)
    error: dict[str, str] | None = None

    @classmethod
    def failed(cls, error: BaseException) -> Completion:
        """Return the outcome of a record that failed.

        The other records of the call keep their outcomes. If `call` raised the error instead, the server would serve
        the other records again.
        """
        return cls(None, 0, error=error_fields(error))


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Return the field `usage` of a result.

    Args:
        prompt_tokens: number of tokens of the prompt.
        completion_tokens: number of tokens of all texts together.
    """
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}


def choices_as_api(
    is_chat: bool, texts: Sequence[tuple[str, str, list[dict[str, Any]] | None]]
) -> list[dict[str, Any]]:
    """Return the field `choices` of a result, as in OpenAI's API.

    Args:
        is_chat: whether the record has messages. Then the choices are those of a chat completion.
        texts: one tuple for each generated text. The tuple has the text, the finish reason, and the log probabilities
            of the tokens. The log probabilities have the form of `logprobs.content` in a chat completion. None: the
            record asks for no log probabilities.
    """
    choices = []
    for index, (text, reason, logprobs) in enumerate(texts):
        content = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        shown = None if logprobs is None else {"content": logprobs} if is_chat else _completion_logprobs(logprobs)
        choices.append({"index": index, **content, "finish_reason": reason, "logprobs": shown})
    return choices


def _completion_logprobs(content: list[dict[str, Any]]) -> dict[str, Any]:
    """Convert log probabilities of the form of a chat completion to the form of a completion."""
    tokens = [entry["token"] for entry in content]
    starts = accumulate(map(len, tokens), initial=0)
    return {
        "tokens": tokens,
        "token_logprobs": [entry["logprob"] for entry in content],
        # Several tokens can have the same text, for example if each token is only a part of a character. The dict then
        # has only the most probable one of these tokens.
        "top_logprobs": [
            {each["token"]: each["logprob"] for each in reversed(entry["top_logprobs"])} for entry in content
        ],
        "text_offset": [start for start, _ in zip(starts, tokens, strict=False)],
    }


def error_fields(error: BaseException) -> dict[str, str]:
    """Return the type and the message of an exception, as fields of a result.

    The message has at most MESSAGE_LENGTH characters. This function works even if the exception's own methods raise
    errors.
    """
    try:
        message = str(error)[:MESSAGE_LENGTH]
    except BaseException as another:
        message = f"no message: str() of the exception raised {type(another).__name__}"
    return {"type": printable(type(error).__name__), "message": printable(message)}


def printable(text: str) -> str:
    """Replace each lone surrogate in a text by its escape sequence, so that UTF-8 can encode the text."""
    return text.encode(errors="backslashreplace").decode()


class RecordError(Exception):
    """Base class of errors for records that cannot be served. The result gets the name of the error's class."""


class WrongOption(RecordError):
    """An option of `generate` has a value that cannot work.

    Args:
        option: name of the option.
        why: why the value cannot work, and what the user can do.
    """

    def __init__(self, option: str, why: str):
        super().__init__(f"{option}: {why}")
        self.option = option


class UnknownOption(WrongOption):
    """The engine has no option of `generate` with this name."""


class RecordTimeout(Exception):
    """An engine call took longer than the largest timeout of its records."""


class Loadable(Protocol):
    """The part of an engine's interface that all engines have. It loads the state, and describes it.

    An engine is an Engine or a ConcurrentEngine. New engines are the only way to extend the model server.

    In addition to the members of this class, an engine's class has these members:

    - `Options`: a frozen dataclass with the engine's options. Each option has a type and a default. The docstring of
      `Options` has one entry `name: meaning` for each option. docs/generate.py copies these entries to the reference.
      `Options.__post_init__` may raise ValueError if a value cannot work.
    - a constructor with two arguments, the template and an instance of `Options`. The constructor must be quick.
    - optionally, the method `use_adapters(folders)`, if the engine can use LoRA adapters. Its argument is a dict from
      the name of each adapter to the folder of its files on this node. It runs before `load`. Without adapters, it does
      not run. Each record names an adapter of this dict, or none.
    - optionally, the attribute `can_sleep` and the methods `sleep()` and `wake()`. The methods run only while the
      engine has no records. `sleep` frees the memory of the GPUs, but keeps the state. `wake` makes the engine ready
      again. Both return the memory that the state then takes in MB, or None if they failed.
    - optionally, for an Engine, the attribute `on_text`. It is set to a function that an engine calls as
      `on_text(key, piece)` with each piece of a record's text, if the record's `stream` is true.
    - optionally, the static method `check_generate(generate, folder)`. It has the same arguments and errors as the
      function `check_generate` of glide.server.engines. An engine without this method accepts every option of
      `generate`.

    Attributes:
        batch: number of records that the engine serves efficiently together. The model server advertises this number.
        window: limit of the records that the engine gets. Engine and ConcurrentEngine explain it.
    """

    batch: int
    window: int

    def prepare(self) -> None:
        """Import the packages that loading and serving need.

        `prepare` runs once, before `load`. It must not read the template's files, because the files may not be on this
        node yet.

        Raises:
            Exception: the template cannot be loaded on this node. The server reports the last line of the traceback.
        """

    def load(self, folder: str | None, phase: Callable[[str], None]) -> None:
        """Load the state and make it ready to serve. When `load` returns, the lane becomes Warm.

        `load` runs once, after `prepare`. The process is killed if a phase exceeds its time limit (Template.budget).

        Args:
            folder: the folder on this node with the template's files; None for a template without files.
            phase: function that reports the current phase. Call this function with State.LOADING at the beginning. If
                the engine makes trial calls, call the function with State.WARMING when the files are loaded and the
                trial calls begin.

        Raises:
            TemplateError: the template cannot be loaded. The message says why.
            Exception: any other error has the same effect as TemplateError.
        """

    def describe(self) -> dict[str, Any]:
        """Return facts about the loaded state for the machine ad.

        `describe` runs once after `load`, and again after each list of records. So it must be quick.

        Returns:
            A dict that may be empty. The server reads these keys only once, after `load`:

            - `gpu`: name of the GPU.
            - `batching`: how records are batched.
            - `megabytes`: memory that the state takes, in MB. Without this key, the server uses the process's memory.

            The server reads these keys each time:

            - `adapters`: names of the LoRA adapters that are in memory.
            - `prefix_hits`: number of prompt tokens that came from a cache, divided by the number of all prompt tokens.
              Both numbers are counted since `load`.
        """


class Engine(Loadable, Protocol):
    """An engine that makes one call at a time. Each call serves one or more records.

    Attributes:
        batch: number of records in an efficient call. Until the server has measured the throughput, it sends this
            number of records in a message. The server also advertises this number.
        window: maximum number of records that `plan` gets at a time. `window` must not be smaller than `batch`. With a
            larger window, the engine can, for example, sort more records by length. But the records of a job then wait
            longer while the records of other jobs are served.
    """

    def plan(self, records: Sequence[EngineRecord]) -> list[list[EngineRecord]]:
        """Divide records into calls.

        `plan` runs after `load`, and never during a call. It may store values for the calls that follow.

        Args:
            records: one or more records, at most `window`. They may come from several jobs.

        Returns:
            The calls, in the order in which they are made. A call has one or more records. Each record must be in
            exactly one call.

        Raises:
            BaseException: an error of any kind. The server ignores the error, and runs `call` with each record alone.
        """

    def call(self, records: Sequence[EngineRecord]) -> list[Completion]:
        """Serve the records of one call.

        `call` runs after `load`. If `call` raises an error, the server runs `call` again with each half of the records.
        The halves are divided further until each failing record is alone. `call` must not change the state, even if
        `call` raises an error.

        The server raises RecordTimeout inside a call in two cases:

        - The call has taken longer than the longest timeout of its records.
        - All jobs that sent records of this call have ended. So no job needs the outcomes.

        The exception is raised in the main thread, once a second until the call ends. While native code runs, the
        exception is delayed. An engine may catch RecordTimeout and return the outcomes that it has. If the call has not
        ended 5 seconds after the longest timeout, the server kills the process.

        Args:
            records: the records to serve. They are one of these:

                - all records of a call that the last `plan` returned
                - some records of such a call, after `call` has raised an error for the whole call
                - a single record, if `plan` has raised an error

        Returns:
            One outcome for each record, in the order of the records.

        Raises:
            BaseException: an error of any kind, including SystemExit and RecordTimeout. If the call has only one
                record, the error is written into the record's result. Other calls are not affected.
        """


class Reports(Protocol):
    """Receives the starts, pauses and outcomes of records from a ConcurrentEngine. Any thread may call its methods."""

    def started(self, keys: Sequence[int]) -> None:
        """Report that the engine begins to serve records. The records' timeouts begin now.

        If the engine's process ends, one of the started records may be the cause. If an engine serves a record again,
        it reports a further start.
        """

    def paused(self, keys: Sequence[int]) -> None:
        """Report that started records wait again. The engine will report another start for each of them."""

    def text(self, key: int, piece: str | None) -> None:
        """Report the next piece of a record's text. None: the text begins again, so earlier pieces do not count."""

    def done(self, key: int, completion: Completion) -> None:
        """Report the outcome of a record. Each record has exactly one outcome."""


class ConcurrentEngine(Loadable, Protocol):
    """An engine that serves many records at the same time. New records begin as soon as others have ended.

    Attributes:
        batch: number of records that the engine should have in flight.
        window: maximum number of records that the engine has at a time: records that it serves now, and records that
            wait so that the engine is never idle.
    """

    def submit(self, records: Sequence[EngineRecord], reports: Reports) -> None:
        """Accept records, and return immediately.

        Args:
            records: the records to serve.
            reports: object that gets the starts and the outcomes of the records. It is always the same object.
        """

    def cancel(self, late: Sequence[int], unwanted: Sequence[int]) -> None:
        """Stop serving records. The engine still reports their outcomes, with the error RecordTimeout.

        If a late record shares an HTTP request with other records, the engine sends these records again in smaller
        requests. So a late record may get no outcome yet.

        Args:
            late: keys of records whose timeout is over.
            unwanted: keys of records whose jobs have ended, so that nobody needs the outcomes.
        """
