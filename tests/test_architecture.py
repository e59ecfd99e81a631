"""The structure that docs/inside.md promises: unique class names, imports in one direction, small files."""

from __future__ import annotations

import ast
import re
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = 350
# Modules outside the packages that docs/inside.md puts in order: all packages may import these.
COMMON = {"vocabulary", "errors", "system", "resources", "arguments", "job_ad"}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
    for path in sorted((ROOT / "glide").rglob("*.py"))
}


def imported(tree: ast.AST) -> set[str]:
    """The modules of glide that a module imports, at any depth, also under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found


def package(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_package_dependencies_follow_documented_order():
    (line,) = re.findall(r"^> (.* → .*)$", (ROOT / "docs" / "inside.md").read_text(), re.MULTILINE)
    order = line.split(" → ")
    assert {package(module) for module in MODULES} - COMMON - {"", "__main__", "parsl"} == set(order)
    rank = {name: number for number, name in enumerate([*sorted(COMMON), *order])}
    rank |= dict.fromkeys(COMMON, 0)
    upward = {
        f"{module} imports {other}"
        for module, tree in MODULES.items() for other in imported(tree)
        if package(module) in rank and rank.get(package(other), -1) > rank[package(module)]
    }  # fmt: skip
    assert upward == set()


def test_modules_have_no_import_cycle():
    TopologicalSorter({module: imported(tree) for module, tree in MODULES.items()}).prepare()  # raises CycleError


def test_no_two_python_classes_share_a_name():
    names = Counter(node.name for tree in MODULES.values() for node in tree.body if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []


def test_files_have_at_most_350_lines():
    long = {str(path) for path in (ROOT / "glide").rglob("*.py") if path.read_text().count("\n") > MOST_LINES}
    assert long == set()
