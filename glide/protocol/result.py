"""Write the line of a result, and check the fields of a result, because any code on a node may have written it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

LARGEST_COUNT = 10**9  # the tokens, attempts and seconds of a result must be smaller than this number
NAME_LENGTH = 1000  # maximum number of characters of a glidein's name, an error's type or a finish reason
MESSAGE_LENGTH = 1_000_000  # maximum number of characters of an error's message


_encode = json.JSONEncoder().encode  # faster than json.dumps, which looks at its options in each call


def result_line(fields: str, custom_id: str, glidein: str, attempts: int) -> bytes:
    """Return the line of a record's result for the output of a job.

    Args:
        fields: the fields that the engine has set, as a JSON object in one line.
        custom_id, glidein, attempts: further fields. They win over fields with the same name in `fields`.

    Raises:
        ValueError: `fields` is not a JSON object in one line. Only its first and its last character are checked.
    """
    if not (fields.startswith("{") and fields.endswith("}") and "\n" not in fields):
        raise ValueError("a result is not a JSON object in one line")
    comma = ", " if len(fields) > 2 else ""
    name, by = _encode(custom_id), _encode(glidein)
    return f'{fields[:-1]}{comma}"custom_id": {name}, "glidein": {by}, "attempts": {attempts}}}\n'.encode()


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
