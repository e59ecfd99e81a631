"""What calls of a user's own code bring along and give back: modules, pickles, and results of any kind."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from glide.protocol.result import result_line
from glide.server.engine_process import encoded
from glide.template import Template
from glide.vocabulary import State
from tests.server_rig import value

# ---- modules and __main__ ------------------------------------------------------------------------

SCRIPT = """
import json, multiprocessing, pickle, sys
from glide.sweep.functions import NO_STATE, Invocation

class Thing:
    def twice(self): return 2

def twice(x): return 2 * x

def lazy():
    import helpers, package.inner
    from package import second
    return helpers.deep(3) + package.inner.ONE + second.TWO

def later():
    return lazy()

def by_name():
    assert type(pickle.loads(pickle.dumps(Thing()))) is Thing
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.map(twice, [1, 2])

def records():
    for function in (lazy, later, by_name):
        made = Invocation(function)
        yield {"custom_id": function.__name__, "prompt": made.prompt((), {}), "generate": made.generate}

json.dump([NO_STATE.template("ada@here").to_json(), list(records())], sys.stdout)
"""


def test_calls_on_nodes_find_lazily_imported_local_modules(start, tmp_path):
    (tmp_path / "package").mkdir()
    for name, text in {
        "script.py": SCRIPT,
        "helpers.py": "def deep(x):\n    from package.inner import times\n    return times(x)\n",
        "package/__init__.py": "",
        "package/inner.py": "from .second import TWO\nONE = 1\ndef times(x):\n    from . import second\n"
                            "    return x * second.TWO\n",
        "package/second.py": "TWO = 2\n",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    made = subprocess.run([sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, cwd="/", check=True).stdout
    template, sent = json.loads(made)
    server = start(Template.from_json(template))
    server.reached(State.WARM)
    results = {result["custom_id"]: result for result in server.call(sent).results()}
    assert {name: value(result) for name, result in results.items()} == {"lazy": 9, "later": 9, "by_name": [2, 4]}


# ---- results -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    ["\ud83d", float("nan"), float("inf"), 10**5000, b"bytes", {1, 2}, "x" * 64_000_001],
    ids=["surrogate", "nan", "inf", "huge", "bytes", "set", "long"],
)
def test_invalid_call_result_becomes_error(wrong):
    result = {"text": "", "tokens": 0, "error": None, "seconds": 0.1, "extra": wrong}
    text, failed = encoded(result)
    assert failed and len(text.encode()) < 3000
    assert json.loads(text)["text"] is None and json.loads(text)["error"]["type"] == "InvalidResult"
    right, failed = encoded({**result, "extra": "\U0001f989"})
    assert not failed and json.loads(right)["extra"] == "\U0001f989"


def test_line_of_result_has_the_fields_of_the_server():
    fields = {"text": 'a "b" \u2028 \u00e9', "error": None, "custom_id": "other", "glidein": "other", "attempts": 9}
    for each in (fields, {}):
        line = result_line(json.dumps(each, ensure_ascii=False), 'r "1"\ud800', "site-1.0", 2)
        assert line.endswith(b"}\n") and line.count(b"\n") == 1
        stamp = {"custom_id": 'r "1"\ud800', "glidein": "site-1.0", "attempts": 2}
        assert json.loads(line) == {**each, **stamp}


@pytest.mark.parametrize("wrong", ['{"a": 1}\n{"custom_id": "other"}', "[1]", "", '{"a": 1', "null"])
def test_line_of_result_is_one_object(wrong):
    with pytest.raises(ValueError, match="not a JSON object in one line"):
        result_line(wrong, "r", "g", 1)


def test_text_with_invalid_utf8_fails_only_its_record(start):
    server = start()
    server.reached(State.WARM)
    sent = [{"custom_id": str(n), "prompt": "\udcff" if n == 3 else "text"} for n in range(9)]
    results = server.call(sent).results()
    assert {each["custom_id"]: each["error"] and each["error"]["type"] for each in results} == {
        str(n): "InvalidResult" if n == 3 else None for n in range(9)
    }
