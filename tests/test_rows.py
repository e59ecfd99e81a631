"""Which rows share a call of the transformers engine, and where a text ends: as with each prompt alone."""

from __future__ import annotations

import random
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from glide.errors import TemplateError
from glide.server.engines.transformers import stops
from glide.server.engines.transformers.context import UNLIMITED, DynamicRope, context, context_of, dynamic_rope
from glide.server.engines.transformers.prompts import UnknownToken
from glide.server.engines.transformers.sharing import RowRule, RowSharing
from tests.models import ODD, Plain, edited, loaded, served, texts, tiny_variant

pytestmark = pytest.mark.models

GENERATE = {"max_new_tokens": 10, "do_sample": False}


@pytest.fixture(scope="module")
def variant(llama: Path):
    """Other models with the same tokenizer, by their kind."""
    return cache(lambda kind: tiny_variant(llama, llama.with_name(kind), kind))


def prompts(count: int, longest: int) -> list[str]:
    chance = random.Random(count)
    return ["".join(chance.choices("abcdefg hij", k=chance.randint(1, longest))) for _ in range(count)]


def lengths_of_calls(engine: Any, prompts: list[str]) -> list[list[int]]:
    """How many tokens the rows of each call have."""
    from glide.server.engines import EngineRecord

    calls = engine.plan([EngineRecord(number, prompt, GENERATE) for number, prompt in enumerate(prompts)])
    return [[len(engine.planned[record.key].ids) for record in call] for call in calls]


# ---- padding and company -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "batching", "words"),
    [("minimax", "equal lengths", "prompts of equal length"), ("xlnet", "equal lengths", "prompts of equal length"),
     ("rwkv", "single", "one prompt per call"), ("windowed", "static", "")],
)  # fmt: skip
def test_prompts_share_batch_unless_it_would_change_texts(variant, capfd, kind, batching, words):
    engine = loaded(variant(kind), batch=8, batching="static")
    log = capfd.readouterr().out
    assert (f"static batches have {words}: " in log) if words else ("static batches have" not in log)
    assert engine.describe()["batching"] == batching
    asked = [*prompts(12, 30), "b c d", "d c b", "c b d"]
    calls = lengths_of_calls(engine, asked)
    assert max(map(len, calls)) == {"single": 1, "equal lengths": max(map(len, calls)), "static": 8}[batching]
    assert any(len(set(call)) > 1 for call in calls) == (batching == "static")
    assert any(len(call) > 1 for call in calls) == (batching != "single")
    plain = Plain(variant(kind))
    wanted = [plain(prompt, **GENERATE)[0] for prompt in asked]
    assert texts(engine, asked, **GENERATE) == wanted
    assert len(set(wanted)) > 5


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_generated_text_is_independent_of_other_prompts(variant, kind):
    """Both stretch positions beyond 32 tokens: of a whole call, and dynamic NTK of the calls after it, too."""
    engine = loaded(variant(kind), batch=8, batching="static")
    asked = [*prompts(8, 70), "a" * 60, "b" * 60, "short", "x" * 40, "y" * 28]
    wanted = [Plain(variant(kind))(prompt, **GENERATE)[0] for prompt in asked]  # each by a model that knows no other
    for round in range(2):
        assert texts(engine, asked, **GENERATE) == wanted, round
    assert any(len(set(call)) > 1 for call in lengths_of_calls(engine, asked))  # short ones are still padded


def test_prompts_of_incompatible_lengths_share_no_engine_call():
    assert RowSharing().allows(1000, 1, 1000)
    assert not RowSharing(RowRule.SINGLE).allows(5, 5, 1)
    assert RowSharing(RowRule.EQUAL).allows(5, 5, 1) and not RowSharing(RowRule.EQUAL).allows(5, 4, 1)
    for switches in (True, False):
        tied = RowSharing(dynamic_rope=DynamicRope(32, switches))
        assert tied.allows(30, 3, 2) and not tied.allows(30, 3, 3) and tied.allows(40, 40, 9)
        assert tied.allows(90, 33, 9) == switches  # all beyond: longrope has switched for each of them
        assert not tied.allows(90, 32, 9)


