"""Live calls in OpenAI's API: chat completions, completions and embeddings."""

from __future__ import annotations

import asyncio
import base64
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from glide.live.service import LanesLost, LiveService, ModelNotReady
from glide.serve.answers import Answer, answer_of, merged
from glide.serve.bodies import json_body
from glide.serve.errors import ApiError, invalid, json_response
from glide.serve.events import streamed
from glide.serve.limits import UserLimits
from glide.serve.models import Catalogue
from glide.server import engines
from glide.sweep.batch_api import CHAT, COMPLETIONS, EMBEDDINGS, PROMPTS, BatchRequest, request_of

LONGEST_TIMEOUT = 3600.0  # time limit of one engine call for a live call, in seconds
# Field of a request's body: `continue` or `error`. It decides what happens if a lane is lost after a part of a streamed
# text was sent. By default, another lane computes the text again, and the stream continues after the sent part.
ON_LOSS = "glide_on_loss"
RETRY_AFTER = 5  # seconds after which a client may try again if the model is not ready
MOST_PROMPTS = 2048  # maximum number of prompts in one completion request


@dataclass(frozen=True)
class _Asked:
    """The user of a request, the model, the path and the body."""

    user: str
    model: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True)
class LiveApi:
    """The endpoints of live calls.

    Args:
        observe: function that is called as `observe(user, model, status, seconds, tokens)` after each request.
    """

    catalogue: Catalogue
    service: LiveService
    limits: UserLimits
    observe: Any = lambda *_: None

    async def chat(self, request: Request) -> Response:
        return await self._serve(request, CHAT)

    async def completions(self, request: Request) -> Response:
        return await self._serve(request, COMPLETIONS)

    async def embeddings(self, request: Request) -> Response:
        return await self._serve(request, EMBEDDINGS)

    async def _serve(self, request: Request, url: str) -> Response:
        began, user = time.monotonic(), request.state.user
        body, size = await json_body(request)
        model, adapter = self.catalogue.find(body.get("model"))
        asked = _Asked(user, model.name, url, body)
        options = body.get("stream_options")
        if options is not None and not isinstance(options, dict):
            raise invalid("stream_options is not an object", "stream_options")

        def done(status: int, tokens: int) -> None:
            self.observe(user, model.name, status, time.monotonic() - began, tokens)

        try:
            requests = parse(url, body)
            _check_options(model.template.engine, requests[0], model.folder)
            fields = [_fields(each, adapter) for each in requests]
            size += (len(fields) - 1) * len(str(requests[0].generate))  # each call gets the options
            pieces: asyncio.Queue[str] = asyncio.Queue()
            streams = bool(body.get("stream")) and url != EMBEDDINGS
            on_text = pieces.put_nowait if streams and len(fields) == 1 else None
            computing = asyncio.create_task(self._compute_all(asked, requests, fields, size, on_text))
            if streams:
                first = asyncio.create_task(pieces.get())
                await _first_of(request, computing, first)
                events = streamed(computing, first, pieces, url == CHAT, body, done)
                return StreamingResponse(events, media_type="text/event-stream")
            await _first_of(request, computing)
            answer = computing.result()
        except ApiError as error:
            done(error.status, 0)
            raise
        if url == EMBEDDINGS and body.get("encoding_format") == "base64":
            for each in answer.content["data"]:
                each["embedding"] = _base64(each["embedding"])
        done(200, answer.tokens)
        return json_response(answer.content, headers=answer.timing(time.monotonic() - began))

    async def _compute(
        self, asked: _Asked, request: BatchRequest, fields: dict[str, Any], on_text: Callable[[str], None] | None
    ) -> Answer:  # fmt: skip
        """Compute a call. Raises ApiError if it fails."""
        model, ends_on_loss = self.service.models[asked.model], asked.body.get(ON_LOSS) == "error"
        try:
            result = await self.service.compute(model, asked.user, fields, on_text, ends_on_loss)
        except ModelNotReady as error:
            raise ApiError(503, f"{error}; try again", "model_not_ready", retry_after=RETRY_AFTER) from None
        except LanesLost as error:
            raise ApiError(500, str(error), "lanes_lost", is_final=True) from None
        return answer_of(request, result, asked.body["model"])

    async def _compute_all(
        self, asked: _Asked, requests: list[BatchRequest], fields: list[dict[str, Any]], size: int,
        on_text: Callable[[str], None] | None,
    ) -> Answer:  # fmt: skip
        """Compute all calls of a request. If one of them fails, or this task is cancelled, cancel the other calls.

        Raises:
            ApiError: a call has failed, or the user has too many calls.
        """
        with self.limits.count(asked.user, size, len(fields)):
            calls = [
                asyncio.create_task(self._compute(asked, one, own, on_text))
                for one, own in zip(requests, fields, strict=True)
            ]
            try:
                return merged(await asyncio.gather(*calls))
            finally:
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)


def parse(url: str, body: Mapping[str, Any]) -> list[BatchRequest]:
    """Return the requests in the body of a call. A completion with several prompts becomes several requests.

    Raises:
        ApiError: the body is wrong.
    """
    name = PROMPTS[url]
    prompts = body.get(name)
    bodies = [dict(body)]
    if url == COMPLETIONS and isinstance(prompts, list) and len(prompts) > 1:
        if len(prompts) > MOST_PROMPTS:
            raise invalid(f"more than {MOST_PROMPTS} prompts; send them in several requests", name)
        bodies = [{**body, name: each} for each in prompts]
    found = []
    for each in bodies:
        for extra in ("stream", ON_LOSS):
            each.pop(extra, None)
        try:
            found.append(request_of({"custom_id": "", "method": "POST", "url": url, "body": each}))
        except ValueError as error:
            raise invalid(str(error), name) from None
    return found


def _check_options(engine: str, request: BatchRequest, folder: Any) -> None:
    """Raise ApiError if the engine does not have an option, or cannot use its value."""
    try:
        engines.check_generate(engine, request.generate, folder)
    except engines.WrongOption as error:
        raise invalid(f"the {engine} engine refuses {error}", error.option) from None


def _fields(request: BatchRequest, adapter: str) -> dict[str, Any]:
    """Return the fields of a record that asks for the same as a request."""
    fields = {"prompt": request.prompt, "generate": request.generate, "timeout": LONGEST_TIMEOUT}
    return fields | ({"task": request.task} if request.task else {}) | ({"adapter": adapter} if adapter else {})


def _base64(vector: list[float]) -> str:
    """Return a vector as OpenAI's client asks for it: 32-bit floats (little endian) in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


async def _first_of(request: Request, computing: asyncio.Task[Any], *others: asyncio.Task[Any]) -> None:
    """Wait until one of the tasks is done. If the computation has failed, raise its error.

    If the client closes the connection before, or the computation has failed, cancel all tasks.

    Raises:
        ApiError: the computation has failed, or the client has gone.
    """
    gone: asyncio.Task[Any] = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({computing, *others, gone}, return_when=asyncio.FIRST_COMPLETED)
        if computing.done():
            computing.result()
        elif not any(task.done() for task in others):
            raise ApiError(499, "the client has closed the connection", "disconnected")
    except BaseException:
        for task in (computing, *others):
            task.cancel()
        raise
    finally:
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
