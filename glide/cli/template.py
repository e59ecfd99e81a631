"""glide template: show the template of a model or of a sticky function, and test whether it loads."""

from __future__ import annotations

import dataclasses
import getpass
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
from glide.factory.home import file_set_key
from glide.factory.seed import write_offer
from glide.files import Tree
from glide.files.listing import MANIFEST
from glide.files.peers import short_digest
from glide.glidein import bundle
from glide.glidein.trial import trial
from glide.sweep.functions import Invocation, StickyState
from glide.sweep.models import prepare_model
from glide.system import publish
from glide.template import Template
from glide.template.spec import files_of

app = typer.Typer(
    help="Show and test templates, the descriptions of what nodes load. Example: glide template check sweep.yaml",
    no_args_is_help=True,
)

Source = Annotated[str, typer.Argument(help="A sweep file (of several models: SWEEP.yaml:MODEL), or FILE.py:NAME.")]


@app.command()
def show(source: Source, as_json: AsJson = False) -> None:
    """Print a template. Example: glide template show infer.py:verdict

    With --json, the output is the complete template, including a pickled function. A sticky job needs this output
    (submit_templates/sticky.sub).
    """
    template = _template(source)
    if as_json:
        print(template.to_json())
        return
    document = dataclasses.asdict(template)
    if document["function"]:
        document["function"]["pickle"] = f"{len(document['function']['pickle'])} characters"
    print_json({"digest": template.digest, "tree": short_digest(Tree.of(template.file_set).digest), **document})


@app.command()
def digest(source: Source) -> None:
    """Print a template's digest, as lanes advertise it in GlideTemplate. Example: glide template digest sweep.yaml"""
    print(_template(source).digest)


@app.command()
def check(source: Source, as_json: AsJson = False) -> None:
    """Load a template once on this machine, in a separate process. Example: glide template check sweep.yaml

    The command prints the seconds of each phase, and the memory that was used. Exit 1: the template does not load.
    """
    template = _template(source)
    result = trial(
        template,
        install.cache_dir() / "files",
        on_state=lambda state: print(f"{template.model}: {state}", file=sys.stderr),
    )
    if as_json:
        print_json({**dataclasses.asdict(result), "digest": template.digest, "log": result.log[-2000:]})
    else:
        table = Table("phase", "seconds")
        for phase, seconds in result.seconds.items():
            table.add_row(phase, f"{seconds:.2f}")
        table.add_row("memory", f"{result.megabytes:.0f} MB")
        Console().print(table)
    if result.failure:
        print(result.log, file=sys.stderr)
        raise GlideError(f"{template.model} does not load: {result.failure}")


@app.command()
def files(folder: Annotated[Path, typer.Argument(help="A model's folder.")]) -> None:
    """Print the list of a model's files. If nodes fetch a model from a web server, the server needs this list.

    Save the list on the server, in the model's folder, as glide-files.json.

    Example: glide template files model > model/glide-files.json
    """
    try:
        found = files_of(folder, folder)
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}") from None
    print_json({name: each for name, each in found.items() if name != MANIFEST})


@app.command()
def ticket(
    source: Source,
    file: Annotated[Path, typer.Argument(help="Output file NAME.glide; jobs then use glide://NAME.")],
    site: Annotated[
        str, typer.Option(help="Site whose nodes may serve the files, if factories of several sites have run here.")
    ] = "",
) -> None:
    """Write a file NAME.glide, with which an ordinary job gets a model's files.

    Example: glide template ticket sweep.yaml tiny.glide

    NAME.glide is not the ticket of an invocation job. It contains a secret that gives access to the model's files. So
    give NAME.glide only to your own jobs. submit_templates/files.sub is an example of such a job.
    """
    if file.suffix != ".glide":
        raise InputError(f"{file}: the name must end with .glide, because jobs refer to the file as glide://NAME")
    file_set = _template(source).file_set
    if not file_set.files:
        raise InputError(f"{source}: its model has no files")
    factories = sorted(path.parent for path in (home() / "factory").glob(f"{site or '*'}/peers"))
    if site and not factories:
        raise InputError(f"no factory of a site {site!r} has run with GLIDE_HOME {home()}")
    if len(factories) > 1:
        raise InputError(f"several factories have run here; add --site {' or --site '.join(f.name for f in factories)}")
    if factories:
        file_set = dataclasses.replace(file_set, key=file_set_key(file_set, factories[0]))
        if file_set.path.startswith("/"):
            file_set = dataclasses.replace(file_set, seed=write_offer(file_set, factories[0] / "seed"))
    else:
        print(
            "glide: no factory has run with this GLIDE_HOME, so jobs get the files from the source, not from nodes:"
            " each host reads the source once",
            file=sys.stderr,
        )
    _write(file, json.dumps(file_set.to_fields()), 0o600)


@app.command()
def plugin(file: Annotated[Path, typer.Argument(help="Output file.")]) -> None:
    """Write the file transfer plugin that jobs carry for glide:// URLs. Example: glide template plugin glide_plugin"""
    _write(file, bundle.plugin(), 0o755)


def _write(file: Path, content: bytes | str, mode: int) -> None:
    try:
        publish(file, content, mode)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None


def _template(source: str) -> Template:
    file, _, name = source.partition(".py:")
    if not name and not source.endswith(".py"):
        sweep, _, model = (source, "", "") if Path(source).exists() else source.rpartition(":")
        return prepare_model(Path(sweep or source), model if sweep else "").for_user(_owner)
    path = Path(file if source.endswith(".py") else f"{file}.py")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    sys.path.insert(0, str(path.parent.resolve()))  # so that this Python file can import modules from its folder
    content = runpy.run_path(str(path), run_name="glide_template")
    states = {key: state for key, each in content.items() if (state := _state(each))}
    if not name and len(set(map(id, states.values()))) == 1:
        name = next(iter(states))
    if name not in states:
        raise InputError(
            f"{path}: choose a sticky state, or a function with the decorator @glide.invocation; for example, write"
            f" {path}:{next(iter(states), 'NAME')}"
        )
    return states[name].template(_owner())


def _state(thing: Any) -> StickyState | None:
    return thing.state if isinstance(thing, Invocation) else thing if isinstance(thing, StickyState) else None


def _owner() -> str:
    """Return the user's name in the active pool; empty without a pool. The name is a part of the template's digest."""
    try:
        connect()
        return AccessPoint().user
    except CondorError:
        print(
            "glide: no pool is up, so the owner of this template is your account; with a pool, the digest is different",
            file=sys.stderr,
        )
        return getpass.getuser()
