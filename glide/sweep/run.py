"""Run a sweep on the configured pool. Each model of the sweep has its own driver, and the drivers take turns."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from glide.condor import AccessPoint
from glide.condor.ports import configured_pool
from glide.errors import CondorError, GlideError
from glide.invoke.jobs import RunJobs, RunSpec
from glide.sweep.combined import combined_progress, combined_summary, write_summary
from glide.sweep.driver import Driver, Progress
from glide.sweep.outage import Outage, is_temporary
from glide.sweep.results import Results

_log = logging.getLogger("glide")


def drive(models: Sequence[Results], watch: Callable[[Progress], None]) -> dict[str, Any]:
    """Run a sweep and return the summary. After an interrupt or error, remove the sweep's jobs.

    If a model fails, the other models continue. The error is raised at the end.

    Args:
        models: the results of each model. They have the same sweep file.
        watch: a function that is called with the progress of all models after each cycle of a driver.

    Raises:
        TemplateError, CondorError, CondorRefused: in the same cases as Driver.step.
    """
    return _Run(models, watch).run()


class _Run:
    """One run of a sweep.

    Attributes:
        waiting: the models that have no driver yet.
        active: the drivers that take turns, by the name of their model.
        summaries: the summaries of the finished models, by name.
        progress: the latest progress of each model, by name.
        errors: the errors of the models that have failed.
        first_warm: time when the first lane of any model was warm (monotonic seconds); None before that.
    """

    def __init__(self, models: Sequence[Results], watch: Callable[[Progress], None]):
        self.results = {each.sweep.model: each for each in models}
        self.file = models[0].sweep.file
        self.watch = watch
        self.access_point = AccessPoint()
        self.waiting = [model for model, each in self.results.items() if not each.finished]
        self.active: dict[str, Driver] = {}
        self.summaries = {model: each.finished_summary() for model, each in self.results.items() if each.finished}
        self.progress = {
            model: Progress(each.total, len(each.done), each.errors) for model, each in self.results.items()
        }
        self.errors: list[GlideError] = []
        self.started = time.monotonic()
        self.first_warm: float | None = None

    def run(self) -> dict[str, Any]:
        try:
            while self.waiting or self.active:
                self._start_drivers()
                for model in list(self.active):
                    self._take_turn(model)
                for driver in self.active.values():
                    driver.wait(1 / len(self.active))
        except (KeyboardInterrupt, GlideError):  # for example, the access point does not answer when a driver starts
            for model in list(self.active):
                self._stop(model)
            raise
        if self.errors:
            raise self.errors[0]
        if "" in self.summaries:
            return self.summaries[""]
        now = time.monotonic()
        summary = combined_summary(
            self.file.name, {model: self.summaries[model] for model in self.results},
            now - self.started, now - (self.first_warm or now),
        )  # fmt: skip
        write_summary(next(iter(self.results.values())), summary)
        return summary

    def _start_drivers(self) -> None:
        """Start drivers for waiting models, and divide the sweep's glideins between the drivers.

        Each driver needs at least one glidein. So the number of drivers is at most the number of glideins.
        """
        while self.waiting and len(self.active) < self.file.glideins:
            model = self.waiting.pop(0)
            self.active[model] = _driver(self.results[model], self.access_point)
        for number, driver in enumerate(self.active.values()):
            each, rest = divmod(self.file.glideins, len(self.active))
            driver.limit_glideins(each + (number < rest))

    def _take_turn(self, model: str) -> None:
        driver, results = self.active[model], self.results[model]
        try:
            account = driver.step(lambda progress: self._show(model, progress))
            if driver.first_warm is not None:
                self.first_warm = min(self.first_warm or driver.first_warm, driver.first_warm)
            if account is not None:
                self.summaries[model] = _finish(results, {"name": self.file.name, **account})
                results.history.close("finished")
                del self.active[model]
        except GlideError as error:
            self._stop(model)
            self.errors.append(error)
            if self.waiting or self.active:
                _log.warning("model %s has failed, and the other models continue: %s", model, error)

    def _show(self, model: str, progress: Progress) -> None:
        self.progress[model] = progress
        self.watch(combined_progress(self.progress))

    def _stop(self, model: str) -> None:
        self.active.pop(model).stop("the sweep was stopped")
        with suppress(OSError):  # the disk may be full
            self.results[model].history.close("stopped")


def _driver(results: Results, access_point: AccessPoint) -> Driver:
    """Return a driver for the records of one model."""
    sweep = results.sweep
    results.template = sweep.template.for_user(lambda: access_point.user)
    run = RunSpec(
        results.run, results.template, sweep.out / ".glide" / "parts", sweep.file.glideins,
        max_result_bytes=results.max_result_bytes, check_result=results.check_result, accounting=sweep.file.accounting,
    )  # fmt: skip
    pool = configured_pool(access_point)
    if results.abandoned_run:
        with suppress(CondorError):
            abandoned = RunJobs(replace(run, name=results.abandoned_run), access_point, pool.job_folders)
            abandoned.remove(abandoned.queue(), "its sweep was started over")
    driver = Driver(results, run, pool)
    results.history.begin(run=run.name, total=sweep.total, done=results.resumed)
    return driver


def _finish(results: Results, account: dict[str, Any]) -> dict[str, Any]:
    """Put the results in input order and write the summary. If the disk is full, wait and try again."""
    outage = Outage(results.run, lambda: None)
    while True:
        try:
            summary = results.finish(account)
            outage.end()
            return summary
        except OSError as error:
            if not is_temporary(error):
                raise
            outage.wait(error, lambda: False)
