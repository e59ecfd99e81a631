"""glide sweep: run each record with each prompt through warm models, and report on the results."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from glide.cli.options import AsJson, print_json
from glide.config import REPORT
from glide.protocol.json_lines import read_lines
from glide.report.sweep import comparison
from glide.report.sweep.page import PAGE
from glide.report.sweep.progress import ProgressDisplay, result_table
from glide.report.sweep.report import load_report
from glide.sweep import driver_job
from glide.sweep.combined import combined_status, finished_summary
from glide.sweep.opening import opened
from glide.sweep.out import internal_path
from glide.sweep.prepare import Sweep, prepare
from glide.sweep.results import Results
from glide.sweep.run import drive
from glide.sweep.status import read_summary
from glide.sweep.workplace import check_site, workplace
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
    has new records, prompts or models. If the sweep has finished, the command only prints the table of results.

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
    sweeps = checked(file)
    check_site(site, [sweep.template for sweep in sweeps])
    sweep = sweeps[0]
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
    models = checked(file)
    name, records = models[0].file.name, len(models[0].records)
    progress = combined_status(models)
    waves = [path for each in models if (path := internal_path(each.out, "wave.json")).exists()]
    newest = max(waves, key=lambda path: path.stat().st_mtime, default=Path("no file"))
    wave = next(read_lines(newest), {"sizes": [], "reason": "no jobs yet"})
    if as_json:
        print_json({"name": name, "records": records, **asdict(progress), "wave": wave})
        return
    for cell, count in progress.done.items():
        errors = f", {progress.errors[cell]} errors" if progress.errors[cell] else ""
        print(f"{cell or name}: {count} of {records}{errors}")
    by = f" by {progress.driver}" if progress.driver else ""
    print(f"{progress.state}{by}; last jobs: {', '.join(map(str, wave['sizes'][:8]))} ({wave['reason']})")


@app.command()
def report(file: File, to: To = None, as_json: AsJson = False) -> None:
    """Write a report with figures: where a sweep's time went, the accuracy of its prompts, and its errors.

    Example: glide sweep report sweep.yaml --to /tmp/report

    The command writes report.html, and a PNG file of each figure. report.html contains the figures, too, so it needs no
    other file. The sweep may be unfinished. If it has several models, report.html compares them, and each model has a
    report of its own in a subfolder.
    """
    reports = {sweep.model: load_report(sweep) for sweep in checked(file)}
    out = next(iter(reports.values())).sweep.out_of_all
    folder = to or out / REPORT
    document = comparison.write(reports, folder)
    summary = read_summary(out) if all(each.summary is not None for each in reports.values()) else None
    page = str(folder / PAGE)
    if as_json:
        print_json({**(summary or {}), "report": {**document, "page": page}})
        return
    if summary is not None:
        Console(markup=False).print(result_table(summary))
    print("\n".join([*document["notes"], page]))


def checked(file: Path) -> list[Sweep]:
    """Read and check a sweep file and its input. Return the sweep of each model.

    If this takes long, show how many records have been checked.
    """
    shown = time.monotonic()

    def progress(count: int) -> None:
        nonlocal shown
        if time.monotonic() - shown > CHECK_SECONDS:
            shown = time.monotonic()
            print(f"checked {count:,} records", file=sys.stderr)

    return prepare(file, progress)


def run_sweep(
    file: Path, site: Path | None, as_json: bool, only: str | None = None,
    finished: Callable[[list[Results]], None] = lambda models: None, **how: bool,
) -> None:  # fmt: skip
    """Run a sweep, and print its results.

    Args:
        only, how: as in `opened`.
        finished: a function that is called when every record has a result, before the results are printed. It gets the
            results of each model.

    Raises:
        typer.Exit: some results are errors, or the user has interrupted the sweep.
    """
    sweeps = checked(file)
    name = sweeps[0].file.name
    check_site(site, [sweep.template for sweep in sweeps])
    with opened(sweeps, f"{name}-{secrets.token_hex(4)}", only=only, **how) as models:
        for each in models:
            for note in each.notes:
                print(f"{each.sweep.model}{each.sweep.model and ': '}{note}", file=sys.stderr)
        summary = _finished(file, models) if all(each.finished for each in models) else _drive(file, site, models)
        finished(models)
        if as_json:
            print_json(summary)
        else:
            Console(markup=False).print(result_table(summary))
        if errors := [line for each in models for line in each.error_lines()]:
            print("\n".join([*errors, f"to run them again: glide sweep retry {file}"]), file=sys.stderr)
            raise typer.Exit(Exit.RECORD_ERRORS)


def _drive(file: Path, site: Path | None, models: list[Results]) -> dict[str, Any]:
    total = sum(each.total for each in models)
    if resumed := sum(each.resumed for each in models):
        print(f"resumed: {resumed} of {total} records have a result", file=sys.stderr)
    try:
        with workplace(site), ProgressDisplay(models[0].sweep.file.name) as display:
            return drive(models, display)
    except KeyboardInterrupt:
        done = f"{sum(len(each.done) for each in models)} of {total} records are done"
        print(f"\ninterrupted: {done}; to continue: glide sweep resume {file}", file=sys.stderr)
        raise typer.Exit(Exit.INTERRUPTED) from None


def _finished(file: Path, models: list[Results]) -> dict[str, Any]:
    total = sum(each.total for each in models)
    print(
        f"finished: all {total} records have a result; to start over: glide sweep run {file} --again",
        file=sys.stderr,
    )
    return finished_summary(models)
