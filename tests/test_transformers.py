"""The transformers engine in a real model server: texts equal plain transformers', whatever the batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glide.errors import InputError
from glide.server.engines.transformers.device import BrokenDevice, choose_device
from glide.sweep.prepare import prepare
from glide.template import Template
from glide.vocabulary import Machine, State
from tests.models import ODD
from tests.server_rig import Server, assert_exactly_once

pytestmark = pytest.mark.models

GENERATE = {"max_new_tokens": 24, "do_sample": False}


@pytest.fixture(scope="module")
def warm(llama: Path, tmp_path_factory: pytest.TempPathFactory):
    """A server that holds the model and calls it with up to six records, so that most are padded."""
    options = {"dtype": "float32", "batch": 6, "device": "cpu", "batching": "static"}
    server = Server(tmp_path_factory.mktemp("server"), Template.of_folder("llama", "transformers", llama, options))
    server.reached(State.WARM)
    yield server
    server.stop()


def ask(server: Server, prompts: list[str], **generate: Any) -> list[dict[str, Any]]:
    """The results for prompts, in their order."""
    sent = [{"custom_id": str(n), "prompt": prompt} for n, prompt in enumerate(prompts)]
    results = server.call([{"generate": generate}, *sent]).results()
    assert_exactly_once(results, sent)
    return sorted(results, key=lambda result: int(result["custom_id"]))


def test_served_texts_equal_those_of_transformers(warm, plain):
    shared = "".join(ODD[3:6]) * 2
    for prompts in ODD, [shared + text for text in ODD]:
        results = ask(warm, prompts, **GENERATE)
        assert [(result["text"], result["tokens"]) for result in results] == [
            plain(text, **GENERATE) for text in prompts
        ]
    ad = warm.now()
    assert ad[Machine.BATCHING] == "static"
    assert 0 < ad[Machine.PREFIX_HITS] < 1


def test_tiny_model_generates_varied_texts_and_lengths(plain):
    said = [plain(text, **GENERATE) for text in ODD]
    assert len({text for text, _ in said}) > len(set(ODD)) / 2
    assert {tokens for _, tokens in said} > {24}


def test_too_long_prompt_fails_only_its_own_record(warm, plain):
    prompts = ["before", "x" * 2000, "Verdict:", "y " * 1000, "after"]
    results = ask(warm, prompts, **GENERATE)
    assert [result["error"] and result["error"]["type"] for result in results] == [
        None, "PromptTooLong", None, "PromptTooLong", None,
    ]  # fmt: skip
    assert "512" in results[1]["error"]["message"]
    assert results[1]["text"] is None and results[1]["tokens"] == 0
    for n in (0, 2, 4):
        assert results[n]["text"] == plain(prompts[n], **GENERATE)[0]


def test_each_record_is_served_with_its_own_options(warm):
    lengths = [1, 5, 2, 5, 1, 9, 3]
    sent = [
        {"custom_id": str(n), "prompt": "hello", "generate": {"max_new_tokens": length, "min_new_tokens": length}}
        for n, length in enumerate(lengths)
    ]
    results = warm.call(sent).results()
    assert {result["custom_id"]: result["tokens"] for result in results} == {
        str(n): length for n, length in enumerate(lengths)
    }


def test_result_contains_every_returned_sequence_as_choice(warm, plain):
    options = {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2}
    for result, prompt in zip(ask(warm, ["one", "and two"], **options), ["one", "and two"], strict=True):
        wanted = [text for text, _ in plain.all(prompt, **options)]
        assert [(choice["index"], choice["text"]) for choice in result["choices"]] == list(enumerate(wanted))
        assert result["text"] == wanted[0] != wanted[1]


@pytest.mark.parametrize(
    ("options", "type"),
    [({"surprise": 1}, "UnknownOption"), ({"max_new_tokens": "many"}, "WrongOption"),
     ({"eos_token_id": 400_000}, "WrongOption"), ({"cache_implementation": "nowhere"}, "ValueError")],
)  # fmt: skip
def test_invalid_options_give_record_errors_without_engine_restart(warm, options, type):
    before = warm.engine
    results = ask(warm, ["one", "two", "three"], **options)
    assert [result["error"]["type"] for result in results] == [type] * 3
    assert warm.engine == before
    assert ask(warm, ["Verdict:"], max_new_tokens=2)[0]["error"] is None


# ---- before anything is submitted ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("generate", "words"),
    [
        ("{max_tokans: 12}", "generate.max_tokans: the transformers engine refuses max_tokans: "
         "no such option; did you mean max_tokens?"),
        ("{max_new_tokens: 600}", "600 tokens are too many: prompt and text together may have 512 tokens"),
    ],
)  # fmt: skip
def test_sweep_with_impossible_options_is_refused(llama, tmp_path, generate, words):
    (tmp_path / "records.jsonl").write_text('{"custom_id": "a"}\n', encoding="utf-8")
    (tmp_path / "sweep.yaml").write_text(
        f"name: s\nmodel: {{name: m, engine: transformers, path: {llama}}}\nrecords: records.jsonl\n"
        f"prompts: {{p: hello}}\ngenerate: {generate}\n",
        encoding="utf-8",
    )
    with pytest.raises(InputError) as refused:
        prepare(tmp_path / "sweep.yaml")
    (problem,) = refused.value.problems
    assert problem.startswith(f"{tmp_path}/sweep.yaml:5: ") and words in problem


# ---- loading -------------------------------------------------------------------------------------

IMPORTS = """
import gc, json, sys
from glide.server.engine_process import importing
from glide.server.engines import build
from glide.template import Template
engine = build(Template("llama", "transformers", sys.argv[1], options={"device": "cpu"}), python=sys.executable)
with importing():
    engine.prepare()
before, permanent = len(sys.modules), gc.get_freeze_count()
engine.load(sys.argv[1], lambda state: None)
print(json.dumps([before, len(sys.modules) - before, permanent, gc.isenabled()]))
"""


def test_packages_are_imported_before_loading_and_left_out_of_garbage_collections(llama):
    out = subprocess.run([sys.executable, "-c", IMPORTS, llama], capture_output=True, text=True, check=True).stdout
    before, later, permanent, enabled = json.loads(out.splitlines()[-1])
    assert later < before / 20 and permanent > 100_000 and enabled


# ---- devices -------------------------------------------------------------------------------------


def test_engine_uses_cpu_if_no_gpu_is_assigned(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "10000")
    assert choose_device("auto") == choose_device("all") == "cpu"


def test_loading_fails_if_assigned_gpu_is_invisible(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-c0ffee")
    with pytest.raises(BrokenDevice, match="GPU GPU-c0ffee is assigned, but torch sees none"):
        choose_device("auto")
