"""`python -m glide.glidein SETTINGS.json`: prepare this folder, then become condor_master."""

from __future__ import annotations

import os
import random
import re
import secrets
import shlex
import shutil
import stat
import sys
import time
import zipfile
from pathlib import Path

from glide.files import Cache, Tree
from glide.files.fetch import Wrong
from glide.files.parcel import in_place, opened
from glide.files.share import address_towards
from glide.glidein.configuration import Node, cache_folder, cache_limit, preparation, render, server
from glide.glidein.settings import SPREAD, Settings
from glide.job_ad import read_ad
from glide.template import Parcel
from glide.vocabulary import POOL_VARIABLE

# condor_master's own, from the outer job's daemons: with them it would join their family, not its pool.
INHERITED = ("CONDOR_INHERIT", "CONDOR_PRIVATE_INHERIT", "CONDOR_PARENT_ID", "CONDOR_CONFIG")


def main() -> None:
    folder = Path.cwd()
    with zipfile.ZipFile(folder / "glide.zip") as bundle:
        bundle.extractall(folder / "code")
    settings = Settings.from_json(Path(sys.argv[1]).read_text("utf-8"))
    for name in ("logs", "execute", "spool", "lock", "tokens.d", "server"):
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    os.replace(folder / "token", folder / "tokens.d" / "glidein")
    (folder / "tokens.d" / "glidein").chmod(0o600)
    if settings.template:
        (folder / "template.json").write_text(settings.template.to_json(), "utf-8")
    master, node = _node(folder, settings)
    _write_programs(node)
    (folder / "condor_config").write_text(render(settings, node), "utf-8")
    (folder / "server.json").write_text(server(settings, node).to_json(), "utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in INHERITED}
    environment |= {"CONDOR_CONFIG": str(folder / "condor_config")}
    environment.pop("PYTHONPATH")  # invocation jobs are not ours to give a path to
    model = settings.template.model if settings.template else "nothing yet"
    print(f"glidein {node.glide_id}: {model} on {settings.lanes} lanes", flush=True)
    os.execve(master, [str(master), "-f"], environment)


def _node(folder: Path, settings: Settings) -> tuple[Path, Node]:
    job = read_ad(os.environ.get("_CONDOR_JOB_AD"))
    cache = cache_folder(settings, str(job.get("Owner", "")))
    if _is_private(Path(cache)):
        print(f"glidein: {cache} is this job's own, so nothing stays for the next; set the entry's cache", flush=True)
    master = _condor_master(settings, cache)
    release = master.parent.parent
    # Not NumJobStarts, of which the queue hears a quarter of an hour later.
    restarts = max(0, int(job.get("NumShadowStarts", 1)) - 1)
    glide_id = f"{settings.entry}-{job.get('ClusterId', '0')}.{job.get('ProcId', '0')}"
    glide_id += f"r{restarts}" if restarts else ""
    daemon_name = f"glide-{glide_id}-{secrets.token_hex(3)}".replace(".", "-")
    return master, Node(
        folder, glide_id, daemon_name, sys.executable, release,
        _folder_of("condor_shared_port", release, "libexec", "libexec/condor", "lib/condor/libexec"),
        _folder_of("libcondor_utils*", release, "lib", "lib/condor", "lib64", "lib64/condor"),
        int(time.time() + settings.lifetime * random.uniform(1 - SPREAD, 1 + SPREAD)),
        cache, address_towards(settings.collector), os.environ.get(POOL_VARIABLE),
    )  # fmt: skip


def _is_private(folder: Path) -> bool:
    """Whether a folder ends with this job: in its own, or where HTCondor has put a part of that in /var/tmp's place."""
    if folder.is_relative_to(Path.cwd()):
        return True
    own = re.search(r"/dir_\d+\b", str(Path.cwd()))
    mounts = [line.split()[3:5] for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()]
    return own is not None and any(own[0] in root and folder.is_relative_to(place) for root, place in mounts)


def _condor_master(settings: Settings, cache: str) -> Path:
    """In the named folder; where that is the access point's own and not here, the node's, else one that is brought."""
    found = shutil.which("condor_master") or shutil.which("condor_master", path="/usr/sbin:/usr/local/sbin")
    if settings.condor is not None:
        master = Path(settings.condor) / "sbin" / "condor_master"
        if master.exists():
            return master
        if settings.bundle is None:
            sys.exit(f"glidein: no {master} on this node; correct the entry's 'condor'")
    if settings.bundle is not None and (found is None or settings.condor is None):
        return _unpacked_master(settings.bundle, Path(cache), cache_limit(settings))
    if found is None:
        sys.exit("glidein: no condor_master on this node's PATH; set the entry's 'condor' to a release folder")
    return Path(found).resolve()


def _unpacked_master(bundle: Parcel, place: Path, limit: int | None) -> Path:
    """The node has no HTCondor: bring one, for all glideins here and those to come."""
    try:
        cache = Cache(place, limit)
        # Held by condor_master and so for as long as it runs: nobody evicts what it runs from.
        os.set_inheritable(cache.hold(Tree(bundle.files).digest), True)
        folder = opened(bundle, in_place(bundle, cache), cache)
    except (OSError, ValueError, Wrong) as error:
        sys.exit(f"glidein: HTCondor cannot be brought to this node: {error}")
    for release in (folder, folder / "usr"):
        if (release / "sbin" / "condor_master").exists():
            return release / "sbin" / "condor_master"
    sys.exit(f"glidein: {', '.join(bundle.files)} has no sbin/condor_master; correct the entry's 'condor'")


def _folder_of(pattern: str, release: Path, *folders: str) -> Path:
    for folder in folders:
        if any(release.glob(f"{folder}/{pattern}")):
            return release / folder
    return release / folders[0]


def _write_programs(node: Node) -> None:
    """Write what starts the node's Python with glide's code, and what the starter runs before each job."""
    # HTCondor names its children after their role; Python finds its packages by its own name, so a shell between.
    code, python = shlex.quote(f"{node.folder}/code"), shlex.quote(node.python)
    node.launcher.write_text(f'#!/bin/sh\nPYTHONPATH={code} exec {python} "$@"\n', "utf-8")
    node.prepare.write_text(preparation(node), "utf-8")
    for program in (node.launcher, node.prepare, node.invoke, node.advertise):
        program.chmod(stat.S_IRWXU)


if __name__ == "__main__":
    main()
