"""Compute a digest of Python objects and their code. Equal objects have the same digest in every process.

The sha256 of a pickle is not such a digest, because pickles of equal objects differ between processes. The order of a
set's items is random, a class has a random id, and code contains the path of its file. This module visits the same
objects as cloudpickle, but ignores these differences.
"""

from __future__ import annotations

import dis
import hashlib
import importlib.metadata
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple, TypeVar

import cloudpickle

_CODE = (
    "co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_argcount", "co_posonlyargcount",
    "co_kwonlyargcount", "co_flags", "co_exceptiontable",
)  # fmt: skip
# The digest of a class ignores these attributes, because the interpreter adds them to every class.
_NOT_CLASS = {"__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "__static_attributes__"}


class CapturedValue(NamedTuple):
    """The digest of a value that will be sent to a node, and the modules that the value needs.

    Attributes:
        digest: sha256 over the value and its code.
        local: the user's own modules among the modules that the value uses. Nodes do not have the user's own modules.
        imported: the modules in `local` that the value's code imports when it runs. The keys are the modules' names.
    """

    digest: str
    local: set[ModuleType]
    imported: dict[str, ModuleType]


def digest(value: Any) -> CapturedValue:
    """Return the digest of a value, and the modules that must be sent to a node with the value.

    Raises:
        TypeError: the value cannot be sent, because an object in it cannot be pickled.
    """
    walk = _Walk()
    return CapturedValue(walk.of(value).hex(), walk.local, walk.imported)


class _Walk:
    """Computes the digest of an object from the digests of all objects to which it refers.

    Attributes:
        done: digests of the finished objects. The keys are the id() of the objects.
        open: a dict from the id() of each unfinished object to its depth. An object is unfinished while the objects to
            which it refers are visited. The first object has depth 0. The objects to which it refers have depth 1, and
            so on. If the walk reaches an unfinished object again, the walk has found a cycle of objects. The unfinished
            object has no digest yet. So the walk uses a substitute: the hash of the number of objects in the cycle.
        kept: all visited objects. They must stay alive, because Python may give the id of a deleted object to a new
            object.
        local, imported: as in CapturedValue.
    """

    def __init__(self) -> None:
        self.done: dict[int, bytes] = {}
        self.open: dict[int, int] = {}
        self.kept: list[Any] = []
        self.local: set[ModuleType] = set()
        self.imported: dict[str, ModuleType] = {}

    def of(self, value: Any) -> bytes:
        if id(value) in self.open:
            return _hash(b"back", str(len(self.open) - self.open[id(value)]).encode())
        if id(value) not in self.done:
            self.open[id(value)] = len(self.open)
            self.kept.append(value)
            try:
                self.done[id(value)] = _hash(type(value).__qualname__.encode(), *self._parts(value))
            finally:
                del self.open[id(value)]
        return self.done[id(value)]

    def _parts(self, value: Any) -> Iterator[bytes]:
        if type(value) is int:
            yield f"{value:x}".encode()  # hexadecimal, because Python refuses to convert large numbers to decimal
        elif type(value) in (type(None), type(...), bool, float, complex, str, bytes):
            yield repr(value).encode()
        elif type(value) in (list, tuple):
            yield from map(self.of, value)
        elif type(value) in (set, frozenset):
            yield from sorted(map(self.of, value))
        elif type(value) is dict:  # the digest depends on the order of the keys
            yield from (self.of(key) + self.of(item) for key, item in value.items())
        elif isinstance(value, CodeType):
            yield from (self.of(getattr(value, name, None)) for name in _CODE)
            yield from map(self.of, value.co_consts)
        elif isinstance(value, ModuleType):
            yield from self._module(value)
        elif isinstance(value, FunctionType):
            yield from self._function(value)
        elif isinstance(value, MethodType):
            yield self.of(value.__func__)
            yield self.of(value.__self__)
        elif isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, TypeVar):
            yield self.of((value.__name__, value.__bound__, value.__constraints__))
        elif "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor):
            yield from self._tensor(value)
        elif isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, (ModuleType, type(None))):
            yield f"{value.__module__}.{value.__qualname__}".encode()
        else:
            yield from self._object(value)

    def _module(self, module: ModuleType) -> Iterator[bytes]:
        if _is_local(module):  # nodes get the content of a local module, so its digest includes the content
            self.local.add(module)
            for name, each in sorted(vars(module).items()):
                if name not in _NOT_MODULE:
                    yield name.encode() + self.of(each)
        else:
            yield f"{module.__name__} {_version(module.__name__)}".encode()

    def _tensor(self, tensor: Any) -> Iterator[bytes]:
        yield f"{tensor.dtype} {tuple(tensor.shape)}".encode()
        flat = tensor.detach().cpu().contiguous().flatten()
        yield flat.view(sys.modules["torch"].uint8).numpy().tobytes()

    def _function(self, function: FunctionType) -> Iterator[bytes]:
        if not self._is_by_value(function):
            yield f"{function.__module__}.{function.__qualname__} {_version(function.__module__)}".encode()
            return
        yield self.of(function.__code__)
        yield self.of(function.__defaults__)
        yield self.of(function.__kwdefaults__)
        yield self.of(function.__dict__)
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # the cell is still empty
                continue
            yield self.of(content)
        for name in sorted(_global_names(function.__code__)):
            if name in function.__globals__:
                yield name.encode() + self.of(function.__globals__[name])
        for module in _local_imports(function):
            self.imported[module.__name__] = module
            yield module.__name__.encode() + self.of(module)

    def _class(self, kind: type) -> Iterator[bytes]:
        yield f"{kind.__qualname__}".encode()
        if not kind.__flags__ & _HEAP_TYPE or not self._is_by_value(kind):
            yield f"{kind.__module__} {_version(kind.__module__)}".encode()
            return
        yield from map(self.of, (*kind.__bases__, *([] if type(kind) is type else [type(kind)])))
        for name, value in sorted(vars(kind).items()):
            if name not in _NOT_CLASS and not name.startswith("_abc_"):
                inner = getattr(value, "__func__", value) if isinstance(value, (staticmethod, classmethod)) else value
                accessors = (inner.fget, inner.fset, inner.fdel) if isinstance(inner, property) else (inner,)
                yield name.encode() + type(value).__name__.encode()
                # Skip the interpreter's own descriptors, for example those for `__slots__`. They have no content.
                yield from (self.of(each) for each in accessors if type(each).__name__ not in _DESCRIPTORS)

    def _object(self, value: Any) -> Iterator[bytes]:
        reducer = cloudpickle.Pickler.dispatch_table.get(type(value))
        reduced = reducer(value) if reducer else value.__reduce_ex__(4)
        if isinstance(reduced, str):
            yield reduced.encode()
            return
        make, arguments, *state = reduced  # `state`: up to three parts, for attributes, list items and dict items
        yield self.of(type(value)) + self.of(make) + self.of(arguments)
        yield from (self.of(list(each) if isinstance(each, Iterator) else each) for each in state)

    def _is_by_value(self, value: Any) -> bool:
        """Return whether the pickle of a function or class contains the code, and not only the name.

        The pickle contains the code if the function or class is from a script, a notebook or a module of the user.
        """
        module = sys.modules.get(value.__module__ or "")
        if module is not None and _is_local(module):
            self.local.add(module)
            return True
        found: Any = None if module is None or module.__name__ == "__main__" else module
        # If a function or class can be imported by its name, its pickle has the name and no code. This is not so for a
        # lambda.
        for name in value.__qualname__.split("."):
            found = getattr(found, name, None)
        return found is not value


