"""Read YAML files as pydantic models. Each error names the file and the line."""

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
# Without `strict`, pydantic would also accept `true` and "4" as numbers. The type `Number` also refuses .inf
# and .nan.
Integer = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
# One line of text. glide writes texts of this type into job files, paths, and HTCondor's configuration. So control
# characters are refused.
Line = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """A mapping in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _full_date(time: object) -> object:
    """Accept only a full date, with or without a time.

    Numbers are refused. YAML reads 20270104, 2027 and 8:00 as numbers, and pydantic would take them for Unix times.
    """
    if isinstance(time, date) or (isinstance(time, str) and re.match(r"\d{4}-\d\d?-\d\d?", time)):
        return time
    raise ValueError("not a date and time; write it in full, as 2027-01-04 08:00")


Time = Annotated[datetime, BeforeValidator(_full_date)]


def load(path: Path, model: type[Model]) -> Model:
    """Read a YAML file as a model.

    Raises:
        InputError: the file has problems. The error names each problem as `file:line: what is wrong`.
    """
    tree, content = _parse(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}:1: not a mapping; write `key: value` lines")
    return _validated(path, tree, content, model)


def load_part(path: Path, content: Mapping[str, Any], model: type[Model], *keys: str) -> Model:
    """Validate content that was built from one part of a YAML file, and return it as a model.

    Args:
        path: the YAML file.
        keys: the keys that lead to this part of the file, outermost first. Error messages name lines of this part.

    Raises:
        InputError: the content has problems. The error names each problem as `file:line: what is wrong`.
    """
    return _validated(path, _parse(path)[0], content, model, *keys)


def _validated(path: Path, tree: Any, content: Mapping[str, Any], model: type[Model], *keys: str) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise InputError(*_problems(path, tree, error, *keys)) from None


def position(path: Path, *keys: str) -> str:
    """Return the place of a key in a YAML file, as `file:line: key.key`.

    Callers use it in messages about mistakes that `load` does not find.
    """
    line, found = _find(_parse(path)[0], keys)
    return f"{path}:{line}: {'.'.join(found)}"


def read_text(path: Path) -> str:
    """Return the content of a text file without its byte order mark.

    Raises:
        InputError: the file cannot be read, or is not UTF-8.
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
    """PyYAML's safe loader with further checks.

    If a key is given twice, PyYAML ignores this mistake. For a value such as 2024-13-45, PyYAML raises an error without
    a line number. This loader reports both mistakes with their line numbers.
    """

    # Report a key that is given twice in a mapping. A key may override a key that `<<` merges from another mapping. So
    # check the keys before PyYAML merges the mappings.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise _not_yaml(key, f"key {key.value!r:.40} is given twice; remove or rename one")
                seen.add((key.tag, key.value))
        return node

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        try:
            value.encode()
        except UnicodeEncodeError:  # "\ud83d", half of a character, is valid YAML but not valid UTF-8
            raise _not_yaml(
                node, f"{value!r:.40} contains half a character (a lone surrogate); remove it, or add the other half"
            ) from None
        return value

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):
            # PyYAML calls int(), date() and other functions, which raise various errors for invalid values.
            kind = node.tag.rpartition(":")[2]
            raise _not_yaml(node, f"{node.value!r:.40} is not a valid {kind}; put text in quotes") from None


def _not_yaml(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _parse(path: Path) -> tuple[yaml.Node | None, Any]:
    """Parse a YAML file. Return its tree of YAML nodes, which have line numbers, and its content as Python objects."""
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
    """Return the line number and the keys of a place in a YAML file. `location` is the `loc` of a pydantic error.

    If a value may have several types, pydantic adds the name of a type to the location. This name is not a key in the
    file, so it is skipped.
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
    """Look up a value in a mapping or list. Return the YAML nodes of the value's key and of the value.

    - If there is no such value, return None.
    - An item of a list has no key. So for an item, return the item's YAML node twice.
    - A mapping can contain the same key twice, because `<<` adds keys from another mapping. The mapping's own key comes
      last, and overrides the added key. So return the last key.

    Args:
        node: the YAML node of the mapping or list.
        part: the key in the mapping, or the index in the list.
    """
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in reversed(node.value) if key.value == str(part)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None
