"""glide pool: an embedded HTCondor pool on this machine."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from glide.cli.options import AsJson, print_json
from glide.condor import EmbeddedPool, home, install
from glide.errors import CondorError

app = typer.Typer(
    help="Run an embedded HTCondor pool on this machine. Example: glide pool up --cores 4", no_args_is_help=True
)


@app.command()
def up(cores: Annotated[int | None, typer.Option(min=1, help="CPUs to offer; all by default.")] = None) -> None:
    """Start the pool. Example: glide pool up --cores 2

    If no HTCondor is found, the command first unpacks HTCondor into the user's cache.
    """
    pool = EmbeddedPool(home())
    pool.up(cores)
    print(f'pool is up in {pool.home}; to use HTCondor\'s tools: eval "$(glide pool env)"')


@app.command()
def down() -> None:
    """Stop the pool and everything that runs on it. Example: glide pool down"""
    EmbeddedPool(home()).down()
    print("pool is down")


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show whether the pool is up, and its folder. Example: glide pool status --json"""
    pool = EmbeddedPool(home())
    found = install.find()
    document = {
        "up": pool.is_up(), "home": str(pool.home), "condor": str(found.release_dir) if found else None,
        "processes": len(pool.processes()),
    }  # fmt: skip
    if as_json:
        print_json(document)
    else:
        print("\n".join(f"{name}: {value}" for name, value in document.items()))


@app.command()
def env() -> None:
    """Print shell exports for HTCondor's own tools. Example: eval "$(glide pool env)"; condor_q"""
    pool = EmbeddedPool(home())
    if not pool.config.exists():
        raise CondorError("no embedded pool in this GLIDE_HOME: start one with `glide pool up`")
    for name, value in pool.environment().items():
        print(f"export {name}={shlex.quote(value)}")
