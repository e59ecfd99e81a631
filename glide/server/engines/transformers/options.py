"""The options of `generate`: their names, checks of their values, and their translation. No heavy packages are needed.

A record may use the options that all engines share (glide.server.engines.options) and those of transformers
(`GenerationConfig`), except the options that need code from a model hub. The checks need no loaded model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from glide.server.engines.base import UnknownOption, WrongOption
from glide.server.engines.options import (
    SHARED,
    alternatives,
    are_texts,
    check_shared,
    check_value,
    is_number,
    is_sampled,
    is_whole,
    json_schema,
    with_inside_names,
)
from glide.server.engines.transformers.context import context_of

# The options max_new_tokens and max_length may each have at most this value. A larger value is a mistake, and would
# need a huge cache.
MAX_NEW_TOKENS = 1 << 20
IGNORED = {"pad_token_id", "return_dict_in_generate"}  # the engine sets these options and ignores a record's values
# These options ask for outputs that no result contains. So the options are accepted, but have no effect.
OUTPUTS = {"output_attentions", "output_hidden_states", "output_logits", "output_scores"}


def _are_tokens(value: Any) -> bool:
    return all(is_whole(token) for token in (value if isinstance(value, list) else [value]))


# Each kind of option has three parts:
# - a description of the allowed values, for error messages
# - a function that tests a value
# - the names of the options, separated by spaces
KINDS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("a whole number of 1 or more", lambda value: is_whole(value) and value > 0,
     "max_new_tokens max_length num_beams num_return_sequences prompt_lookup_num_tokens max_matching_ngram_size "
     "num_assistant_tokens assistant_early_exit max_cache_len prefill_chunk_size"),
    ("a whole number of 0 or more", lambda value: is_whole(value) and value >= 0,
     "min_new_tokens min_length no_repeat_ngram_size encoder_no_repeat_ngram_size"),
    ("a whole number", is_whole, "top_k"),
    ("a number above 0", lambda value: is_number(value) and value > 0,
     "repetition_penalty encoder_repetition_penalty max_time"),
    ("a number", is_number,
     "temperature top_p top_h min_p typical_p epsilon_cutoff eta_cutoff length_penalty guidance_scale "
     "assistant_confidence_threshold"),
    ("true or false", lambda value: isinstance(value, bool),
     "do_sample use_cache renormalize_logits remove_invalid_values disable_compile return_dict_in_generate "
     "output_attentions output_hidden_states output_logits output_scores"),
    ("a token's number, or a list of them", _are_tokens,
     "eos_token_id pad_token_id bos_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id "
     "suppress_tokens begin_suppress_tokens"),
    ("a text, or a list of texts", are_texts, "stop_strings"),
    ("", lambda value: True,
     "early_stopping cache_implementation cache_config bad_words_ids sequence_bias watermarking_config "
     "exponential_decay_length_penalty num_assistant_tokens_schedule"),
)  # fmt: skip
TOKENS = {name for _, test, names in KINDS if test is _are_tokens for name in names.split()}
LIBRARY = {name: (must, test) for must, test, names in KINDS for name in names.split()}
# Options that only this engine has.
OWN: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "truncate": ("left or right", lambda value: value in ("left", "right")),
    "chat_template_kwargs": ("an object", lambda value: isinstance(value, dict)),
}
KNOWN = {**LIBRARY, **SHARED, **OWN}
# Options of sampling that glide applies itself. glide draws each row's tokens from the row's own random numbers. So a
# text does not depend on the other rows of its call.
SAMPLING = ("temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
# With one of these options, the library generates several candidates for a token. So only the library can sample.
SEARCHES = ("num_beams", "prompt_lookup_num_tokens", "assistant_early_exit")
LIBRARY_TOP_K = 50  # with do_sample, plain transformers uses this top_k if neither the user nor the model sets one


@dataclass(frozen=True)
class TextOptions:
    """The options of a record, translated.

    Attributes:
        library: arguments of the library's `generate`.
        sampling: values of the options SAMPLING that the record sets. None: glide does not sample, because the text is
            greedy, or because the library samples.
        seed: the seed of the random numbers. None: each text gets a random seed.
        copies: number of rows for each prompt. If `library` has num_return_sequences, the library generates this number
            of texts for each row. Otherwise the library generates one text for each row.
        logprobs: number of alternatives for which log probabilities are returned. None: no log probabilities.
        stop: the text ends before the first occurrence of one of these texts.
        schema: JSON schema that the text must follow; None if there is none.
        frequency_penalty: number that is subtracted from a token's logit for each occurrence of the token in the text.
        presence_penalty: number that is subtracted from a token's logit if the token occurs in the text.
        truncate: the side from which tokens of a too long prompt are removed. None: such a prompt is an error.
        usual_top_k: value of top_k if neither the record nor the model sets one; 0 for no limit.
    """

    library: dict[str, Any]
    sampling: dict[str, Any] | None = None
    seed: int | None = None
    copies: int = 1
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    truncate: str | None = None
    usual_top_k: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether the library's options alone determine the text."""
        return (
            self.sampling is None and self.logprobs is None and self.schema is None and not self.stop
            and self.copies == 1 and not self.frequency_penalty and not self.presence_penalty
        )  # fmt: skip


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
            raise UnknownOption(name, "no such option" + (f"; did you mean {near[0]}?" if near else ""))
        check_value(name, value, KNOWN[name])
    options = with_inside_names(generate)
    check_shared(options)
    if options.get("do_sample") and options.get("temperature") == 0:
        raise WrongOption("temperature", "must be above 0 with do_sample; for greedy text leave do_sample out")
    if not is_sampled(options) and (options.get("num_return_sequences") or 1) > (options.get("num_beams") or 1):
        raise WrongOption("num_return_sequences", "must not exceed num_beams, unless do_sample is true")
    if _searches(options):
        _check_search(options)
    elif (options.get("n") or 1) > 1 and (options.get("num_return_sequences") or 1) > 1:
        raise WrongOption("num_return_sequences", "num_return_sequences and n are the same option; give one of them")
    if alternatives(options) is not None and options.get("guidance_scale") not in (None, 1):
        raise WrongOption("logprobs", "does not work together with guidance_scale; leave one of them out")
    _check_length(options, (folder and context_of(folder)) or None)


