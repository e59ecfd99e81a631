"""A small web server for tests and benchmarks of fetching.

The server serves the files of a folder and supports byte ranges. It can limit its rate, and produce errors on purpose.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

BLOCK = 1 << 16


class Origin(ThreadingHTTPServer):
    """A web server for a folder.

    Attributes:
        rate: limit for all answers together, in bytes per second; None for no limit.
        sent: a dict from each file's name to the number of bytes that were sent so far.
        requests: file name and Range header of each request so far.
        status: HTTP status of answers that fail.
        failures: how many of the next answers fail.
        cut: number of bytes after which the server cuts an answer by closing the connection.
        cuts: how many of the next answers are cut.
        stall: number of bytes after which an answer stops, while the connection stays open; None to send all bytes.
        ranges: whether the server supports Range headers.
        hub: None for a plain web server. If the server imitates a model hub with one repository: the repository's name,
            its commit, and the names of its files that are in Git LFS.
        token: access token that each request must have; empty if the files are public.
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
        self.hub: tuple[str, str, tuple[str, ...]] | None = None
        self.token = ""
        self.rate_lock = threading.Lock()
        self.free_at = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def wait_for_turn(self, length: int) -> None:
        """Wait until `length` more bytes may be sent without exceeding the rate."""
        if self.rate is None:
            return
        with self.rate_lock:
            self.free_at = max(time.monotonic(), self.free_at) + length / self.rate
            until = self.free_at
        time.sleep(max(0.0, until - time.monotonic()))

    def handle_error(self, request: object, client_address: object) -> None:
        """Report an error, but ignore connections that clients close early."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def origin(folder: Path, rate: float | None = None) -> Iterator[Origin]:
    """Run a web server for a folder in a `with` block."""
    server = Origin(folder, rate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Origin

    def _is_refused(self) -> bool:
        """Send an error and return True if the request lacks the access token."""
        if not self.server.token or self.headers.get("Authorization") == f"Bearer {self.server.token}":
            return False
        self.send_error(401)
        return True

    def do_GET(self) -> None:
        if self._is_refused():
            return
        if self.server.hub and self.path.startswith(("/api/models/", "/api/datasets/")):
            return self._send_repository()
        name = self._name()
        self.server.requests.append((name, self.headers.get("Range", "")))
        path = self.server.folder / name
        if self.server.failures > 0:
            self.server.failures -= 1
            return self.send_error(self.server.status)
        if not path.is_file():
            return self.send_error(404)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.server.ranges else None
        start, size = int(asked[1]) if asked else 0, path.stat().st_size
        end = min(size, int(asked[2]) + 1) if asked and asked[2] else size
        self.send_response(206 if asked else 200)
        self._describe(path, end - start)
        self._send(name, path, start, end)

    def _name(self) -> str:
        path = unquote(self.path).partition("?")[0].lstrip("/")
        return re.sub(r"^.*/resolve/[^/]+/", "", path) if self.server.hub else path

    def _describe(self, path: Path, length: int) -> None:
        self.send_header("Content-Length", str(length))
        if self.server.hub:
            self.send_header("ETag", f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"')
            self.send_header("X-Repo-Commit", self.server.hub[1])
        self.end_headers()

    # ---- a model hub's protocol ------------------------------------------------------------------

    def do_POST(self) -> None:
        """Answer a `paths-info` request of the hub's protocol: describe the files at the paths in the request."""
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        paths = json.loads(asked)["paths"] if asked.startswith("{") else parse_qs(asked).get("paths", [])
        self._send_json([entry for path in paths if (entry := self._entry("path", path))])

    def _send_repository(self) -> None:
        assert self.server.hub
        name, commit, _ = self.server.hub
        if not self.path.startswith((f"/api/models/{name}", f"/api/datasets/{name}")):
            return self.send_error(404)
        files = [str(path.relative_to(self.server.folder)) for path in self.server.folder.rglob("*") if path.is_file()]
        if "/tree/" in self.path:
            return self._send_json([self._entry("path", file) for file in files])
        self._send_json({"id": name, "sha": commit, "siblings": [self._entry("rfilename", file) for file in files]})

    def _entry(self, key: str, name: str) -> dict[str, object] | None:
        assert self.server.hub
        path = self.server.folder / name
        if not path.is_file():
            return None
        size, digest = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
        entry: dict[str, object] = {key: name, "type": "file", "size": size, "oid": digest[:40], "blobId": digest[:40]}
        if name in self.server.hub[2]:
            entry["lfs"] = {"oid": digest, "sha256": digest, "size": size, "pointerSize": 134}
        return entry

    def _send_json(self, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send(self, name: str, path: Path, start: int, end: int) -> None:
        sent = 0
        with path.open("rb") as file:
            file.seek(start)
            while data := file.read(min(BLOCK, end - start - sent)):
                if self.server.cuts and sent >= self.server.cut:
                    self.server.cuts -= 1
                    self.close_connection = True
                    return
                while self.server.stall is not None and sent >= self.server.stall:
                    time.sleep(0.05)
                self.server.wait_for_turn(len(data))
                self.wfile.write(data)
                sent += len(data)
                self.server.sent[name] = self.server.sent.get(name, 0) + len(data)

    def do_HEAD(self) -> None:
        if self._is_refused():
            return
        path = self.server.folder / self._name()
        if not path.is_file():
            return self.send_error(404)
        self.send_response(200)
        self._describe(path, path.stat().st_size)

    def log_message(self, *arguments: object) -> None:
        pass
