"""The transformers engine in this process: shared prefixes, two ways of batching, and tasks other than text."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from glide.server.engines import EngineRecord
from glide.server.engines.transformers import Transformers, continuous, generation, prefix
from glide.server.engines.transformers.batching import Generated
from glide.server.engines.transformers.prefix import common_prefix, group_by_prefix
from glide.server.engines.transformers.prompts import Prompt, PromptTooLong
from tests.models import ODD, Plain, loaded, served, texts, tiny_llama, tiny_variant, with_template

pytestmark = pytest.mark.models

GENERATE = {"max_new_tokens": 12, "do_sample": False}
CLAIM = "Decide whether the evidence supports the claim. Claim: the river flows north."
OTHER = "Translate what follows into Latin, and say no more than that, whatever it is: "


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(tiny_llama(tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture(scope="module")
def variant(llama: Path):
    """Other models with the same tokenizer, by their kind."""
    return cache(lambda kind: tiny_variant(llama, llama.with_name(kind), kind))


def plain_texts(plain: Plain, prompts: list[str], **generate: Any) -> list[str]:
    return [plain(prompt, **generate)[0] for prompt in prompts]


# ---- shared prefixes -----------------------------------------------------------------------------

SHARING = {
    "odd": ODD,
    "one template": [CLAIM + text for text in ODD],
    "equal to the prefix": [CLAIM] * 3 + [CLAIM + " Evidence: none", CLAIM + "x", CLAIM[:-1]],
    "two templates": [template + text for text in ODD for template in (CLAIM, OTHER)] + ["Verdict:"],
    "one": [CLAIM],
}


@pytest.mark.parametrize(("batching", "batch"), [("static", 3), ("static", 64), ("continuous", 8)])
def test_shared_prefixes_do_not_change_generated_texts(llama, plain, batching, batch):
    engine = loaded(llama, batching=batching, batch=batch)
    for again in range(2):  # the second time with what is known from the first
        for name, prompts in SHARING.items():
            assert texts(engine, prompts, **GENERATE) == plain_texts(plain, prompts, **GENERATE), (name, again)
    facts = engine.describe()
    assert facts["batching"] == batching
    assert facts["prefix_hits"] > 0.15


def test_reused_prefix_tokens_are_counted(llama):
    engine = loaded(llama, batching="static", batch=8)
    length = len(engine.encoder.encode([EngineRecord(0, CLAIM)])[0].ids)
    (call,) = engine.plan([EngineRecord(number, CLAIM + letter, GENERATE) for number, letter in enumerate("abcd")])
    assert len({engine.planned[record.key].prefix for record in call}) == 1
    assert len(engine.planned[0].prefix) == length
    engine.call(call)
    assert engine.describe()["prefix_hits"] == pytest.approx(3 * length / (4 * (length + 1)))  # one had to compute it


def test_accidental_prompt_overlap_is_not_cached_as_prefix(llama):
    engine = loaded(llama, batching="static", batch=8)
    for window in ("abcd", ["e1", "e2"], ["zz1", "zz2"], "f"):
        texts(engine, [CLAIM + rest for rest in window], **GENERATE)
    assert len(engine.task.padded.prefixes.cached) == 1


def test_prefix_cache_of_limited_size_alters_no_text(llama, plain, monkeypatch):
    monkeypatch.setattr(prefix, "MAX_PREFIXES", 2)
    engine = loaded(llama, batching="static", batch=4)
    for round in range(2):
        for number in range(4):
            prompts = [f"{number}{CLAIM} {letter}" for letter in "ab"]
            assert texts(engine, prompts, **GENERATE) == plain_texts(plain, prompts, **GENERATE), round
    assert len(engine.task.padded.prefixes.cached) == 2


def test_prefix_cache_stays_empty_for_sliding_window_model(variant, capfd):
    folder = variant("windowed")
    plain = Plain(folder)
    engine = loaded(folder, batch=8)
    assert "no shared prefixes" in capfd.readouterr().out
    prompts = SHARING["one template"][:8]
    assert texts(engine, prompts, **GENERATE) == plain_texts(plain, prompts, **GENERATE)
    assert not engine.task.padded.prefixes.cached


def test_common_prefix_is_found_despite_few_unrelated_prompts():
    rows = [[*range(20), 100 + number] for number in range(16)]
    assert common_prefix(rows, (), 1000) == tuple(range(20))
    assert common_prefix([*rows, [0, 1], [5, 6]], (), 1000) == tuple(range(20))  # two strays
    assert common_prefix(rows, (), 15) == tuple(range(15))
    assert common_prefix([row[9:] for row in rows], (), 1000) == ()  # 11 tokens are not worth it
    assert common_prefix(rows[:1], (), 1000) == ()
    assert common_prefix(rows[:1], [tuple(range(18))], 1000) == tuple(range(18))
    assert common_prefix([[1] * 20, [1] * 20], (), 1000) == (1,) * 19  # a token is left


def test_small_groups_of_prompts_share_one_engine_call():
    families = [[Prompt(EngineRecord(n, ""), [family] * 20 + [n]) for n in range(3)] for family in range(4)]
    mixed = [prompt for family in families for prompt in family]
    assert len(group_by_prefix(mixed, (), 64, 1000)) == 1
    assert len(group_by_prefix(mixed, (), 4, 1000)) == 4
    assert group_by_prefix(families[0], (), 64, 1000)[0][0].prefix == (0,) * 20  # there are no others


# ---- the choice of batching ----------------------------------------------------------------------


def test_chosen_batching_method_is_logged_with_its_reason(llama, plain, capfd):
    engine = loaded(llama, batch=8, device="all")  # without a GPU, all devices are one CPU
    (line,) = capfd.readouterr().out.splitlines()
    chosen = engine.describe()["batching"]
    assert line.startswith(f"transformers engine: {chosen} batching: ")
    assert (engine.task.continuous is None) == (chosen == "static")
    assert texts(engine, ODD, **GENERATE) == plain_texts(plain, ODD, **GENERATE)


class Unable:
    def __init__(self, *_: Any):
        raise MemoryError("no room for pages")


class Babbling(continuous.Continuous):
    def generate(self, prompts: Any, generate: Any, timeout: float | None = None) -> Generated:
        answer = super().generate(prompts, generate, timeout)
        return Generated([[*row[:-1], row[-1] ^ 2] for row in answer.rows], 0)


@pytest.mark.parametrize(
    ("kind", "why"), [(Unable, "MemoryError: no room for pages"), (Babbling, "generates other tokens")]
)
def test_static_batching_replaces_failing_continuous_batching(llama, plain, capfd, monkeypatch, kind, why):
    monkeypatch.setattr(generation, "Continuous", kind)
    engine = loaded(llama, batch=8)
    assert why in capfd.readouterr().out
    assert engine.describe()["batching"] == "static"
    assert texts(engine, ODD, **GENERATE) == plain_texts(plain, ODD, **GENERATE)


def test_load_fails_when_requested_continuous_batching_is_impossible(llama, monkeypatch):
    monkeypatch.setattr(generation, "Continuous", Unable)
    with pytest.raises(MemoryError, match="no room"):
        loaded(llama, batching="continuous")


def test_exception_in_continuous_batching_activates_static_batching(llama, plain, capfd):
    engine = loaded(llama, batching="continuous", batch=8)
    processor = engine.task.continuous.manager.batch_processor
    processor.prepare_next_batch = lambda: 1 // 0
    for _ in range(2):
        assert texts(engine, ODD, **GENERATE) == plain_texts(plain, ODD, **GENERATE)
    assert "ZeroDivisionError" in capfd.readouterr().out
    assert engine.describe()["batching"] == "static"


def test_interrupted_engine_call_does_not_affect_next_call(llama, plain, monkeypatch):
    engine = loaded(llama, batching="continuous", batch=8)

    def interrupted(deadline: float | None) -> Any:
        raise TimeoutError("a record's time is over")

    with monkeypatch.context() as patch:
        patch.setattr(engine.task.continuous, "_next_finished", interrupted)
        with pytest.raises(TimeoutError):
            texts(engine, ODD, **{**GENERATE, "max_new_tokens": 300})
    assert texts(engine, ODD, **GENERATE) == plain_texts(plain, ODD, **GENERATE)


def test_prompts_too_long_for_continuous_batching_are_served(llama, plain):
    engine = loaded(llama, batching="continuous", batch=8, batch_tokens=32)
    prompts = [CLAIM + OTHER, "Verdict:"]
    assert texts(engine, prompts, **GENERATE) == plain_texts(plain, prompts, **GENERATE)


def test_continuous_batching_with_wrong_output_tokens_frees_memory(llama, monkeypatch):
    started: list[continuous.Continuous] = []

    class Seen(Babbling):
        def __init__(self, *arguments: Any):
            super().__init__(*arguments)
            started.append(self)

    monkeypatch.setattr(generation, "Continuous", Seen)
    loaded(llama, batch=8)
    (seen,) = started
    assert not seen.manager.is_running()
    assert seen.manager.batch_processor is None  # it holds the pages


# ---- the last layer ------------------------------------------------------------------------------


def rows_of_the_last_block(engine: Transformers, prompts: list[str], **generate: Any) -> list[int]:
    """How many positions of each row the last layer's feed-forward block saw, call by call."""
    seen: list[int] = []
    block = engine.task.padded.model.base_model.layers[-1].mlp
    hook = block.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0].shape[1]))
    try:
        texts(engine, prompts, **generate)
    finally:
        hook.remove()
    return seen


