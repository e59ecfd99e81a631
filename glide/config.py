"""The files users write, as pydantic models: extra keys are refused, and an error names file, line and fix."""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

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

    @field_validator("engine")
    @classmethod
    def _known_engine(cls, engine: str) -> str:
        engine_class(engine)
        return engine

    @field_validator("options")
    @classmethod
    def _checked_options(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """As the engine will get them: what is accepted for a number here must be one there."""
        engine = info.data.get("engine")
        if engine is None:  # refused itself
            return options
        known = engine_class(engine).Options
        names = sorted(known.__dataclass_fields__)
        for key in options:
            if key not in names:
                raise ValueError(f"{engine} has no option {key!r}; it has {', '.join(names)}")
        checked = TypeAdapter(known).validate_python(options)
        return {key: getattr(checked, key) for key in options}

    @model_validator(mode="after")
    def _has_a_path(self) -> ModelSpec:
        if self.engine == "transformers" and self.path is None:
            raise ValueError("the transformers engine needs a path: the model's folder")
        return self


BRACES = "write {{ and }} for braces"
SUMMARY = "summary.json"  # in a sweep's `out`, beside a folder for each prompt


def prompt_fields(prompt: str) -> list[str]:
    """The names of the `{field}`s in a prompt; ValueError when a brace is neither a field nor doubled."""
    try:
        pieces = list(string.Formatter().parse(prompt))
    except ValueError as error:
        raise ValueError(f"{error}; {BRACES}") from None
    names = []
    for _, name, form, conversion in pieces:
        if name is None:
            continue
        if form or conversion or not name.isidentifier():
            raise ValueError(f"{{{name}}} is no field's name; {BRACES}")
        names.append(name)
    return names


def _plain_fields(prompt: str) -> str:
    prompt_fields(prompt)
    return prompt


def _no_other_file(name: str) -> str:
    if name == SUMMARY:
        raise ValueError(f"{name} is what the sweep's summary is called; give the prompt another name")
    return name


PromptName = Annotated[Name, AfterValidator(_no_other_file)]
Prompt = Annotated[str, AfterValidator(_plain_fields)]


class SweepFile(Strict):
    """A sweep: every record once per prompt. `timeout` is in seconds, for one engine call."""

    name: Name
    model: ModelSpec
    records: str
    prompts: dict[PromptName, Prompt] = Field(min_length=1)
    generate: dict[str, JsonValue] = {}
    expect: str | None = None
    out: str = "results"
    glideins: int = Field(1, ge=1)
    timeout: float = Field(600.0, gt=0)
    batch: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    pack: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"


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
                raise ValueError(f"two entries are named {name}")
        return entries


# ---- reading -------------------------------------------------------------------------------------


def load(path: Path, model: type[Model]) -> Model:
    """Read a YAML file as a model.

    Raises:
        InputError: each problem as `file:line: what is wrong`.
    """
    tree, content = _parse(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}:1: not a mapping of keys to values")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise InputError(*_problems(path, tree, error)) from None


def place(path: Path, *keys: str) -> str:
    """Where in a YAML file something is, as `file:line: key.key`, for problems that show after `load`."""
    line, found = _find(_parse(path)[0], keys)
    return f"{path}:{line}: {'.'.join(found)}"


def read_text(path: Path) -> str:
    """A text file's content, without a byte order mark.

    Raises:
        InputError: it can't be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
        return content.decode("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8: {error.reason}; save the file as UTF-8") from None


class _Loader(yaml.SafeLoader):
    """PyYAML, less its silence about keys that are there twice and its tracebacks for values like 2024-13-45."""

    # At composition: later, keys merged with `<<` are in the mapping too, and those may be overridden.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise _not_yaml(key, f"{key.value!r:.40} is there twice; remove or rename one")
                seen.add((key.tag, key.value))
        return node

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        try:
            value.encode()
        except UnicodeEncodeError:  # YAML can write "\ud83d", UTF-8 can't
            raise _not_yaml(node, f"{value!r:.40} has half a character; complete it, or take it out") from None
        return value

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):  # whatever int(), date() and their like raise
            kind = node.tag.rpartition(":")[2]
            raise _not_yaml(node, f"{node.value!r:.40} is no {kind}; put a text in quotes") from None


def _not_yaml(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _parse(path: Path) -> tuple[yaml.Node | None, Any]:
    """A YAML file as a tree, which knows lines, and as its content."""
    text = read_text(path)
    try:
        loader = _Loader(text)
        tree = loader.get_single_node()
        return tree, loader.construct_document(tree) if tree else None
    except yaml.reader.ReaderError as error:
        line, problem = text.count("\n", 0, error.position) + 1, f"remove the character U+{error.character:04X}"
    except yaml.MarkedYAMLError as error:
        line, problem = error.problem_mark.line + 1 if error.problem_mark else 1, str(error.problem)
    except RecursionError:
        line, problem = 1, "nested too deeply"
    raise InputError(f"{path}:{line}: not YAML: {problem}")


def _problems(path: Path, tree: yaml.Node | None, error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        line, keys = _find(tree, problem["loc"])
        if problem["type"] == "missing":
            keys.append(str(problem["loc"][-1]))
        what = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"].removeprefix("Value error, ")
        yield f"{path}:{line}: {'.'.join(keys) + ': ' if keys else ''}{what}"


def _find(tree: yaml.Node | None, location: Iterable[int | str]) -> tuple[int, list[str]]:
    """The line of what pydantic calls by this location, and its keys.

    Only those that the file has: pydantic also names a union's branches, as if they were keys.
    """
    line, keys = tree.start_mark.line + 1 if tree else 1, []
    for part in location:
        child = _child(tree, part)
        if child is not None:
            name, tree = child
            line = name.start_mark.line + 1
            keys.append(str(part))
    return line, keys


def _child(node: yaml.Node | None, part: int | str) -> tuple[yaml.Node, yaml.Node] | None:
    """The node that names a part of a mapping or sequence, and the part; a later key overrides a merged one."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in reversed(node.value) if key.value == str(part)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None