# ---- context -------------------------------------------------------------------------------------


def rope(kind: str, factor: float, **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "factor": factor, **more}


@pytest.mark.parametrize(
    ("positions", "scaling", "tokens"),
    [
        (512, None, 512), (512, {"rope_type": "default"}, 512), (None, None, UNLIMITED), (-1, None, UNLIMITED),
        (32, rope("yarn", 4.0, original_max_position_embeddings=32), 128),
        (163840, rope("yarn", 40, original_max_position_embeddings=4096), 163840),
        (2048, rope("dynamic", 2.0), 4096), (2048, {"type": "linear", "factor": 4.0}, 8192),
        (131072, rope("llama3", 8.0, original_max_position_embeddings=8192), 131072),
        (131072, rope("longrope", 32.0, original_max_position_embeddings=4096), 131072),
        (2048, {"full": rope("dynamic", 2.0), "sliding": {"rope_type": "default"}}, 4096),
    ],
)  # fmt: skip
def test_context_length_follows_model_configuration(positions, scaling, tokens):
    assert context(positions, scaling) == tokens


def test_context_length_is_read_from_model_files(llama, variant, tmp_path):
    assert context_of(llama) == 512 and context_of(variant("yarn")) == 256
    assert context_of(variant("xlnet")) is None and context_of(tmp_path) is None
    assert dynamic_rope(256, {"rope_type": "default"}) is None
    assert dynamic_rope(256, rope("longrope", 2.0, original_max_position_embeddings=32)) == DynamicRope(
        32, switches=True
    )


def test_rope_scaling_yarn_allows_prompts_beyond_original_context(variant):
    engine, plain = loaded(variant("yarn"), batch=8, batching="static"), Plain(variant("yarn"))
    # Of this type the tokenizer has a padding token of its own, for which the model has no embedding.
    assert engine.encoder.tokenizer.pad_token_id == engine.task.vocabulary_size > engine.task.padded.padding_token
    assert engine.describe()["batching"] == "static"
    asked = prompts(8, 120)
    assert texts(engine, asked, **GENERATE) == [plain(prompt, **GENERATE)[0] for prompt in asked]


# ---- where a text ends ---------------------------------------------------------------------------


def test_model_without_end_token_ignores_tokenizer_end_token(llama, tmp_path):
    folder = edited(llama, tmp_path / "m", config={"eos_token_id": None}, generation_config={"eos_token_id": None})
    options, asked = {"max_new_tokens": 30}, ODD[:8]
    plain, ending = Plain(folder), Plain(llama)
    wanted = [plain(prompt, **options) for prompt in asked]
    assert wanted != [ending(prompt, **options) for prompt in asked]
    for batching in "static", "continuous":
        completions = served(loaded(folder, batching=batching, batch=6), asked, **options)
        assert [(completion.text, completion.tokens) for completion in completions] == wanted


@pytest.mark.parametrize(
    "defaults",
    [{"stop_strings": ["e", "th"]}, {"prompt_lookup_num_tokens": 3}, {"num_beams": 2}, {"do_sample": True},
     {"return_dict_in_generate": True, "output_scores": True}, {"max_new_tokens": 5}, {"max_length": 60}],
    ids=lambda defaults: next(iter(defaults)),
)  # fmt: skip
def test_generation_defaults_of_model_take_effect(llama, tmp_path, defaults):
    folder = edited(llama, tmp_path / "m", generation_config=defaults)
    options = {} if "max_new_tokens" in defaults else GENERATE
    plain = Plain(folder)
    plain.model.generation_config.return_dict_in_generate = False  # no matter of the text
    completions = served(loaded(folder, batch=4, batching="static"), ODD[:6], **options)
    assert [(one.text, one.tokens) for one in completions] == [plain(prompt, **options) for prompt in ODD[:6]]


