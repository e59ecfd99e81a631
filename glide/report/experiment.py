"""Write the output of an experiment: a JSON file, a table and a figure.

The JSON file has the measured numbers, a description of the machine, the versions of packages, and the command line.
"""

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
class Measurement:
    """A number that was measured one or more times.

    Attributes:
        runs: the measured values, in the order of their measurement.
        unit: the unit, which is printed after the number. If the unit is `×`, each value is a ratio of two numbers. The
            two numbers were measured together.
    """

    runs: tuple[float, ...]
    unit: str = ""

    @property
    def median(self) -> float:
        return median(self.runs)

    def __str__(self) -> str:
        """Return the median as text. If the number was measured in several runs, add the minimum and the maximum."""
        text = number(self.median, self.unit)
        if len(self.runs) > 1:
            text += f" ({number(min(self.runs))}–{number(max(self.runs))})"
        return text


@dataclass(frozen=True)
class Comparison:
    """A number from a paper, beside the same number measured on this machine.

    Attributes:
        what: a phrase that describes the number.
        paper: the number in the paper; None if the paper does not give it.
        unit: the unit of all numbers.
        here: the number measured on this machine; None if it was not measured.
        simulated: the number that `glide simulate` predicts; None if it was not simulated.
        better: the kind of goal for `here`.
            `more`: `here` should be at least the goal.
            `less`: `here` should be at most the goal.
            Empty: the comparison has no goal.
        goal: the goal as a number. If `goal` is None, the paper's number is the goal.
    """

    what: str
    paper: float | None
    unit: str = ""
    here: Measurement | None = None
    simulated: float | None = None
    better: str = ""
    goal: float | None = None

    @property
    def aim(self) -> float | None:
        """The goal as a number: `goal`, or else the paper's number."""
        return self.paper if self.goal is None else self.goal

    @property
    def met(self) -> bool:
        """Whether the median of `here` meets the goal. Without a goal or a measurement, nothing is missed."""
        if self.here is None or self.aim is None or not self.better:
            return True
        return self.here.median >= self.aim if self.better == "more" else self.here.median <= self.aim


@dataclass
class Experiment:
    """The results of an experiment.

    Attributes:
        name: name of the output files, without a suffix.
        title: title of the experiment, in one line.
        question: the question that the experiment answers, in one line.
        columns: the headings of the table.
        rows: the rows of the table. A cell is a text, a number or a Measurement.
        compared: numbers of this experiment beside those of a paper.
        notes: facts that a reader must know, one sentence each. Missed goals come first.
        data: the numbers that the figure shows, so that other figures can be made from them.
        began: Unix time when the experiment began.
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

    def write(self, folder: Path, figure: Figure) -> None:
        """Write NAME.json, NAME.md (the table) and NAME.png (the figure) into a folder, and print the table."""
        rows = [[_cell(cell) for cell in row] for row in self.rows]
        document: dict[str, Any] = {
            "name": self.name, "title": self.title, "question": self.question, "command": command(),
            "date": time.strftime("%Y-%m-%d", time.gmtime(self.began)), "seconds": round(time.time() - self.began),
            "machine": machine(), "versions": versions(), "commit": commit(), "columns": list(self.columns),
            "rows": rows,
            "compared": [{**asdict(each), "here": each.here and list(each.here.runs)} for each in self.compared],
            "notes": self.notes, "data": self.data,
        }  # fmt: skip
        (folder / f"{self.name}.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
        (folder / f"{self.name}.md").write_text(table(self.columns, rows), "utf-8")
        figure.savefig(folder / f"{self.name}.png", dpi=DOTS // 2)
        print((folder / f"{self.name}.md").read_text("utf-8"))
        print(f"{self.name}: {document['seconds']} s; written to {folder}", file=sys.stderr)


def arguments(what: str, name: str, takes: str, repeat: int | None = None) -> argparse.ArgumentParser:
    """Return an argument parser with the options that all experiments have.

    This function also makes SIGTERM act like Ctrl-C. So SIGTERM ends the experiment and all processes that it started.

    Args:
        what: description of the experiment, for the help.
        name: name of the experiment.
        takes: sentences for the end of the help. They tell how long the experiment takes on two cores, and what it
            starts.
        repeat: default number of runs of each measurement; None if all runs of the experiment give the same numbers.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(
        description=what, epilog=f"{takes} An interrupted experiment writes no results and starts from the beginning.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=writable, default=f"results/{name}", help="folder for JSON, table and figure")
    if repeat:
        parser.add_argument("--repeat", type=positive, default=repeat, help="runs of each measurement")
    return parser


def positive(text: str) -> int:
    """Parse a command-line argument that must be a whole number above 0.

    Raises:
        ValueError: the text is not a whole number above 0.
    """
    if (number := int(text)) < 1:
        raise ValueError
    return number


def writable(text: str) -> Path:
    """Create the folder that a command-line argument names, and return its path.

    If the folder cannot be created, the experiment ends before it measures anything.

    Raises:
        argparse.ArgumentTypeError: the folder cannot be created.
    """
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
    except OSError as why:
        raise argparse.ArgumentTypeError(f"{text}: {why.strerror}") from None
    return Path(text)


def number(value: float, unit: str = "") -> str:
    """Return a number as text with about three significant digits, followed by the unit."""
    digits = 0 if value == 0 or abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    space = "" if unit in ("×", "%", "") else " "
    return f"{value:,.{digits}f}{space}{unit}"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table. Columns of numbers are aligned to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    numbers = [all(not row[at] or row[at][0] in "+-–≥≤≈*0123456789" for row in cells) for at in range(len(columns))]
    lines = [columns, ["--:" if each else "---" for each in numbers], *cells]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def machine() -> dict[str, Any]:
    """Return the properties of this machine that determine its speed."""
    return {
        "cpu": _processor(), "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpus": _gpus(), "system": f"{platform.system()} {platform.machine()}",
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that affect results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def commit() -> str:
    """Return the commit of glide's working tree; empty if glide is not in a git tree.

    If the working tree has uncommitted changes, the text ends with `, changed`.
    """
    with suppress(OSError):
        describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=, changed"]
        return subprocess.run(describe, capture_output=True, encoding="utf-8", errors="replace").stdout.strip()
    return ""


def command() -> str:
    """Return the command line of this experiment, without the option --out.

    The path of the script is relative to the current folder, so that the command line is valid on other machines.
    """
    script, options = Path(sys.argv[0]), iter(sys.argv[1:])
    with suppress(ValueError):
        script = script.resolve().relative_to(Path.cwd())
    kept = [each for each in options if not each.startswith("--out=") and not (each == "--out" and next(options, each))]
    return shlex.join([".venv/bin/python", str(script), *kept])


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _gpus() -> list[str]:
    with suppress(OSError):
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        return [line.strip() for line in listed.stdout.splitlines()] if listed.returncode == 0 else []
    return []


def _cell(cell: Any) -> str:
    if isinstance(cell, float):
        return number(cell)
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
