"""The connections of model servers. Each standing job keeps one, over which its lane gets calls and sends results."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from glide.live.identity import LiveIdentity
from glide.live.router import LaneLoad, LiveCall
from glide.protocol import frames
from glide.protocol.live import HELLO_SECONDS, PING_SECONDS, SILENT_SECONDS, Hello, is_number
from glide.protocol.names import GLIDE_ID, printable
from glide.protocol.result import problem

MOST_UNKNOWN = 64  # maximum number of connections that have not sent a valid hello; above it, the oldest is closed
# Maximum size of a message of a node in bytes. A result alone may have 64 MB.
LARGEST_MESSAGE = 160_000_000
LARGEST_CAPACITY = 1 << 16  # largest accepted number of calls that an engine should have at a time
_log = logging.getLogger("glide")


@dataclass(eq=False)
class LaneLink(LaneLoad):
    """A connected lane.

    Attributes:
        job: name of its standing job.
        template: digest of the template that it has loaded.
        retires: Unix time after which its glidein should get no further calls; 0 if it is unknown.
    """

    job: str = ""
    template: str = ""
    retires: int = 0
    writer: asyncio.StreamWriter = field(kw_only=True)

    def send(self, message: dict[str, Any]) -> None:
        self.writer.write(frames.encode(message))

    def send_call(self, call: LiveCall) -> None:
        self.send({"call": {**call.fields, "custom_id": str(call.number), "attempts": call.losses}})

    def end(self, reason: str) -> None:
        """End the standing job. The lane must have no calls."""
        self.send({"end": reason})
        self.writer.close()


class LinkEvents(Protocol):
    """Gets the events of all links."""

    def accept(self, link: LaneLink) -> str:
        """Add a new link. Return why it is refused; an empty text if it is accepted."""
        ...

    def lane_changed(self, link: LaneLink) -> None:
        """Note that a lane can get more calls, or fewer."""

    def answered(self, link: LaneLink, number: int, result: dict[str, Any]) -> None:
        """Note the result of a call."""

    def text_arrived(self, link: LaneLink, number: int, piece: str | None) -> None:
        """Note the next piece of a call's text. None: the text begins again."""

    def lost(self, link: LaneLink) -> None:
        """Remove a link that has ended."""


class LinkListener:
    """Accepts the connections of model servers, and reads their messages.

    Args:
        events: object that gets the events of all links.
    """

    def __init__(self, identity: LiveIdentity, events: LinkEvents):
        self.identity = identity
        self.events = events
        self.unknown: list[asyncio.StreamWriter] = []
        self.server: asyncio.Server | None = None

    async def start(self, host: str) -> None:
        """Listen on the port of the last start. If another program has it, listen on another one.

        Raises:
            OSError: no port can be opened at this address.
        """
        tls = self.identity.tls()
        options: dict[str, Any] = {"ssl": tls, "ssl_handshake_timeout": HELLO_SECONDS, "reuse_address": True}
        try:
            self.server = await asyncio.start_server(self._serve, host, self.identity.port, **options)
        except OSError:
            self.server = await asyncio.start_server(self._serve, host, 0, **options)
        port = self.server.sockets[0].getsockname()[1]
        if port != self.identity.port:
            self.identity.port, self.identity.uses = port, {}
            self.identity.save()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.server is not None and not self.server.is_serving():
            writer.transport.abort()  # `stop` was called while the TLS handshake went on
            return
        link: LaneLink | None = None
        try:
            link = await self._welcome(reader, writer)
            if link is not None:
                await self._exchange_messages(link, reader)
        except (OSError, EOFError, ValueError, asyncio.TimeoutError, asyncio.CancelledError) as error:
            _log.info("connection of a lane ended: %r", error)
        finally:
            writer.transport.abort() if link is not None and link.calls else writer.close()
            if link is not None:
                self.events.lost(link)

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> LaneLink | None:
        """Read the first message of a connection, and accept or refuse it. Return None if it is refused."""
        self.unknown.append(writer)
        if len(self.unknown) > MOST_UNKNOWN:
            self.unknown.pop(0).transport.abort()
        try:
            hello = Hello.from_message(await frames.read(reader, 1 << 14, HELLO_SECONDS))
        finally:
            if writer in self.unknown:
                self.unknown.remove(writer)
        following = self.identity.use(hello.job, hello.template, hello.secret)
        if following is None or not GLIDE_ID.fullmatch(hello.glidein):
            writer.write(frames.encode({"refused": "unknown job, or its secret was already used"}))
            return None
        link = LaneLink(
            hello.glidein, _capacity(hello.capacity), job=hello.job, template=hello.template, retires=hello.retires,
            writer=writer,
        )  # fmt: skip
        if refusal := self.events.accept(link):
            writer.write(frames.encode({"refused": refusal}))
            return None
        link.send({"welcome": following})
        self.events.lane_changed(link)
        return link

    async def _exchange_messages(self, link: LaneLink, reader: asyncio.StreamReader) -> None:
        pinging = asyncio.create_task(_ping(link))
        try:
            while True:
                message = await frames.read(reader, LARGEST_MESSAGE, SILENT_SECONDS)
                self.identity.confirm(link.job)
                if not isinstance(message, dict):
                    raise ValueError("a message is not an object")
                if "result" in message:
                    number, result = _result(message["result"])
                    self.events.answered(link, number, result)
                elif "text" in message:
                    number, piece = message["text"]
                    if not isinstance(number, int) or not isinstance(piece, str | None):
                        raise ValueError("a piece of text is not valid")
                    self.events.text_arrived(link, number, piece)
                elif "capacity" in message:
                    link.capacity = _capacity(message["capacity"])
                    self.events.lane_changed(link)
        finally:
            pinging.cancel()

    def stop(self) -> None:
        """Accept no further connection. Those that exist stay."""
        if self.server is not None:
            self.server.close()


async def _ping(link: LaneLink) -> None:
    while True:
        await asyncio.sleep(PING_SECONDS)
        with suppress(OSError):
            link.send({"ping": None})


def _capacity(value: Any) -> int:
    if not is_number(value):
        raise ValueError("the capacity is not a number")
    return min(value, LARGEST_CAPACITY)


def _result(line: Any) -> tuple[int, dict[str, Any]]:
    """Return the number of a call and its result. Raises ValueError if a node has sent something else."""
    result = json.loads(line)
    if not isinstance(result, dict) or (wrong := problem(result)):
        raise ValueError(f"a result is not valid: {wrong if isinstance(result, dict) else 'not an object'}")
    result["glidein"] = printable(result["glidein"])
    return int(result["custom_id"]), result
