"""Keep the present status of a template on this glidein. Advertise it, and report it in the outer job's ad."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from glide.server.log import log_line
from glide.server.outer_job import report_to_outer_job
from glide.server.status import Status
from glide.template import Template
from glide.vocabulary import State


class TemplateState:
    """The present status of a template. Each change of the state is logged and advertised.

    Args:
        changed: event that is set when the lanes must advertise the status soon.
        is_initial: whether the glidein was started for this template. If so, the outer job's ad gets the status.

    Attributes:
        status: the present status.
        settled: event that is set as soon as the template is warm or has failed.
        capacity: number of records that the engine should have at a time, so that it is never idle.
        listeners: functions that are called after each change of the state.
        ended: event that is set as soon as the template has failed or is stopped. It then serves no more jobs.
        reported_errors: value of `status.errors` at the last report to the outer job.
    """

    def __init__(self, template: Template, changed: asyncio.Event, is_initial: bool):
        service = template.service["url"] if template.service else ""
        self.status = Status(template=template.digest, model=template.model, service=service)
        self.changed = changed
        self.is_initial = is_initial
        self.capacity = 1
        self.listeners: list[Callable[[], None]] = []
        self.settled = asyncio.Event()
        self.ended = asyncio.Event()
        self.reported_errors = 0

    @property
    def failed(self) -> bool:
        return self.status.state == State.FAILED

    def enter(self, state: str, failure: str = "") -> None:
        """Change the state. If the new state is Warm or Failed, also report the status to the outer job.

        Args:
            failure: why the template has failed, or why its last engine ended; empty if nothing has gone wrong.
        """
        before = self.status.state
        self.status = self.status.entering(state, failure)
        log_line(f"{self.status.model} {state} {failure}")
        if state in (State.WARM, State.FAILED):
            self.settled.set()
            if state == State.FAILED:
                self.ended.set()
            # The end of a sleeping engine is no failure of the glidein, which serves another template.
            if not (state == State.FAILED and before == State.ASLEEP):
                self._report()
        self.changed.set()
        self._notify()

    def set_capacity(self, capacity: int) -> None:
        """Set the number of records that the engine should have at a time."""
        self.capacity = capacity
        self._notify()

    def _notify(self) -> None:
        for listener in self.listeners:
            listener()

    def update(self, **values: Any) -> None:
        """Replace some values of the status, but do not advertise the change immediately."""
        self.status = replace(self.status, **values)

    def describe_engine(self, prefix_hits: float, adapters: Iterable[str]) -> None:
        """Replace the facts about the loaded state that change while the engine serves records."""
        before = self.status.adapters
        self.update(prefix_hits=prefix_hits, adapters=",".join(adapters))
        if self.status.adapters != before:
            self.changed.set()

    def count_errors(self, errors: int) -> None:
        """Add `errors` to the status's number of errors."""
        if errors:
            self.update(errors=self.status.errors + errors)
            # Each report to the outer job is a transaction at the access point. So report only after the number of
            # errors has doubled.
            if self.status.errors >= 2 * self.reported_errors:
                self._report()

    def count_call(self, records: int, seconds: float) -> None:
        """Add an engine call to the status.

        Args:
            records: number of records in the call.
            seconds: duration of the call, as the engine's process reported it.
        """
        first = not self.status.served
        self.status = self.status.after_call(records, seconds)
        if first:
            self.changed.set()  # advertise the first speed immediately; drivers that know no speed send small jobs

    def _report(self) -> None:
        self.reported_errors = self.status.errors
        if self.is_initial:
            self.reporting = asyncio.create_task(report_to_outer_job(self.status))
