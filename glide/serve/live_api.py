"""Live calls in OpenAI's API: chat completions, completions and embeddings."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from glide.serve.bodies import json_body
from glide.serve.errors import ApiError, invalid
from glide.serve.limits import UserLimits
from glide.serve.models import Catalogue
from glide.serve.service import LiveService
from glide.server import engines
from glide.sweep.batch_api import CHAT, COMPLETIONS, EMBEDDINGS, PROMPTS, BatchRequest, answer, request_of

LONGEST_TIMEOUT = 3600.0  # time limit of one engine call for a live call, in seconds
MOST_PROMPTS = 2048  # maximum number of prompts in one completion request


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
        status, tokens = 200, 0
        try:
            requests = parse(url, body)
            _check_options(model.template.engine, requests[0], model.folder)
            with self.limits.count(user, size):
                served = self.service.models[model.name]
                calls = [
                    self.service.compute(served, user, _fields(each, adapter), size // len(requests))
                    for each in requests
                ]
                results = await _unless_disconnected(request, calls)
            content = merged(requests, results, body["model"])
            if url == EMBEDDINGS and body.get("encoding_format") == "base64":
                for each in content["data"]:
                    each["embedding"] = _base64(each["embedding"])
            tokens = content["usage"].get("completion_tokens", 0)
        except ApiError as error:
            status = error.status
            raise
        finally:
            self.observe(user, model.name, status, time.monotonic() - began, tokens)
        if body.get("stream") and url != EMBEDDINGS:
            with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
            return StreamingResponse(_events(content, url == CHAT, with_usage), media_type="text/event-stream")
        return JSONResponse(content)


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
        each.pop("stream", None)
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


async def _unless_disconnected(request: Request, calls: list[Any]) -> list[dict[str, Any]]:
    """Wait for the results of calls. If the client closes the connection, cancel the calls.

    Raises:
        ApiError: a call has failed, or the client has gone.
    """
    tasks = [asyncio.create_task(call) for call in calls]
    computing: asyncio.Future[list[dict[str, Any]]] = asyncio.gather(*tasks)
    gone: asyncio.Future[None] = asyncio.create_task(_disconnected(request))
    try:
        waiting: set[asyncio.Future[Any]] = {computing, gone}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not computing.done():
            raise ApiError(499, "the client has closed the connection", "disconnected")
        return computing.result()
    finally:
        for task in (*tasks, gone):
            task.cancel()
        await asyncio.gather(*tasks, computing, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def merged(requests: list[BatchRequest], results: list[dict[str, Any]], model: str) -> dict[str, Any]:
    """Return the content of the answer to a call: the choices of all its requests, and the sum of their tokens.

    Raises:
        ApiError: a result is an error.
    """
    created, bodies = int(time.time()), []
    for request, result in zip(requests, results, strict=True):
        response = answer(uuid.uuid4().hex, request, result, model, created)["response"]
        if response["status_code"] != 200:
            error = response["body"]["error"]
            raise ApiError(response["status_code"], error["message"], error["code"], is_final=True)
        bodies.append(response["body"])
    content = bodies[0]
    content["model"] = model
    if len(bodies) > 1:
        choices = [choice for each in bodies for choice in each["choices"]]
        content["choices"] = [{**choice, "index": index} for index, choice in enumerate(choices)]
        content["usage"] = {name: sum(each["usage"][name] for each in bodies) for name in content["usage"]}
    return content


async def _events(content: dict[str, Any], is_chat: bool, with_usage: bool) -> AsyncIterator[str]:
    """Yield the server-sent events of a streamed answer."""
    common = {name: content[name] for name in ("id", "created", "model")}
    common["object"] = "chat.completion.chunk" if is_chat else "text_completion"
    usage = {"usage": None} if with_usage else {}
    for choice in content["choices"]:
        index, reason = choice["index"], choice["finish_reason"]
        first = {"delta": {"role": "assistant", "content": ""}} if is_chat else {"text": ""}
        text = {"delta": {"content": choice["message"]["content"]}} if is_chat else {"text": choice["text"]}
        last: dict[str, Any] = {"delta": {}} if is_chat else {"text": ""}
        for piece, logprobs, ending in (
            (first, None, None),
            (text, choice.get("logprobs"), None),
            (last, None, reason),
        ):
            chunk = {"index": index, **piece, "logprobs": logprobs, "finish_reason": ending}
            yield _event({**common, "choices": [chunk], **usage})
    if with_usage:
        yield _event({**common, "choices": [], "usage": content["usage"]})
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
