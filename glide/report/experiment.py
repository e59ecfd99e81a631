"""What an experiment leaves: its numbers with machine, versions and command as JSON, a table, and a figure."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from glide.report.sweep.figures import DOTS

PACKAGES = ("glide", "htcondor", "torch", "transformers")


@dataclass(frozen=True)
class Measured:
    """A number that was measured more than once.

    Attributes:
        runs: each run's value, in the order of the runs.
        unit: as it is printed behind the number; `×` for a ratio, which is of two numbers of the same run.
    """

    runs: tuple[float, ...]
    unit: str = ""

    @property
    def median(self) -> float:
        return median(self.runs)

    def __str__(self) -> str:
        """The median, and the least and the most of the runs where there are several."""
        told = number(self.median, self.unit)
        if len(self.runs) > 1:
            told += f" ({number(min(self.runs))}–{number(max(self.runs))})"
        return told


@dataclass(frozen=True)
class Comparison:
    """What somebody else has measured elsewhere, beside what was measured here.

    Attributes:
        what: in words.
        paper: their number; None where they name none.
        unit: of both.
        here: the same on this machine; None where it was not run here.
        simulated: the same by `glide simulate`; None where it was not.
        better: whether here it should be at least (`more`) or at most (`less`) that; empty where neither.
        goal: what it should be so, where that is not their number.
    """

    what: str
    paper: float | None
    unit: str = ""
    here: Measured | None = None
    simulated: float | None = None
    better: str = ""
    goal: float | None = None


@dataclass
class Experiment:
    """An experiment's account.

    Attributes:
        name: of its files.
        title, question: one line each.
        columns, rows: its table, as it is to be read; cells are texts, numbers or Measured.
        compared: its numbers beside others'.
        notes: what a reader has to know, a sentence each; what falls short first.
        data: what the figure is made of, for those who want to make another.
    """

    name: str
    title: str
    question: str
    columns: Sequence[str] = ()
    rows: list[Sequence[Any]] = field(default_factory=list)
    compared: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.time)

    def leave(self, folder: Path, figure: Figure) -> None:
        """Write NAME.json, NAME.md (the table) and NAME.png, and print the table."""
        rows = [[_cell(cell) for cell in row] for row in self.rows]
        told: dict[str, Any] = {
            "name": self.name, "title": self.title, "question": self.question, "command": command(),
            "date": time.strftime("%Y-%m-%d", time.gmtime(self.began)), "seconds": round(time.time() - self.began),
            "machine": machine(), "versions": versions(), "commit": commit(), "columns": list(self.columns),
            "rows": rows,
            "compared": [{**asdict(each), "here": each.here and list(each.here.runs)} for each in self.compared],
            "notes": self.notes, "data": self.data,
        }  # fmt: skip
        (folder / f"{self.name}.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", "utf-8")
        (folder / f"{self.name}.md").write_text(table(self.columns, rows), "utf-8")
        figure.savefig(folder / f"{self.name}.png", dpi=DOTS // 2)
        print((folder / f"{self.name}.md").read_text("utf-8"))
        print(f"{self.name}: {told['seconds']} s; written to {folder}", file=sys.stderr)


def arguments(what: str, name: str, takes: str, repeat: int | None = None) -> argparse.ArgumentParser:
    """What all experiments' commands have in common; one that is told to end stops what it has started, too.

    Args:
        what: the command's description.
        name: the experiment's.
        takes: how long it runs on two cores, and what it starts there.
        repeat: how often each measurement is made, by default; None where it comes out the same each time.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(
        description=what, epilog=f"{takes} One that was interrupted leaves nothing, and begins anew.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=writable, default=f"results/{name}", help="folder for JSON, table and figure")
    if repeat:
        parser.add_argument("--repeat", type=positive, default=repeat, help="runs of each measurement")
    return parser


def positive(text: str) -> int:
    """A whole number above 0, of a command line."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def writable(text: str) -> Path:
    """A folder that is there from now on: an experiment that can't leave its numbers does not begin."""
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
    except OSError as why:
        raise argparse.ArgumentTypeError(f"{text}: {why.strerror}") from None
    return Path(text)


def number(value: float, unit: str = "") -> str:
    """A number with three digits that count."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    space = "" if unit in ("×", "%", "") else " "
    return f"{value:,.{digits}f}{space}{unit}"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """As Markdown; columns of numbers stand right."""
    cells = [[str(cell) for cell in row] for row in rows]
    numbers = [all(not row[at] or row[at][0] in "+-–≥≤≈*0123456789" for row in cells) for at in range(len(columns))]
    lines = [columns, ["--:" if each else "---" for each in numbers], *cells]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def machine() -> dict[str, Any]:
    """This machine, in what decides how fast something is here."""
    return {
        "cpu": _processor(), "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpus": _gpus(), "system": f"{platform.system()} {platform.machine()}",
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Of the packages that matter, and of Python."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def commit() -> str:
    """Of the working tree that this runs from, with a word where it was changed; empty where there is none."""
    with suppress(OSError):
        words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=, changed"]
        return subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace").stdout.strip()
    return ""


def command() -> str:
    """What was typed, without where anything lies on this machine."""
    script, words = Path(sys.argv[0]), iter(sys.argv[1:])
    with suppress(ValueError):
        script = script.resolve().relative_to(Path.cwd())
    kept = [word for word in words if not word.startswith("--out=") and not (word == "--out" and next(words, word))]
    return shlex.join([".venv/bin/python", str(script), *kept])


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _gpus() -> list[str]:
    with suppress(OSError):
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        return [line.strip() for line in told.stdout.splitlines()] if told.returncode == 0 else []
    return []


def _cell(cell: Any) -> str:
    if isinstance(cell, float):
        return number(cell)
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
