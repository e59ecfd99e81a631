"""glide template: what a model or a sticky function is to the nodes, and whether it loads."""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from glide.cli.options import AsJson, print_json
from glide.condor import AccessPoint, connect, home, install
from glide.errors import CondorError, GlideError, InputError
from glide.factory.folders import key_to
from glide.factory.seed import announce
from glide.files import Tree
from glide.files.listing import MANIFEST
from glide.files.peers import short
from glide.glidein import bundle
from glide.glidein.trial import trial
from glide.sweep.functions import Invocation, State
from glide.sweep.prepare import prepare_model
from glide.system import publish
from glide.template import Template
from glide.template.spec import files_of

app = typer.Typer(help="Templates of sticky state. Example: glide template check sweep.yaml", no_args_is_help=True)

Source = Annotated[str, typer.Argument(help="A sweep file, or FILE.py:NAME of an invocation or a state.")]


@app.command()
def show(source: Source, as_json: AsJson = False) -> None:
    """What nodes are told. Example: glide template show infer.py:verdict

    With --json as a sticky job takes it there, pickles and all (submit_templates/sticky.sub).
    """
    template = _template(source)
    if as_json:
        print(template.to_json())
        return
    document = dataclasses.asdict(template)
    if document["function"]:
        document["function"]["pickle"] = f"{len(document['function']['pickle'])} characters"
    print_json({"digest": template.digest, "tree": short(Tree(template.files).digest), **document})


@app.command()
def digest(source: Source) -> None:
    """The digest alone, as lanes advertise it (GlideTemplate). Example: glide template digest sweep.yaml"""
    print(_template(source).digest)


@app.command()
def check(source: Source, as_json: AsJson = False) -> None:
    """Load it once here, in a process that is thrown away. Example: glide template check sweep.yaml

    Says how long each phase took and how much memory it needs. Exit 1: it does not load.
    """
    template = _template(source)
    made = trial(
        template,
        install.cache_dir() / "files",
        watch=lambda state: print(f"{template.model}: {state}", file=sys.stderr),
    )
    if as_json:
        print_json({**dataclasses.asdict(made), "digest": template.digest, "log": made.log[-2000:]})
    else:
        table = Table("phase", "seconds")
        for phase, seconds in made.seconds.items():
            table.add_row(phase, f"{seconds:.2f}")
        table.add_row("memory", f"{made.megabytes:.0f} MB")
        Console().print(table)
    if made.failure:
        print(made.log, file=sys.stderr)
        raise GlideError(f"{template.model} does not load: {made.failure}")


@app.command()
def files(folder: Annotated[Path, typer.Argument(help="A model's folder.")]) -> None:
    """The list of a model's files, for a web server. Example: glide template files model > model/glide-files.json"""
    try:
        found = files_of(folder, folder)
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}") from None
    print_json({name: each for name, each in found.items() if name != MANIFEST})


@app.command()
def ticket(
    source: Source,
    file: Annotated[Path, typer.Argument(help="NAME.glide, for glide://NAME.")],
    site: Annotated[str, typer.Option(help="Whose factory's nodes may be asked, where several have run here.")] = "",
) -> None:
    """What an ordinary job shows for a model's files. Example: glide template ticket sweep.yaml tiny.glide

    It holds a key to these files, so it is for your jobs alone (submit_templates/files.sub).
    """
    if file.suffix != ".glide":
        raise InputError(f"{file}: name it NAME.glide; jobs then write glide://NAME")
    parcel = _template(source).parcel
    if not parcel.files:
        raise InputError(f"{source}: its model has no files")
    factories = sorted(path.parent for path in (home() / "factory").glob(f"{site or '*'}/peers"))
    if site and not factories:
        raise InputError(f"no factory of a site {site!r} has run from {home()}")
    if len(factories) > 1:
        raise InputError(f"several factories have run here; add --site {' or --site '.join(f.name for f in factories)}")
    if factories:
        parcel = dataclasses.replace(parcel, key=key_to(parcel, factories[0]))
        if parcel.path.startswith("/"):
            parcel = dataclasses.replace(parcel, seed=announce(parcel, factories[0] / "seed"))
    else:
        print("glide: no factory has run here, so jobs ask no nodes: each host reads its source once", file=sys.stderr)
    _write(file, json.dumps(dataclasses.asdict(parcel)), 0o600)


@app.command()
def plugin(file: Annotated[Path, typer.Argument(help="Where to write it.")]) -> None:
    """HTCondor's file transfer plugin for glide://, which jobs bring. Example: glide template plugin glide_plugin"""
    _write(file, bundle.plugin(), 0o755)


def _write(file: Path, content: bytes | str, mode: int) -> None:
    try:
        publish(file, content, mode)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None


def _template(source: str) -> Template:
    file, _, name = source.partition(".py:")
    if not name and not source.endswith(".py"):
        return prepare_model(Path(source)).of(_owner)
    path = Path(file if source.endswith(".py") else f"{file}.py")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    sys.path.insert(0, str(path.parent.resolve()))  # as where it is run itself
    content = runpy.run_path(str(path), run_name="glide_template")
    states = {key: state for key, each in content.items() if (state := _state(each))}
    if not name and len(set(map(id, states.values()))) == 1:
        name = next(iter(states))
    if name not in states:
        raise InputError(f"{path}: name one of its invocations or states, as {path}:{next(iter(states), 'NAME')}")
    return states[name].template(_owner())


def _state(thing: Any) -> State | None:
    return thing.state if isinstance(thing, Invocation) else thing if isinstance(thing, State) else None


def _owner() -> str:
    """Who we are to the pool in force; without one, nobody, which is another template than anybody's."""
    try:
        connect()
        return AccessPoint().user
    except CondorError:
        print("glide: no pool is up, so this is the template of no owner: its digest differs there", file=sys.stderr)
        return ""
