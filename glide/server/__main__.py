"""Run the model server of a glidein: `python -m glide.server SETTINGS.json TEMPLATE.json ENDPOINT LOG`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from glide.server.engine import end_strays
from glide.server.model_server import ModelServer
from glide.server.settings import ServerSettings
from glide.template import Template


async def serve(settings: Path, template: Path, endpoint: Path, log: Path) -> None:
    """Serve jobs until this process gets SIGTERM, SIGQUIT or SIGINT.

    condor_master stops its daemons with SIGTERM or SIGQUIT.

    Args:
        settings: file that contains the ServerSettings as JSON.
        template: file that contains the initial template as JSON. The server starts without a template if this file
            does not exist.
        endpoint: file in which the server publishes its port, and the secret that its clients must send.
        log: file to which the server and its engines append their output.
    """
    os.umask(0o077)  # only this account may read the model server's files, because some contain secrets
    os.chdir(endpoint.parent)
    # condor_master gives the model server no file for its output. So the server and its engines write to the log.
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    # Encode the server's output in UTF-8, even if the locale has another encoding.
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    end_strays(log)
    initial = Template.from_json(template.read_text("utf-8")) if template.exists() else None
    server = ModelServer(initial, ServerSettings.from_json(settings.read_text("utf-8")), endpoint, log)
    task = asyncio.ensure_future(server.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        server.endpoint.close()


if __name__ == "__main__":
    asyncio.run(serve(*(Path(path).absolute() for path in sys.argv[1:5])))
