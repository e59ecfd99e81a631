"""Options of `generate`: what each engine refuses before a node is asked, and what they mean where a model is."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from glide.server.engines import UnknownOption, WrongOption, check_generate
from glide.server.engines.transformers.options import LIBRARY
from tests.models import ODD, loaded, served, texts

CLAIM = "Decide whether the evidence supports the claim. Claim: the river flows north."
PROMPTS = ["Verdict:", "hello", "", *(CLAIM + text for text in ["", "a", "b b b", "Verdict: it is"])]


@pytest.fixture(scope="module")
def engine(llama: Path):
    return cache(lambda batching: loaded(llama, batching=batching, batch=4))


# ---- at check time -------------------------------------------------------------------------------


WRONG_SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"properties": {"a": {"$ref": "#/nope"}}}}}


@pytest.mark.parametrize(
    ("engine", "generate", "option", "words"),
    [
        ("transformers", {"max_tokens": 12, "max_new_tokens": 13}, "max_tokens", "are the same option"),
        ("transformers", {"stop": []}, "stop", "a text, or a list"),
        ("transformers", {"n": 2, "temperature": 0}, "n", "all texts would be equal"),
        ("transformers", {"top_logprobs": 2}, "top_logprobs", "needs `logprobs: true`"),
        ("transformers", {"logprobs": 21}, "logprobs", "from 0 to 20"),
        ("transformers", {"response_format": {"type": "json"}}, "response_format", "type: json_object"),
        ("transformers", {"response_format": WRONG_SCHEMA}, "response_format", "Pointer '/nope' does not exist"),
        ("transformers", {"seed": 1, "num_beams": 2}, "seed", "does not work together with num_beams"),
        ("transformers", {"truncate": "middle"}, "truncate", "left or right"),
        ("transformers", {"repetition_penality": 1.1}, "repetition_penality", "did you mean repetition_penalty"),
        ("transformers", {"attention_mask": None}, "attention_mask", "no such option"),
        ("transformers", {"max_new_tokens": "12"}, "max_new_tokens", "a whole number of 1 or more, but is '12'"),
        ("transformers", {"max_new_tokens": 0}, "max_new_tokens", "1 or more"),
        ("transformers", {"max_new_tokens": True}, "max_new_tokens", "1 or more"),
        ("transformers", {"max_new_tokens": float("inf")}, "max_new_tokens", "1 or more"),
        ("transformers", {"max_new_tokens": 10**7}, "max_new_tokens", "more than any model writes"),
        ("transformers", {"max_length": 10**7}, "max_length", "more than any model writes"),
        ("transformers", {"num_return_sequences": 2}, "num_return_sequences", "must not exceed num_beams"),
        ("transformers", {"do_sample": "yes"}, "do_sample", "true or false"),
        ("transformers", {"do_sample": True, "temperature": 0}, "temperature", "above 0"),
        ("transformers", {"do_sample": True, "top_k": -2}, "top_k", "0 or -1 for no limit"),
        ("transformers", {"repetition_penalty": 0}, "repetition_penalty", "above 0"),
        ("transformers", {"eos_token_id": "</s>"}, "eos_token_id", "a token's number"),
        ("transformers", {"stop_strings": [""]}, "stop_strings", "a text"),
        ("openai", {"num_beams": 2}, "num_beams", "not in this API"),
        ("openai", {"stop": "a", "stop_strings": "b"}, "stop_strings", "give one of them"),
        ("openai", {"n": 2, "temperature": 0}, "n", "all texts would be equal"),
    ],
)  # fmt: skip
def test_generate_option_that_cannot_work_is_refused(engine, generate, option, words):
    with pytest.raises(WrongOption, match=words) as refused:
        check_generate(engine, generate)
    assert refused.value.option == option


@pytest.mark.parametrize(
    ("engine", "generate"),
    [
        ("transformers", dict.fromkeys(LIBRARY)),
        ("transformers", {"max_new_tokens": 12.0, "temperature": 0.7, "top_k": -1, "eos_token_id": []}),
        ("transformers", {"do_sample": True, "temperature": 2, "top_p": 1, "num_return_sequences": 3}),
        ("transformers", {"max_new_tokens": 1 << 20}),  # no folder, no context
        ("openai", {"do_sample": True, "temperature": 0.7}),
        ("openai", {"do_sample": False, "temperature": 0.7}),
        ("noop", {"whatever": 1}),
    ],
)  # fmt: skip
def test_valid_generate_options_of_each_engine_are_accepted(engine, generate):
    check_generate(engine, generate)


@pytest.mark.models
def test_token_limit_filling_whole_context_is_refused(llama):
    check_generate("transformers", {"max_new_tokens": 511}, llama)
    for options in {"max_new_tokens": 512}, {"max_length": 513}:
        with pytest.raises(WrongOption, match="prompt and text together may have 512 tokens"):
            check_generate("transformers", options, llama)


@pytest.mark.models
def test_known_generate_options_match_transformers_library():
    """Those that need code from a hub, or are no user's to set, are left out; a new one is to be decided on."""
    from transformers import GenerationConfig

    left_out = {
        "assistant_confidence_threshold", "assistant_ensemble_weight", "assistant_lookbehind", "compile_config",
        "constraints", "continuous_batching_config", "diversity_penalty", "dola_layers", "force_words_ids",
        "is_assistant", "low_memory", "num_beam_groups", "penalty_alpha", "speculation_type", "target_lookbehind",
        "token_healing", "transformers_version", "use_mtp",
    } - LIBRARY.keys()  # fmt: skip
    library = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert library == LIBRARY.keys() | left_out