def _searches(options: Mapping[str, Any]) -> str:
    """Return the option of SEARCHES that is set; empty if none is set."""
    return next((name for name in SEARCHES if (options.get(name) or 0) > (name == "num_beams")), "")


def _check_search(options: Mapping[str, Any]) -> None:
    for name in ("n", "seed", "logprobs", "response_format", "frequency_penalty", "presence_penalty"):
        off = (None, False, 0, 1, {"type": "text"}) if name in ("n", "response_format") else (None, False, 0)
        if name in options and options[name] not in off:
            raise WrongOption(name, f"does not work together with {_searches(options)}; leave one of them out")


def _check_length(generate: Mapping[str, Any], context: int | None) -> None:
    for name in ("max_new_tokens", "max_length"):
        limit = generate.get(name) or 0
        if context is not None and limit + (name == "max_new_tokens") > context:
            raise WrongOption(
                name, f"{limit} tokens are too many: prompt and text together may have {context} tokens with this model"
            )
        if limit > MAX_NEW_TOKENS:
            raise WrongOption(name, f"{limit} tokens are more than any model writes; the limit is {MAX_NEW_TOKENS}")


def translated(generate: Mapping[str, Any]) -> TextOptions:
    """Return the options of a record as the engine uses them.

    Raises:
        UnknownOption, WrongOption: see `check_generate`.
    """
    check_generate(generate)
    options = {name: _converted(name, value) for name, value in with_inside_names(generate).items()}
    dropped = IGNORED | OUTPUTS | (SHARED.keys() - LIBRARY.keys()) | OWN.keys()
    library = {name: value for name, value in options.items() if name not in dropped}
    library["do_sample"] = bool(is_sampled(options) and _searches(options))
    sampling = None
    copies = options.get("n", 1)
    if not library["do_sample"]:
        given = {name: library.pop(name) for name in SAMPLING if name in library}
        if is_sampled(options):
            sampling = given
            copies *= library.pop("num_return_sequences", None) or 1
    stop = options.get("stop") or ()
    return TextOptions(
        library=library, sampling=sampling, seed=options.get("seed"), copies=copies, logprobs=alternatives(options),
        stop=(stop,) if isinstance(stop, str) else tuple(stop), schema=json_schema(options),
        frequency_penalty=options.get("frequency_penalty") or 0.0,
        presence_penalty=options.get("presence_penalty") or 0.0, truncate=options.get("truncate"),
        usual_top_k=LIBRARY_TOP_K if options.get("do_sample") else 0,
    )  # fmt: skip


def _converted(name: str, value: Any) -> Any:
    """Convert a number to the type that the library requires: int or float.

    For example, a user may write 2 in YAML where the library requires 2.0. A JSON file may contain 12.0 where the
    library requires 12.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    must = KNOWN[name][0]
    return int(value) if "whole" in must or name in TOKENS else float(value)
