"""The options of `generate`: their names, and checks of their values. This module imports no heavy packages.

The options are those of transformers (`GenerationConfig`), except the options that need code from a model hub. The
checks need no loaded model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from glide.server.engines.base import UnknownOption, WrongOption
from glide.server.engines.transformers.context import context_of

# The options max_new_tokens and max_length may each have at most this value. A larger value is a mistake, and would
# need a huge cache.
MAX_NEW_TOKENS = 1 << 20
IGNORED = {"pad_token_id", "return_dict_in_generate"}  # the engine sets these options and ignores a record's values
# These options ask for outputs that no result contains. So the options are accepted, but have no effect.
OUTPUTS = {"output_attentions", "output_hidden_states", "output_logits", "output_scores"}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and (isinstance(value, int) or value.is_integer())


def _are_tokens(value: Any) -> bool:
    return all(_is_whole(token) for token in (value if isinstance(value, list) else [value]))


def _are_texts(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(text, str) and text for text in values)


# Each kind of option has three parts:
# - a description of the allowed values, for error messages
# - a function that tests a value
# - the names of the options, separated by spaces
KINDS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("a whole number of 1 or more", lambda value: _is_whole(value) and value > 0,
     "max_new_tokens max_length num_beams num_return_sequences prompt_lookup_num_tokens max_matching_ngram_size "
     "num_assistant_tokens assistant_early_exit max_cache_len prefill_chunk_size"),
    ("a whole number of 0 or more", lambda value: _is_whole(value) and value >= 0,
     "min_new_tokens min_length no_repeat_ngram_size encoder_no_repeat_ngram_size"),
    ("a whole number", _is_whole, "top_k"),
    ("a number above 0", lambda value: _is_number(value) and value > 0,
     "repetition_penalty encoder_repetition_penalty max_time"),
    ("a number", _is_number,
     "temperature top_p top_h min_p typical_p epsilon_cutoff eta_cutoff length_penalty guidance_scale "
     "assistant_confidence_threshold"),
    ("true or false", lambda value: isinstance(value, bool),
     "do_sample use_cache renormalize_logits remove_invalid_values disable_compile return_dict_in_generate "
     "output_attentions output_hidden_states output_logits output_scores"),
    ("a token's number, or a list of them", _are_tokens,
     "eos_token_id pad_token_id bos_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id "
     "suppress_tokens begin_suppress_tokens"),
    ("a text, or a list of texts", _are_texts, "stop_strings"),
    ("", lambda value: True,
     "early_stopping cache_implementation cache_config bad_words_ids sequence_bias watermarking_config "
     "exponential_decay_length_penalty num_assistant_tokens_schedule"),
)  # fmt: skip
TOKENS = {name for _, test, names in KINDS if test is _are_tokens for name in names.split()}
WHOLE = {must for must, test, _ in KINDS if "whole" in must or test is _are_tokens}
KNOWN = {name: (must, test) for must, test, names in KINDS for name in names.split()}
# These additional limits apply if `do_sample` is true. If `do_sample` is false, these options have no effect.
SAMPLING: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "temperature": ("above 0 with do_sample; for greedy text leave do_sample out", lambda value: value > 0),
    "top_k": ("0 or more with do_sample", lambda value: value >= 0),
    "top_p": ("0 or more with do_sample", lambda value: value >= 0),
    "min_p": ("from 0 to 1 with do_sample", lambda value: 0 <= value <= 1),
}
# A dict from an option's name in another API to the option's name in transformers. If a user writes the name from the
# other API, an error message suggests the name in transformers.
OTHER_NAMES = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "n": "num_return_sequences",
               "stop": "stop_strings"}  # fmt: skip


def check_generate(generate: Mapping[str, Any], folder: Path | None = None) -> None:
    """Check options of `generate`. No model needs to be loaded.

    Args:
        generate: the options, with their names as keys.
        folder: the model's folder; None if this machine does not have the folder. With the folder, the options that
            limit the text's length are checked against the model's context.

    Raises:
        UnknownOption: transformers has no such option, or the engine does not support it.
        WrongOption: an option has a value with which no record can be served.
    """
    for name, value in generate.items():
        if name not in KNOWN:
            near = get_close_matches(name, KNOWN, n=1)
            hint = OTHER_NAMES.get(name) or (near[0] if near else "")
            raise UnknownOption(name, "no such option" + (f"; did you mean {hint}?" if hint else ""))
        must, test = KNOWN[name]
        if value is not None and not test(value):
            raise WrongOption(name, f"must be {must}, but is {value!r:.40}")
    if generate.get("do_sample"):
        for name, (must, test) in SAMPLING.items():
            if generate.get(name) is not None and not test(generate[name]):
                raise WrongOption(name, f"must be {must}, but is {generate[name]!r:.40}")
    elif (generate.get("num_return_sequences") or 1) > (generate.get("num_beams") or 1):
        raise WrongOption("num_return_sequences", "must not exceed num_beams, unless do_sample is true")
    _check_length(generate, (folder and context_of(folder)) or None)


def _check_length(generate: Mapping[str, Any], context: int | None) -> None:
    for name in ("max_new_tokens", "max_length"):
        limit = generate.get(name) or 0
        if context is not None and limit + (name == "max_new_tokens") > context:
            raise WrongOption(
                name, f"{limit} tokens are too many: prompt and text together may have {context} tokens with this model"
            )
        if limit > MAX_NEW_TOKENS:
            raise WrongOption(name, f"{limit} tokens are more than any model writes; the limit is {MAX_NEW_TOKENS}")


def library_options(generate: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a record as the library's `generate` expects them.

    Raises:
        UnknownOption, WrongOption: see `check_generate`.
    """
    check_generate(generate)
    dropped = IGNORED | OUTPUTS
    return {name: _converted(name, value) for name, value in generate.items() if name not in dropped}


def _converted(name: str, value: Any) -> Any:
    """Convert a number to the type that the library requires: int or float.

    For example, a user may write 2 in YAML where the library requires 2.0. A JSON file may contain 12.0 where the
    library requires 12.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return int(value) if KNOWN[name][0] in WHOLE else float(value)
