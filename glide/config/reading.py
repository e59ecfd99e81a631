"""YAML files as pydantic models, with errors that name file and line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from glide.errors import InputError

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
# Numbers as YAML has them: neither `true` nor "4", and no .inf or .nan.
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
# A text that ends up in a job file, in HTCondor's configuration or in a path.
Line = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """A mapping whose every key is known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _written_out(time: object) -> object:
    """YAML takes 20270104, 2027 and 8:00 for numbers, and a number would be seconds since 1970."""
    if isinstance(time, date) or (isinstance(time, str) and re.match(r"\d{4}-\d\d?-\d\d?", time)):
        return time
    raise ValueError("write date and time out, as 2027-01-04 08:00")


Time = Annotated[datetime, BeforeValidator(_written_out)]


def load(path: Path, model: type[Model]) -> Model:
    """Read a YAML file as a model.

    Raises:
        InputError: each problem as `file:line: what is wrong`.
    """
    tree, content = _parse(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}:1: not a mapping of keys to values")
    return _validated(path, tree, content, model)


def part(path: Path, content: Mapping[str, Any], model: type[Model], *keys: str) -> Model:
    """What a part of a YAML file comes to, as a model; InputError as `load`, each problem at its place in that part."""
    return _validated(path, _parse(path)[0], content, model, *keys)


def _validated(path: Path, tree: Any, content: Mapping[str, Any], model: type[Model], *keys: str) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise InputError(*_problems(path, tree, error, *keys)) from None


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


def _problems(path: Path, tree: yaml.Node | None, error: ValidationError, *where: str) -> Iterator[str]:
    for problem in error.errors():
        line, keys = _find(tree, (*where, *problem["loc"]))
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
            keys.append(str(part) if str(part).isprintable() else repr(part))
    return line, keys


def _child(node: yaml.Node | None, part: int | str) -> tuple[yaml.Node, yaml.Node] | None:
    """The node that names a part of a mapping or sequence, and the part; a later key overrides a merged one."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in reversed(node.value) if key.value == str(part)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None