_NOT_MODULE = {
    "__builtins__", "__loader__", "__spec__", "__file__", "__path__", "__cached__", "__doc__", "__package__",
}  # fmt: skip
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE, a flag of each class that is defined in Python code
_DESCRIPTORS = ("member_descriptor", "getset_descriptor", "wrapper_descriptor")


def _local_imports(function: FunctionType) -> Iterator[ModuleType]:
    """Yield the user's own modules that a function imports when it runs. A package comes before its modules."""
    package = function.__globals__.get("__package__") or ""
    for level, names, module in _imports(function.__code__):
        with suppress(Exception):  # ignore a failed import: it may succeed on nodes, or may be optional
            whole = importlib.util.resolve_name("." * level + module, package)
            within = [f"{whole}.{name}" for name in names or ()]
            parts = whole.split(".")
            for name in [".".join(parts[: count + 1]) for count in range(len(parts))] + within:
                found = sys.modules.get(name) or _imported_if_local(name)
                if isinstance(found, ModuleType) and _is_local(found):
                    yield found


def _imported_if_local(name: str) -> ModuleType | None:
    """Import a module and return it, if it belongs to the user. Otherwise return None.

    A module of an installed package is not imported. Nodes have such modules too, and the import may be slow.
    """
    spec = importlib.util.find_spec(name)  # this also imports the packages that contain the module
    places = [] if spec is None else [spec.origin] if spec.has_location else list(spec.submodule_search_locations or ())
    if any(place and not _is_installed(Path(place)) for place in places):
        return importlib.import_module(name)
    return None


def _imports(code: CodeType) -> Iterator[tuple[int, tuple[str, ...] | None, str]]:
    """Yield the arguments `level`, `fromlist` and `name` of `__import__` for each import statement in some code."""
    before: list[Any] = [None, None]
    for each in dis.get_instructions(code):
        if each.opname == "IMPORT_NAME":
            yield before[-2], before[-1], each.argval
        if each.opname != "EXTENDED_ARG":
            before = [before[-1], each.argval]
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _imports(each)


def _is_local(thing: ModuleType | type) -> bool:
    """Return whether a module or a class is the user's own.

    Return False for `__main__`, and for modules and classes of Python, of glide and of installed packages.

    Args:
        thing: a module or a class. For a class, the function checks the module that defines the class.
    """
    name = thing.__name__ if isinstance(thing, ModuleType) else thing.__module__
    module = sys.modules.get(name)
    if name.partition(".")[0] in (*sys.stdlib_module_names, "glide", "__main__") or module is None:
        return False
    places = [file] if (file := getattr(module, "__file__", None)) else list(getattr(module, "__path__", ()))
    return any(not _is_installed(Path(place)) for place in places)


def _is_installed(place: Path) -> bool:
    folders = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")}
    # sysconfig does not know all folders with installed packages. The other folders are named site-packages or
    # dist-packages. They can be in ~/.local, in Debian's Python, or in the Python from which a venv was made.
    named = {"site-packages", "dist-packages"} & set(place.parts)
    return bool(named) or any(place.is_relative_to(folder) for folder in folders)


@cache
def _version(module: str) -> str:
    package = module.partition(".")[0]
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _global_names(code: CodeType) -> set[str]:
    names = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_global_names(each) for each in code.co_consts if isinstance(each, CodeType)))


def _hash(*parts: bytes) -> bytes:
    content = hashlib.sha256()
    for part in parts:
        content.update(len(part).to_bytes(8, "big") + part)
    return content.digest()
