"""What the access point itself gives to nodes: files of models that lie there, where no file system is shared.

A process of its own, `python -m glide.factory.seed FOLDER HOST`: HTCondor's bindings hold Python's lock for as long as
they wait. Offers are files, so that neither it nor the factory has anything to remember.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from glide.files import Cache, Tree
from glide.files.share import Offer, Share
from glide.system import end_with_parent, publish
from glide.template import Parcel

START_SECONDS = 10.0


class Seed:
    """The factory's handle on it; `folder` is its own, 0700."""

    def __init__(self, folder: Path, host: str):
        self.folder = folder
        self.host = host
        self.process: subprocess.Popen[bytes] | None = None

    def offer(self, parcel: Parcel) -> str:
        """Let nodes with the parcel's key have its files; at which address."""
        address = self.folder / "address"
        if self.process is None or self.process.poll() is not None:
            address.unlink(missing_ok=True)
            words = [sys.executable, "-m", "glide.factory.seed", str(self.folder), self.host]
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while not address.exists() and time.monotonic() < deadline and self.process.poll() is None:
            time.sleep(0.02)
        return announce(parcel, self.folder)

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()


def announce(parcel: Parcel, folder: Path) -> str:
    """Have the process that works in a folder give a parcel, if there is one; at which address."""
    offers = folder / "offers"
    offers.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = offers / Tree(parcel.files).digest
    if not path.exists():
        publish(path, json.dumps(asdict(parcel)))
    return (folder / "address").read_text("utf-8") if (folder / "address").exists() else ""


class Offers(Share):
    """A share of what the factory has written down."""

    def __init__(self, folder: Path):
        super().__init__(Cache(folder / "cache"))
        self.folder = folder

    def find(self, tree: str) -> Offer | None:
        if tree not in self.offers and tree.isalnum():
            with suppress(OSError, ValueError, RecursionError):
                parcel = Parcel.from_fields(json.loads((self.folder / "offers" / tree).read_text("utf-8")))
                self.offers[tree] = Offer(Tree(parcel.files), parcel.key, Path(parcel.path))
        return super().find(tree)


async def serve(folder: Path, host: str) -> None:
    """Serve until killed, at the port of last time if it is free: nodes that started then know it."""
    port = folder / "port"
    share = Offers(folder)
    known = int(port.read_text("utf-8")) if port.exists() else 0
    try:
        number = await share.start(host, known)
    except OSError:
        number = await share.start(host)
    port.write_text(str(number), "utf-8")
    publish(folder / "address", f"{host}:{number}")
    await share.serving


if __name__ == "__main__":
    end_with_parent()
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
