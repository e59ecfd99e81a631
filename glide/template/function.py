"""Convert a user's Python function to a pickle that nodes can load. Such a function makes or uses sticky state.

Nodes do not import this module. To unpickle a function, they need only glide.template.file_argument and cloudpickle.
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
from glide.template.canonical import CapturedValue, digest
from glide.template.file_argument import FileArgument, WithModules
from glide.template.private import is_private
from glide.template.spec import Function, Template, files_of

MOST_BYTES = 1 << 20  # maximum length of a pickled function in base64; the ad of each job contains the function


def template_of(
    name: str, function: Callable, arguments: Sequence[Any], keywords: Mapping[str, Any], owner: str
) -> Template:
    """Return the template of the state that a function call makes.

    If an argument of the call is a Path or a text with a slash, it may be the path of a file or folder. If such a file
    or folder exists, the template contains this file, or all files of this folder.

    Args:
        name: the template's name in ads.
        arguments: positional arguments of the call.
        keywords: keyword arguments of the call.
        owner: the only User whose jobs may use the state.

    Raises:
        InputError: the function or an argument cannot be sent to a node.
        OSError: a file cannot be read.
    """
    paths = [path for path in map(_file, (*arguments, *keywords.values())) if path]
    folders = [path if path.is_dir() else path.parent for path in paths]
    root = Path(os.path.commonpath(folders)) if folders else None
    files = {key: each for path in paths if root for key, each in files_of(path, root).items()}
    call = (function, tuple(_file_argument(each, root) for each in arguments),
            {key: _file_argument(each, root) for key, each in sorted(keywords.items())})  # fmt: skip
    captured = capture(call, name)
    text = pickled(call, name, captured)
    python = ".".join(platform.python_version_tuple()[:2])
    made = Function(_source(function), text, captured.digest, python, cloudpickle.__version__, owner)
    private = root is not None and any(is_private(folder) for folder in folders)
    return Template(name, "python", str(root) if root else None, files, function=made, private=private)


def capture(value: Any, name: str) -> CapturedValue:
    """Compute the digest of a value, and find the modules that the value needs.

    Raises:
        InputError: the value cannot be pickled.
    """
    try:
        return digest(value)
    except Exception as error:  # an object may raise any exception when it is pickled
        raise InputError(f"{name} cannot be sent to a node: {error}") from error


def pickled(value: Any, name: str, captured: CapturedValue) -> str:
    """Pickle a value with the code of the modules that the value needs. Return the pickle in base64.

    Raises:
        InputError: the value cannot be pickled, or is too large to be sent with each job.
    """
    try:
        with _by_value(captured.local):
            complete = WithModules(value, captured.imported) if captured.imported else value
            text = base64.b64encode(cloudpickle.dumps(complete)).decode()
    except Exception as error:
        raise InputError(f"{name} cannot be sent to a node: {error}") from error
    if len(text) > MOST_BYTES:
        raise InputError(
            f"{name} cannot be sent to a node: the pickle has {len(text) / 1e6:.1f} MB, and the limit is 1 MB; write"
            " large objects to a file, and let the function read this file"
        )
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
        with suppress(OSError, ValueError):  # if a text is not a valid path, no such file exists
            path = Path(argument)
            return path.resolve() if path.exists() else None
    return None


def _file_argument(argument: Any, root: Path | None) -> Any:
    path = _file(argument)
    return FileArgument(str(path.relative_to(root)), isinstance(argument, str)) if path and root else argument


def _source(function: Callable) -> str:
    with suppress(OSError, TypeError):
        return textwrap.dedent(inspect.getsource(function))[:20000]
    return ""
