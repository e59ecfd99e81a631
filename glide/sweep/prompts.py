"""Fill records into prompts. A prompt is a text, a list of messages, or the name of a field that holds messages."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from glide.config import prompt_fields
from glide.config.sweep import Messages, Prompt
from glide.protocol.request import prompt_problem
from glide.sweep.records import Record


def render(prompt: Prompt, fields: Mapping[str, Any]) -> str | list[Any]:
    """Fill a record's fields into a prompt. Braces in the values of fields are not interpreted."""
    if isinstance(prompt, Messages):
        return messages(fields[prompt.field])
    if isinstance(prompt, str):
        return _filled(prompt, fields)
    return [{"role": each.role, "content": _filled(each.content, fields)} for each in prompt]


def messages(value: Any) -> list[Any]:
    """Return the messages that a field of a record holds: a list, or the list as JSON text.

    Raises:
        ValueError: the field holds no messages. The message of the error is the reason.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("it is a text, but not a JSON list of messages") from None
    if not isinstance(value, list):
        raise ValueError("it is not a list of messages")
    if problem := prompt_problem(value):
        raise ValueError(problem)
    return value


def _filled(prompt: str, fields: Mapping[str, Any]) -> str:
    parts = []
    for text, name in _pieces(prompt):
        parts.append(text)
        if name is not None:
            parts.append(_text(fields[name]))
    return "".join(parts)


@lru_cache(64)
def _pieces(prompt: str) -> list[tuple[str, str | None]]:
    """Split a prompt into pairs (text, field name).

    The field comes directly after the text. If no field comes after the text, the field name is None.
    """
    return [(text, name) for text, name, _, _ in string.Formatter().parse(prompt)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def field_problem(names: Sequence[str], why: str, record: Record) -> str:
    """Check that a record has all fields in `names`. Return the first problem as text; empty if there is no problem.

    Args:
        names: names of the fields. Each must be there, and must not be null.
        why: a sentence that says what uses the fields, such as "prompt p uses this field". The message contains this
            sentence: "no field 'claim', but prompt p uses this field".
    """
    for name in names:
        if name not in record.fields:
            has = ", ".join(sorted(record.fields))
            return f"{record.place}: no field {name!r}, but {why}; the record has {has}"
        if record.fields[name] is None:
            return f'{record.place}: field {name!r} is null, but {why}; give it a value, "" for none'
    return ""


def prompt_checks(prompts: Mapping[str, Prompt]) -> list[Callable[[Record], str]]:
    """Return a function for each prompt. It returns what is wrong with a record for this prompt, or an empty text."""
    return [partial(_prompt_problem, name, prompt, _names(prompt)) for name, prompt in prompts.items()]


def _prompt_problem(name: str, prompt: Prompt, names: Sequence[str], record: Record) -> str:
    why = f"prompt {name} uses this field" if name else "`messages` uses this field"
    problem = field_problem(names, why, record)
    if problem or not isinstance(prompt, Messages):
        return problem
    try:
        messages(record.fields[prompt.field])
    except ValueError as error:
        return f"{record.place}: field {prompt.field!r} holds no messages: {error}"
    return ""


def _names(prompt: Prompt) -> list[str]:
    if isinstance(prompt, Messages):
        return [prompt.field]
    texts = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
    return [name for text in texts for name in prompt_fields(text)]
