"""A stand-in for a job's starter: it serves the chirp commands that the model server sends, with files in a folder."""

from __future__ import annotations

import json
import socketserver
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from glide.protocol import keep


class Starter(socketserver.ThreadingTCPServer):
    """Serves chirp on a port of this host.

    Attributes:
        folder: the job's spool directory on the access point.
        config: file with the address and the cookie, which HTCondor names in _CONDOR_CHIRP_CONFIG.
        keep: the value of GlideKeep in the job's ad, as ClassAd text.
        appended: the data of each append to a file, in order.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Connection)
        folder.mkdir()
        self.folder = folder
        self.config = folder / ".chirp.config"
        self.config.write_text(f"127.0.0.1 {self.server_address[1]} cookie\n")
        self.keep = "UNDEFINED"
        self.lookups = 0
        self.appended: list[bytes] = []
        self.thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return the complete lines of a file on the access point."""
        path = self.folder / name
        content = path.read_bytes() if path.exists() else b""
        return [json.loads(line) for line in content.split(b"\n")[:-1] if line]


class Connection(socketserver.StreamRequestHandler):
    server: Starter

    def handle(self) -> None:
        with suppress(ConnectionError):  # a killed model server resets the connection
            self._serve()

    def _serve(self) -> None:
        files: dict[str, Path] = {}
        while words := self.rfile.readline().decode().split():
            command, *arguments = words
            if command == "open":
                name, flags, mode = arguments
                assert (flags, mode) == ("wac", "384")
                files["7"] = self.server.folder / name
                files["7"].touch()
                self._answer(7, b"0 0 33152 1 0 0 0 0 4096 0 0 0 0\n")
            elif command == "write":
                data = self.rfile.read(int(arguments[1]))
                with files[arguments[0]].open("ab") as file:
                    file.write(data)
                self.server.appended.append(data)
                self._answer(len(data))
            elif command == "getfile":
                path = self.server.folder / arguments[0]
                content = path.read_bytes() if path.exists() else b""
                self._answer(len(content) if path.exists() else -3, content)
            elif command == "lookup":
                self.server.lookups += 1
                self._answer(*self._looked_up(arguments[0]))
            else:
                assert command in ("cookie", "close"), command
                self._answer(0)

    def _looked_up(self, name: str) -> tuple[int, bytes]:
        """Return the length and the text that the shadow of a job with the FileRemaps of keep.FILE_REMAPS gives."""
        keeps = name == keep.FILE and self.server.keep != "UNDEFINED"
        text = f"{keep.PREFIX}{self.server.keep}" if keeps else f"remote:{self.server.folder}/{name}"
        return len(text), text.encode()

    def _answer(self, number: int, data: bytes = b"") -> None:
        self.wfile.write(b"%d\n" % number + data)


def records(count: int) -> list[dict[str, Any]]:
    """Records whose results have the texts `text 0`, `text 1` and so on."""
    return [{"custom_id": f"r{number}", "prompt": f"text {number}"} for number in range(count)]