def test_token_that_completes_stop_string_is_found(llama):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama)
    prompt, row, filled = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the", " river flows", "x")
    )
    found = stops.StopStrings(tokenizer)
    assert tokenizer.decode(row[: found.end(prompt, row + filled, ["ver"])]) == " river"
    assert found.end(prompt, row, "never") is None
    assert found.end(prompt, [], "x") is None
    # It may begin in the prompt, as transformers looks at both.
    assert found.end(prompt, row, ["the" + tokenizer.decode(row[:1])]) == 1


# ---- one line instead of a page ------------------------------------------------------------------


def test_token_beyond_vocabulary_fails_only_its_prompt(llama, tmp_path):
    from transformers import AutoTokenizer

    folder = edited(llama, tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    engine = loaded(folder, batch=6, batching="static")
    with pytest.raises(UnknownToken, match=f"token {len(tokenizer) - 1}, .* tokens 0 to {len(tokenizer) - 2}"):
        served(engine, ["a <new> one"], **GENERATE)
    assert texts(engine, ["Verdict:"], **GENERATE) == [Plain(llama)("Verdict:", **GENERATE)[0]]


@pytest.mark.parametrize(
    ("kind", "changed", "options", "words"),
    [
        ("encoder", {}, {}, "the model's files contain BertModel"),
        ("llama", {}, {"task": "classify"}, "some weights for task classify are missing: score.weight"),
        ("judge", {}, {}, "an encoder-decoder model, and the model's files contain LlamaForSequenceClassification"),
        ("llama", {"model_type": "new", "auto_map": {"AutoConfig": "new.NewConfig"}}, {}, "brings its own Python code"),
        ("llama", {"model_type": "new"}, {}, "the model can't be loaded: ValueError: The checkpoint you are trying"),
        ("llama", {"quantization_config": {"quant_method": "awq", "bits": 4}}, {}, "with awq, can't be loaded"),
    ],
    ids=["encoder", "no head", "another head", "own code", "unknown type", "quantized"],
)  # fmt: skip
def test_error_for_unsupported_model_is_one_line(llama, variant, tmp_path, kind, changed, options, words):
    folder = edited(llama if kind == "llama" else variant(kind), tmp_path / "m", config=changed)
    with pytest.raises(TemplateError) as refused:
        loaded(folder, **options)
    assert words in str(refused.value)
    assert len(str(refused.value)) < 500 and "\n" not in str(refused.value)


def test_loading_reports_truncated_weights_file(llama, tmp_path):
    weights = edited(llama, tmp_path / "torn") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(TemplateError, match="the model can't be loaded: SafetensorError"):
        loaded(weights.parent)


def test_loading_reports_insufficient_memory(llama, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = edited(llama, tmp_path / "large", config={"intermediate_size": 1 << 42})
    weights = folder / "model.safetensors"  # a layer that has none here gets new ones of its full size
    kept = {name: tensor for name, tensor in load_file(weights).items() if ".mlp." not in name}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(TemplateError, match="memory"):
        loaded(folder)


def test_engine_process_aborts_if_gpu_is_broken():
    """A stand-in for a GPU: where the failed call has broken it, even a small product fails."""
    broken = (
        "from glide.server.engines.transformers import device\n"
        "def probe(_): raise RuntimeError('device-side assert')\n"
        "device.end_if_broken('cpu', KeyError('a'))\n"
        "device.probe = lambda _: None\n"
        "device.end_if_broken('cuda', KeyError('b'))\n"
        "device.probe = probe\n"
        "device.end_if_broken('cuda', KeyError('c'))\n"
        "print('still there')\n"
    )
    ended = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True, check=False)
    assert ended.returncode == -6
    assert "unusable after KeyError('c')" in ended.stdout and "device-side assert" in ended.stdout
    assert "still there" not in ended.stdout and "'b'" not in ended.stdout
