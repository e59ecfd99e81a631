"""`python -m glide.server.advertise SOCKET`: the startd cron job that keeps a lane's ad true.

It watches the model server over its socket and prints each change; the startd sends it to the collector about a
second later. The connection's end is how the server's death is noticed, whatever killed it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glide.server.status import Status

RETRY_SECONDS = 0.2


def main() -> None:
    """Never returns: the startd runs this in WaitForExit mode."""
    path = Path(sys.argv[1])
    while True:
        try:
            for attributes in watch(path):
                publish(attributes)
        except OSError:
            pass
        publish(Status().attributes())  # no server, so no model: START refuses jobs until one is back
        while not path.exists():
            time.sleep(RETRY_SECONDS)
        time.sleep(RETRY_SECONDS)


def watch(path: Path) -> Iterator[dict[str, Any]]:
    """The server's attributes, now and at each change, until it is gone."""
    # By way of its folder, for the whole path may exceed an address's 108 bytes
    folder = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
        with connection.makefile("r") as lines:
            yield from map(json.loads, lines)


def publish(attributes: dict[str, Any]) -> None:
    """Print one update in the startd's format."""
    for name, value in attributes.items():
        print(f"{name} = {json.dumps(value)}")
    print("- update:true", flush=True)


if __name__ == "__main__":
    main()