@pytest.mark.models
def test_option_check_imports_neither_torch_nor_transformers(llama):
    check = (
        "import sys; from pathlib import Path; from glide.server.engines import check_generate, engine_class\n"
        f"check_generate('transformers', {{'max_new_tokens': 5}}, Path({str(llama)!r}))\n"
        "check_generate('openai', {'max_new_tokens': 5})\n"
        "engine_class('openai').Options(url='https://host/v1')\n"
        "sys.exit(bool({'httpx2', 'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


# ---- with a model --------------------------------------------------------------------------------


@pytest.mark.models
@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 1},
        {"max_new_tokens": 12.0, "min_new_tokens": 12},
        {"max_new_tokens": 12, "repetition_penalty": 1.8},
        {"max_new_tokens": 12, "no_repeat_ngram_size": 2},
        {"max_new_tokens": 12, "no_repeat_ngram_size": 1, "sequence_bias": [[[1], 4.0]]},
        {"max_new_tokens": 12, "suppress_tokens": [54, 49]},
        {"max_new_tokens": 12, "eos_token_id": 54},
        {"max_new_tokens": 40, "eos_token_id": None},
        {"max_new_tokens": 12, "num_beams": 3},
        {"max_new_tokens": 12, "do_sample": True, "top_k": 1},
        {"max_new_tokens": 12, "stop_strings": ["e", "th"]},
        {"max_new_tokens": 12, "num_beams": 2, "stop_strings": "e"},
        {"max_new_tokens": 12, "prompt_lookup_num_tokens": 3},
        {"max_length": 60},
        {},
    ],
    ids=lambda options: " ".join(name for name in options if name != "max_new_tokens") or str(options),
)
@pytest.mark.parametrize("batching", ["static", "continuous"])
def test_generate_options_give_same_results_as_plain_transformers(engine, plain, batching, options):
    completions = served(engine(batching), PROMPTS, **options)
    assert [(one.text, one.tokens) for one in completions] == [plain(text, **options) for text in PROMPTS]


@pytest.mark.models
def test_integer_is_accepted_for_decimal_option(engine, plain):
    got = texts(engine("static"), ODD, max_new_tokens=8, repetition_penalty=2)
    assert got == [plain(text, max_new_tokens=8, repetition_penalty=2.0)[0] for text in ODD]


@pytest.mark.models
def test_generated_text_is_independent_of_output_scores_option(engine, plain):
    idle = {"pad_token_id": 0, "return_dict_in_generate": True, "output_scores": True}
    assert texts(engine("static"), PROMPTS, max_new_tokens=8, **idle) == [
        plain(text, max_new_tokens=8)[0] for text in PROMPTS
    ]


@pytest.mark.models
def test_result_has_one_choice_per_returned_sequence(engine, plain):
    options = {"max_new_tokens": 8, "num_beams": 3, "num_return_sequences": 2}
    for text, completion in zip(PROMPTS, served(engine("static"), PROMPTS, **options), strict=True):
        wanted = plain.all(text, **options)
        assert [choice["text"] for choice in completion.extra["choices"]] == [said for said, _ in wanted]
        assert (completion.text, completion.tokens) == wanted[0]


@pytest.mark.models
def test_sampling_produces_different_texts(engine):
    got = texts(engine("static"), ["hello"] * 12, max_new_tokens=12, do_sample=True, temperature=5)
    assert len(set(got)) > 1


@pytest.mark.models
def test_token_outside_vocabulary_and_unknown_option_are_refused(engine):
    with pytest.raises(WrongOption, match="no token 400000"):
        served(engine("static"), ["hello"], forced_eos_token_id=400_000)
    with pytest.raises(UnknownOption):
        served(engine("static"), ["hello"], surprise=1)
