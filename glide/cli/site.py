"""glide site: what is at the other end of an entry that is reached by SSH."""

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
    help="Sites behind a login host. Example: glide site check site_configs/ssh.yaml", no_args_is_help=True
)

Site = Annotated[Path, typer.Argument(help="The site file.")]


@app.command()
def check(site: Site, as_json: AsJson = False) -> None:
    """What the login hosts of a site have, in one table. Example: glide site check site_configs/ssh.yaml

    Exit 0: all is well; 1: something is not, and the table says what to do.
    """
    logins = _logins(site)
    connect()
    told = {login.name: ask(login, entries) for login, entries in logins.items()}
    if as_json:
        print_json({name: [vars(answer) for answer in answers] for name, answers in told.items()})
    else:
        table = Table("host", "what", "found", "to do")
        for name, answers in told.items():
            for answer in answers:
                table.add_row(name, answer.question, answer.found, answer.fix)
        Console(markup=False).print(table)
    if any(answer.fix for answers in told.values() for answer in answers):
        raise typer.Exit(Exit.FAILED)


@app.command()
def deploy(site: Site, as_json: AsJson = False) -> None:
    """Put what glideins start from there, verified; what no job needs any more goes.

    The factory does the same when it first submits. Example: glide site deploy site_configs/ssh.yaml
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
        raise InputError(f"{site}: no entry is reached by ssh; there is nothing to look at")
    return found
