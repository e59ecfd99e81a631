"""Streamed answers: server-sent events with pieces of the text, in the form of OpenAI's API."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from glide.errors import describe_bug
from glide.serve.answers import Answer
from glide.serve.errors import ApiError, to_json

_log = logging.getLogger("glide")


async def streamed(
    computing: asyncio.Task[Answer],
    first: asyncio.Task[str],
    pieces: asyncio.Queue[str],
    is_chat: bool,
    body: Mapping[str, Any],
    done: Callable[[int, int], None],
) -> AsyncIterator[str]:
    """Yield the events of an answer.

    Args:
        computing: task whose result is the answer, as it is sent without streaming.
        first: task whose result is the first piece of the text.
        pieces: the pieces after the first one.
        body: the body of the request.
        done: function that is called at the end, with the HTTP status and the number of generated tokens.
    """
    common: dict[str, Any] = {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex[:24]}", "created": int(time.time()),
        "model": body["model"], "object": "chat.completion.chunk" if is_chat else "text_completion",
    }  # fmt: skip
    with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    common |= {"usage": None} if with_usage else {}
    begun: set[int] = set()
    sent = ""

    def event(index: int, text: str | None, reason: str | None = None, logprobs: Any = None) -> str:
        """Return an event with a piece of a choice's text, or with its end."""
        if is_chat:
            delta = {} if text is None else {"content": text}
            delta |= {} if index in begun else {"role": "assistant"}
            content: dict[str, Any] = {"delta": delta}
        else:
            content = {"text": text or ""}
        begun.add(index)
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}
        return _event({**common, "choices": [choice]})

    status, tokens = 200, 0
    next_piece = first
    try:
        while True:
            await asyncio.wait({computing, next_piece}, return_when=asyncio.FIRST_COMPLETED)  # type: ignore[type-var]
            if not next_piece.done():
                break
            sent += next_piece.result()
            yield event(0, next_piece.result())
            next_piece = asyncio.create_task(pieces.get())
        answer = computing.result()
        for choice in answer.content["choices"]:
            text = choice["message"]["content"] if is_chat else choice["text"]
            known = sent if choice["index"] == 0 else ""
            if not text.startswith(known):
                raise ApiError(500, "the text differs from what was sent of it", "lanes_lost")
            if len(text) > len(known) or choice["index"] not in begun:
                yield event(choice["index"], text[len(known) :], None, choice.get("logprobs"))
            yield event(choice["index"], None, choice["finish_reason"])
        tokens = answer.tokens
        if with_usage:
            yield _event({**common, "choices": [], "usage": answer.content["usage"]})
        yield "data: [DONE]\n\n"
    except ApiError as error:
        status = error.status
        yield _event(error.body)
    except Exception as error:
        status = 500
        _log.error("a stream ended early: %s", describe_bug(error))
        yield _event(ApiError(500, "an error in the server; its log has the details", "internal_error").body)
    finally:
        computing.cancel()
        next_piece.cancel()
        done(status, tokens)


def _event(content: Mapping[str, Any]) -> str:
    return f"data: {to_json(content)}\n\n"
