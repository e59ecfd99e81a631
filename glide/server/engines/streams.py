"""Read a streamed answer of OpenAI's API (server-sent events), and put its pieces together."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from glide.server.engines.base import EngineRecord

OPTIONS = {"stream": True, "stream_options": {"include_usage": True}}  # fields of a request for a streamed answer


def can_stream(record: EngineRecord) -> bool:
    """Return whether the answer to a record is streamed. Only answers with one text without probabilities are."""
    generate = record.generate
    return record.stream and record.task != "embed" and generate.get("n", 1) == 1 and not generate.get("logprobs")


class StreamReader:
    """Reads the events of one answer.

    Args:
        on_text: function that gets each new piece of the text.
    """

    def __init__(self, on_text: Callable[[str], None]):
        self.on_text = on_text
        self.rest = b""
        self.pieces: list[str] = []
        self.reason: str | None = None
        self.usage: Any = None
        self.error: Any = None

    def feed(self, block: bytes) -> None:
        """Read the next bytes of the answer. Events that are not valid are ignored."""
        *lines, self.rest = (self.rest + block).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._read(line[5:].strip())

    def _read(self, data: bytes) -> None:
        try:
            event = json.loads(data)
            self.error = event.get("error") or self.error
            self.usage = event.get("usage") or self.usage
            choices = event.get("choices") or []
            if not choices:
                return
            choice = choices[0]
            self.reason = choice.get("finish_reason") or self.reason
            piece = choice["delta"].get("content") if "delta" in choice else choice.get("text")
        except (ValueError, AttributeError, TypeError, LookupError, RecursionError):
            return  # for example [DONE], the last event
        if isinstance(piece, str) and piece:
            self.pieces.append(piece)
            self.on_text(piece)

    def answer(self) -> dict[str, Any]:
        """Return the whole answer, as the API gives it without streaming.

        Raises:
            ValueError: the answer is not complete. The message is the service's, if there is one.
        """
        if self.error is not None:
            raise ValueError(str(self.error.get("message", self.error) if isinstance(self.error, dict) else self.error))
        if self.reason is None:
            raise ValueError("the stream ended early")
        choice = {"index": 0, "text": "".join(self.pieces), "finish_reason": self.reason}
        return {"choices": [choice], "usage": self.usage}
