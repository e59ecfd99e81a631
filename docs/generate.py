"""Write docs/reference.md from the program: its models, its vocabulary and its help texts. `make docs` runs this."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tokenize
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typing_extensions import TypeAliasType

from glide import cli, vocabulary
from glide.config import model, site, sweep
from glide.server.engines import engine_class
from glide.simulate import trace

REFERENCE = Path(__file__).with_name("reference.md")
WIDTH = 100
OTHER_CODES = """
Two commands have other exit codes. `glide doctor`: 1 warnings, 2 something is broken, 3 no pool to check.
`glide gather`: 1 outputs of some jobs could not be fetched, 3 some jobs have not finished.
"""
SPELLED = {str: "text", int: "integer", float: "number", bool: "true or false", datetime: "time", Any: "any"}
HEAD = """# Reference

`make docs` writes this page from the program itself.
"""
SITE = (
    site.SiteFile, site.Entry, site.ResourceRequest, site.Pool, site.Login, site.ServiceSettings, site.CacheSettings,
    site.Downtime,
    site.Breaker,
)  # fmt: skip
SWEEP = (sweep.SweepFile, model.ModelSpec, model.NeedsSpec)
TRACE = (trace.TraceFile, trace.Device, trace.Nodes, trace.Workload, trace.Files, trace.Costs)
ENGINES = ("transformers", "server", "openai", "noop")


def reference() -> str:
    """The whole text."""
    parts = [HEAD, "## Site files\n", *map(_model, SITE), "## Sweep files\n", *map(_model, SWEEP)]
    parts += ["## Traces\n", *map(_model, TRACE)]
    parts += ["## Options of the engines\n", *map(_engine, ENGINES)]
    parts += ["## Commands\n", *_commands(typer.main.get_command(cli.application()), "glide")]
    parts += ["## Names in ClassAds\n", *map(_names, (vocabulary.Machine, vocabulary.Job))]
    parts += [
        "## Exit codes\n",
        _table(("code", "meaning"), [(str(value), why) for _, value, why in _constants("Exit")]) + OTHER_CODES,
    ]
    return "\n".join(parts)


def _model(model: type[BaseModel]) -> str:
    said, _ = _docstring(model)
    attributes: dict[str, str] = {}
    for each in reversed([base for base in model.__mro__ if issubclass(base, BaseModel)]):
        attributes |= _docstring(each)[1]
    rows = [
        (f"`{name}`", _type(field.annotation), _default(field), attributes.get(name, ""))
        for name, field in model.model_fields.items()
    ]
    return f"### {model.__name__}\n\n{said}\n\n{_table(('key', 'type', 'default', 'meaning'), rows)}"


def _engine(name: str) -> str:
    options = engine_class(name).Options
    _, attributes = _docstring(options, "")
    types = get_type_hints(options)
    rows = [
        (f"`{field.name}`", _type(types[field.name]), _value(field.default), attributes.get(field.name, ""))
        for field in dataclasses.fields(options)
    ]
    return f"### {name}\n\n{_table(('option', 'type', 'default', 'meaning'), rows)}"


def _commands(command: Any, name: str) -> Iterator[str]:
    if commands := getattr(command, "commands", None):
        for each, below in sorted(commands.items()):
            yield from _commands(below, f"{name} {each}")
        return
    context = command.context_class(command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
    yield f"### {name}\n\n```text\n{command.get_help(context)}\n```\n"


def _names(group: type) -> str:
    rows = [(f"`{value}`", why) for _, value, why in _constants(group.__name__)]
    return f"### {group.__name__} ads\n\n{inspect.getdoc(group)}\n\n{_table(('attribute', 'meaning'), rows)}"


def _constants(group: str) -> Iterator[tuple[str, Any, str]]:
    """The plain values of a class of the vocabulary, each with the comment beside it."""
    owner = getattr(vocabulary, group)
    lines, first = inspect.getsourcelines(owner)
    comments: dict[int, str] = {}
    with Path(inspect.getfile(vocabulary)).open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                comments[token.start[0]] = token.string.removeprefix("# ")
    for number, line in enumerate(lines, first):
        if found := re.match(r"    ([A-Z_]+) = ", line):
            yield found[1], getattr(owner, found[1]), comments.get(number, "")


def _docstring(owner: type, heading: str = "Attributes:") -> tuple[str, dict[str, str]]:
    """Return the text of a docstring before its list of attributes, and the text of each attribute."""
    whole = inspect.getdoc(owner) or ""
    said, _, listed = whole.partition(heading) if heading else ("", "", whole)
    attributes: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(listed).splitlines():
        if found := re.match(r"(\w+(?:, \w+)*): (.*)", line):
            names = found[1].split(", ")
            attributes |= dict.fromkeys(names, found[2])
        else:
            attributes |= {name: f"{attributes[name]} {line.strip()}" for name in names}
    return " ".join(said.split()), attributes


def _type(annotation: Any) -> str:
    """A type as users write the value."""
    if isinstance(annotation, TypeAliasType):
        return "any"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " or ".join(_type(each) for each in arguments if each is not NoneType)
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping of {_type(arguments[0])} to {_type(arguments[1])}"
    return SPELLED.get(annotation, getattr(annotation, "__name__", "any"))


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    return _value(field.get_default(call_default_factory=True))


def _value(value: Any) -> str:
    if value is None or value is PydanticUndefined or value == "" or value == () or value == {}:
        return ""
    if isinstance(value, BaseModel):
        return "as below"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    REFERENCE.write_text(reference(), "utf-8")
