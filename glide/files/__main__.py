"""`python -m glide.files`: get a parcel in place. A process of its own, as hashing and disks take their time.

On its input a JSON object: `parcel`, `cache` (folder and limit), `plugins`, `swarm` (or null), and `open`, for an
environment: then what counts is what is in the archive, or the one file itself where it is none. On its output a line
of JSON each: `{"size", "cached", "source", "peers"}` in bytes while it goes on, and in the end `{"folder", "place"}`,
which differ where it has been opened, or `{"failed"}`.
"""

from __future__ import annotations

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

from glide.errors import mistake
from glide.files.cache import Cache
from glide.files.fetch import Account, Swarm, Wrong
from glide.files.parcel import in_place, opened
from glide.files.peers import Directory
from glide.system import end_with_parent, open_regular
from glide.template import Parcel

SAY_SECONDS = 0.5


def main() -> None:
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    end_with_parent()
    request = json.load(sys.stdin)
    try:
        cache = Cache(Path(request["cache"]["folder"]), request["cache"]["limit"])
        parcel = Parcel.from_fields(request["parcel"])
        plugins, known = request["plugins"], request["swarm"]
        swarm = Swarm(**{**known, "directory": Directory(known["directory"])}) if known else None
        folder = in_place(parcel, cache, Path(plugins) if plugins else None, swarm, Teller().tell)
        say({"folder": str(folder), "place": str(opened(parcel, folder, cache) if request["open"] else folder)})
        if not request["open"]:
            read_ahead(folder / name for name in parcel.files)
    except (OSError, Wrong, ValueError) as error:
        say({"failed": f"{type(error).__name__}: {error}"})
        sys.exit(1)
    except Exception as error:
        say({"failed": mistake(error)})
        raise


def read_ahead(paths: Iterable[Path]) -> None:
    """Have the kernel read the files while the engine still imports what loads them."""
    for path in paths:
        with suppress(OSError), open_regular(path) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


class Teller:
    """Says how it goes, but not all the time."""

    said = 0.0

    def tell(self, account: Account) -> None:
        if time.monotonic() - self.said > SAY_SECONDS or account.complete:
            self.said = time.monotonic()
            say(asdict(account))


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
