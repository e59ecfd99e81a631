"""How the server's front and its engine process talk: JSON frames with a length in front, over a socket pair.

A user's code runs in the engine's process and may write anything into the channel, so the front checks what it reads.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("!I")
LIMIT = 1 << 28  # bytes of a frame


def encode(message: Any) -> bytes:
    """One frame."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return _LENGTH.pack(len(body)) + body


async def read(reader: asyncio.StreamReader) -> Any:
    """Return the next frame.

    Raises:
        asyncio.IncompleteReadError: the other side has ended.
        ValueError: what came is no frame.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > LIMIT:
        raise ValueError(f"a frame of {length} bytes")
    try:
        return json.loads(await reader.readexactly(length))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a frame that is no JSON: {error}") from None


def receive(connection: socket.socket) -> Any:
    """The next frame, blocking; EOFError when the other side is gone."""
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
