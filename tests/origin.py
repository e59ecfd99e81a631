"""A small web server for the tests of fetching: a folder, with ranges, a rate, and whatever can go wrong."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

BLOCK = 1 << 16


class Origin(ThreadingHTTPServer):
    """Serves a folder.

    Attributes:
        rate: bytes a second that all answers together take; None for no limit.
        sent: bytes so far, by name.
        status: answered instead, if it is an error.
        cut: an answer's connection is closed after so many bytes, this many times more.
        stall: answers stop for ever after so many bytes.
        ranges: whether it knows them.
    """

    daemon_threads = True

    def __init__(self, folder: Path, rate: float | None = None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.rate = rate
        self.sent: dict[str, int] = {}
        self.requests: list[tuple[str, str]] = []
        self.status = 200
        self.failures = 0
        self.cut = 0
        self.cuts = 0
        self.stall: int | None = None
        self.ranges = True
        self.pace = threading.Lock()
        self.free = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def wait_for_turn(self, length: int) -> None:
        if self.rate is None:
            return
        with self.pace:
            self.free = max(time.monotonic(), self.free) + length / self.rate
            until = self.free
        time.sleep(max(0.0, until - time.monotonic()))


@contextmanager
def origin(folder: Path, rate: float | None = None) -> Iterator[Origin]:
    """A web server of a folder while this lasts."""
    server = Origin(folder, rate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Origin

    def do_GET(self) -> None:
        name = unquote(self.path).lstrip("/")
        self.server.requests.append((name, self.headers.get("Range", "")))
        path = self.server.folder / name
        if self.server.failures > 0:
            self.server.failures -= 1
            return self.send_error(self.server.status)
        if not path.is_file():
            return self.send_error(404)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if self.server.ranges else None
        start, size = int(asked[1]) if asked else 0, path.stat().st_size
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        self._send(name, path, start)

    def _send(self, name: str, path: Path, start: int) -> None:
        gone = 0
        with path.open("rb") as file:
            file.seek(start)
            while data := file.read(BLOCK):
                if self.server.cuts and gone >= self.server.cut:
                    self.server.cuts -= 1
                    self.close_connection = True
                    return
                while self.server.stall is not None and gone >= self.server.stall:
                    time.sleep(0.05)
                self.server.wait_for_turn(len(data))
                self.wfile.write(data)
                gone += len(data)
                self.server.sent[name] = self.server.sent.get(name, 0) + len(data)

    def do_HEAD(self) -> None:
        path = self.server.folder / unquote(self.path).lstrip("/")
        if not path.is_file():
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(path.stat().st_size))
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass
