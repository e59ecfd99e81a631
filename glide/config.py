"""The files users write, as pydantic models: extra keys are refused, and an error names file, line and fix."""

from __future__ import annotations

import string
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from glide.errors import InputError
from glide.server.engines import engine_class

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """A mapping whose every key is known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# ---- a sweep -------------------------------------------------------------------------------------


class ModelSpec(Strict):
    """What to load: `path` is relative to the sweep file."""

    name: Name
    engine: str
    path: str | None = None
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _known_options(self) -> ModelSpec:
        try:
            options = engine_class(self.engine).Options
        except ValueError as error:
            raise PydanticCustomError("engine", "{why}", {"why": str(error)}) from None
        known = sorted(options.__dataclass_fields__)
        for key in self.options:
            if key not in known:
                why = f"options: {self.engine} has no option {key!r}; it has {', '.join(known)}"
                raise PydanticCustomError("option", "{why}", {"why": why})
        TypeAdapter(options).validate_python(self.options)
        if self.engine == "transformers" and self.path is None:
            raise PydanticCustomError("path", "the transformers engine needs a path: the model's folder")
        return self


class SweepFile(Strict):
    """A sweep: every record once per prompt. `timeout` is in seconds, for one engine call."""

    name: Name
    model: ModelSpec
    records: str
    prompts: dict[Name, str] = Field(min_length=1)
    generate: dict[str, Any] = {}
    expect: str | None = None
    out: str = "results"
    glideins: int = Field(1, ge=1)
    timeout: float = Field(600.0, gt=0)
    batch: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    pack: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"

    @field_validator("prompts")
    @classmethod
    def _plain_fields(cls, prompts: dict[str, str]) -> dict[str, str]:
        for name, text in prompts.items():
            try:
                prompt_fields(text)
            except ValueError as error:
                raise PydanticCustomError("prompt", "{why}", {"why": f"prompt {name}: {error}"}) from None
        return prompts


def prompt_fields(prompt: str) -> list[str]:
    """The names of the `{field}`s in a prompt; ValueError when a brace is neither a field nor doubled."""
    names = []
    for _, name, form, conversion in string.Formatter().parse(prompt):
        if name is None:
            continue
        if form or conversion or not name.isidentifier():
            raise ValueError(f"{{{name}}} is no field's name; write {{{{ and }}}} for braces")
        names.append(name)
    return names


# ---- a site --------------------------------------------------------------------------------------


class Request(Strict):
    """What a glidein asks its outer pool for. Memory in MB, disk in MB."""

    cpus: int = Field(1, ge=1)
    memory: int = Field(2048, ge=1)
    disk: int = Field(1024, ge=1)
    gpus: int = Field(0, ge=0)


class Entry(Strict):
    """One place where the factory may submit glideins.

    Attributes:
        max_glideins: at most so many in the queue, running or not.
        lanes: slots of a glidein that share its model server; two hide a job's turnover.
        requirements: further HTCondor requirements on the nodes.
        python: an interpreter on the nodes that imports the engine's packages; by default this one.
        condor: HTCondor's release folder on the nodes; by default this access point's private one, if it
            has one, else the node's own.
        owners: whose jobs the lanes serve (User, as in condor_q); by default the factory's own account.
        idle_seconds: a glidein without a job for so long ends itself.
        submits_per_cycle: at most so many submissions at once, so that a wrong view cannot flood a site.
        knobs: further HTCondor configuration of the glideins.
    """

    name: Name
    max_glideins: int = Field(ge=0)
    lanes: int = Field(2, ge=1)
    request: Request = Request()
    requirements: str = "true"
    python: str | None = None
    condor: str | None = None
    owners: tuple[str, ...] = ()
    idle_seconds: int = Field(300, ge=1)
    submits_per_cycle: int = Field(10, ge=1)
    knobs: dict[str, str] = {}


class SiteFile(Strict):
    """One site: `interval` is the factory's cycle in seconds."""

    site: Name
    interval: float = Field(2.0, gt=0)
    entries: list[Entry] = Field(min_length=1)

    @field_validator("entries")
    @classmethod
    def _unique_names(cls, entries: list[Entry]) -> list[Entry]:
        names = [entry.name for entry in entries]
        for name in names:
            if names.count(name) > 1:
                raise PydanticCustomError("entry", "two entries are named {name}", {"name": name})
        return entries


# ---- reading -------------------------------------------------------------------------------------


def load(path: Path, model: type[Model]) -> Model:
    """Read a YAML file as a model.

    Raises:
        InputError: each problem as `file:line: what is wrong`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise InputError(f"{path}:{line}: not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}:1: not a mapping of keys to values")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise InputError(*_problems(path, tree, error)) from None


def _problems(path: Path, tree: yaml.Node | None, error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        # pydantic names the branches of a union in the location too; the file has no such keys
        place = [part for part in problem["loc"] if not str(part).startswith(("literal[", "constrained-", "int"))]
        where = ".".join(map(str, place))
        what = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"]
        yield f"{path}:{_line(tree, place)}: {where + ': ' if where else ''}{what}"


def _line(node: yaml.Node | None, place: list[int | str]) -> int:
    line = node.start_mark.line + 1 if node else 1
    for part in place:
        if isinstance(node, yaml.MappingNode):
            match = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if match is None:
                break
            line, node = match[0].start_mark.line + 1, match[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line
