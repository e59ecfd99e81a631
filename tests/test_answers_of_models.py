"""What a request may ask of the transformers engine, and what its answer says: seeds, choices, log probabilities."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from glide.server.engines import Completion, EngineRecord
from tests.models import Plain, edited, loaded, served, texts, tiny_variant, with_template

pytestmark = pytest.mark.models

PROMPTS = ["Verdict:", "hello", "The river", "Claim: the river flows north.", "a", "b b b"]
HOT = {"max_tokens": 12, "temperature": 1.0, "seed": 7}
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["verdict", "score"],
    "properties": {
        "verdict": {"enum": ["SUPPORTED", "REFUTED"]}, "score": {"type": "integer", "minimum": 0, "maximum": 9},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def engine(llama: Path):
    return cache(lambda batch=4, batching="static": loaded(llama, batching=batching, batch=batch))


def answered(engine: Any, prompt: Any, task: str = "", **generate: Any) -> Completion:
    (call,) = engine.plan([EngineRecord(0, prompt, generate, task)])
    (completion,) = engine.call(call)
    return completion


# ---- sampling ------------------------------------------------------------------------------------


def test_seeded_texts_do_not_depend_on_batch_size(engine):
    alone = [texts(engine(), [prompt], **HOT)[0] for prompt in PROMPTS]
    for batch in (1, 4, 64):
        assert texts(engine(batch), PROMPTS, **HOT) == alone
    assert texts(engine(), PROMPTS, **{**HOT, "seed": 8}) != alone


def test_seed_is_optional_and_changes_sampled_texts(engine):
    unseeded = {name: value for name, value in HOT.items() if name != "seed"}
    assert len({tuple(texts(engine(), PROMPTS, **unseeded)) for _ in range(3)}) == 3
    assert len({tuple(texts(engine(), PROMPTS, **HOT)) for _ in range(3)}) == 1


def test_records_with_different_random_seeds_share_engine_call(engine):
    records = [EngineRecord(n, "hello", {**HOT, "seed": n}) for n in range(4)]
    (call,) = engine().plan(records)
    assert [one.text for one in engine().call(call)] == [
        texts(engine(), ["hello"], **{**HOT, "seed": n})[0] for n in range(4)
    ]


def test_sampled_tokens_follow_the_probabilities_of_the_model(engine, plain):
    """2,000 draws of one token; the test is chi-square with 20 most probable tokens and all others together."""
    import torch

    options = {"max_tokens": 1, "temperature": 0.7, "n": 1000, "top_p": 0.9}
    drawn: dict[int, int] = {}
    for seed in (1, 2):
        completion = answered(engine(64), "hello", **options, seed=seed, logprobs=0)
        for choice in completion.extra["choices"]:
            drawn[choice["text"]] = drawn.get(choice["text"], 0) + 1
    ids = plain.tokenizer("hello", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        probabilities = (plain.model(ids).logits[0, -1] / 0.7).softmax(-1)
    ordered, tokens = probabilities.sort(descending=True)
    kept = int((ordered.cumsum(0) < 0.9).sum()) + 1
    expected: dict[str, float] = {}
    for token, share in zip(tokens[:kept].tolist(), (ordered[:kept] / ordered[:kept].sum()).tolist(), strict=True):
        text = plain.tokenizer.decode([token], skip_special_tokens=True)
        expected[text] = expected.get(text, 0.0) + 2000 * share
    assert drawn.keys() <= expected.keys()
    often = [text for text, count in expected.items() if count >= 20]
    rest = sum(expected.values()) - sum(expected[text] for text in often)
    pairs = [(drawn.get(text, 0), expected[text]) for text in often]
    pairs += [(2000 - sum(count for count, _ in pairs), rest)] if rest > 5 else []
    chi_square = sum((count - wanted) ** 2 / wanted for count, wanted in pairs)
    freedom = len(pairs) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5  # five standard deviations


def test_temperature_zero_gives_the_greedy_text(engine, plain):
    greedy = [plain(prompt, max_new_tokens=8)[0] for prompt in PROMPTS]
    assert texts(engine(), PROMPTS, max_tokens=8, temperature=0) == greedy
    assert texts(engine(), PROMPTS, max_tokens=8, temperature=0, top_p=0.5, top_k=3) == greedy
    assert texts(engine(), PROMPTS, max_tokens=8, temperature=1, top_k=1) == greedy


def test_choices_differ_but_equal_seed_repeats_them(engine):
    completion = answered(engine(), "hello", **HOT, n=8)
    choices = completion.extra["choices"]
    assert [choice["index"] for choice in choices] == list(range(8))
    assert len({choice["text"] for choice in choices}) == 8 and completion.text == choices[0]["text"]
    assert completion.extra["usage"]["completion_tokens"] >= 8 * 1
    again = answered(engine(64), "hello", **HOT, n=8)
    assert again.extra == completion.extra
    # The first choice is the text that a request for one choice gets.
    assert texts(engine(), ["hello"], **HOT) == [completion.text]


def test_penalties_lower_repeated_tokens_as_documented(engine, plain):
    """Greedy decoding, step by step, with penalties for the tokens of the text; the prompt's tokens do not count."""
    import torch

    for frequency, presence in ((0.8, 0.0), (0.0, 1.5), (-0.5, 0.3)):
        ids = plain.tokenizer("the the the", return_tensors="pt")["input_ids"]
        start, counts = ids.shape[1], torch.zeros(plain.model.config.vocab_size)
        for _ in range(10):
            with torch.inference_mode():
                logits = plain.model(ids).logits[0, -1] - frequency * counts - presence * (counts > 0)
            token = int(logits.argmax())
            counts[token] += 1
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
        wanted = plain.tokenizer.decode(ids[0, start:], skip_special_tokens=True)
        options = {"max_tokens": 10, "frequency_penalty": frequency, "presence_penalty": presence, "eos_token_id": None}
        assert texts(engine(), ["the the the", "hello"], **options)[0] == wanted


