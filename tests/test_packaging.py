"""What pyproject.toml and constraints.txt promise."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Packages that only scripts in an environment of their own import (glide/bench/vllm_alone.py).
ELSEWHERE = {"vllm"}
# Modules whose distribution has another name.
DISTRIBUTIONS = {"classad2": "htcondor", "htcondor2": "htcondor", "yaml": "pyyaml"}


def test_every_imported_package_is_declared_dependency() -> None:
    declared = {_name(each) for each in _requirements()}
    imported = {DISTRIBUTIONS.get(module, _name(module)) for module in _imported(ROOT / "glide")}
    assert imported - declared == ELSEWHERE


def test_constraints_file_has_exact_version_of_every_requirement() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[2:])
    needed, todo = set[str](), [_name(each) for each in _requirements()]
    while todo:
        name = todo.pop()
        if name in needed:
            continue
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # for another system or Python, or an extra that is not installed
            continue
        needed.add(name)
        todo += [_name(each) for each in found.requires or () if "extra ==" not in each]
    installed = {name: metadata.version(name).partition("+")[0] for name in needed}
    assert {name: version for name, version in installed.items() if pins.get(name) != version} == {}


def test_current_python_version_satisfies_declared_requirement() -> None:
    """The oldest Python that is promised runs all tests; `make soak` runs them on the newest, too."""
    promised = re.fullmatch(r">=(3\.\d+)", PROJECT["requires-python"])
    assert promised and sys.version_info[:2] >= tuple(map(int, promised[1].split(".")))


def _requirements() -> list[str]:
    return [*PROJECT["dependencies"], *(each for extra in PROJECT["optional-dependencies"].values() for each in extra)]


def _name(requirement: str) -> str:
    """A distribution's normalized name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def _imported(folder: Path) -> Iterator[str]:
    """Top-level modules that the code of a folder imports, those of the standard library and its own left out."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            else:
                continue
            for module in modules:
                top = module.partition(".")[0]
                if top != "glide" and top not in sys.stdlib_module_names:
                    yield top
