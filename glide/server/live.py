"""A standing job: serve the live calls that `glide serve` sends over a connection (glide.protocol.live)."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from glide.protocol import frames
from glide.protocol.live import HELLO_SECONDS, PING_SECONDS, SILENT_SECONDS, Hello, Invitation
from glide.protocol.request import LINE_BYTES, WrongInput, parsed_request
from glide.protocol.result import result_line
from glide.server.batcher import Batcher
from glide.server.engines.base import error_fields
from glide.server.job import QUEUE_BYTES, QUEUE_RECORDS, QueuedRecord, RecordQueue
from glide.server.template_state import TemplateState
from glide.vocabulary import Exit, State

RETRY_SECONDS = 0.5  # seconds between two tries to connect
# If no connection was possible for this number of seconds, the standing job ends. `glide serve` may be restarting.
LOST_SECONDS = 60.0
LARGEST_MESSAGE = 2 * LINE_BYTES  # maximum size of a message of `glide serve` in bytes
UNSENT_BYTES = 1 << 28  # maximum number of bytes of results that wait until `glide serve` reads them


class RefusedConnection(Exception):
    """`glide serve` does not need this standing job. The message says why."""


@dataclass(eq=False)
class LiveJob(RecordQueue):
    """A standing job that the model server is serving.

    Attributes:
        invitation: the job's input.
        state: the state of the job's template.
        batcher: the queue that the job belongs to.
        retires: Unix time after which the glidein should get no further calls; 0 if it is unknown.
        capacity: number of calls that the engine should have at a time.
        calls: the calls that have no result yet, by number.
        secret: the secret of the next connection.
        channel: the connection to `glide serve`; None while there is none.
        was_connected: whether `glide serve` has accepted a connection of this job.
    """

    is_live = True

    invitation: Invitation = field(kw_only=True)
    state: TemplateState = field(kw_only=True)
    batcher: Batcher = field(kw_only=True)
    retires: int = field(kw_only=True)
    calls: dict[int, QueuedRecord] = field(default_factory=dict)
    secret: str = ""
    channel: asyncio.StreamWriter | None = None
    was_connected: bool = False

    async def serve(self) -> int:
        """Connect to `glide serve`, serve its calls until it ends the job, and return the job's exit code.

        If the connection breaks, connect again.
        """
        self.secret = self.invitation.secret
        connected_at = time.monotonic()
        while not self.gone and time.monotonic() - connected_at < LOST_SECONDS:
            try:
                reader = await self._connect()
                connected_at = time.monotonic()
                self.was_connected = True
                await self._exchange_messages(reader)
                return Exit.OK
            except RefusedConnection as refused:
                self.report(f"glide serve ended this job: {refused}")
                return Exit.OK
            except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
                if self.channel is not None:
                    connected_at = time.monotonic()
                self.report(f"no connection to glide serve: {error!r}; trying again")
            finally:
                self.close()
            await asyncio.sleep(RETRY_SECONDS)
        return Exit.OK  # `glide serve` is gone; when it starts again, it submits another job

    async def _connect(self) -> asyncio.StreamReader:
        """Connect to `glide serve`. Return the reader of the connection when it is accepted.

        Raises:
            RefusedConnection: `glide serve` does not need this job.
            OSError, EOFError, ValueError, asyncio.TimeoutError: the connection failed.
        """
        place = self.invitation
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # The certificate is not signed by an authority. Its fingerprint, from the job's input, is checked below.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        opening = asyncio.open_connection(place.host, place.port, ssl=context, ssl_handshake_timeout=HELLO_SECONDS)
        reader, channel = await asyncio.wait_for(opening, HELLO_SECONDS)
        try:
            certificate = channel.get_extra_info("ssl_object").getpeercert(True)
            if not hmac.compare_digest(hashlib.sha256(certificate).hexdigest(), place.fingerprint):
                raise ValueError(f"{place.host}:{place.port} has another certificate than this job's input names")
            hello = Hello(
                place.job, self.secret, self.job_request.glidein, self.state.status.template, self.capacity,
                self.retires,
            )  # fmt: skip
            channel.write(frames.encode({"hello": vars(hello)}))
            answer = await frames.read(reader, seconds=HELLO_SECONDS)
        except BaseException:
            channel.transport.abort()
            raise
        if "welcome" not in answer:
            channel.close()
            raise RefusedConnection(str(answer.get("refused", "no reason given")))
        self.secret = str(answer["welcome"])
        self.channel = channel
        return reader

    @property
    def capacity(self) -> int:
        return self.state.capacity if self.state.status.state == State.WARM else 0

    async def _exchange_messages(self, reader: asyncio.StreamReader) -> None:
        """Serve calls until `glide serve` ends the job.

        Raises:
            OSError, EOFError, ValueError, asyncio.TimeoutError: the connection broke.
        """
        pinging = asyncio.create_task(self._ping())
        self.state.listeners.append(self._send_capacity)
        self._send_capacity()
        try:
            while not self.gone:  # in Python 3.11, asyncio.wait_for may ignore a cancellation
                message = await frames.read(reader, LARGEST_MESSAGE, SILENT_SECONDS)
                if "call" in message:
                    self._accept(message["call"])
                elif "cancel" in message:
                    self._cancel(message["cancel"])
                elif "end" in message:
                    self.report(f"glide serve ended this job: {message['end']}")
                    return
        finally:
            self.state.listeners.remove(self._send_capacity)
            pinging.cancel()

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            self._send({"ping": None})

    def _send_capacity(self) -> None:
        self._send({"capacity": self.capacity})

    def _send(self, message: dict[str, Any]) -> None:
        if self.channel is not None:
            self.channel.write(frames.encode(message))
            if self.channel.transport.get_write_buffer_size() > UNSENT_BYTES:
                self.channel.transport.abort()

    def _accept(self, fields: dict[str, Any]) -> None:
        """Put a call into the queue. If it is not valid, send its error."""
        if len(self.calls) >= QUEUE_RECORDS or self.waiting_bytes >= QUEUE_BYTES:
            raise ValueError("glide serve has sent too many calls")
        number = int(fields["custom_id"])
        try:
            item = QueuedRecord(self, parsed_request(fields), len(str(fields)), number)
            self._queue(item)
        except (ValueError, WrongInput) as error:
            self._send_error(number, error)
            return
        self.calls[number] = item
        self.batcher.work.set()
        self.batcher.live_work.set()

    def _send_error(self, number: int, error: Exception) -> None:
        result = {"text": None, "tokens": 0, "error": error_fields(error), "seconds": 0.0}
        line = result_line(json.dumps(result), str(number), self.job_request.glidein, 1)
        self._send({"result": line.decode()})

    def _cancel(self, number: int) -> None:
        """Forget a call. If it waits, remove it from the queue. If the engine has it, ignore its result."""
        item = self.calls.pop(number, None)
        if item is None:
            return
        item.cancelled = True
        with suppress(ValueError):
            self.waiting.remove(item)
            self.waiting_bytes -= item.size
            self.note_answered()

    def add_result(self, item: QueuedRecord, line: bytes) -> None:
        if self.calls.pop(item.position, None):
            self._send({"result": line.decode()})

    def add_text(self, item: QueuedRecord, piece: str | None) -> None:
        if item.position in self.calls and isinstance(piece, str | None):
            self._send({"text": [item.position, piece]})

    def note_sent(self, item: QueuedRecord) -> None:
        if item.request.stream:
            self.add_text(item, None)  # an engine that has died may have generated a part of the text

    def close(self) -> None:
        """Close the connection. `glide serve` sends the calls without a result to other lanes."""
        for number in list(self.calls):
            self._cancel(number)
        if self.channel is not None:
            self.channel.transport.abort() if self.gone else self.channel.close()
            self.channel = None
