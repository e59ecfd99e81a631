"""Send HTTP requests to a service or to a local server.

The module uses only Python's standard library, because the Python of a node may have no HTTP library. Many threads may
use a client at the same time. The client keeps one connection open for each thread.
"""

from __future__ import annotations

import http.client
import json
import select
import socket
import ssl
import threading
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import unquote, urlsplit

CONNECT_SECONDS = 10.0  # maximum seconds to open a connection; a small number, so that the next try begins soon
BLOCK = 1 << 16  # maximum number of bytes that are read in one step
LARGEST_ANSWER = 256_000_000  # maximum size of an answer in bytes


class NoResponse(Exception):
    """No complete response has arrived in time, or the connection failed. The message says which."""


@dataclass(frozen=True)
class Response:
    """The response to a request. Its status may be an error.

    Attributes:
        headers: the response's headers. Names are case-insensitive.
        text: the response's body as text.
    """

    status: int
    headers: Message
    text: str

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def json(self) -> Any:
        """Return the body's content. Raises ValueError if the body is not JSON."""
        try:
            return json.loads(self.text)
        except RecursionError:
            raise ValueError("the answer is nested too deeply") from None


class Cancellation:
    """Ends a running request from another thread.

    Attributes:
        event: event that is set by `cancel`.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def cancel(self) -> None:
        """Close the connection of the running request, and let later requests fail immediately."""
        with self._lock:
            self.event.set()
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def attach(self, connection: socket.socket | None) -> None:
        """Set the connection that `cancel` closes. Raises NoResponse if `cancel` was already called."""
        with self._lock:
            self._socket = connection
            if connection is not None and self.event.is_set():
                raise NoResponse("the request was cancelled")


class HttpClient:
    """Sends requests to one address. Each thread has its own connection, which is used again for its next request.

    The proxy variables (http_proxy, https_proxy, no_proxy) apply, except for servers on this node.

    Args:
        url: base URL of all requests, such as http://host:8000/v1.
        key: API key, which is sent with each request; empty for no key.
        unix_socket: path of a Unix socket to connect to. The URL's host and port are then not used. None: connect
            to the URL's host.
        is_local: whether the server is on this node. Then no proxy is used.
    """

    def __init__(self, url: str, key: str = "", unix_socket: str | None = None, is_local: bool = False):
        self._address = urlsplit(url)
        self._key = key
        self._unix_socket = unix_socket
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._proxy = None if is_local else _proxy(self._address.scheme, self._address.netloc)
        self._local = threading.local()

    def send(
        self, method: str, path: str, seconds: float, body: Any = None, cancellation: Cancellation | None = None,
        on_block: Callable[[bytes], None] = lambda block: None,
    ) -> Response:  # fmt: skip
        """Send a request and return the response, even if its status is an error.

        Args:
            path: path relative to the base URL. If it begins with `/`, it is relative to the server's root.
            seconds: time limit of the whole request.
            body: content of the request, which is sent as JSON; None for no content.
            cancellation: object with which another thread can end the request; None if the request cannot be ended.
            on_block: function that gets each part of a successful response as soon as it arrives.

        Raises:
            NoResponse: no complete response has arrived within `seconds`, the connection failed, or the request was
                cancelled.
        """
        until = time.monotonic() + seconds
        connection: http.client.HTTPConnection | None = None
        try:
            connection = self._connection(min(seconds, CONNECT_SECONDS))
            channel = connection.sock  # http.client forgets the socket if the server closes it after the answer
            if cancellation:
                cancellation.attach(channel)
            channel.settimeout(_left(until))
            target = path if path.startswith("/") else f"{self._address.path.rstrip('/')}/{path}"
            if self._proxy and self._address.scheme == "http":
                target = f"http://{self._address.netloc}{target}"
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, target, data, self._headers | self._proxy_headers)
            answer = connection.getresponse()
            text = bytearray()
            # Some versions of Python close the socket after the last byte of an answer. So set the time limit before
            # each read, and not after it.
            while not answer.isclosed() and answer.length != 0:
                channel.settimeout(_left(until))
                if not (block := answer.read1(BLOCK)):
                    break
                text += block
                if answer.status == 200:
                    on_block(block)
                if len(text) > LARGEST_ANSWER:
                    raise NoResponse(f"the answer has more than {LARGEST_ANSWER} bytes")
            if answer.length:  # the connection broke; http.client reports this as the end of the answer
                raise NoResponse(f"the connection broke: {answer.length} bytes of the answer are missing")
            if cancellation:
                cancellation.attach(None)
            answer.close()  # otherwise http.client refuses the connection's next request
            if not answer.will_close:
                self._local.connection, connection = connection, None
            return Response(answer.status, answer.headers, self._without_key(text.decode("utf-8", "replace")))
        except TimeoutError:
            raise NoResponse(f"no answer within {seconds:.3g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise NoResponse(f"{type(error).__name__} {error}".rstrip()) from None
        finally:
            if connection is not None:
                connection.close()

    def _connection(self, seconds: float) -> http.client.HTTPConnection:
        """Return this thread's open connection, or a new one. The caller owns it, and stores it again afterwards."""
        kept: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        self._local.connection = None
        if kept is not None:
            # An idle connection is readable only if the other side has closed it.
            if kept.sock is not None and not _is_readable(kept.sock):
                return kept
            kept.close()
        connection = self._new_connection(seconds)
        connection.connect()
        return connection

    def _without_key(self, text: str) -> str:
        """Replace the API key by [key], because some services repeat it in their messages."""
        return text.replace(self._key, "[key]") if self._key else text

    def _new_connection(self, seconds: float) -> http.client.HTTPConnection:
        if self._unix_socket is not None:
            return _UnixConnection(self._unix_socket, seconds)
        place = self._proxy or self._address
        host, port = place.hostname or "", place.port
        if self._address.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=seconds)
        connection = http.client.HTTPSConnection(host, port, timeout=seconds, context=ssl.create_default_context())
        if self._proxy:
            connection.set_tunnel(self._address.hostname or "", self._address.port or 443, _credentials(self._proxy))
        return connection

    @property
    def _proxy_headers(self) -> dict[str, str]:
        return _credentials(self._proxy) if self._proxy and self._address.scheme == "http" else {}


class _UnixConnection(http.client.HTTPConnection):
    """A connection to an HTTP server that listens at a Unix socket."""

    def __init__(self, path: str, seconds: float):
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        until = time.monotonic() + (self.timeout or CONNECT_SECONDS)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        while True:
            self.sock.settimeout(_left(until))
            try:
                return self.sock.connect(self._path)
            except BlockingIOError:  # the server has not accepted its earlier connections yet
                time.sleep(0.01)


def _is_readable(channel: socket.socket) -> bool:
    poll = select.poll()  # select.select cannot handle descriptors above 1023
    poll.register(channel, select.POLLIN)
    return bool(poll.poll(0))


def _left(until: float) -> float:
    """Return the seconds until a time of the monotonic clock. Raises TimeoutError if the time is over."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _proxy(scheme: str, netloc: str) -> Any:
    """Return the address of the proxy for an address; None if no proxy is used."""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(netloc):
        return None
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}")


def _credentials(proxy: Any) -> dict[str, str]:
    """Return the header with the user and the password in a proxy's address; an empty dict if it has none."""
    if not proxy.username:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {b64encode(pair.encode()).decode()}"}
