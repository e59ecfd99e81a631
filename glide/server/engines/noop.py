"""The noop engine: a public fake that takes known time and returns each prompt as its text.

For tests, benchmarks, and dry runs of a site: everything but the model is real. GLIDE_NOOP_PACE in a node's environment
is how many times as long all takes there: pools have nodes of several generations.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from glide.server.engines import Completion, Record
from glide.template import Template
from glide.vocabulary import State

PACE_VARIABLE = "GLIDE_NOOP_PACE"


class Poisoned(Exception):
    """A record that was to raise has raised."""


class Noop:
    """Serves `parallel` records at a time, each group taking `record_seconds`."""

    @dataclass(frozen=True)
    class Options:
        """
        load_seconds: how long loading takes, times GLIDE_NOOP_PACE where a node's environment has that.
        record_seconds: how long each record takes, times the same.
        parallel: how many records are served at the same time.
        raise_on: a record whose prompt contains this text raises.
        hang_on: one whose prompt contains this never returns.
        crash_on: one whose prompt contains this takes the engine's process down with a segmentation fault.
        hang_in: a phase on the way to Warm (Importing, Loading or Warming) that never ends.
        crash_in: one in which the engine's process goes down.
        """

        load_seconds: float = 0.0
        record_seconds: float = 0.0
        parallel: int = 1
        raise_on: str = ""
        hang_on: str = ""
        crash_on: str = ""
        hang_in: str = ""
        crash_in: str = ""

    def __init__(self, template: Template, options: Options):
        pace = float(os.environ.get(PACE_VARIABLE, "1"))
        self.options = replace(
            options, load_seconds=options.load_seconds * pace, record_seconds=options.record_seconds * pace
        )
        self.free_at = 0.0
        # Records that cost nothing go in one call; waiting for one by one would measure the pipe.
        self.batch = options.parallel if options.record_seconds else 1024
        self.window = max(1024, options.parallel)

    def prepare(self) -> None:
        self._pass(State.IMPORTING)

    def load(self, folder: str | None, phase: Callable[[str], None]) -> None:
        phase(State.LOADING)
        self._pass(State.LOADING)
        time.sleep(self.options.load_seconds)
        if State.WARMING in (self.options.hang_in, self.options.crash_in):
            phase(State.WARMING)
        self._pass(State.WARMING)

    def _pass(self, state: str) -> None:
        if state == self.options.hang_in:
            _hang()
        if state == self.options.crash_in:
            _crash()

    def plan(self, records: Sequence[Record]) -> list[list[Record]]:
        return [list(records[i : i + self.batch]) for i in range(0, len(records), self.batch)]

    def call(self, records: Sequence[Record]) -> list[Completion]:
        # By the clock, not by adding sleeps: each sleep overshoots by 0.1 ms and thousands would add up.
        now = time.monotonic()
        started = self.free_at if now - self.free_at < 0.005 else now
        self.free_at = started + self.options.record_seconds
        time.sleep(max(0.0, self.free_at - now))
        for record in records:
            self._misbehave(record.prompt)
        return [Completion(record.prompt, 0) for record in records]

    def _misbehave(self, prompt: str) -> None:
        options = self.options
        if options.raise_on and options.raise_on in prompt:
            raise Poisoned(f"the record contains {options.raise_on!r}")
        if options.hang_on and options.hang_on in prompt:
            _hang()
        if options.crash_on and options.crash_on in prompt:
            _crash()

    def describe(self) -> dict:
        return {}


def _hang() -> NoReturn:
    while True:
        time.sleep(1)


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
