"""glide sweep: records through prompts through a warm model."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from glide.cli.options import AsJson, print_json
from glide.config import SiteFile, load
from glide.invoke.carriers import read_lines, read_results
from glide.report.sweep.account import look
from glide.report.sweep.page import PAGE, write
from glide.report.sweep.progress import Watch, result_table
from glide.sweep.driver import drive
from glide.sweep.prepare import prepare
from glide.sweep.results import begin
from glide.sweep.workplace import workplace
from glide.vocabulary import Exit

app = typer.Typer(help="Batch inference sweeps. Example: glide sweep run sweep.yaml", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="The sweep file.")]
To = Annotated[Path | None, typer.Option("--to", help="The folder to write to; by default `report` in its results.")]
Site = Annotated[Path | None, typer.Option("--site", help="Run a factory for this site meanwhile.")]


@app.command()
def run(file: File, site: Site = None, as_json: AsJson = False) -> None:
    """Run a sweep, or go on with it if it was interrupted. Example: glide sweep run workflows/promptverify/sweep.yaml

    Exit 0: every record has a result; 3: finished, and some records have an error; 2: the input is wrong, nothing
    was submitted; 1: it could not go on; 130: interrupted, go on with `glide sweep resume`.
    """
    _run(file, site, as_json, resume=False)


@app.command()
def resume(file: File, site: Site = None, as_json: AsJson = False) -> None:
    """Go on with an interrupted sweep. Example: glide sweep resume sweep.yaml"""
    _run(file, site, as_json, resume=True)


@app.command()
def status(file: File, as_json: AsJson = False) -> None:
    """How far a sweep is, how many records its jobs carry, and why. Example: glide sweep status sweep.yaml"""
    sweep = prepare(file)
    done = {prompt: sum(1 for _ in read_results(sweep.out / prompt / "results.jsonl")) for prompt in sweep.file.prompts}
    wave = next(read_lines(sweep.out / ".glide" / "wave.json"), {"sizes": [], "reason": "no jobs yet"})
    if as_json:
        print_json({"name": sweep.file.name, "records": len(sweep.records), "done": done, "wave": wave})
        return
    for prompt, count in done.items():
        print(f"{prompt}: {count} of {len(sweep.records)}")
    print(f"last jobs: {', '.join(map(str, wave['sizes'][:8]))} ({wave['reason']})")


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


def _run(file: Path, site: Path | None, as_json: bool, resume: bool) -> None:
    sweep = prepare(file)
    if site is not None:
        load(site, SiteFile)  # a wrong site file is said before anything starts
    results = begin(sweep, f"{sweep.file.name}-{secrets.token_hex(4)}", resume)
    if results.found:
        print(f"resumed: {results.found} of {sweep.total} records need not be done again", file=sys.stderr)
    try:
        with workplace(site), Watch(sweep.file.name) as watch:
            summary = drive(sweep, results, watch)
    except KeyboardInterrupt:
        done = f"{len(results.have)} of {sweep.total} records are done"
        print(f"\ninterrupted: {done}; go on with: glide sweep resume {file}", file=sys.stderr)
        raise typer.Exit(Exit.INTERRUPTED) from None
    if as_json:
        print_json(summary)
    else:
        Console(markup=False).print(result_table(summary))
    if errors := results.error_lines():
        print("\n".join(errors), file=sys.stderr)
        raise typer.Exit(Exit.RECORD_ERRORS)
