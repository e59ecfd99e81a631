"""glide web: the pool's status in a browser, and metrics for Prometheus."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from glide.condor import home
from glide.errors import InputError
from glide.system import publish
from glide.web.app import application
from glide.web.guard import is_loopback, listen
from glide.web.snapshot_cache import SnapshotCache

PORT = 8450


def web(
    host: Annotated[
        str,
        typer.Option(help="Address or name to listen on. If other machines can reach it, clients must send a token."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free port.")] = PORT,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with a token that clients must send. With a token, pages show glideins' output."),
    ] = None,
) -> None:
    """Serve a live page of entries, lanes, runs and failures, and /metrics for Prometheus. Example: glide web

    The pages are read-only. Only this machine can reach them, unless --host names another address. SIGTERM or Ctrl-C
    ends the server.
    """
    listening = listen(host, port)
    token, names = "", {host}
    if token_file or not is_loopback(host):
        token_file = token_file or _own_token()
        token = _read(token_file)
        names |= {socket.gethostname(), socket.getfqdn()}
    address = f"[{host}]" if ":" in host else host
    print(f"glide web: http://{address}:{listening.getsockname()[1]}/", flush=True)
    if token:
        print(f"the token is in {token_file}; in a browser, open /?token=… once", flush=True)
    settings = uvicorn.Config(
        application(SnapshotCache(), names, token), log_level="warning", access_log=False, server_header=False,
        proxy_headers=False, lifespan="off", timeout_graceful_shutdown=1,
    )  # fmt: skip
    with suppress(KeyboardInterrupt):  # Ctrl-C or SIGTERM is the normal end of the server
        uvicorn.Server(settings).run(sockets=[listening])


def _own_token() -> Path:
    """Return the path of the file with the token of this GLIDE_HOME. Create the file if it is missing."""
    file = home() / "web" / "token"
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not file.exists():
        publish(file, secrets.token_urlsafe(32) + "\n")
    return file


def _read(file: Path) -> str:
    try:
        token = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot read the token: {error}") from None
    if not token:
        raise InputError(f"{file}: the file is empty; write a secret token into it")
    if file.stat().st_mode & 0o077:
        raise InputError(f"{file}: others can read it; run chmod 600 {file}")
    return token
