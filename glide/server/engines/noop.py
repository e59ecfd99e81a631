"""The noop engine: a public fake that takes known time and returns each prompt as its text.

For tests, benchmarks, and dry runs of a site: everything but the model is real.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from glide.server.engines import Completion, Record
from glide.template import Template
from glide.vocabulary import State


class Noop:
    """Serves `parallel` records at a time, each group taking `record_seconds`."""

    @dataclass(frozen=True)
    class Options:
        """Seconds to load, seconds per record, and how many records are served at the same time."""

        load_seconds: float = 0.0
        record_seconds: float = 0.0
        parallel: int = 1

    def __init__(self, template: Template, options: Options):
        self.options = options
        self.free_at = 0.0
        # Records that cost nothing go in one call; waiting for one by one would measure the pipe.
        self.batch = options.parallel if options.record_seconds else 1024
        self.window = max(1024, options.parallel)

    def load(self, phase: Callable[[str], None]) -> None:
        phase(State.LOADING)
        time.sleep(self.options.load_seconds)

    def plan(self, records: Sequence[Record]) -> list[list[Record]]:
        return [list(records[i : i + self.batch]) for i in range(0, len(records), self.batch)]

    def call(self, records: Sequence[Record]) -> list[Completion]:
        # By the clock, not by adding sleeps: each sleep overshoots by 0.1 ms and thousands would add up.
        now = time.monotonic()
        started = self.free_at if now - self.free_at < 0.005 else now
        self.free_at = started + self.options.record_seconds
        time.sleep(max(0.0, self.free_at - now))
        return [Completion(record.prompt, 0) for record in records]

    def describe(self) -> dict:
        return {}
