"""`python -m glide.files`: get a template's files in place. A process of its own, as hashing and disks take their time.

On its input a JSON object: `template`, `cache` (folder and limit), `plugins`, and `swarm` (or null). On its output a
line of JSON each: `{"size", "cached", "source", "peers"}` in bytes while it goes on, and in the end `{"folder"}` or
`{"failed"}`.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glide.files.cache import Cache
from glide.files.fetch import Account, Fetch, Swarm, Wrong
from glide.files.peers import Directory
from glide.files.sources import AccessPoint, is_remote, open_source
from glide.files.tree import Tree
from glide.template import Template

SAY_SECONDS = 0.5


def main() -> None:
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: who asked is gone
    request = json.load(sys.stdin)
    try:
        template = Template.from_json(request["template"])
        folder = in_place(template, request)
        say({"folder": str(folder)})
        read_ahead(folder / name for name in template.files)
    except (OSError, Wrong, ValueError) as error:
        say({"failed": f"{type(error).__name__}: {error}"})
        sys.exit(1)


def in_place(template: Template, request: dict[str, Any]) -> Path:
    """The folder with the template's files: its own where that is on this node's disk, else one of the cache's."""
    cache = Cache(Path(request["cache"]["folder"]), request["cache"]["limit"])
    own = Path(template.path or "")
    if own.is_absolute() and own.exists() and not is_remote(own):
        for name, (content, size) in template.files.items():
            if (own / name).stat().st_size != size or not cache.verify(own / name, content):
                raise Wrong(f"{own / name} is not what the template was made of: it has changed since")
        return own
    swarm, tree = request["swarm"], Tree(template.files)
    seed = AccessPoint(template.seed, tree, template.key) if template.seed else None
    plugins = Path(request["plugins"]) if request["plugins"] else None
    fetch = Fetch(
        cache, tree, open_source(template.path or "", plugins, seed),
        Swarm(**{**swarm, "directory": Directory(swarm["directory"])}) if swarm else None, Teller().tell,
    )  # fmt: skip
    folder = fetch.run()
    say(asdict(fetch.account))
    return folder


def read_ahead(paths: Iterable[Path]) -> None:
    """Have the kernel read the files while the engine still imports what loads them."""
    for path in paths:
        with suppress(OSError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


class Teller:
    """Says how it goes, but not all the time."""

    said = 0.0

    def tell(self, account: Account) -> None:
        if time.monotonic() - self.said > SAY_SECONDS:
            self.said = time.monotonic()
            say(asdict(account))


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
