"""The answer to a live call: its content, and how long the engine has computed it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glide.serve.errors import ApiError
from glide.sweep.batch_api import BatchRequest, answer


@dataclass(frozen=True)
class Answer:
    """The answer to a live call.

    Attributes:
        content: the JSON object of the answer without streaming.
        engine_seconds: seconds that the engine has computed. If there are several prompts, those of the slowest.
    """

    content: dict[str, Any]
    engine_seconds: float

    @property
    def tokens(self) -> int:
        """Number of generated tokens."""
        return self.content["usage"].get("completion_tokens", 0)

    def timing(self, total: float) -> Mapping[str, str]:
        """Return the HTTP header with the times of the call, in milliseconds (W3C, Server Timing).

        Args:
            total: seconds that the call was in this server.
        """
        return {"Server-Timing": f"total;dur={1000 * total:.3f}, engine;dur={1000 * self.engine_seconds:.3f}"}


def answer_of(request: BatchRequest, result: Mapping[str, Any], model: str) -> Answer:
    """Return the answer to one request.

    Args:
        result: the result of its record.
        model: name of the model in the answer.

    Raises:
        ApiError: the result is an error.
    """
    response = answer(uuid.uuid4().hex, request, result, model, int(time.time()))["response"]
    if response["status_code"] != 200:
        error = response["body"]["error"]
        raise ApiError(response["status_code"], error["message"], error["code"], is_final=True)
    return Answer(response["body"] | {"model": model}, result["seconds"])


def merged(answers: Sequence[Answer]) -> Answer:
    """Return the answer to a call with several requests: all their choices, and the sum of their tokens."""
    contents = [each.content for each in answers]
    content = contents[0]
    if len(contents) > 1:
        choices = [choice for each in contents for choice in each["choices"]]
        content["choices"] = [{**choice, "index": index} for index, choice in enumerate(choices)]
        content["usage"] = {name: sum(each["usage"][name] for each in contents) for name in content["usage"]}
    return Answer(content, max(each.engine_seconds for each in answers))
