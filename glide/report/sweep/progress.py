"""A sweep's progress while it runs, and its table when it has finished."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from glide.sweep.driver import Progress

LINE_SECONDS = 3.0  # where output is no terminal, a line this often


class Watch:
    """Shows progress with rate and ETA: in place on a terminal, else as lines. Use as a context manager."""

    def __init__(self, name: str):
        self.name = name
        self.console = Console(stderr=True)
        self.live = (
            Live(console=self.console, refresh_per_second=4, transient=True) if self.console.is_terminal else None
        )
        self.first: tuple[float, int] | None = None  # when records began to come in, and how many were there
        self.last_line = 0.0
        self.last_done = -1

    def __enter__(self) -> Watch:
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
            f"{self.name} {bar} {progress.done}/{progress.total}{errors}{self._pace(progress, now)}"
            f" | jobs: {progress.running} running, {progress.idle} idle | lanes: {lanes}"
            + (f" | {' '.join(progress.trouble.split())}" if progress.trouble else "")
        )

    def _pace(self, progress: Progress, now: float) -> str:
        if self.first is None or self.last_done < 0:
            self.first = (now, progress.done)
        elif progress.done == self.first[1]:
            self.first = (now, progress.done)  # the time before the first result says nothing about the pace
        since, before = self.first
        if progress.done == before or now == since:
            return ""
        rate = (progress.done - before) / (now - since)
        return f", {rate:.0f}/s, {(progress.total - progress.done) / rate:.0f} s to go"


def result_table(summary: dict[str, Any]) -> Group:
    """Prompts by accuracy, with throughput below."""
    seconds = summary["makespan_s"]
    total = sum(prompt["records"] for prompt in summary["prompts"].values())
    rate = (total - summary["resumed"]) / seconds if seconds else 0.0
    table = Table("prompt", "records", "errors", "accuracy")
    account = (
        f"{total} records in {seconds:.1f} s ({rate:.0f} records/s, {summary['tokens']} tokens) on"
        f" {sum(1 for glidein in summary['glideins'] if glidein['records'])} glideins, {summary['jobs']} jobs,"
        f" {summary['evictions']} evictions, {summary['recomputed']} recomputed"
    )
    for glidein, count in summary.get("rejected_by", {}).items():
        account += f"\n{count} lines from {glidein} were no valid results, and were ignored"
    ranked = sorted(summary["prompts"].items(), key=lambda item: -(item[1]["accuracy"] or 0))
    for name, prompt in ranked:
        accuracy = "-" if prompt["accuracy"] is None else f"{prompt['accuracy']:.3f}"
        table.add_row(name, str(prompt["records"]), str(prompt["errors"]), accuracy)
    return Group(Text(summary["name"], style="bold"), table, Text(account))
