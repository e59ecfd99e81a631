"""The transformers engine in a real model server: texts equal plain transformers', whatever the batch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from glide.template import Template
from glide.vocabulary import Machine, State
from tests.models import tiny_llama
from tests.server_rig import Server, assert_exactly_once, failure

HEALTHY = [*State.COMING_UP, State.WARM]


# ---- a real model --------------------------------------------------------------------------------

ODD = [
    "", " ", "Verdict:", "The claim is: the river flows north.", "🦉🦉 and 👩‍👩‍👧‍👦", "שלום עולם", "مرحبا بالعالم",
    "{claim} {{x}} }{", "two\nlines\n\n", "\ttab\r\n", "null\x00byte", "\u2028", "Verdict:", "Verdict:", "<s></s>",
    "é" * 90,
]  # fmt: skip
GENERATE = {"max_new_tokens": 24, "do_sample": False}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def plain(llama: Path):
    """What plain transformers makes of a prompt: (text, how many tokens)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama)
    model = AutoModelForCausalLM.from_pretrained(llama).eval()

    def plain(prompt: str, **generate: Any) -> tuple[str, int]:
        encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        output = model.generate(**encoded, **generate)[0, encoded["input_ids"].shape[1] :]
        return tokenizer.decode(output, skip_special_tokens=True), len(output)

    return plain


@pytest.fixture(scope="module", params=["static", "continuous"])
def warm(llama: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest):
    """A server that holds the model and calls it with up to six records, so that most are padded."""
    options = {"dtype": "float32", "batch": 6, "device": "cpu", "batching": request.param}
    template = Template.of_folder("llama", "transformers", llama, options)
    server = Server(tmp_path_factory.mktemp("server"), template)
    server.reached(State.WARM)
    yield server
    server.stop()


def ask(server: Server, prompts: list[str], **generate: Any) -> list[dict[str, Any]]:
    """The results for prompts, in their order."""
    sent = [{"custom_id": str(n), "prompt": prompt} for n, prompt in enumerate(prompts)]
    results = server.call([{"generate": generate}, *sent]).results()
    assert_exactly_once(results, sent)
    return sorted(results, key=lambda result: int(result["custom_id"]))


def test_greedy_texts_are_plain_transformers_texts(warm, plain):
    results = ask(warm, ODD, **GENERATE)
    assert [(result["text"], result["tokens"]) for result in results] == [plain(text, **GENERATE) for text in ODD]


def test_a_model_over_all_devices_of_a_job_says_the_same(start, llama, plain):
    """Where there is no GPU, all are one CPU; the way there is the same."""
    server = start(Template.of_folder("llama", "transformers", llama, {"device": "all", "dtype": "float32"}))
    server.reached(State.WARM)
    assert [result["text"] for result in ask(server, ODD, **GENERATE)] == [plain(text, **GENERATE)[0] for text in ODD]


def test_the_ad_says_how_prompts_are_batched_and_how_much_of_them_was_known(warm):
    shared = "".join(ODD[3:6]) * 2  # longer than a page
    for _ in range(2):
        ask(warm, [shared + text for text in ODD], **GENERATE)
    ad = warm.now()
    assert ad[Machine.BATCHING] == warm.template.options["batching"]
    assert 0 < ad[Machine.PREFIX_HITS] < 1


def test_the_tiny_model_says_different_things_and_sometimes_stops_by_itself(plain):
    said = [plain(text, **GENERATE) for text in ODD]
    assert len({text for text, _ in said}) > len(set(ODD)) / 2
    assert {tokens for _, tokens in said} > {24}


def test_without_options_texts_are_plain_transformers_texts_too(warm, plain):
    results = ask(warm, ODD)
    assert [(result["text"], result["tokens"]) for result in results] == [plain(text, do_sample=False) for text in ODD]


