"""The digest of a Python state: the same in every process, another for whatever makes another state."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from glide.template.canonical import digest

HEAD = """
import dataclasses, enum, functools, sys, typing
from pathlib import Path
import numpy
import beside
from glide.template.canonical import digest

T = typing.TypeVar("T")
class Colour(enum.Enum):
    RED = 1
@dataclasses.dataclass
class Setting:
    name: str = "a"
    values: tuple = (1, 2)
    def both(self): return self.name, self.values
class Box(typing.Generic[T]):
    kept: T
class Counter:
    count = 0
    @staticmethod
    def fixed(): return 1
    @property
    def twice(self): return 2 * self.count
def helper(number): return number + 1
def recursive(number): return recursive(number - 1) if number else helper(0)
def outer(k):
    def inner(x, *, y={"p", "q", "r"}): return x in {"u", "v", "w"} or k or y
    return inner
"""
VALUES = """
values = {
    "function": recursive, "closure": outer(3), "lambda": lambda x: helper(x), "set": {"a", "b", "c"}, "class": Counter,
    "instance": Setting("b"), "enum": Colour.RED, "generic": Box, "partial": functools.partial(helper, 2),
    "method": Setting("c").both, "array": numpy.arange(4.0), "module": beside,
    "of a module": beside.clean, "nested": {"x": [Setting(), {1: Path("/tmp")}]}, "large": 10**5000,
}
for name, value in values.items():
    print(name, digest(value)[0])
"""
BESIDE = "from other import scrub\nLABELS = ['a', 'b']\ndef clean(text): return scrub(text) + str(LABELS)\n"


@pytest.fixture
def digests(tmp_path: Path):
    def digests(head: str = HEAD, beside: str = BESIDE, other: str = "def scrub(text): return text.strip()\n") -> dict:
        (tmp_path / "script.py").write_text(head + VALUES)
        (tmp_path / "beside.py").write_text(beside)
        (tmp_path / "other.py").write_text(other)
        done = subprocess.run([sys.executable, "-B", tmp_path / "script.py"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())

    return digests


def test_equal_values_have_equal_digests_in_all_processes(digests):
    first = digests()
    assert digests() == first == digests("\n\n# further down\n" + HEAD)
    assert len(set(first.values())) == len(first)


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("number + 1", "number + 2", {"function", "lambda", "partial"}),
        ("return 2 * self.count", "return 3 * self.count", {"class"}),
        ("@staticmethod\n    def fixed()", "@classmethod\n    def fixed(cls)", {"class"}),
        ('{"u", "v", "w"}', '{"u", "v"}', {"closure"}),
        ('{"p", "q", "r"}', '{"p", "q"}', {"closure"}),
        ("RED = 1", "RED = 2", {"enum"}),
        ("values: tuple = (1, 2)", "values: tuple = (1, 3)", {"instance", "method", "nested"}),
        ('T = typing.TypeVar("T")', 'T = typing.TypeVar("T", bound=int)', {"generic"}),
    ],
)
def test_digest_changes_with_code_that_value_refers_to(digests, old, new, changed):
    before, after = digests(), digests(HEAD.replace(old, new))
    assert {name for name in before if before[name] != after[name]} == changed


def test_digest_includes_contents_of_local_modules(digests):
    before = digests()
    for changes in ({"beside": BESIDE.replace("'b'", "'c'")}, {"other": "def scrub(text): return text.lower()\n"}):
        after = digests(**changes)
        assert {name for name in before if before[name] != after[name]} == {"module", "of a module"}
    computed = digests(beside=BESIDE.replace("['a', 'b']", "[a for a in 'ab']"))
    assert computed["module"] == before["module"], "values count, and not how they came about"


def test_digest_function_also_returns_required_local_modules(tmp_path, monkeypatch):
    (tmp_path / "travelling.py").write_text("import json\nimport second\ndef go(): return second.go()\n")
    (tmp_path / "second.py").write_text("def go(): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import travelling

    assert {module.__name__ for module in digest(travelling.go)[1]} == {"travelling", "second"}


def test_digest_distinguishes_types_and_attributes_and_dict_order():
    def plain():
        return 1

    def marked():
        return 1

    marked.mark = 2  # type: ignore[attr-defined]
    different = [plain, marked, {"a": 1, "b": 2}, {"b": 2, "a": 1}, [1, 2], (1, 2), 1, 1.0, True, "1", b"1", 0.0, -0.0]
    assert len({digest(value)[0] for value in different}) == len(different)
    assert digest({3, 1, 2}) == digest({1, 2, 3})


@pytest.mark.models
def test_tensor_digest_depends_on_type_shape_and_values():
    import torch

    values = torch.arange(12.0)
    equal = [values, torch.arange(12.0), torch.arange(24.0)[:12]]
    assert len({digest(value)[0] for value in equal}) == 1
    other = [values, values.bfloat16(), values.reshape(3, 4), values + 1, torch.nn.Parameter(values)]
    assert len({digest(value)[0] for value in other}) == len(other)


def test_digest_error_contains_name_of_unpicklable_type():
    with pytest.raises(TypeError, match="cannot pickle 'generator'"):
        digest(number for number in range(3))
