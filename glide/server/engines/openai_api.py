"""Translate records into requests of OpenAI's API, and the API's answers into outcomes of records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from glide.server.engines.base import Completion, EngineRecord, UnknownOption, WrongOption, usage
from glide.server.engines.options import (
    SHARED,
    SYNONYMS,
    alternatives,
    check_shared,
    check_value,
    is_sampled,
    is_whole,
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


# Answers of at most this number of tokens are short. Then a request costs much time, compared with its answer. So
# records share requests, although their tokens are not counted.
SHORT_ANSWER = 32


def can_share(first: EngineRecord, other: EngineRecord, chat: bool, counts: bool) -> bool:
    """Return whether one request should contain the prompts of two records.

    A request for completions or embeddings can contain several texts. All of them get the same options.

    Args:
        chat: whether a prompt that is a text becomes a user's message.
        counts: whether the program counts the tokens of each record in such a request. If not, only records with short
            answers share a request.
    """
    if first.stream or other.stream:
        return False
    texts = isinstance(first.prompt, str) and isinstance(other.prompt, str)
    if not texts or (chat and not first.task) or (first.task, first.adapter) != (other.task, other.adapter):
        return False
    if first.generate is not other.generate and _as_text(first) != _as_text(other):
        return False
    return counts or first.task == "embed" or _longest_answer(first) <= SHORT_ANSWER


def _as_text(record: EngineRecord) -> str:
    """Return a record's options as text. For Python, false and 0 are equal. The API treats them differently."""
    return json.dumps(record.generate, sort_keys=True)


def _longest_answer(record: EngineRecord) -> float:
    """Return the maximum number of tokens of a record's answer."""
    limits = [record.generate[name] for name in ("max_new_tokens", *SYNONYMS[0][1:]) if record.generate.get(name)]
    return float(limits[0]) if limits and is_whole(limits[0]) else float("inf")


def request(records: Sequence[EngineRecord], model: str, chat: bool, system: str) -> tuple[str, dict[str, Any]]:
    """Return the path and the body of a request.

    Args:
        records: the records whose prompts the request contains. Each two of them can share a request.
        model: name of the model at the service.
        chat: whether a prompt that is a text becomes a user's message. Messages are always a chat.
        system: system message before a prompt that becomes a user's message; empty for none.

    Raises:
        WrongOption: see `options`.
    """
    record = records[0]
    texts: Any = record.prompt if len(records) == 1 else [each.prompt for each in records]
    if record.task == "embed":
        return "embeddings", {"model": model, "input": texts}
    messages = record.prompt
    if isinstance(messages, str):
        if not chat or record.task:
            return "completions", {"model": model, **options(record.generate, False), "prompt": texts}
        before = [{"role": "system", "content": system}] if system else []
        messages = [*before, {"role": "user", "content": messages}]
    return "chat/completions", {"model": model, **options(record.generate, True), "messages": messages}


def completions(records: Sequence[EngineRecord], answer: Any) -> list[Completion]:
    """Return the outcomes of records from the content of a successful answer.

    If a request has several prompts, the API counts only the tokens of all prompts together. Some programs also list
    the numbers of the tokens (`token_ids`). Otherwise the number of tokens of each record is unknown.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: the content does not have the form of an answer.
    """
    parts = answer["data"] if records[0].task == "embed" else answer["choices"]
    if all(isinstance(part.get("index"), int) for part in parts):
        parts = sorted(parts, key=lambda part: part["index"])
    if len(records) == 1:
        return [_completion(records[0], parts, _usage(answer["usage"]) if answer.get("usage") else None)]
    each, rest = divmod(len(parts), len(records))
    if rest or not each:
        raise ValueError(f"{len(parts)} choices for {len(records)} prompts")
    groups = [parts[each * number : each * (number + 1)] for number in range(len(records))]
    return [_completion(record, group, _counted(group)) for record, group in zip(records, groups, strict=True)]


def _completion(record: EngineRecord, parts: Any, counts: dict[str, int] | None) -> Completion:
    """Return the outcome of a record.

    Args:
        parts: the record's choices or embeddings, as in the API.
        counts: the record's field `usage`; None if the numbers of tokens are unknown.
    """
    extra: dict[str, Any] = {"usage": counts} if counts else {}
    if record.task == "embed":
        vectors = [each["embedding"] for each in parts]
        only = {"embeddings": vectors} if isinstance(record.prompt, list) else {"embedding": vectors[0]}
        return Completion("", 0, {**extra, **only})
    texts = [_text(choice) for choice in parts]
    extra["finish_reason"] = str(parts[0].get("finish_reason") or "stop")
    if len(texts) > 1 or parts[0].get("logprobs"):
        extra["choices"] = [
            {name: value for name, value in choice.items() if name not in TOKEN_LISTS} | {"index": index}
            for index, choice in enumerate(parts)
        ]
    # The API counts the tokens of all choices together.
    tokens = counts["completion_tokens"] if counts and len(texts) == 1 else None
    return Completion(texts[0], tokens, extra)


TOKEN_LISTS = ("token_ids", "prompt_token_ids")  # fields of a choice with the numbers of its tokens


def _usage(counts: Any) -> dict[str, int]:
    prompt_tokens, tokens = counts.get("prompt_tokens") or 0, counts.get("completion_tokens") or 0
    if not isinstance(prompt_tokens, int) or not isinstance(tokens, int):
        raise TypeError("usage")
    return usage(prompt_tokens, tokens)


def _counted(choices: Sequence[dict[str, Any]]) -> dict[str, int] | None:
    """Return the field `usage` of a record whose choices list their tokens; None if they do not."""
    prompt = choices[0].get("prompt_token_ids")
    lists = [choice.get("token_ids") for choice in choices]
    if not isinstance(prompt, list) or not all(isinstance(each, list) for each in lists):
        return None
    return usage(len(prompt), sum(len(each) for each in lists if each))


def _text(choice: dict[str, Any]) -> str:
    text = (choice["message"]["content"] if "message" in choice else choice["text"]) or ""
    if not isinstance(text, str):
        raise TypeError("text")
    return text
