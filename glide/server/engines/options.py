"""The options of `generate` that all engines share, with the names of OpenAI's API and of vLLM.

An engine translates these options into the options of its library or service. This module imports no heavy packages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from glide.server.engines.base import WrongOption

MOST_CHOICES = 1024  # maximum value of `n`
MOST_LOGPROBS = 20  # maximum number of alternatives of a token, as in the API
MOST_STOPS = 64  # maximum number of texts in `stop`
# Different names of one option. The first name is glide's internal name.
SYNONYMS = (("max_new_tokens", "max_tokens", "max_completion_tokens"),)
FORMATS = ("text", "json_object", "json_schema")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def is_whole(value: Any) -> bool:
    return is_number(value) and (isinstance(value, int) or value.is_integer())


def are_texts(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return 0 < len(values) <= MOST_STOPS and all(isinstance(text, str) and text for text in values)


def _is_format(value: Any) -> bool:
    if not isinstance(value, dict) or value.get("type") not in FORMATS:
        return False
    schema = value.get("json_schema")
    return value["type"] != "json_schema" or (isinstance(schema, dict) and isinstance(schema.get("schema"), dict))


# The options that all engines share. For each option: a description of the allowed values, and a test of a value.
SHARED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(SYNONYMS[0], ("a whole number of 1 or more", lambda value: is_whole(value) and value > 0)),
    "temperature": ("a number of 0 or more", lambda value: is_number(value) and value >= 0),
    "top_p": ("a number above 0 and at most 1", lambda value: is_number(value) and 0 < value <= 1),
    "top_k": ("a whole number of 1 or more, or 0 or -1 for no limit", lambda value: is_whole(value) and value >= -1),
    "min_p": ("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1),
    "repetition_penalty": ("a number above 0", lambda value: is_number(value) and value > 0),
    "frequency_penalty": ("a number from -2 to 2", lambda value: is_number(value) and -2 <= value <= 2),
    "presence_penalty": ("a number from -2 to 2", lambda value: is_number(value) and -2 <= value <= 2),
    "stop": (f"a text, or a list of up to {MOST_STOPS} texts", are_texts),
    "seed": ("a whole number", is_whole),
    "n": (f"a whole number from 1 to {MOST_CHOICES}", lambda value: is_whole(value) and 1 <= value <= MOST_CHOICES),
    "logprobs": (
        f"true, false, or a whole number from 0 to {MOST_LOGPROBS}",
        lambda value: isinstance(value, bool) or (is_whole(value) and 0 <= value <= MOST_LOGPROBS),
    ),
    "top_logprobs": (
        f"a whole number from 0 to {MOST_LOGPROBS}", lambda value: is_whole(value) and 0 <= value <= MOST_LOGPROBS,
    ),
    "response_format": (
        "{type: text}, {type: json_object}, or {type: json_schema, json_schema: {schema: …}}", _is_format
    ),
}  # fmt: skip


def check_value(name: str, value: Any, allowed: tuple[str, Callable[[Any], bool]]) -> None:
    """Raise WrongOption if an option has a value that is not allowed. None is always allowed."""
    must, test = allowed
    if value is not None and not test(value):
        raise WrongOption(name, f"must be {must}, but is {value!r:.80}")


def with_inside_names(generate: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with glide's internal names (see SYNONYMS). Shared options whose value is None are left out.

    Raises:
        WrongOption: two names of one option have different values.
    """
    options = {name: value for name, value in generate.items() if value is not None or name not in SHARED}
    for inside, *others in SYNONYMS:
        for name in others:
            if name not in options:
                continue
            value = options.pop(name)
            if options.setdefault(inside, value) != value:
                raise WrongOption(name, f"{name} and {inside} are the same option; give one of them")
    return options


def check_shared(options: Mapping[str, Any]) -> None:
    """Check conflicts between the shared options.

    Args:
        options: options with glide's internal names.

    Raises:
        WrongOption: some options exclude each other.
    """
    if options.get("top_logprobs") is not None and not options.get("logprobs"):
        raise WrongOption("top_logprobs", "needs `logprobs: true`")
    if (options.get("n") or 1) > 1 and not is_sampled(options):
        raise WrongOption("n", "all texts would be equal, because the request is greedy; set temperature above 0")


def is_sampled(options: Mapping[str, Any]) -> bool:
    """Return whether the next tokens are drawn at random. Otherwise, each next token is the most probable one.

    `do_sample` decides. Without it, `temperature` decides: 0 is greedy. Without both, a text is sampled if another
    option of sampling is set.
    """
    if options.get("do_sample") is not None:
        return bool(options["do_sample"])
    if options.get("temperature") is not None:
        return bool(options["temperature"] > 0)
    return bool(
        (options.get("n") or 1) > 1
        or (options.get("top_p") or 1) < 1
        or (options.get("top_k") or 0) > 0
        or (options.get("min_p") or 0) > 0
    )


def alternatives(options: Mapping[str, Any]) -> int | None:
    """Return how many alternatives a result must list for each token. None: the result has no log probabilities.

    If the option `logprobs` is a number, return this number. If `logprobs` is true, return `top_logprobs`.
    """
    wanted = options.get("logprobs")
    if wanted is None or wanted is False:
        return None
    return int(options.get("top_logprobs") or 0) if wanted is True else int(wanted)


def json_schema(options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the JSON schema that the text must follow. None means that the text may be any text."""
    wanted = options.get("response_format") or {"type": "text"}
    if wanted["type"] == "json_schema":
        return dict(wanted["json_schema"]["schema"])
    return {"type": "object"} if wanted["type"] == "json_object" else None
