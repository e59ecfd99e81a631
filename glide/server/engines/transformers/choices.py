"""Turn generated texts into the outcome of a record: choices, finish reasons, token counts and log probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glide.server.engines.base import Completion, choices_as_api, usage
from glide.server.engines.transformers.prompts import Prompt


@dataclass(frozen=True)
class Text:
    """A generated text.

    Attributes:
        text: the text.
        tokens: number of generated tokens, including the end token.
        finish_reason: `stop` if an end token or a stop text ended the text, `length` if the token limit ended it.
        logprobs: for each token, its log probability and its alternatives, as in the API's chat completions; None if
            the record does not ask for log probabilities.
    """

    text: str
    tokens: int
    finish_reason: str
    logprobs: list[dict[str, Any]] | None = None


def completion(prompt: Prompt, texts: Sequence[Text]) -> Completion:
    """Return the outcome of a record that has these texts."""
    first = texts[0]
    extra: dict[str, Any] = {
        "finish_reason": first.finish_reason, "usage": usage(len(prompt.ids), sum(text.tokens for text in texts)),
    }  # fmt: skip
    if len(texts) > 1 or first.logprobs is not None:
        is_chat = isinstance(prompt.record.prompt, list)
        extra["choices"] = choices_as_api(is_chat, [(text.text, text.finish_reason, text.logprobs) for text in texts])
    return Completion(first.text, first.tokens, extra)


def token_logprobs(
    tokenizer: Any, steps: Sequence[tuple[Any, Any]], row: int, length: int
) -> list[dict[str, Any]] | None:
    """Return the log probabilities of a row's tokens, as in the API's chat completions.

    Args:
        steps: for each step, token numbers and log probabilities (TokenLogprobs.steps); empty if there are none.
        row: number of the row in the call.
        length: number of the row's tokens, without the padding.
    """
    if not steps:
        return None
    found = []
    for tokens, values in steps[:length]:
        own, *others = [
            _entry(tokenizer, token, value)
            for token, value in zip(tokens[row].tolist(), values[row].tolist(), strict=True)
        ]
        found.append({**own, "top_logprobs": others})
    return found


def _entry(tokenizer: Any, token: int, logprob: float) -> dict[str, Any]:
    text = tokenizer.decode([token])
    # Some tokenizers drop the space with which a text begins.
    if str(tokenizer.convert_ids_to_tokens(token)).startswith("▁") and not text.startswith(" "):
        text = f" {text}"
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}