@pytest.mark.parametrize("asked, drawn", [({}, 1), ({"top_k": 3}, 3), ({"top_k": 0}, 400)])
def test_model_top_k_applies_unless_record_sets_one(llama, tmp_path, asked, drawn):
    """The model's own top_k is 1; plain transformers would take it, too."""
    engine = loaded(edited(llama, tmp_path / "m", generation_config={"top_k": 1}), batching="static")
    for sampled in ({"do_sample": True}, {"temperature": 1.0}):
        completion = answered(engine, "hello", max_tokens=1, n=200, seed=2, **asked, **sampled)
        texts_drawn = {choice["text"] for choice in completion.extra["choices"]}
        assert 1 <= len(texts_drawn) <= drawn and (drawn == 1 or len(texts_drawn) > 1)


def test_do_sample_without_top_k_draws_from_fifty_tokens(engine, plain):
    import torch

    with torch.inference_mode():
        ids = plain.tokenizer("hello", return_tensors="pt")["input_ids"]
        best = {
            plain.tokenizer.decode([int(n)], skip_special_tokens=True)
            for n in plain.model(ids).logits[0, -1].topk(50).indices
        }
    hot = {"max_tokens": 1, "n": 1000, "seed": 2, "temperature": 5.0}
    drawn = {choice["text"] for choice in answered(engine(64), "hello", **hot, do_sample=True).extra["choices"]}
    assert drawn <= best
    assert not {choice["text"] for choice in answered(engine(64), "hello", **hot).extra["choices"]} <= best


# ---- the end of a text ---------------------------------------------------------------------------


@pytest.mark.parametrize("batching", ["static", "continuous"])
def test_finish_reason_and_usage_agree_with_transformers(engine, plain, batching):
    for options in ({"max_new_tokens": 1}, {"max_new_tokens": 12}, {"max_new_tokens": 12, "eos_token_id": 54}):
        for prompt, completion in zip(PROMPTS, served(engine(4, batching), PROMPTS, **options), strict=True):
            text, tokens = plain(prompt, **options)
            ended = plain.ended(prompt, **options)
            assert (completion.text, completion.tokens) == (text, tokens)
            assert completion.extra["finish_reason"] == ("stop" if ended else "length")
            wanted = {"prompt_tokens": len(plain.tokenizer(prompt)["input_ids"]), "completion_tokens": tokens}
            assert completion.extra["usage"] == wanted


