"""The program `python -m glide.files`, which fetches a file set.

A fetch runs in a separate process, because hashing and disk access take long. The program reads one JSON object from
its standard input. The object has these keys:

    parcel    the file set
    cache     folder and limit of the cache
    plugins   path of HTCondor's libexec folder, which contains the file transfer plugins; or null
    swarm     the fields of glide.files.fetch.Swarm; or null if no peers are asked
    open      true if the file set is an environment. An environment has one file. An archive is unpacked

The program writes lines of JSON to its standard output. During the fetch, each line contains four numbers of bytes:
`size`, `cached`, `source` and `peers`. If the fetch fails, the last line contains `failed`, which is an error message.
Otherwise the last line contains the paths `folder` and `place`. `folder` contains the files. If `open` is false,
`place` is the same folder. If `open` is true, `place` is the folder with the unpacked files. If the file is not an
archive, `place` is the path of the file.
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

from glide.errors import describe_bug
from glide.files.cache import Cache
from glide.files.fetch import FetchAccount, Swarm, WrongContent
from glide.files.file_set import ensure_local, unpacked
from glide.files.peers import Directory
from glide.system import end_with_parent, open_regular
from glide.template import FileSet

REPORT_SECONDS = 0.5  # minimum time between two reports of progress, in seconds


def main() -> None:
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    end_with_parent()
    request = json.load(sys.stdin)
    try:
        cache = Cache(Path(request["cache"]["folder"]), request["cache"]["limit"])
        file_set = FileSet.from_fields(request["parcel"])
        plugins, known = request["plugins"], request["swarm"]
        swarm = Swarm(**{**known, "directory": Directory(known["directory"])}) if known else None
        folder = ensure_local(file_set, cache, Path(plugins) if plugins else None, swarm, ProgressLog().report)
        place = unpacked(file_set, folder, cache) if request["open"] else folder
        write_message({"folder": str(folder), "place": str(place)})
        if not request["open"]:
            read_ahead(folder / name for name in file_set.files)
    except (OSError, WrongContent, ValueError) as error:
        write_message({"failed": f"{type(error).__name__}: {error}"})
        sys.exit(1)
    except Exception as error:
        write_message({"failed": describe_bug(error)})
        raise


def read_ahead(paths: Iterable[Path]) -> None:
    """Ask the kernel to read the files into memory while the engine imports its libraries."""
    for path in paths:
        with suppress(OSError), open_regular(path) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


class ProgressLog:
    """Reports the progress of a fetch, at most once in REPORT_SECONDS. The end of the fetch is always reported."""

    reported_at = 0.0  # time of the last report, by time.monotonic()

    def report(self, account: FetchAccount) -> None:
        if time.monotonic() - self.reported_at > REPORT_SECONDS or account.complete:
            self.reported_at = time.monotonic()
            write_message(asdict(account))


def write_message(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
