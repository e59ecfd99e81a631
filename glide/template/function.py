"""Python code on its way to a node: what sticky state is made by, and the calls that use it.

Not for nodes: they unpickle, with glide.template.placed and cloudpickle alone.
"""

from __future__ import annotations

import base64
import inspect
import os
import platform
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from glide.errors import InputError
from glide.template.canonical import Known, digest
from glide.template.placed import Placed, WithModules
from glide.template.spec import Function, Template, files_of

MOST_BYTES = 1 << 20  # of a pickled function: it stands in the ad of each of its jobs


def template_of(
    name: str, function: Callable, arguments: Sequence[Any], keywords: Mapping[str, Any], owner: str
) -> Template:
    """The template of the state that a call makes; its files are those that the call's arguments name.

    An argument names files if it is a Path of something that is there, or a text with a slash in it that is.

    Args:
        name: under which it is advertised.
        owner: the User whose jobs may use it.

    Raises:
        InputError: the function or an argument cannot be sent to a node.
        OSError: a file cannot be read.
    """
    paths = [path for path in map(_file, (*arguments, *keywords.values())) if path]
    folders = [path if path.is_dir() else path.parent for path in paths]
    root = Path(os.path.commonpath(folders)) if folders else None
    files = {key: each for path in paths if root for key, each in files_of(path, root).items()}
    call = (function, tuple(_placed(each, root) for each in arguments),
            {key: _placed(each, root) for key, each in sorted(keywords.items())})  # fmt: skip
    knowledge = known(call, name)
    text = pickled(call, name, knowledge)
    python = ".".join(platform.python_version_tuple()[:2])
    made = Function(_source(function), text, knowledge.digest, python, cloudpickle.__version__, owner)
    return Template(name, "python", str(root) if root else None, files, function=made)


def known(value: Any, name: str) -> Known:
    """As glide.template.canonical.digest; InputError for what cannot travel."""
    try:
        return digest(value)
    except Exception as error:  # whatever an object raises when it is asked to travel
        raise InputError(f"{name} cannot be sent to a node: {error}") from error


def pickled(value: Any, name: str, knowledge: Known) -> str:
    """A value's pickle in base64, with the code of the modules that it needs.

    Raises:
        InputError: it cannot be pickled, or is too large to travel with each job.
    """
    try:
        with _by_value(knowledge.local):
            whole = WithModules(value, knowledge.imported) if knowledge.imported else value
            text = base64.b64encode(cloudpickle.dumps(whole)).decode()
    except Exception as error:
        raise InputError(f"{name} cannot be sent to a node: {error}") from error
    if len(text) > MOST_BYTES:
        raise InputError(f"{name} has {len(text) / 1e6:.1f} MB with what it refers to; have it read them from a file")
    return text


@contextmanager
def _by_value(modules: set[ModuleType]) -> Iterator[None]:
    registered = [module for module in modules if module.__name__ not in cloudpickle.list_registry_pickle_by_value()]
    for module in registered:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)


def _file(argument: Any) -> Path | None:
    if isinstance(argument, Path) or (isinstance(argument, str) and os.sep in argument):
        with suppress(OSError, ValueError):  # a text may be no name of a file in many ways
            path = Path(argument)
            return path.resolve() if path.exists() else None
    return None


def _placed(argument: Any, root: Path | None) -> Any:
    path = _file(argument)
    return Placed(str(path.relative_to(root)), isinstance(argument, str)) if path and root else argument


def _source(function: Callable) -> str:
    with suppress(OSError, TypeError):
        return textwrap.dedent(inspect.getsource(function))[:20000]
    return ""
