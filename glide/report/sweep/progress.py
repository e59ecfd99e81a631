"""Show the progress of a sweep while it runs, and the table of its results at the end."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from glide.sweep.driver import Progress

LINE_SECONDS = 3.0  # seconds between two lines of progress, if the output is not a terminal


class ProgressDisplay:
    """Show a sweep's progress with throughput and ETA. Use an object of this class as a context manager.

    On a terminal, one line is updated in place. If stderr is not a terminal, new lines are printed.
    """

    def __init__(self, name: str):
        self.name = name
        self.console = Console(stderr=True)
        self.live = (
            Live(console=self.console, refresh_per_second=4, transient=True) if self.console.is_terminal else None
        )
        # Throughput is measured from this point: a monotonic time, and the number of results at that time.
        self.first: tuple[float, int] | None = None
        self.last_line = 0.0
        self.last_done = -1

    def __enter__(self) -> ProgressDisplay:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        line = self._line(progress, now)
        if self.live:
            self.live.update(Text(line))
        elif now - self.last_line >= LINE_SECONDS or (progress.done == progress.total != self.last_done):
            print(line, file=sys.stderr, flush=True)
            self.last_line = now
        self.last_done = progress.done

    def _line(self, progress: Progress, now: float) -> str:
        share = progress.done / progress.total
        bar = "█" * round(20 * share) + "·" * (20 - round(20 * share))
        lanes = ", ".join(f"{count} {state}" for state, count in progress.lanes.items()) or "none yet"
        errors = f", {progress.errors} errors" if progress.errors else ""
        return (
            f"{self.name} {bar} {progress.done}/{progress.total}{errors}{self._throughput(progress, now)}"
            f" | jobs: {progress.running} running, {progress.idle} idle | lanes: {lanes}"
            + (f" | {' '.join(progress.problem.split())}" if progress.problem else "")
        )

    def _throughput(self, progress: Progress, now: float) -> str:
        if self.first is None or self.last_done < 0:
            self.first = (now, progress.done)
        elif progress.done == self.first[1]:
            self.first = (now, progress.done)  # measure the throughput from the first new result on
        since, before = self.first
        if progress.done == before or now == since:
            return ""
        rate = (progress.done - before) / (now - since)
        return f", {rate:.0f} records/s, ETA {(progress.total - progress.done) / rate:.0f} s"


def result_table(summary: dict[str, Any]) -> Group:
    """Return the summary of a finished sweep: a table of its prompts, sorted by accuracy, and the totals below."""
    seconds = summary["makespan_s"]
    total = sum(prompt["records"] for prompt in summary["prompts"].values())
    rate = (total - summary["resumed"]) / seconds if seconds else 0.0
    table = Table("prompt", "records", "errors", "accuracy")
    totals = (
        f"{total} records in {seconds:.1f} s ({rate:.0f} records/s, {summary['tokens']} tokens) on"
        f" {sum(1 for glidein in summary['glideins'] if glidein['records'])} glideins, {summary['jobs']} jobs,"
        f" {summary['evictions']} evictions, {summary['recomputed']} recomputed"
    )
    for glidein, count in summary.get("rejected_by", {}).items():
        totals += f"\n{count} lines from {glidein} were ignored, because they are not valid results"
    ranked = sorted(summary["prompts"].items(), key=lambda item: -(item[1]["accuracy"] or 0))
    for name, prompt in ranked:
        accuracy = "-" if prompt["accuracy"] is None else f"{prompt['accuracy']:.3f}"
        table.add_row(name or "all", str(prompt["records"]), str(prompt["errors"]), accuracy)
    return Group(Text(summary["name"], style="bold"), table, Text(totals))
