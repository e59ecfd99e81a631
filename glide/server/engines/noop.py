"""The noop engine. It has no model, takes a known time, and returns each prompt as the generated text.

Use this engine in tests and benchmarks, and to try a site. Everything except the model is real. To imitate nodes of
different speeds, set the environment variable GLIDE_NOOP_PACE on a node to a number. On that node, the engine
multiplies all its times by the number.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from glide.server.engines.base import Completion, EngineRecord, choices_as_api, usage
from glide.template import Template
from glide.vocabulary import State

PACE_VARIABLE = "GLIDE_NOOP_PACE"


class Poisoned(Exception):
    """The prompt contains the text of the option `raise_on`."""


class Noop:
    """The noop engine. A call with up to `parallel` records takes `record_seconds` in total."""

    @dataclass(frozen=True)
    class Options:
        """
        load_seconds: time that loading takes, in seconds. It is multiplied by the value of GLIDE_NOOP_PACE, if this
            variable is set in the node's environment.
        record_seconds: time that each record takes, in seconds. It is also multiplied by GLIDE_NOOP_PACE.
        cost_in_prompt: whether records take different times. If so, each prompt must begin with a number and a space.
            The record's time is multiplied by this number.
        parallel: number of records that are served at the same time.
        raise_on: if a record's prompt contains this text, its call raises an error.
        hang_on: if a record's prompt contains this text, its call never returns.
        crash_on: if a record's prompt contains this text, the engine's process ends with a segmentation fault.
        hang_in: phase of loading that never ends (Importing, Loading or Warming).
        crash_in: phase of loading in which the engine's process crashes (Importing, Loading or Warming).
        """

        load_seconds: float = 0.0
        record_seconds: float = 0.0
        cost_in_prompt: bool = False
        parallel: int = 1
        raise_on: str = ""
        hang_on: str = ""
        crash_on: str = ""
        hang_in: str = ""
        crash_in: str = ""

    def __init__(self, template: Template, options: Options):
        slowdown = float(os.environ.get(PACE_VARIABLE, "1"))
        self.options = replace(
            options, load_seconds=options.load_seconds * slowdown, record_seconds=options.record_seconds * slowdown
        )
        self.adapters: dict[str, None] = {}  # names of the adapters that records have used
        self.free_at = 0.0  # the time at which the last call should end, as a value of time.monotonic()
        # If records take no time, use large calls. With small calls, a benchmark would mainly measure the messages.
        self.batch = options.parallel if options.record_seconds else 1024
        self.window = max(1024, options.parallel)
        self.on_text: Callable[[int, str], None] = lambda key, piece: None

    def use_adapters(self, folders: Mapping[str, str]) -> None:
        """Do nothing. The text of a record with an adapter begins with the adapter's name."""

    def prepare(self) -> None:
        self._enter_phase(State.IMPORTING)

    def load(self, folder: str | None, phase: Callable[[str], None]) -> None:
        phase(State.LOADING)
        self._enter_phase(State.LOADING)
        time.sleep(self.options.load_seconds)
        if State.WARMING in (self.options.hang_in, self.options.crash_in):
            phase(State.WARMING)
        self._enter_phase(State.WARMING)

    def _enter_phase(self, state: str) -> None:
        if state == self.options.hang_in:
            _hang()
        if state == self.options.crash_in:
            _crash()

    def plan(self, records: Sequence[EngineRecord]) -> list[list[EngineRecord]]:
        return [list(records[i : i + self.batch]) for i in range(0, len(records), self.batch)]

    def call(self, records: Sequence[EngineRecord]) -> list[Completion]:
        # A sleep lasts about 0.1 ms too long, and this error would add up over thousands of calls. So compute the time
        # at which this call should end, and sleep until that time.
        now = time.monotonic()
        started = self.free_at if now - self.free_at < 0.005 else now
        self.free_at = started + self.options.record_seconds * self._cost(records)
        self._stream([record for record in records if record.stream])
        time.sleep(max(0.0, self.free_at - time.monotonic()))
        self.adapters |= {record.adapter: None for record in records if record.adapter}
        for record in records:
            self._misbehave(_text(record))
        return [_completion(record) for record in records]

    def _stream(self, records: Sequence[EngineRecord]) -> None:
        """Send the words of texts one after the other, until the end of the call."""
        words = {record.key: re.findall(r"\s*\S+|\s+$", str(_completion(record).text)) for record in records}
        most = max(map(len, words.values()), default=0)
        for number in range(most):
            for key, own in words.items():
                if number < len(own):
                    self.on_text(key, own[number])
            time.sleep(max(0.0, self.free_at - time.monotonic()) / (most - number))

    def _cost(self, records: Sequence[EngineRecord]) -> float:
        """Return by which number the time of a call with these records is multiplied."""
        return max(float(_text(each).split()[0]) for each in records) if self.options.cost_in_prompt else 1.0

    def _misbehave(self, prompt: str) -> None:
        options = self.options
        if options.raise_on and options.raise_on in prompt:
            raise Poisoned(f"the prompt contains {options.raise_on!r}, the text of the option raise_on")
        if options.hang_on and options.hang_on in prompt:
            _hang()
        if options.crash_on and options.crash_on in prompt:
            _crash()

    def describe(self) -> dict:
        return {"adapters": list(self.adapters)}


def _text(record: EngineRecord) -> str:
    """Return the text that the engine uses as the prompt of a record.

    - If the record has one text, return this text.
    - If the record has messages, return the content of the last message.
    - If the record has a list of texts, return the last text.
    """
    if isinstance(record.prompt, str):
        return record.prompt
    last = record.prompt[-1]
    return str(last["content"] if isinstance(last, dict) else last)


def _completion(record: EngineRecord) -> Completion:
    if record.task == "embed":
        texts = record.prompt if isinstance(record.prompt, list) else [record.prompt]
        vectors = [[float(len(text))] for text in texts]
        only = {"embeddings": vectors} if isinstance(record.prompt, list) else {"embedding": vectors[0]}
        return Completion("", 0, {**only, "usage": usage(0, 0)})
    text = f"{record.adapter}: {_text(record)}" if record.adapter else _text(record)
    copies = int(record.generate.get("n") or 1)
    extra: dict[str, Any] = {"finish_reason": "stop", "usage": usage(0, 0)}
    if copies > 1:
        extra["choices"] = choices_as_api(isinstance(record.prompt, list), [(text, "stop", None)] * copies)
    return Completion(text, 0, extra)


def _hang() -> NoReturn:
    while True:
        time.sleep(1)


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
