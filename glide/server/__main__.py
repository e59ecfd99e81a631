"""`python -m glide.server SETTINGS.json TEMPLATE.json DOOR LOG`: a glidein's model server."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from glide.server.engine import end_strays
from glide.server.model_server import ModelServer
from glide.server.settings import Settings
from glide.template import Template


async def serve(settings: Path, template: Path, door: Path, log: Path) -> None:
    """Serve until SIGTERM or SIGQUIT, which is how condor_master stops its daemons."""
    os.umask(0o077)  # the secrets here are this account's alone
    os.chdir(door.parent)
    with log.open("ab") as file:  # condor_master gives its children no output; the engine inherits this one
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115  in any locale
    end_strays(log)
    first = Template.from_json(template.read_text("utf-8")) if template.exists() else None
    server = ModelServer(first, Settings.from_json(settings.read_text("utf-8")), door, log)
    task = asyncio.ensure_future(server.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        server.door.close()


if __name__ == "__main__":
    asyncio.run(serve(*(Path(path).absolute() for path in sys.argv[1:5])))
