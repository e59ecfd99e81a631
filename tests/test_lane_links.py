"""The port on which lanes connect to `glide serve`."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from glide.live.identity import LiveIdentity
from glide.live.links import LinkListener
from glide.protocol import frames


class Events:
    def accept(self, link: Any) -> str:
        return "its model is not offered"


@pytest.mark.parametrize(("stops", "uses"), [(False, {"job": 1}), (True, {})])
def test_lane_that_connects_while_the_server_stops_is_not_served(tmp_path: Path, stops: bool, uses: dict[str, int]):
    identity = LiveIdentity.load(tmp_path)
    hello = {"job": "job", "template": "T", "glidein": "here-1.0", "capacity": 1, "retires": 0}

    async def connect() -> None:
        events: Any = Events()
        listener = LinkListener(identity, events)
        await listener.start("127.0.0.1")
        connection = socket.create_connection(("127.0.0.1", identity.port))
        await asyncio.sleep(0.1)  # the server accepts the connection, and waits for its TLS handshake
        if stops:
            listener.stop()
        insecure = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        insecure.check_hostname, insecure.verify_mode = False, ssl.CERT_NONE
        with suppress(OSError):
            reader, writer = await asyncio.open_connection(sock=connection, ssl=insecure, server_hostname="here")
            writer.write(frames.encode({"hello": {**hello, "secret": identity.secret("job", "T")}}))
            await reader.read(1)
            writer.transport.abort()
        listener.stop()

    asyncio.run(connect())
    assert identity.uses == uses
