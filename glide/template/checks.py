"""Check the description of a template before the template is used. Any user may have written this description.

The checks cover all types and ranges. The factory reads descriptions from the ads of jobs, and a node gets a
description from a sticky job. This module uses only the standard library.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from glide.vocabulary import State

LARGEST_TEXT = 16_000_000  # maximum length of a description in characters; a large function needs only 1.4 million
LARGEST_NAME = 4096  # maximum length of a path, an address, a key or an owner, in characters
LARGEST_SIZE = 10**15  # maximum size of a file in bytes
LONGEST_BUDGET = 1e9  # largest allowed time limit of a phase, in seconds
DEEPEST = 50  # maximum depth of nested options; some versions of Python cannot write deeper options as JSON
PHASES = (*State.COMING_UP, State.WARM)

_NO_LINE = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"

Check = Callable[[Any], bool]


def parse(text: object) -> dict[str, Any]:
    """Read a JSON object of limited length and depth.

    Raises:
        ValueError: the text is not such an object, or contains infinite numbers or invalid Unicode.
    """
    if not isinstance(text, str) or len(text) > LARGEST_TEXT:
        raise ValueError("the description is no text, or it is too long")
    try:
        fields = json.loads(text, parse_constant=_refuse)
        if not isinstance(fields, dict):
            raise ValueError("the description is no JSON object")
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()  # fails for infinite numbers and bad Unicode
    except RecursionError:
        raise ValueError("the description is nested too deeply") from None
    return fields


def check(fields: Mapping[str, Any], expected: Mapping[str, Check], needed: tuple[str, ...], what: str) -> None:
    """Raise ValueError if a `needed` field is missing, a field is unknown, or a value does not pass its check.

    Args:
        expected: a dict from the name of each known field to a function that returns whether a value is valid.
        needed: names of the required fields.
        what: name of the object in error messages.
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"{what} is no JSON object")
    if missing := [name for name in needed if name not in fields]:
        raise ValueError(f"{what} has no {missing[0]}")
    for name, value in fields.items():
        if name not in expected:
            raise ValueError(f"{what} has an unknown field {name!r:.40}")
        if not expected[name](value):
            raise ValueError(f"{what}: {name} cannot be {value!r:.80}")


def files(described: Any) -> dict[str, tuple[str, int]]:
    """Check a description's files. Return a dict from the name of each file to its sha256 and its size in bytes.

    Raises:
        ValueError: a sha256 or a size is invalid, or a name is not a relative path inside the template's folder.
    """
    if not isinstance(described, Mapping):
        raise ValueError("`files` must be a JSON object")
    found = {}
    for name, each in described.items():
        if not is_file_name(name):
            raise ValueError(f"{name!r:.80} is no name of a file within a folder")
        if not (isinstance(each, (list, tuple)) and len(each) == 2 and _is_digest(each[0]) and _is_size(each[1])):
            raise ValueError(f"{name!r:.80} has no sha256 and size")
        found[name] = (each[0], each[1])
    return found


def adapter_name(name: Any) -> str:
    """Return the name of an adapter, which programs get as an argument. Raise ValueError if it is not valid."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise ValueError(f"{name!r:.80} is no name of an adapter")
    return name


def is_file_name(name: Any) -> bool:
    """Return whether a value is a relative path without `..`, in valid Unicode and without control characters."""
    if not _is_line(name):
        return False
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number in JSON")


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_SIZE


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_line(value: Any) -> bool:
    """Return whether a value is one line of valid Unicode, with at most LARGEST_NAME characters."""
    return isinstance(value, str) and len(value) <= LARGEST_NAME and re.search(_NO_LINE, value) is None


def _is_name(value: Any) -> bool:
    return bool(value) and _is_line(value)


def _is_options(value: Any) -> bool:
    return isinstance(value, dict) and _depth(value) <= DEEPEST


def _depth(value: Any) -> int:
    """Return how deeply lists and objects are nested.

    The function is not recursive, because a value may be nested more deeply than Python's recursion limit allows.
    """
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, (dict, list))]:
        depth += 1
        level = [part for each in level for part in (each.values() if isinstance(each, dict) else each)]
    return depth


def _is_budgets(value: Any) -> bool:
    return isinstance(value, dict) and all(phase in PHASES and _is_seconds(each) for phase, each in value.items())


def _is_seconds(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 < value <= LONGEST_BUDGET


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _anything(value: Any) -> bool:
    return True


FUNCTION: dict[str, Check] = {
    "source": _is_text, "pickle": _is_text, "digest": _is_digest,
    "python": _is_line, "cloudpickle": _is_line, "owner": _is_line,
}  # fmt: skip
# This table does not check the field `files`. The function files() above checks this field.
FILE_SET: dict[str, Check] = {
    "path": _is_line,
    "files": _anything,
    "key": _is_line,
    "seed": _is_line,
    "owner": _is_line,
}
# The fields with `_anything` have no check here, because Template.from_json checks them.
TEMPLATE: dict[str, Check] = {
    "model": _is_name, "engine": _is_name, "path": _or_none(_is_line), "files": _anything, "options": _is_options,
    "function": _anything, "budgets": _is_budgets, "service": _or_none(_is_options),
    "keep": lambda value: value in ("state", "files", "nothing"), "key": _is_line, "seed": _is_line,
    "environment": _anything, "user": _is_line, "private": lambda value: isinstance(value, bool), "needs": _anything,
    "adapters": lambda value: isinstance(value, dict),
}  # fmt: skip
