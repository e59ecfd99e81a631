"""glide sweep: run each record with each prompt through a warm model, and report on the results."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from glide.cli.options import AsJson, print_json
from glide.config import SiteFile, load
from glide.protocol.json_lines import read_lines
from glide.report.sweep.page import PAGE, write
from glide.report.sweep.progress import ProgressDisplay, result_table
from glide.report.sweep.report import load_report
from glide.sweep import driver_job
from glide.sweep.driver import drive
from glide.sweep.out import internal_path
from glide.sweep.prepare import Sweep, prepare
from glide.sweep.results import Results, open_results
from glide.sweep.status import sweep_status
from glide.sweep.workplace import workplace
from glide.vocabulary import Exit

CHECK_SECONDS = 3.0  # seconds between two messages about the check of the input

app = typer.Typer(help="Run batch inference sweeps. Example: glide sweep run sweep.yaml", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="The sweep file.")]
To = Annotated[Path | None, typer.Option("--to", help="Output folder; by default `report` in the sweep's `out`.")]
Site = Annotated[Path | None, typer.Option("--site", help="A site file: run a factory for it while the sweep runs.")]


@app.command()
def run(
    file: File,
    site: Site = None,
    again: Annotated[bool, typer.Option("--again", help="Move old results aside and compute all records.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run all records of a sweep that have no result. Example: glide sweep run workflows/promptverify/sweep.yaml

    A result is kept as long as its request is the same. So the command completes a sweep that was interrupted, or that
    has new records or prompts. If the sweep has finished, the command only prints the table of results.

    Exit 0: every record has a result, and no result is an error. 3: every record has a result, but some results are
    errors. 2: the input is wrong, and nothing was submitted. 1: the sweep failed. 130: the sweep was interrupted;
    continue with `glide sweep resume`.
    """
    run_sweep(file, site, as_json, again=again)


@app.command()
def submit(file: File, site: Site = None, as_json: AsJson = False) -> None:
    """Put the driver of a sweep into HTCondor's queue, and return. Example: glide sweep submit sweep.yaml

    The sweep then needs no terminal. HTCondor starts the driver again if it is killed, for example when the machine is
    rebooted. `condor_q` and `glide sweep status` show the sweep, and `condor_rm` stops it. The driver's messages are in
    `.glide/driver` in the sweep's `out`.
    """
    sweep = checked(file)
    if site is not None:
        load(site, SiteFile)
    job = driver_job.submit(sweep, site)
    if as_json:
        print_json({"name": sweep.file.name, "job": job})
        return
    print(f"job {job} runs {sweep.file.name}; to see its progress: glide sweep status {file}")


@app.command()
def resume(file: File, site: Site = None, as_json: AsJson = False) -> None:
    """Continue an interrupted sweep. Example: glide sweep resume sweep.yaml

    The command does the same as `run`, but refuses a sweep that was never started.
    """
    run_sweep(file, site, as_json, resume=True)


@app.command()
def retry(
    file: File,
    only: Annotated[
        str | None, typer.Option("--only", metavar="TYPE", help="Run only records with an error of this type.")
    ] = None,
    site: Site = None,
    as_json: AsJson = False,
) -> None:
    """Run again all records whose result is an error. Example: glide sweep retry sweep.yaml --only RecordTimeout

    All other results are kept. An error is kept until its record has a new result. The exit codes are those of `run`.
    """
    run_sweep(file, site, as_json, resume=True, retry=True, only=only)


@app.command()
def status(file: File, as_json: AsJson = False) -> None:
    """Show a sweep's progress, and how its records are packed into jobs. Example: glide sweep status sweep.yaml"""
    sweep = checked(file)
    progress = sweep_status(sweep)
    wave = next(read_lines(internal_path(sweep.out, "wave.json")), {"sizes": [], "reason": "no jobs yet"})
    if as_json:
        print_json({"name": sweep.file.name, "records": len(sweep.records), **asdict(progress), "wave": wave})
        return
    for cell, count in progress.done.items():
        errors = f", {progress.errors[cell]} errors" if progress.errors[cell] else ""
        print(f"{cell or sweep.file.name}: {count} of {len(sweep.records)}{errors}")
    by = f" by {progress.driver}" if progress.driver else ""
    print(f"{progress.state}{by}; last jobs: {', '.join(map(str, wave['sizes'][:8]))} ({wave['reason']})")


@app.command()
def report(file: File, to: To = None, as_json: AsJson = False) -> None:
    """Write a report with figures: where a sweep's time went, the accuracy of its prompts, and its errors.

    Example: glide sweep report sweep.yaml --to /tmp/report

    The command writes report.html, and a PNG file of each figure. report.html contains the figures, too, so it needs no
    other file. The sweep may be unfinished.
    """
    loaded = load_report(checked(file))
    folder = to or loaded.sweep.out / "report"
    document = write(loaded, folder)
    page = str(folder / PAGE)
    if as_json:
        print_json({**(loaded.summary or {}), "report": {**document, "page": page}})
        return
    if loaded.summary is not None:
        Console(markup=False).print(result_table(loaded.summary))
    print("\n".join([*loaded.notes, page]))


def checked(file: Path) -> Sweep:
    """Read and check a sweep file and its input. If this takes long, show how many records have been checked."""
    shown = time.monotonic()

    def progress(count: int) -> None:
        nonlocal shown
        if time.monotonic() - shown > CHECK_SECONDS:
            shown = time.monotonic()
            print(f"checked {count:,} records", file=sys.stderr)

    return prepare(file, progress)


def run_sweep(
    file: Path, site: Path | None, as_json: bool, only: str | None = None,
    finished: Callable[[Results], None] = lambda results: None, **how: bool,
) -> None:  # fmt: skip
    """Run a sweep, and print its results.

    Args:
        only, how: as in `open_results`.
        finished: a function that is called when every record has a result, before the results are printed.

    Raises:
        typer.Exit: some results are errors, or the user has interrupted the sweep.
    """
    sweep = checked(file)
    if site is not None:
        load(site, SiteFile)  # a mistake in the site file must be reported before anything starts
    with closing(open_results(sweep, f"{sweep.file.name}-{secrets.token_hex(4)}", only=only, **how)) as results:
        for note in results.notes:
            print(note, file=sys.stderr)
        summary = _finished(file, results) if results.finished else _drive(file, site, results)
        finished(results)
        if as_json:
            print_json(summary)
        else:
            Console(markup=False).print(result_table(summary))
        if errors := results.error_lines():
            print("\n".join([*errors, f"to run them again: glide sweep retry {file}"]), file=sys.stderr)
            raise typer.Exit(Exit.RECORD_ERRORS)


def _drive(file: Path, site: Path | None, results: Results) -> dict[str, Any]:
    total = results.total
    if results.resumed:
        print(f"resumed: {results.resumed} of {total} records have a result", file=sys.stderr)
    try:
        with workplace(site), ProgressDisplay(results.sweep.file.name) as display:
            return drive(results.sweep, results, display)
    except KeyboardInterrupt:
        done = f"{len(results.done)} of {total} records are done"
        print(f"\ninterrupted: {done}; to continue: glide sweep resume {file}", file=sys.stderr)
        raise typer.Exit(Exit.INTERRUPTED) from None


def _finished(file: Path, results: Results) -> dict[str, Any]:
    print(
        f"finished: all {results.total} records have a result; to start over: glide sweep run {file} --again",
        file=sys.stderr,
    )
    return results.finished_summary()