def test_text_ends_before_first_stop_string(engine, plain):
    whole = [plain(prompt, max_new_tokens=30)[0] for prompt in PROMPTS]
    stops = ["e", "th"]
    for text, completion in zip(whole, served(engine(), PROMPTS, max_tokens=30, stop=stops), strict=True):
        ends = [text.find(stop) for stop in stops if stop in text]
        assert completion.text == text[: min(ends, default=len(text))]
        if ends:
            assert completion.extra["finish_reason"] == "stop" and completion.tokens <= 30
    # A text that begins in the prompt does not count.
    first = whole[1][:1]
    assert texts(engine(), ["hello"], max_tokens=30, stop="hello"[-1] + first) == [whole[1]] or first == ""


def test_too_long_prompt_is_truncated_only_on_request(engine, plain):
    long = " ".join(f"word{n}" for n in range(400))
    (refused,) = served_errors(engine(), [long], max_tokens=4)
    assert refused == "PromptTooLong"
    ids = plain.tokenizer(long)["input_ids"]
    room = 512 - 4
    left = plain.tokenizer.decode([ids[0], *ids[len(ids) - room + 1 :]] if ids[0] == 0 else ids[-room:])
    completion = answered(engine(), long, max_tokens=4, truncate="left")
    assert completion.extra["usage"]["prompt_tokens"] == room
    assert answered(engine(), long, max_tokens=4, truncate="right").text == plain.continuation(ids[:room], 4)
    assert completion.text == plain.continuation([ids[0], *ids[len(ids) - room + 1 :]], 4), left


# ---- log probabilities ---------------------------------------------------------------------------


def test_logprobs_equal_log_softmax_of_transformers(engine, plain):
    import torch

    completions = served(engine(), PROMPTS, max_tokens=6, logprobs=5)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        ids = plain.tokenizer(prompt, return_tensors="pt")["input_ids"]
        (choice,) = completion.extra["choices"]
        found = choice["logprobs"]
        assert len(found["tokens"]) == completion.tokens
        for token, logprob, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
            with torch.inference_mode():
                wanted = plain.model(ids).logits[0, -1].log_softmax(-1)
            best = int(wanted.argmax())
            assert plain.tokenizer.decode([best]) == token and abs(float(wanted[best]) - logprob) < 1e-4
            best_five = [int(number) for number in wanted.topk(5).indices]
            assert top == pytest.approx(
                {plain.tokenizer.decode([n]): float(wanted[n]) for n in reversed(best_five)}, abs=1e-4
            )
            ids = torch.cat([ids, torch.tensor([[best]])], 1)


def test_logprobs_of_sampled_text_ignore_sampling_options(engine, plain):
    """The first token's log probability is that of the model, whatever changes the token that is drawn."""
    import torch

    completion = answered(engine(), "hello", max_tokens=1, temperature=0.5, top_k=3, n=16, seed=1, logprobs=0)
    with torch.inference_mode():
        wanted = plain.model(**plain.tokenizer("hello", return_tensors="pt")).logits[0, -1].log_softmax(-1)
    best = {plain.tokenizer.decode([int(n)]): float(wanted[n]) for n in wanted.topk(3).indices}
    found = [choice["logprobs"] for choice in completion.extra["choices"]]
    assert {entry["tokens"][0] for entry in found} <= best.keys() and len(best) == 3
    for entry in found:
        assert entry["token_logprobs"] == [pytest.approx(best[entry["tokens"][0]], abs=1e-4)]


# ---- JSON ----------------------------------------------------------------------------------------


def test_texts_follow_the_json_schema_of_the_request(engine):
    wanted = {"type": "json_schema", "json_schema": {"name": "v", "schema": SCHEMA}}
    completions = served(engine(), PROMPTS, max_tokens=200, temperature=1, seed=3, response_format=wanted)
    for completion in completions:
        content = json.loads(completion.text)
        assert content["verdict"] in ("SUPPORTED", "REFUTED") and 0 <= content["score"] <= 9 and len(content) == 2
        assert completion.extra["finish_reason"] == "stop"
    greedy = texts(engine(), PROMPTS, max_tokens=200, response_format=wanted)
    assert greedy == [texts(engine(1), [prompt], max_tokens=200, response_format=wanted)[0] for prompt in PROMPTS]


