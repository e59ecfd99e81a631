"""The program `python -m glide.files`, which fetches a file set to this node.

A fetch runs in a separate process, because hashing and disk access take long. The program reads one JSON object from
its standard input. The object has these keys:

    parcel    the fields of the file set
    cache     `folder`: path of the cache's folder. `limit`: maximum size of the cache in bytes (null: no limit)
    plugins   path of HTCondor's libexec folder, which contains the file transfer plugins (null: no plugin is used)
    swarm     the fields of glide.files.fetch.Swarm (null: no peers are asked)
    open      whether to unpack an archive. If `open` is true, the file set must contain only one file. If this file is
              not an archive, nothing is unpacked

The program writes JSON objects to its standard output, one in each line. During the fetch, each object has the keys
`size`, `cached`, `source` and `peers`, which are numbers of bytes (glide.files.fetch.FetchAccount). If the fetch fails,
the last object has the key `failed`, an error message. If the fetch succeeds, the last object has two keys:

    folder    path of the folder that contains the fetched files
    place     the path to use after the fetch. There are three cases:
              - `open` is false: the same path as in `folder`
              - `open` is true, and the file is an archive: path of the folder that contains the unpacked files
              - `open` is true, and the file is not an archive: path of the file
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
    """Ask the kernel to read files into memory. Meanwhile, the engine imports its libraries."""
    for path in paths:
        with suppress(OSError), open_regular(path) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


class ProgressLog:
    """Prints the progress of a fetch at most every REPORT_SECONDS, and always at the end of the fetch."""

    reported_at = 0.0  # time of the last report, by time.monotonic()

    def report(self, account: FetchAccount) -> None:
        if time.monotonic() - self.reported_at > REPORT_SECONDS or account.complete:
            self.reported_at = time.monotonic()
            write_message(asdict(account))


def write_message(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
