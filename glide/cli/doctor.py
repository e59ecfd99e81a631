"""glide doctor: what of this pool hurts, and the fix."""

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
from glide.doctor import TIMEOUT, Level, Verdict, document, examine, worst
from glide.errors import CondorError

TRIAL_SECONDS = 120.0
_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.CRITICAL: "bold red"}
EXIT_CODES = "Exit code, as for Nagios: 0 all is well, 1 warnings, 2 critical, 3 there is no pool to look at."


def doctor(
    config: Annotated[
        list[Path] | None, typer.Option("-c", "--config", help="A site's file; by default those that ran from here.")
    ] = None,
    as_json: AsJson = False,
    quick: Annotated[bool, typer.Option("--quick", help="Submit no test record.")] = False,
    wait: Annotated[float, typer.Option(min=1, help="Seconds that the test record may take.")] = TRIAL_SECONDS,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds that HTCondor's daemons have to answer; who does not is not seen.")
    ] = TIMEOUT,
) -> None:
    """What of this pool hurts, and the fix. Example: glide doctor --quick

    Where a factory runs, one test record goes the whole way to a warm lane and back. It unloads nobody's model, but
    takes a glidein without one, or a new one, which stays for its entry's idle_seconds.
    """
    try:
        verdicts = examine(config or (), 0.0 if quick else wait, timeout)
    except CondorError as error:
        if as_json:
            print_json({"level": Level.UNKNOWN.name.lower(), "not_seen": str(error), "checks": []})
        print(f"glide: {error}", file=sys.stderr)
        raise typer.Exit(Level.UNKNOWN) from None
    if as_json:
        print_json(document(verdicts))
    else:
        Console().print(_table(verdicts), _summary(verdicts), sep="\n")
    raise typer.Exit(worst(verdicts))


def _table(verdicts: Sequence[Verdict]) -> Table:
    table = Table.grid(padding=(0, 2))
    for verdict in verdicts:
        # As Text, for brackets in what users wrote are no markup.
        table.add_row(_shown(verdict.level), Text(verdict.check), Text(verdict.looked, style="dim"))
        if verdict.unseen:
            table.add_row("", "", Text(f"not seen: {verdict.unseen}"))
        for finding in verdict.findings:
            table.add_row("", _shown(finding.level), Text(finding.found))
            table.add_row("", Text("  fix", style="dim"), Text(finding.fix, style="bold"))
    return table


def _summary(verdicts: Sequence[Verdict]) -> Text:
    levels = [finding.level for verdict in verdicts for finding in verdict.findings]
    unseen = sum(bool(verdict.unseen) for verdict in verdicts)
    counts = {"critical": levels.count(Level.CRITICAL), "warnings": levels.count(Level.WARNING), "not seen": unseen}
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "nothing hurts"
    return Text(f"{len(verdicts)} checks: {told}", style=_STYLES[worst(verdicts)])


def _shown(level: Level) -> Text:
    return Text(level.name.lower(), style=_STYLES[level])
