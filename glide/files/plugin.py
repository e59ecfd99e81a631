"""HTCondor's file transfer plugin for `glide://`: ordinary jobs get what glideins have, from cache, peers or source.

A job brings it and a *ticket*, `NAME.glide`: what the files are, where they are, and the key to them (`glide template
plugin`, `glide template ticket`). `glide://NAME` is the whole folder, `glide://NAME/FILE` one file of it. They are
links to the node's cache where that lies on the same disk, so a user's jobs on one node share them. Standard library
only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from glide.files.cache import Cache, default_folder
from glide.files.fetch import Swarm, Wrong
from glide.files.parcel import in_place
from glide.files.peers import Directory, directory_command
from glide.files.tree import Tree
from glide.job_ad import read_ad
from glide.template import Parcel

SHARE = 4  # of its disk, a quarter is for what jobs bring so
ABILITIES = {"MultipleFileSupport": True, "PluginType": "FileTransfer", "SupportedMethods": "glide"}


def main() -> None:
    """As HTCondor calls it: `-classad`, or `-infile ADS -outfile ADS`."""
    words = sys.argv[1:]
    if words == ["-classad"]:
        print("\n".join(f"{name} = {json.dumps(value)}" for name, value in ABILITIES.items()))
        return
    given = dict(zip(words[::2], words[1::2], strict=False))
    if "-upload" in words or not {"-infile", "-outfile"} <= given.keys():
        sys.exit("glide:// is for input files: -classad, or -infile FILE -outfile FILE")
    tickets = Path(given["-infile"]).parent  # the job's folder, where its other files are already
    requests = _requests(Path(given["-infile"]).read_text("utf-8"))
    answers = [_bring(url, Path(target), tickets) for url, target in requests]
    Path(given["-outfile"]).write_text("".join(_ad(answer) for answer in answers), "utf-8")
    sys.exit(not all(answer["TransferSuccess"] for answer in answers))


def _requests(text: str) -> list[tuple[str, str]]:
    """Url and LocalFileName of each ad."""
    ads = [dict(re.findall(r'(\w+) *= *"((?:[^"\\]|\\.)*)"', ad)) for ad in re.findall(r"\[(.*?)\]", text, re.DOTALL)]
    found = [{name.lower(): value for name, value in ad.items()} for ad in ads]
    return [(ad["url"], ad["localfilename"]) for ad in found]


def _bring(url: str, target: Path, tickets: Path) -> dict[str, Any]:
    began = time.time()
    answer: dict[str, Any] = {"TransferUrl": url, "TransferFileName": target.name}
    answer |= {"TransferProtocol": "glide", "TransferType": "download"}
    try:
        answer["TransferTotalBytes"] = _brought(url, target, tickets)
        answer["TransferSuccess"] = True
    except (OSError, Wrong, ValueError, KeyError, TypeError) as error:
        answer["TransferSuccess"] = False
        answer["TransferError"] = f"{url}: {error}" if str(error) else f"{url}: {error!r}"
    return {**answer, "TransferStartTime": int(began), "TransferEndTime": int(time.time())}


def _brought(url: str, target: Path, tickets: Path) -> int:
    """Put what an address means at a place, and return its size in bytes."""
    name, _, file = url.removeprefix("glide://").partition("/")
    ticket = tickets / f"{name}.glide"
    if not ticket.is_file():
        raise ValueError(f"the job brings no {ticket.name}; add it to transfer_input_files")
    parcel = Parcel.from_fields(json.loads(ticket.read_text("utf-8")))
    if file and file not in parcel.files:
        raise ValueError(f"{ticket.name} lists no {file}")
    tree, release = Tree(parcel.files), _release()
    wanted = [file] if file else list(parcel.files)
    with ExitStack() as stack:
        cache = stack.enter_context(_cache(tickets))
        stack.enter_context(cache.used(tree.digest))
        me = Swarm(f"job-{os.getpid()}", int(time.time()), Directory(directory_command(release / "bin")), parcel.key)
        plugins = next(release.glob("libexec/condor"), release / "libexec")
        folder = in_place(parcel, cache, plugins, me if parcel.key else None)
        for each in wanted:
            place = target if file else target / each
            place.parent.mkdir(parents=True, exist_ok=True)
            _put(folder / each, place, cache)
            cache.knows(folder / each, parcel.files[each][0])  # with one link more
    return sum(parcel.files[each][1] for each in wanted)


@contextmanager
def _cache(job: Path) -> Iterator[Cache]:
    """This account's on this host, if it is the job's owner's own; where accounts are shared, nobody can trust one."""
    folder = default_folder(str(read_ad(os.environ.get("_CONDOR_JOB_AD")).get("Owner", "")))
    if folder is None:
        with tempfile.TemporaryDirectory(prefix=".glide-", dir=job) as own:
            yield Cache(Path(own))
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield Cache(folder, shutil.disk_usage(folder.parent).total // SHARE)


def _put(source: Path, target: Path, cache: Cache) -> None:
    """A link to what is the cache's, which is read-only; a copy of what is somebody's."""
    target.unlink(missing_ok=True)
    if cache.folder in source.parents:
        with suppress(OSError):  # another disk
            return os.link(source, target)
    shutil.copyfile(source, target)


def _release() -> Path:
    """HTCondor's: that of the starter which has called us, or else of the programs on the PATH."""
    for program in (f"/proc/{os.getppid()}/exe", shutil.which("condor_status") or ""):
        folder = Path(os.path.realpath(program)).parent.parent
        if (folder / "bin" / "condor_status").exists():
            return folder
    return Path("/usr")


def _ad(answer: dict[str, Any]) -> str:
    return f"[ {' '.join(f'{name} = {json.dumps(value)};' for name, value in answer.items())} ]\n"
