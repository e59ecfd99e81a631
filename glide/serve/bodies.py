"""Read the bodies of requests, with limits of their size and of the time that a client may take."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import ClientDisconnect, Request

from glide.serve.errors import ApiError, invalid

LARGEST_BODY = 32_000_000  # maximum size of a JSON body in bytes
BODY_SECONDS = 30.0  # a client must send the next part of a body within this time, in seconds
LEAST_RATE = 10_000  # in addition, a body must arrive with this mean rate, in bytes per second


async def parts(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """Yield the parts of a request's body.

    Raises:
        ApiError: the body is longer than `limit` bytes, or arrives too slowly.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    size, loop = 0, asyncio.get_running_loop()
    began = loop.time()
    try:
        async for part in _in_time(request.stream()):
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            if loop.time() - began > BODY_SECONDS + size / LEAST_RATE:
                raise ApiError(408, "the body arrives too slowly", "timeout")
            yield part
    except asyncio.TimeoutError:
        raise ApiError(408, f"no part of the body for {BODY_SECONDS:g} s", "timeout") from None
    except ClientDisconnect:
        raise ApiError(400, "the client has closed the connection", "disconnected") from None


async def _in_time(stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Yield the parts of a stream. Raises asyncio.TimeoutError if a part takes longer than BODY_SECONDS."""
    while True:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                part = await anext(stream)
        except StopAsyncIteration:
            return
        yield part


async def json_body(request: Request) -> tuple[dict[str, Any], int]:
    """Return the JSON object in a request's body, and its number of bytes.

    Raises:
        ApiError: the body is no JSON object, too large or too slow.
    """
    body = bytearray()
    async for part in parts(request, LARGEST_BODY):
        body += part
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(content, dict):
        raise invalid("the body is not a JSON object", code="invalid_json")
    return content, len(body)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body has more than {limit} bytes", "body_too_large")
