"""glide doctor: diagnose this pool and suggest fixes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from glide.cli.options import AsJson, print_json
from glide.doctor import TIMEOUT, Diagnosis, Level, document, examine, worst
from glide.errors import CondorError

TRIAL_SECONDS = 120.0
_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.CRITICAL: "bold red"}
EXIT_CODES = "Exit codes, as for Nagios: 0 no problem, 1 warnings, 2 critical problems, 3 no pool found."


def doctor(
    config: Annotated[
        list[Path] | None,
        typer.Option("-c", "--config", help="A site file; by default, all whose factory has run with this GLIDE_HOME."),
    ] = None,
    as_json: AsJson = False,
    quick: Annotated[bool, typer.Option("--quick", help="Do not submit a test record.")] = False,
    wait: Annotated[float, typer.Option(min=1, help="Time limit of the test record, in seconds.")] = TRIAL_SECONDS,
    timeout: Annotated[
        float, typer.Option(min=1, help="Time limit of all queries of HTCondor together, in seconds.")
    ] = TIMEOUT,
) -> None:
    """Diagnose this pool and suggest fixes. Example: glide doctor --quick

    If a factory runs, the doctor also sends one test record and waits for its result. The record goes to a glidein
    without a model. If there is no such glidein, the factory submits a new glidein. No glidein unloads its model for
    the record. A new glidein stays until it has been idle for the idle_seconds of its entry.
    """
    try:
        diagnoses = examine(config or (), 0.0 if quick else wait, timeout)
    except CondorError as error:
        if as_json:
            print_json({"level": Level.UNKNOWN.name.lower(), "not_seen": str(error), "checks": []})
        print(f"glide: {error}", file=sys.stderr)
        raise typer.Exit(Level.UNKNOWN) from None
    if as_json:
        print_json(document(diagnoses))
    else:
        Console().print(_table(diagnoses), _summary(diagnoses), sep="\n")
    raise typer.Exit(worst(diagnoses))


def _table(diagnoses: Sequence[Diagnosis]) -> Table:
    table = Table.grid(padding=(0, 2))
    for diagnosis in diagnoses:
        # Use Text, because in a plain string rich would interpret brackets as markup.
        table.add_row(_level_text(diagnosis.level), Text(diagnosis.check), Text(diagnosis.subject, style="dim"))
        if diagnosis.unavailable:
            table.add_row("", "", Text(f"not checked: {diagnosis.unavailable}"))
        for finding in diagnosis.findings:
            table.add_row("", _level_text(finding.level), Text(finding.problem))
            table.add_row("", Text("  fix", style="dim"), Text(finding.fix, style="bold"))
    return table


def _summary(diagnoses: Sequence[Diagnosis]) -> Text:
    levels = [finding.level for diagnosis in diagnoses for finding in diagnosis.findings]
    skipped = sum(bool(diagnosis.unavailable) for diagnosis in diagnoses)
    counts = {"critical": levels.count(Level.CRITICAL), "warnings": levels.count(Level.WARNING), "not checked": skipped}
    result = ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "no problems"
    return Text(f"{len(diagnoses)} checks: {result}", style=_STYLES[worst(diagnoses)])


def _level_text(level: Level) -> Text:
    return Text(level.name.lower(), style=_STYLES[level])
