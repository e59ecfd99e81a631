"""glide sweep: records through prompts through a warm model."""

from __future__ import annotations

import secrets
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from glide.cli.options import AsJson, print_json
from glide.config import SiteFile, load
from glide.invoke.carriers import read_lines
from glide.report.sweep.account import look
from glide.report.sweep.page import PAGE, write
from glide.report.sweep.progress import Watch, result_table
from glide.sweep.driver import drive
from glide.sweep.out import own
from glide.sweep.prepare import prepare
from glide.sweep.results import Results, begin
from glide.sweep.standing import standing
from glide.sweep.workplace import workplace
from glide.vocabulary import Exit

app = typer.Typer(help="Batch inference sweeps. Example: glide sweep run sweep.yaml", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="The sweep file.")]
To = Annotated[Path | None, typer.Option("--to", help="The folder to write to; by default `report` in its results.")]
Site = Annotated[Path | None, typer.Option("--site", help="Run a factory for this site meanwhile.")]


@app.command()
def run(
    file: File,
    site: Site = None,
    again: Annotated[bool, typer.Option("--again", help="Move old results aside and compute all records.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a sweep: all of it, or what has no result yet. Example: glide sweep run workflows/promptverify/sweep.yaml

    Results that are there stay, as long as their request is the same: those of an interrupted sweep, and of one whose
    prompts or records have grown. A finished sweep only prints its table.

    Exit 0: every record has a result; 3: finished, and some records have an error; 2: the input is wrong, nothing
    was submitted; 1: it could not go on; 130: interrupted, go on with `glide sweep resume`.
    """
    _run(file, site, as_json, again=again)


@app.command()
def resume(file: File, site: Site = None, as_json: AsJson = False) -> None:
    """Go on with an interrupted sweep: `run` that never begins one. Example: glide sweep resume sweep.yaml"""
    _run(file, site, as_json, resume=True)


@app.command()
def retry(
    file: File,
    only: Annotated[str | None, typer.Option("--only", metavar="TYPE", help="Errors of this type alone.")] = None,
    site: Site = None,
    as_json: AsJson = False,
) -> None:
    """Run the records that have an error again. Example: glide sweep retry sweep.yaml --only RecordTimeout

    All other results stay, and an error stays until its record has a new result. Exit codes are those of `run`.
    """
    _run(file, site, as_json, resume=True, retry=True, only=only)


@app.command()
def status(file: File, as_json: AsJson = False) -> None:
    """How far a sweep is, how many records its jobs carry, and why. Example: glide sweep status sweep.yaml"""
    sweep = prepare(file)
    told = standing(sweep)
    wave = next(read_lines(own(sweep.out, "wave.json")), {"sizes": [], "reason": "no jobs yet"})
    if as_json:
        print_json({"name": sweep.file.name, "records": len(sweep.records), **asdict(told), "wave": wave})
        return
    for prompt, count in told.done.items():
        errors = f", {told.errors[prompt]} errors" if told.errors[prompt] else ""
        print(f"{prompt}: {count} of {len(sweep.records)}{errors}")
    by = f" by {told.driver}" if told.driver else ""
    print(f"{told.state}{by}; last jobs: {', '.join(map(str, wave['sizes'][:8]))} ({wave['reason']})")


@app.command()
def report(file: File, to: To = None, as_json: AsJson = False) -> None:
    """Where a sweep's time went, how good its prompts are, and what went wrong: as a page with figures.

    Example: glide sweep report sweep.yaml --to /tmp/report

    Writes report.html, which needs no other file, and the figures as PNGs; of a sweep that has not finished, too.
    """
    account = look(prepare(file))
    folder = to or account.sweep.out / "report"
    told = write(account, folder)
    page = str(folder / PAGE)
    if as_json:
        print_json({**(account.summary or {}), "report": {**told, "page": page}})
        return
    if account.summary is not None:
        Console(markup=False).print(result_table(account.summary))
    print("\n".join([*account.notes, page]))


def _run(file: Path, site: Path | None, as_json: bool, only: str | None = None, **how: bool) -> None:
    sweep = prepare(file)
    if site is not None:
        load(site, SiteFile)  # a wrong site file is said before anything starts
    with closing(begin(sweep, f"{sweep.file.name}-{secrets.token_hex(4)}", only=only, **how)) as results:
        for note in results.notes:
            print(note, file=sys.stderr)
        summary = _at_rest(file, results) if results.finished else _drive(file, site, results)
        if as_json:
            print_json(summary)
        else:
            Console(markup=False).print(result_table(summary))
        if errors := results.error_lines():
            print("\n".join([*errors, f"to run them again: glide sweep retry {file}"]), file=sys.stderr)
            raise typer.Exit(Exit.RECORD_ERRORS)


def _drive(file: Path, site: Path | None, results: Results) -> dict[str, Any]:
    total = results.total
    if results.found:
        print(f"resumed: {results.found} of {total} records need not be done again", file=sys.stderr)
    try:
        with workplace(site), Watch(results.sweep.file.name) as watch:
            return drive(results.sweep, results, watch)
    except KeyboardInterrupt:
        done = f"{len(results.have)} of {total} records are done"
        print(f"\ninterrupted: {done}; go on with: glide sweep resume {file}", file=sys.stderr)
        raise typer.Exit(Exit.INTERRUPTED) from None


def _at_rest(file: Path, results: Results) -> dict[str, Any]:
    print(
        f"finished: all {results.total} records have a result; to start over: glide sweep run {file} --again",
        file=sys.stderr,
    )
    return results.at_rest()
