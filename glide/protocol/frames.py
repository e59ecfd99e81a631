"""Encode, decode and read messages that are sent as frames: between a model server and its engine, or `glide serve`.

A frame begins with the length of its body. The body is the message as JSON. An engine's process runs users' code, and a
node may send anything. So the reader checks the data that it reads.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("!I")
PART = 1 << 16  # a time limit applies to each part of a message that has this number of bytes
LIMIT = 1 << 28  # maximum number of bytes in the body of a frame


def encode(message: Any) -> bytes:
    """Return the frame that contains a message."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return _LENGTH.pack(len(body)) + body


async def read(reader: asyncio.StreamReader, limit: int = LIMIT, seconds: float | None = None) -> Any:
    """Wait for the next message and return it.

    Args:
        limit: maximum number of bytes in the message.
        seconds: time limit for each part of the message, in seconds; None for no limit.

    Raises:
        asyncio.IncompleteReadError: the sender has closed the connection.
        asyncio.TimeoutError: no part of the message has arrived in time.
        ValueError: the data is not a valid frame.
    """
    (length,) = _LENGTH.unpack(await asyncio.wait_for(reader.readexactly(_LENGTH.size), seconds))
    if length > limit:
        raise ValueError(f"a frame that is too long: {length} bytes")
    try:
        body = bytearray()
        while len(body) < length:
            body += await asyncio.wait_for(reader.readexactly(min(PART, length - len(body))), seconds)
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a frame that is not JSON: {error}") from None


def receive(connection: socket.socket) -> Any:
    """Wait for the next message of the model server and return it.

    Raises:
        EOFError: the model server has closed the channel.
    """
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    return json.loads(_exactly(connection, length))


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = connection.recv(min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
