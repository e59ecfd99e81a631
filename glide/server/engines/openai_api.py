"""Translate records into requests of OpenAI's API, and the API's answers into outcomes of records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glide.server.engines.base import Completion, EngineRecord, UnknownOption, WrongOption, usage
from glide.server.engines.options import (
    SHARED,
    alternatives,
    check_shared,
    check_value,
    is_sampled,
    with_inside_names,
)

# A dict from an option's internal name (glide.server.engines.options) to the option's name in OpenAI's API. If both
# names are equal, the option is missing.
API_NAMES = {"max_new_tokens": "max_tokens", "stop_strings": "stop"}
KNOWN = {
    "do_sample": ("true or false", lambda value: isinstance(value, bool)),
    **SHARED,
    "stop_strings": SHARED["stop"],
}


def options(generate: Mapping[str, Any], chat: bool) -> dict[str, Any]:
    """Return options of `generate` as the API expects them.

    A greedy request gets the temperature 0, so that the service takes the most probable token in each step, as the
    other engines do. In other requests, the service chooses the value of each option that is not given.

    Args:
        generate: the options of a record.
        chat: whether the request is a chat completion. In completions, the option `logprobs` has another form.

    Raises:
        UnknownOption: the API has no equivalent of an option.
        WrongOption: an option has a value that cannot work.
    """
    for name, value in generate.items():
        if name not in KNOWN:
            raise UnknownOption(name, f"not in this API; use {', '.join(KNOWN)}")
        check_value(name, value, KNOWN[name])
    if {"stop", "stop_strings"} <= generate.keys():
        raise WrongOption("stop_strings", "stop and stop_strings are the same option in this API; give one of them")
    asked = with_inside_names(generate)
    check_shared(asked)
    found = {API_NAMES.get(name, name): value for name, value in asked.items() if name not in ("do_sample", "logprobs")}
    wanted = alternatives(asked)
    if chat and wanted is not None:
        found |= {"logprobs": True, "top_logprobs": wanted}
    elif wanted is not None:
        found["logprobs"] = wanted
        found.pop("top_logprobs", None)
    return found if is_sampled(asked) else {**found, "temperature": 0}


def request(record: EngineRecord, model: str, chat: bool, system: str) -> tuple[str, dict[str, Any]]:
    """Return the path and the body of a record's request.

    Args:
        model: name of the model at the service.
        chat: whether a prompt that is a text becomes a user's message. Messages are always a chat.
        system: system message before a prompt that becomes a user's message; empty for none.

    Raises:
        WrongOption: see `options`.
    """
    if record.task == "embed":
        return "embeddings", {"model": model, "input": record.prompt}
    messages = record.prompt
    if isinstance(messages, str):
        if not chat or record.task:
            return "completions", {"model": model, **options(record.generate, False), "prompt": messages}
        before = [{"role": "system", "content": system}] if system else []
        messages = [*before, {"role": "user", "content": messages}]
    return "chat/completions", {"model": model, **options(record.generate, True), "messages": messages}


def completion(record: EngineRecord, answer: Any) -> Completion:
    """Return the outcome of a record from the content of a successful answer.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: the content does not have the form of an answer.
    """
    counts = answer.get("usage") or {}
    prompt_tokens, tokens = counts.get("prompt_tokens") or 0, counts.get("completion_tokens") or 0
    if not isinstance(prompt_tokens, int) or not isinstance(tokens, int):
        raise TypeError("usage")
    extra: dict[str, Any] = {"usage": usage(prompt_tokens, tokens)}
    if record.task == "embed":
        vectors = [each["embedding"] for each in answer["data"]]
        only = {"embeddings": vectors} if isinstance(record.prompt, list) else {"embedding": vectors[0]}
        return Completion("", 0, {**extra, **only})
    choices = answer["choices"]
    texts = [_text(choice) for choice in choices]
    extra["finish_reason"] = str(choices[0].get("finish_reason") or "stop")
    if len(texts) > 1 or choices[0].get("logprobs"):
        extra["choices"] = choices
    # The API counts the tokens of all choices together.
    return Completion(texts[0], tokens if len(texts) == 1 else None, extra)


def _text(choice: dict[str, Any]) -> str:
    text = (choice["message"]["content"] if "message" in choice else choice["text"]) or ""
    if not isinstance(text, str):
        raise TypeError("text")
    return text
