"""Check the fields of a result, because any code on a node may have written it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LARGEST_COUNT = 10**9  # the tokens, attempts and seconds of a result must be smaller than this number
NAME_LENGTH = 1000  # maximum number of characters of a glidein's name, an error's type or a finish reason
MESSAGE_LENGTH = 1_000_000  # maximum number of characters of an error's message


def problem(result: Mapping[str, Any]) -> str:
    """Return what is wrong with the fields that every result must have; empty if all these fields are valid."""
    text, error = result.get("text"), result.get("error")
    if error is not None and not is_error(error):
        return "`error` is not null or {type, message}"
    if not (isinstance(text, str) or (text is None and error is not None)):
        return "`text` is not a string"
    if "tokens" not in result or not (result["tokens"] is None or is_count(result["tokens"])):
        return "`tokens` is not a count"
    seconds = result.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < LARGEST_COUNT:
        return "`seconds` is not a number of seconds"
    if not is_count(result.get("attempts")):
        return "`attempts` is not a count"
    glidein = result.get("glidein")
    if not isinstance(glidein, str) or len(glidein) > NAME_LENGTH:
        return "`glidein` is not a name"
    return answer_problem(result)


def answer_problem(result: Mapping[str, Any]) -> str:
    """Check fields that only some engines write. Return what is wrong with these fields; empty if nothing is wrong."""
    reason, usage, choices = result.get("finish_reason"), result.get("usage"), result.get("choices")
    if reason is not None and (not isinstance(reason, str) or len(reason) > NAME_LENGTH):
        return "`finish_reason` is not a name"
    if usage is not None and not _is_usage(usage):
        return "`usage` is not {prompt_tokens, completion_tokens}"
    if choices is not None and not (isinstance(choices, list) and all(isinstance(each, dict) for each in choices)):
        return "`choices` is not a list of choices"
    return ""


def _is_usage(value: object) -> bool:
    return isinstance(value, dict) and is_count(value.get("prompt_tokens")) and is_count(value.get("completion_tokens"))


def is_error(error: object) -> bool:
    if not isinstance(error, dict) or error.keys() != {"type", "message"}:
        return False
    lengths = {"type": NAME_LENGTH, "message": MESSAGE_LENGTH}
    return all(isinstance(error[name], str) and len(error[name]) <= most for name, most in lengths.items())


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST_COUNT
