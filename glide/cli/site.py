"""glide site: check and prepare the login hosts of entries that are reached by SSH."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from glide.cli.options import AsJson, print_json
from glide.condor import connect
from glide.config import Entry, Login, SiteFile, load
from glide.errors import InputError
from glide.ssh import access_point_at
from glide.ssh.check import check as ask
from glide.vocabulary import Exit

app = typer.Typer(
    help="Check and prepare sites behind a login host. Example: glide site check site_configs/ssh.yaml",
    no_args_is_help=True,
)

Site = Annotated[Path, typer.Argument(help="The site file.")]


@app.command()
def check(site: Site, as_json: AsJson = False) -> None:
    """Check the login hosts of a site, and print a table. Example: glide site check site_configs/ssh.yaml

    Exit 0: no problem was found. Exit 1: a problem was found, and the table shows what to do.
    """
    logins = _logins(site)
    connect()
    checked = {login.name: ask(login, entries) for login, entries in logins.items()}
    if as_json:
        print_json({name: [vars(answer) for answer in answers] for name, answers in checked.items()})
    else:
        table = Table("host", "what", "found", "to do")
        for name, answers in checked.items():
            for answer in answers:
                table.add_row(name, answer.question, answer.found, answer.fix)
        Console(markup=False).print(table)
    if any(answer.fix for answers in checked.values() for answer in answers):
        raise typer.Exit(Exit.FAILED)


@app.command()
def deploy(site: Site, as_json: AsJson = False) -> None:
    """Copy glide's code for glideins to the login hosts of a site. Example: glide site deploy site_configs/ssh.yaml

    The command verifies each copy, and deletes older versions that no queued job uses. The factory does the same before
    its first submission.
    """
    versions = {login.name: access_point_at(login).deploy() for login in _logins(site)}
    if as_json:
        print_json(versions)
    for name, version in () if as_json else versions.items():
        print(f"{name}: {version}")


def _logins(site: Path) -> dict[Login, list[Entry]]:
    found: dict[Login, list[Entry]] = {}
    for entry in load(site, SiteFile).entries:
        if entry.ssh:
            found.setdefault(entry.ssh, []).append(entry)
    if not found:
        raise InputError(f"{site}: no entry has `ssh`, so it has no login host to check")
    return found
