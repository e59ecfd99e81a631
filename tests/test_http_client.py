"""The HTTP client against small servers on real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO

import pytest

from glide.server.engines.http_client import Cancellation, HttpClient, NoResponse
from tests.conftest import eventually

BODY = b'{"ok": true}'
Answer = Callable[[socket.socket, bytes], bool]


class Server:
    """Answers each request with given bytes. Each connection has a thread."""

    def __init__(self, listener: socket.socket, answer: bytes, closes: bool):
        self.listener = listener
        self.answer = answer
        self.closes = closes
        self.requests: list[bytes] = []
        self.connections = self.closed = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file:
            while lines := _head(file):
                length = next((int(each.split()[1]) for each in lines if each.lower().startswith(b"content-length")), 0)
                self.requests.append(b"".join(lines) + file.read(length))
                connection.sendall(self.answer)
                if self.closes:
                    break
        self.closed += 1


def _head(file: BinaryIO) -> list[bytes]:
    """Return the lines of a request's head; an empty list if the client has closed the connection."""
    lines = []
    while (line := file.readline()) not in (b"", b"\r\n"):
        lines.append(line)
    return lines


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[Server, str]]]:
    listeners: list[socket.socket] = []

    def serve(answer: bytes, closes: bool = False) -> tuple[Server, str]:
        listeners.append(socket.create_server(("127.0.0.1", 0)))
        return Server(listeners[-1], answer, closes), f"http://127.0.0.1:{listeners[-1].getsockname()[1]}/v1"

    yield serve
    for listener in listeners:
        listener.close()


LENGTH = b"Content-Length: %d\r\n\r\n" % len(BODY)
ANSWERS = {
    "keep-alive": (b"HTTP/1.1 200 OK\r\n" + LENGTH + BODY, False),
    "connection-close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + LENGTH + BODY, True),
    "http-1.0": (b"HTTP/1.0 200 OK\r\n" + LENGTH + BODY, True),
    "until-close": (b"HTTP/1.0 200 OK\r\n\r\n" + BODY, True),
    "chunked": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n%b\r\n6\r\n%b\r\n0\r\n\r\n"
                % (BODY[:6], BODY[6:]), False),
}  # fmt: skip


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_of_all_forms_are_read(serve, kind):
    answer, closes = ANSWERS[kind]
    server, url = serve(answer, closes)
    client = HttpClient(url, is_local=True)
    for _ in range(3):
        assert client.send("POST", "x", 10.0, {"a": 1}).json() == {"ok": True}
    assert server.connections == (3 if closes else 1)


def test_connection_that_server_has_closed_is_not_used_again(serve):
    server, url = serve(ANSWERS["keep-alive"][0], closes=True)
    client = HttpClient(url, is_local=True)
    for number in range(3):
        assert client.send("GET", "x", 10.0).is_success
        eventually(lambda number=number: server.closed == number + 1, "the server closes the connection")
    assert server.connections == 3


def test_broken_answer_is_no_response(serve):
    _, url = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", closes=True)
    with pytest.raises(NoResponse):
        HttpClient(url, is_local=True).send("GET", "x", 10.0)


def test_slow_answer_ends_at_the_time_limit(serve):
    _, url = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", closes=False)
    with pytest.raises(NoResponse, match=r"no answer within 0\.5 s"):
        HttpClient(url, is_local=True).send("GET", "x", 0.5)


def test_cancellation_ends_a_running_request(serve):
    server, url = serve(b"", closes=False)
    cancellation = Cancellation()
    timer = threading.Timer(0.3, cancellation.cancel)
    timer.start()
    with pytest.raises(NoResponse):
        HttpClient(url, is_local=True).send("GET", "x", 60.0, cancellation=cancellation)
    assert len(server.requests) == 1
    with pytest.raises(NoResponse, match="cancelled"):
        HttpClient(url, is_local=True).send("GET", "x", 60.0, cancellation=cancellation)


def test_key_is_sent_but_never_returned(serve):
    server, url = serve(b"HTTP/1.1 401 No\r\nContent-Length: 11\r\n\r\nbad: sk-abc", closes=True)
    answer = HttpClient(url, "sk-abc", is_local=True).send("GET", "x", 10.0)
    assert answer.text == "bad: [key]" and b"Authorization: Bearer sk-abc" in server.requests[0]


def test_proxy_is_used_for_services_but_not_on_this_node(serve, monkeypatch):
    proxy, address = serve(ANSWERS["keep-alive"][0])
    monkeypatch.setenv("http_proxy", address.replace("http://", "http://user:pass@").removesuffix("/v1"))
    monkeypatch.delenv("no_proxy", raising=False)
    assert HttpClient("http://service.example/v1").send("GET", "models", 10.0).is_success
    assert proxy.requests[0].startswith(b"GET http://service.example/v1/models HTTP/1.1")
    assert b"Proxy-Authorization: Basic dXNlcjpwYXNz" in proxy.requests[0]
    server, url = serve(ANSWERS["keep-alive"][0])
    assert HttpClient(url, is_local=True).send("GET", "models", 10.0).is_success
    assert len(proxy.requests) == 1 and server.requests[0].startswith(b"GET /v1/models")


def test_unix_socket_with_full_backlog_is_tried_again(tmp_path):
    path = str(tmp_path / "api.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    waiting = []
    with pytest.raises(BlockingIOError):
        while True:  # fill the backlog
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            waiting[-1].connect(path)

    def accept_all() -> None:
        Server(listener, ANSWERS["keep-alive"][0], closes=False)

    timer = threading.Timer(0.3, accept_all)
    timer.start()
    assert HttpClient("http://127.0.0.1/v1", unix_socket=path, is_local=True).send("GET", "x", 10.0).is_success
    for each in (listener, *waiting):
        each.close()