def test_a_prompt_too_long_for_the_model_has_an_error_and_its_neighbours_have_texts(warm, plain):
    prompts = ["before", "x" * 2000, "Verdict:", "y " * 1000, "after"]
    results = ask(warm, prompts, **GENERATE)
    assert [result["error"] and result["error"]["type"] for result in results] == [
        None, "PromptTooLong", None, "PromptTooLong", None,
    ]  # fmt: skip
    assert "512" in results[1]["error"]["message"]
    assert results[1]["text"] is None and results[1]["tokens"] == 0
    for n in (0, 2, 4):
        assert results[n]["text"] == plain(prompts[n], **GENERATE)[0]


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 1},
        {"max_new_tokens": 12, "min_new_tokens": 12},
        {"max_new_tokens": 12, "repetition_penalty": 1.8},
        {"max_new_tokens": 12, "no_repeat_ngram_size": 2},
        {"max_new_tokens": 12, "no_repeat_ngram_size": 1, "sequence_bias": [[[1], 4.0]]},
        {"max_new_tokens": 12, "suppress_tokens": [54, 49]},
        {"max_new_tokens": 12, "eos_token_id": 54},
        {"max_new_tokens": 12, "num_beams": 3},
        {"max_new_tokens": 12, "do_sample": True, "top_k": 1},
        {"max_length": 40},
    ],
    ids=lambda options: " ".join(name for name in options if name != "max_new_tokens") or "max_new_tokens",
)
def test_options_mean_what_they_mean_to_plain_transformers(warm, plain, options):
    prompts = ["Verdict:", "hello", "The claim is: the river flows north.", "", "x x x x x x"]
    options = {"do_sample": False, **options}
    results = ask(warm, prompts, **options)
    assert [result["error"] for result in results] == [None] * len(prompts)
    assert [(result["text"], result["tokens"]) for result in results] == [plain(text, **options) for text in prompts]


def test_sampling_samples(warm):
    texts = [result["text"] for result in ask(warm, ["hello"] * 12, max_new_tokens=12, do_sample=True, temperature=5.0)]
    assert len(set(texts)) > 1


def test_records_with_different_options_are_not_mixed_in_one_call(warm):
    lengths = [1, 5, 2, 5, 1, 9, 3]
    sent = [
        {"custom_id": str(n), "prompt": "hello", "generate": {"max_new_tokens": length, "min_new_tokens": length}}
        for n, length in enumerate(lengths)
    ]
    results = warm.call(sent).results()
    assert {result["custom_id"]: result["tokens"] for result in results} == {
        str(n): length for n, length in enumerate(lengths)
    }


@pytest.mark.parametrize(
    "options",
    [{"surprise": 1}, {"max_new_tokens": "many"}, {"max_new_tokens": -1}, {"num_return_sequences": 2, "num_beams": 2}],
    ids=lambda options: next(iter(options)) + "=" + str(next(iter(options.values()))),
)
def test_options_that_make_no_sense_are_each_records_error_and_the_model_stays(warm, options):
    before = warm.engine
    results = ask(warm, ["one", "two", "three"], **options)
    errors = [result["error"] and result["error"]["type"] for result in results]
    assert None not in errors and "EngineDied" not in errors
    assert warm.engine == before
    assert ask(warm, ["Verdict:"], max_new_tokens=2)[0]["error"] is None


def test_weights_that_are_torn_are_the_reason_of_a_failure(start, llama, tmp_path):
    folder = tmp_path / "torn"
    shutil.copytree(llama, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    server = start(Template.of_folder("llama", "transformers", folder, {"device": "cpu"}))
    assert "afetensor" in failure(server)


def test_a_dtype_that_does_not_exist_is_the_reason_of_a_failure(start, llama):
    server = start(Template.of_folder("llama", "transformers", llama, {"device": "cpu", "dtype": "float33"}))
    assert "float33" in failure(server)


def test_a_job_that_htcondor_has_given_no_gpu_uses_the_cpu(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "10000")
    server = Server(tmp_path / "server", Template.of_folder("llama", "transformers", llama, {}))
    try:
        server.reached(State.WARM)
    finally:
        server.stop()


def test_an_assigned_gpu_that_torch_does_not_see_is_the_reason_of_a_failure(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-c0ffee")
    server = Server(tmp_path / "server", Template.of_folder("llama", "transformers", llama, {}))
    try:
        assert "BrokenDevice: GPU GPU-c0ffee is assigned, and torch sees none" in failure(server)
    finally:
        server.stop()
