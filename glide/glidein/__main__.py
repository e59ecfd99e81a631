"""Prepare the folder of a glidein, and then become condor_master: `python -m glide.glidein SETTINGS.json`."""

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
from glide.files.fetch import WrongContent
from glide.files.file_set import ensure_local, unpacked
from glide.files.share import address_towards
from glide.glidein.configuration import GlideinNode, cache_folder, cache_limit, prepare_script, render, server_settings
from glide.glidein.settings import SPREAD, GlideinSettings
from glide.job_ad import read_ad
from glide.template import FileSet
from glide.vocabulary import POOL_VARIABLE, glide_id

# The outer pool's daemons may pass these environment variables to the outer job. The variables are removed, because
# they would make condor_master act as one of the outer pool's daemons.
INHERITED = ("CONDOR_INHERIT", "CONDOR_PRIVATE_INHERIT", "CONDOR_PARENT_ID", "CONDOR_CONFIG")


def main() -> None:
    """Unpack glide's code, write the files that HTCondor and the model server read, and become condor_master."""
    folder = Path.cwd()
    with zipfile.ZipFile(folder / "glide.zip") as bundle:
        bundle.extractall(folder / "code")
    settings = GlideinSettings.from_json(Path(sys.argv[1]).read_text("utf-8"))
    for name in ("logs", "execute", "spool", "lock", "tokens.d", "server"):
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    os.replace(folder / "token", folder / "tokens.d" / "glidein")
    (folder / "tokens.d" / "glidein").chmod(0o600)
    if settings.template:
        (folder / "template.json").write_text(settings.template.to_json(), "utf-8")
    master, node = _node(folder, settings)
    _write_programs(node)
    (folder / "condor_config").write_text(render(settings, node), "utf-8")
    (folder / "server.json").write_text(server_settings(settings, node).to_json(), "utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in INHERITED}
    environment |= {"CONDOR_CONFIG": str(folder / "condor_config")}
    environment.pop("PYTHONPATH")  # invocation jobs must not inherit this program's PYTHONPATH
    model = settings.template.model if settings.template else "nothing yet"
    print(f"glidein {node.glide_id}: {model} on {settings.lanes} lanes", flush=True)
    os.execve(master, [str(master), "-f"], environment)


def _node(folder: Path, settings: GlideinSettings) -> tuple[Path, GlideinNode]:
    """Return the path of condor_master on this node, and a description of the node."""
    job = read_ad(os.environ.get("_CONDOR_JOB_AD"))
    cache = cache_folder(settings, str(job.get("Owner", "")))
    if _is_private(Path(cache)):
        print(
            f"glidein: the cache {cache} is deleted when this job ends, so later glideins fetch all files again;"
            " set 'folder' in the entry's 'cache' to a folder that stays",
            flush=True,
        )
    master = _condor_master(settings, cache)
    release = master.parent.parent
    # The glidein computes its GlideId here, from its copy of the job ad. The factory computes the GlideId from the job
    # ad in the queue. Both must get the same value, so both use NumShadowStarts. NumJobStarts is not suitable, because
    # its new value reaches the queue only 15 minutes after a start.
    name = glide_id(
        settings.entry, f"{job.get('ClusterId', '0')}.{job.get('ProcId', '0')}", int(job.get("NumShadowStarts", "1"))
    )
    daemon_name = f"glide-{name}-{secrets.token_hex(3)}".replace(".", "-")
    return master, GlideinNode(
        folder, name, daemon_name, sys.executable, release,
        _folder_of("condor_shared_port", release, "libexec", "libexec/condor", "lib/condor/libexec"),
        _folder_of("libcondor_utils*", release, "lib", "lib/condor", "lib64", "lib64/condor"),
        int(time.time() + settings.lifetime * random.uniform(1 - SPREAD, 1 + SPREAD)),
        cache, address_towards(settings.collector), os.environ.get(POOL_VARIABLE),
    )  # fmt: skip


def _is_private(folder: Path) -> bool:
    """Return whether HTCondor deletes the given folder when this job ends.

    When a job ends, HTCondor deletes the job's scratch folder. In some pools, HTCondor mounts a part of the scratch
    folder at another path, for example at /var/tmp. In such a pool, files in /var/tmp are deleted, too.
    """
    if folder.is_relative_to(Path.cwd()):
        return True
    own = re.search(r"/dir_\d+\b", str(Path.cwd()))
    mounts = [line.split()[3:5] for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()]
    return own is not None and any(own[0] in root and folder.is_relative_to(place) for root, place in mounts)


def _condor_master(settings: GlideinSettings, cache: str) -> Path:
    """Return the path of condor_master on this node. If there is none, end this program with a message.

    The settings may name a release folder (`condor`), an archive of HTCondor (`bundle`), or both:

        only `condor`    Use the release folder.
        only `bundle`    Fetch and unpack the archive.
        both             Try the release folder, then the PATH, then the archive.
        neither          Use the PATH.
    """
    found = shutil.which("condor_master") or shutil.which("condor_master", path="/usr/sbin:/usr/local/sbin")
    if settings.condor is not None:
        master = Path(settings.condor) / "sbin" / "condor_master"
        if master.exists():
            return master
        if settings.bundle is None:
            sys.exit(f"glidein: no HTCondor: this node has no {master}; correct the entry's 'condor'")
    if settings.bundle is not None and (found is None or settings.condor is None):
        return _unpacked_master(settings.bundle, Path(cache), cache_limit(settings))
    if found is None:
        sys.exit("glidein: no condor_master on this node's PATH; set the entry's 'condor' to a release folder")
    return Path(found).resolve()


def _unpacked_master(bundle: FileSet, place: Path, limit: int | None) -> Path:
    """Fetch an archive of HTCondor, unpack it into the node's cache, and return the path of its condor_master."""
    try:
        cache = Cache(place, limit)
        # While a process holds the lock, HTCondor's files stay in the cache. condor_master inherits the lock.
        os.set_inheritable(cache.hold(Tree(bundle.files).digest), True)
        folder = unpacked(bundle, ensure_local(bundle, cache), cache)
    except (OSError, ValueError, WrongContent) as error:
        sys.exit(f"glidein: HTCondor cannot be fetched to this node: {error}")
    for release in (folder, folder / "usr"):
        if (release / "sbin" / "condor_master").exists():
            return release / "sbin" / "condor_master"
    sys.exit(f"glidein: no HTCondor: {', '.join(bundle.files)} has no sbin/condor_master; correct the entry's 'condor'")


def _folder_of(pattern: str, release: Path, *folders: str) -> Path:
    """Look for a file in some folders of a release, and return the first folder that has it.

    If no folder has the file, return the first of `folders`.

    Args:
        pattern: name of the file; `*` stands for any characters.
        folders: paths relative to the release.
    """
    for folder in folders:
        if any(release.glob(f"{folder}/{pattern}")):
            return release / folder
    return release / folders[0]


def _write_programs(node: GlideinNode) -> None:
    """Write the script that starts Python with glide's code, and the script that the starter runs before each job."""
    # If HTCondor started Python directly, argv[0] would be a name that HTCondor chooses. But Python finds its packages
    # only if argv[0] is Python's own path. So HTCondor starts a script, and the script starts Python.
    code, python = shlex.quote(f"{node.folder}/code"), shlex.quote(node.python)
    node.python_launcher.write_text(f'#!/bin/sh\nPYTHONPATH={code} exec {python} "$@"\n', "utf-8")
    node.prepare_hook.write_text(prepare_script(node), "utf-8")
    for program in (node.python_launcher, node.prepare_hook, node.invoke, node.advertise):
        program.chmod(stat.S_IRWXU)


if __name__ == "__main__":
    main()
