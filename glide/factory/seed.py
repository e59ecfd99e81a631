"""Run the seed, a file server on the access point. The seed sends files to nodes without a shared file system.

The seed is a separate process, `python -m glide.factory.seed FOLDER HOST`. A call of HTCondor's bindings holds Python's
global lock until a daemon answers. During such a call, a thread of the factory could not send files.

For each file set that the seed offers to nodes, there is a file in the seed's folder. So no offer is lost when the
factory or the seed restarts.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from glide.files import Cache, Tree
from glide.files.share import ChunkServer, SharedTree
from glide.system import ending_with_us, publish
from glide.template import FileSet

START_SECONDS = 10.0  # time limit for the start of the seed's process, in seconds


class Seed:
    """The seed's process, which the factory starts and stops.

    Args:
        folder: the seed's own folder (mode 0700).
        host: address at which nodes reach this access point.
    """

    def __init__(self, folder: Path, host: str):
        self.folder = folder
        self.host = host
        self.process: subprocess.Popen[bytes] | None = None

    def offer(self, file_set: FileSet) -> str:
        """Offer a file set to nodes that have the key of the file set. If the seed does not run, start it.

        Returns:
            The seed's address, or "" if the seed did not start within START_SECONDS.
        """
        address = self.folder / "address"
        if self.process is None or self.process.poll() is not None:
            address.unlink(missing_ok=True)
            command = [sys.executable, "-m", "glide.factory.seed", str(self.folder), self.host]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=ending_with_us())
        deadline = time.monotonic() + START_SECONDS
        while not address.exists() and time.monotonic() < deadline and self.process.poll() is None:
            time.sleep(0.02)
        return write_offer(file_set, self.folder)

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()


def write_offer(file_set: FileSet, folder: Path) -> str:
    """Write a file into a seed's folder, so that the seed offers a file set to nodes.

    Returns:
        The seed's address, or "" if no seed has run with this folder.
    """
    offers = folder / "offers"
    offers.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = offers / Tree.of(file_set).digest
    if not path.exists():
        publish(path, json.dumps(file_set.to_fields()))
    return (folder / "address").read_text("utf-8") if (folder / "address").exists() else ""


class SharedTrees(ChunkServer):
    """The seed's server, which sends chunks of files to nodes. The seed's folder lists the offered file sets."""

    def __init__(self, folder: Path):
        super().__init__(Cache(folder / "cache"))
        self.folder = folder

    def find(self, tree: str) -> SharedTree | None:
        if tree not in self.offers and tree.isalnum():
            with suppress(OSError, ValueError, RecursionError):
                file_set = FileSet.from_fields(json.loads((self.folder / "offers" / tree).read_text("utf-8")))
                self.offers[tree] = SharedTree(Tree.of(file_set), file_set.key, Path(file_set.path))
        return super().find(tree)


async def serve(folder: Path, host: str) -> None:
    """Serve files until the process is killed.

    If the port of the seed's last run is free, use this port again, because earlier glideins still connect to it.
    """
    port = folder / "port"
    server = SharedTrees(folder)
    earlier = int(port.read_text("utf-8")) if port.exists() else 0
    try:
        number = await server.start(host, earlier)
    except OSError:
        number = await server.start(host)
    port.write_text(str(number), "utf-8")
    publish(folder / "address", f"{host}:{number}")
    await server.serving


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
