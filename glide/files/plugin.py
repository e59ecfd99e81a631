"""An HTCondor file transfer plugin for `glide://` addresses. It fetches a template's files for ordinary jobs.

Such a job brings two files:
- the plugin, which `glide template plugin` writes
- the file NAME.glide, which `glide template ticket` writes. It contains a file set, and the key for requests to peers.
  This module calls NAME.glide a ticket. The ticket of an invocation job is a different file.

In the job, `glide://NAME` stands for all files of the file set, and `glide://NAME/FILE` stands for one of these files.

The plugin fetches the files into the node's cache, as glideins do. If the cache and the job are on the same disk, the
job gets hard links to the cached files. So all jobs of a user on the node share one copy.

This module uses only the standard library.
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
from glide.files.fetch import Swarm, WrongContent
from glide.files.file_set import ensure_local
from glide.files.peers import Directory, directory_command
from glide.files.tree import Tree
from glide.job_ad import read_ad
from glide.template import FileSet

DISK_FRACTION = 4  # the maximum size of the cache is the size of its disk divided by this number
CAPABILITIES = {"MultipleFileSupport": True, "PluginType": "FileTransfer", "SupportedMethods": "glide"}


def main() -> None:
    """Run the plugin. HTCondor passes the arguments `-classad`, or `-infile ADS -outfile ADS`."""
    words = sys.argv[1:]
    if words == ["-classad"]:
        print("\n".join(f"{name} = {json.dumps(value)}" for name, value in CAPABILITIES.items()))
        return
    given = dict(zip(words[::2], words[1::2], strict=False))
    if "-upload" in words or not {"-infile", "-outfile"} <= given.keys():
        sys.exit("glide:// is for input files: -classad, or -infile FILE -outfile FILE")
    tickets = Path(given["-infile"]).parent  # the job's folder, which contains the NAME.glide files
    requests = _requests(Path(given["-infile"]).read_text("utf-8"))
    answers = [_transfer(url, Path(target), tickets) for url, target in requests]
    Path(given["-outfile"]).write_text("".join(_ad_text(answer) for answer in answers), "utf-8")
    sys.exit(not all(answer["TransferSuccess"] for answer in answers))


def _requests(text: str) -> list[tuple[str, str]]:
    """Read HTCondor's list of transfers, with one ad for each transfer. Return the Url and LocalFileName of each ad."""
    ads = [dict(re.findall(r'(\w+) *= *"((?:[^"\\]|\\.)*)"', ad)) for ad in re.findall(r"\[(.*?)\]", text, re.DOTALL)]
    found = [{name.lower(): value for name, value in ad.items()} for ad in ads]
    return [(ad["url"], ad["localfilename"]) for ad in found]


def _transfer(url: str, target: Path, tickets: Path) -> dict[str, Any]:
    began = time.time()
    answer: dict[str, Any] = {"TransferUrl": url, "TransferFileName": target.name}
    answer |= {"TransferProtocol": "glide", "TransferType": "download"}
    try:
        answer["TransferTotalBytes"] = _fetch_into(url, target, tickets)
        answer["TransferSuccess"] = True
    except (OSError, WrongContent, ValueError, KeyError, TypeError) as error:
        answer["TransferSuccess"] = False
        answer["TransferError"] = f"{url}: {error}" if str(error) else f"{url}: {error!r}"
    return {**answer, "TransferStartTime": int(began), "TransferEndTime": int(time.time())}


def _fetch_into(url: str, target: Path, tickets: Path) -> int:
    """Fetch the file or the folder at a glide:// address to the path `target`. Return the total size in bytes."""
    name, _, file = url.removeprefix("glide://").partition("/")
    ticket = tickets / f"{name}.glide"
    if not ticket.is_file():
        raise ValueError(f"the job has no {ticket.name}; add it to transfer_input_files")
    file_set = FileSet.from_fields(json.loads(ticket.read_text("utf-8")))
    if file and file not in file_set.files:
        raise ValueError(f"{ticket.name} lists no {file}")
    tree, release = Tree.of(file_set), _condor_release()
    wanted = [file] if file else list(file_set.files)
    with ExitStack() as stack:
        cache = stack.enter_context(_cache(tickets, private=bool(file_set.owner)))
        stack.enter_context(cache.in_use(tree.digest))
        me = Swarm(f"job-{os.getpid()}", int(time.time()), Directory(directory_command(release / "bin")), file_set.key)
        plugins = next(release.glob("libexec/condor"), release / "libexec")
        folder = ensure_local(file_set, cache, plugins, me if file_set.key else None)
        for each in wanted:
            place = target if file else target / each
            place.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(folder / each, place, cache)
            # A new hard link changes the stat data of the cached file. This call stores the new stat data in the cache.
            cache.is_verified(folder / each, file_set.files[each][0])
    return sum(file_set.files[each][1] for each in wanted)


@contextmanager
def _cache(job: Path, private: bool) -> Iterator[Cache]:
    """Yield the cache of the job's owner.

    For private files, yield a temporary cache. Do the same if several users may share the job's account.
    """
    folder = None if private else default_folder(str(read_ad(os.environ.get("_CONDOR_JOB_AD")).get("Owner", "")))
    if folder is None:
        with tempfile.TemporaryDirectory(prefix=".glide-", dir=job) as own:
            yield Cache(Path(own))
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield Cache(folder, shutil.disk_usage(folder.parent).total // DISK_FRACTION)


def _link_or_copy(source: Path, target: Path, cache: Cache) -> None:
    """Put a file at `target`. A file in the cache is read-only, so a hard link suffices. Any other file is copied."""
    target.unlink(missing_ok=True)
    if cache.folder in source.parents:
        with suppress(OSError):  # a hard link to another disk fails, so the file is copied
            return os.link(source, target)
    shutil.copyfile(source, target)


def _condor_release() -> Path:
    """Return the release folder of the HTCondor that runs this plugin. If it is not found, try the PATH, then /usr."""
    for program in (f"/proc/{os.getppid()}/exe", shutil.which("condor_status") or ""):
        folder = Path(os.path.realpath(program)).parent.parent
        if (folder / "bin" / "condor_status").exists():
            return folder
    return Path("/usr")


def _ad_text(answer: dict[str, Any]) -> str:
    return f"[ {' '.join(f'{name} = {json.dumps(value)};' for name, value in answer.items())} ]\n"