def test_last_layer_skips_unneeded_token_positions(llama):
    engine = loaded(llama, batching="static", batch=8)
    assert rows_of_the_last_block(engine, [CLAIM, OTHER], **GENERATE) == [1] * GENERATE["max_new_tokens"]
    # Guesses are judged by logits of more positions than the last.
    guesses = {**GENERATE, "prompt_lookup_num_tokens": 3}
    assert max(rows_of_the_last_block(engine, [CLAIM + " Claim: the river"], **guesses)) > 1


def test_token_positions_that_affect_logits_are_not_skipped(llama, capfd, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    forward = LlamaMLP.forward

    def mixing(block: Any, states: Any) -> Any:
        return forward(block, states) + states.mean(1, keepdim=True)

    monkeypatch.setattr(LlamaMLP, "forward", mixing)
    engine = loaded(llama, batching="static", batch=8)
    assert (
        "the last layer of this model is computed for all positions: skipping positions changes its logits"
        in capfd.readouterr().out
    )
    assert rows_of_the_last_block(engine, [CLAIM], max_new_tokens=1)[0] > 1


# ---- tasks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "encoder"])
def test_embedding_is_mean_hidden_state_despite_padding(llama, variant, kind):
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = llama if kind == "llama" else variant(kind)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    completions = served(loaded(folder, task="embed", batch=6), ODD)
    for text, completion in zip(ODD, completions, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            mean = model(input_ids=ids).last_hidden_state[0].mean(0)
        assert (completion.text, completion.tokens) == ("", 0)
        assert completion.extra["embedding"] == pytest.approx((mean / mean.norm()).tolist(), abs=1e-5)


@pytest.mark.parametrize("kind", ["judge", "encoding-judge", "xlnet-judge"])
def test_classify_task_returns_highest_scoring_label_despite_padding(variant, kind):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = variant(kind)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    prompts = [*ODD, "a</s>", "a<s>", "<s>" * 9]  # ends that a padding token might be taken for
    completions = served(loaded(folder, task="classify", batch=6), prompts)
    for text, completion in zip(prompts, completions, strict=True):
        with torch.inference_mode():
            scores = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0].softmax(-1)
        assert completion.text == model.config.id2label[int(scores.argmax())]
        expected = {model.config.id2label[number]: score for number, score in enumerate(scores.tolist())}
        assert completion.extra["scores"] == pytest.approx(expected, abs=1e-5)
    assert len({completion.text for completion in completions}) > 1


def test_prompt_beyond_roberta_position_limit_is_refused(llama, variant):
    """RoBERTa's table of 20 positions has 18 for a prompt; on a GPU a 19th would break the process."""
    engine = loaded(variant("roberta"), task="embed", batch=4)
    prompts = ["a" * length for length in (2, 17, 18, 19)]  # tokens, with the one that begins a text
    records = [EngineRecord(number, prompt) for number, prompt in enumerate(prompts)]
    lengths = [len(prompt.ids) for prompt in engine.encoder.encode(records)]
    for record, length in zip(records, lengths, strict=True):
        if length <= 18:
            assert len(engine.call([record])[0].extra["embedding"]) == 32
        else:
            with pytest.raises(PromptTooLong, match="18"):
                engine.call([record])
    assert 18 in lengths and 19 in lengths


# ---- chat ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_chat_option_inserts_prompt_into_chat_template(llama, system):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    engine = loaded(llama, chat=True, system=system, batch=6, batching="static")
    tokenizer, model = AutoTokenizer.from_pretrained(llama), AutoModelForCausalLM.from_pretrained(llama).eval()
    for prompt, text in zip(ODD[:8], texts(engine, ODD[:8], **GENERATE), strict=True):
        messages = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": prompt}]
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        assert encoded["input_ids"][0].tolist().count(0) == 1 + ("<s>" in prompt)  # it begins once
        output = model.generate(encoded["input_ids"], attention_mask=encoded["attention_mask"], **GENERATE)
        assert text == tokenizer.decode(output[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True)


def test_loading_fails_if_model_lacks_chat_template(tmp_path):
    with pytest.raises(ValueError, match="no chat template"):
        loaded(tiny_llama(tmp_path / "llama"), chat=True)


def test_texts_for_various_prompt_prefixes_equal_transformers_output(llama, plain):
    chance = random.Random(3)
    prompts = [chance.choice((CLAIM, OTHER, "")) + "ab " * chance.randint(0, 6) + str(n) for n in range(40)]
    engine = loaded(llama, batch=16)
    assert texts(engine, prompts, **GENERATE) == plain_texts(plain, prompts, **GENERATE)
