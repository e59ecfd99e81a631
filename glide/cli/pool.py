"""glide pool: an embedded HTCondor pool on this machine."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from glide.cli.options import AsJson, print_json
from glide.condor import EmbeddedPool, home, install
from glide.errors import CondorError

app = typer.Typer(
    help="An embedded HTCondor pool on this machine. Example: glide pool up --cores 4", no_args_is_help=True
)


@app.command()
def up(cores: Annotated[int | None, typer.Option(min=1, help="CPUs to offer; all by default.")] = None) -> None:
    """Start the pool, installing HTCondor privately first if there is none. Example: glide pool up --cores 2"""
    pool = EmbeddedPool(home())
    pool.up(cores)
    print(f'pool up in {pool.home}; for its tools: eval "$(glide pool env)"')


@app.command()
def down() -> None:
    """Stop the pool and everything that runs on it. Example: glide pool down"""
    EmbeddedPool(home()).down()
    print("pool down")


@app.command()
def status(as_json: AsJson = False) -> None:
    """Whether the pool is up, and where. Example: glide pool status --json"""
    pool = EmbeddedPool(home())
    found = install.find()
    told = {
        "up": pool.is_up(), "home": str(pool.home), "condor": str(found.release_dir) if found else None,
        "processes": len(pool.processes()),
    }  # fmt: skip
    if as_json:
        print_json(told)
    else:
        print("\n".join(f"{name}: {value}" for name, value in told.items()))


@app.command()
def env() -> None:
    """Shell exports for HTCondor's own tools. Example: eval "$(glide pool env)"; condor_q"""
    pool = EmbeddedPool(home())
    if not pool.config.exists():
        raise CondorError("no pool here yet: glide pool up")
    for name, value in pool.environment().items():
        print(f"export {name}={shlex.quote(value)}")