def test_impossible_json_schema_is_error_of_its_record(engine):
    wrong = {"type": "json_schema", "json_schema": {"schema": {"type": "objec"}}}
    assert served_errors(engine(), ["a"], max_tokens=4, response_format=wrong) == ["WrongOption"]


# ---- messages and embeddings ---------------------------------------------------------------------


def test_chat_messages_are_formatted_by_chat_template(llama, tmp_path, plain):
    import shutil

    folder = with_template(Path(shutil.copytree(llama, tmp_path / "chat")))
    chatting = loaded(folder, batching="static")
    messages = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Who?"}]},
        {"role": "assistant", "content": "I."}, {"role": "user", "content": "Why?"},
    ]  # fmt: skip
    rendered = "<s>system: Be brief.\nuser: Who?\nassistant: I.\nuser: Why?\nassistant: "
    completion = answered(chatting, messages, max_tokens=6, n=2, temperature=1, seed=1)
    assert completion.extra["choices"][0]["message"] == {"role": "assistant", "content": completion.text}
    ids = plain.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert answered(chatting, messages, max_tokens=6).text == plain.continuation(ids, 6)
    # A prompt beside messages stays a prompt, and messages without a template are an error of their record alone.
    assert texts(chatting, ["hello"], max_tokens=6) == [plain("hello", max_new_tokens=6)[0]]


def test_messages_without_chat_template_fail_only_their_record(engine):
    records = [EngineRecord(0, "hello", {"max_tokens": 2}), EngineRecord(1, [{"role": "user", "content": "x"}])]
    calls = engine().plan(records)
    assert [[record.key for record in call] for call in calls] == [[0], [1]]
    assert engine().call(calls[0])[0].error is None
    with pytest.raises(Exception, match="no chat template"):
        engine().call(calls[1])


def test_text_generation_model_also_returns_embeddings(llama, engine):
    embedder = loaded(llama, task="embed")
    wanted = [one.extra["embedding"] for one in served(embedder, PROMPTS)]
    texts(engine(), PROMPTS, max_tokens=2)  # generation skips a part of the last layer, embeddings must not
    records = [EngineRecord(n, prompt, {}, "embed") for n, prompt in enumerate(PROMPTS)]
    found = {}
    for call in engine().plan(records):
        found |= zip((record.key for record in call), engine().call(call), strict=True)
    for number, vector in enumerate(wanted):
        assert found[number].extra["embedding"] == pytest.approx(vector, abs=1e-5)
    together = answered(engine(), PROMPTS, task="embed")
    assert together.extra["embeddings"][1] == pytest.approx(wanted[1], abs=1e-5)
    tokens = sum(one.extra["usage"]["prompt_tokens"] for one in found.values())
    assert together.extra["usage"] == {"prompt_tokens": tokens, "completion_tokens": 0}


def served_errors(engine: Any, prompts: list[str], **generate: Any) -> list[str]:
    """The types of errors, each record asked for alone."""
    found = []
    for prompt in prompts:
        with pytest.raises(Exception) as failed:
            answered(engine, prompt, **generate)
        found.append(type(failed.value).__name__)
    return found


# ---- encoder-decoder models ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["seq2seq", "bart"])
def test_encoder_decoder_models_generate_as_plain_transformers(llama, tmp_path, kind):
    folder = tiny_variant(llama, tmp_path / kind, kind)
    engine, plain = loaded(folder, batch=4), Plain(folder)
    greedy = [plain(prompt, max_new_tokens=8) for prompt in PROMPTS]
    completions = served(engine, PROMPTS, max_tokens=8)
    assert [(one.text, one.tokens) for one in completions] == greedy
    assert len({text for text, _ in greedy}) > 2
    alone = [texts(engine, [prompt], **HOT)[0] for prompt in PROMPTS]
    assert texts(engine, PROMPTS, **HOT) == alone != [text for text, _ in greedy]
    assert len(answered(engine, "hello", **HOT, n=3, logprobs=2).extra["choices"]) == 3
    assert len(answered(engine, "hello", task="embed").extra["embedding"]) == 32
    whole = plain("hello", max_new_tokens=20)[0]
    stopped = texts(engine, ["hello"], max_tokens=20, stop=whole[3:5] or "x")[0]
    assert stopped == (whole[: whole.find(whole[3:5])] if whole[3:5] else whole)
