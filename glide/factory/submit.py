"""Submit glideins. Write the files that glideins start from, and write the submit description."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from glide import resources
from glide.arguments import in_environment
from glide.condor import install, tokens
from glide.condor.access_point import parameter, quoted
from glide.config import Entry
from glide.errors import CondorError
from glide.factory.actions import Submit
from glide.factory.headroom import owners
from glide.factory.home import compiled_key, delete_old_files
from glide.factory.site_client import SiteClient
from glide.factory.snapshot import Snapshot
from glide.factory.suitability import gpu_macros
from glide.files.environment import environment
from glide.files.unpack import is_archive
from glide.glidein import bundle
from glide.glidein.settings import SPREAD, GlideinSettings
from glide.system import publish
from glide.template import FileSet, Template
from glide.vocabulary import IDENTITY

# Maximum time that a glidein waits in a queue, in seconds. If the factory cannot renew tokens in a queue, a shorter
# maximum applies.
QUEUE_SECONDS = 7 * 86400
# A token is valid for the glidein's lifetime plus this number of seconds. The lifetime begins when the glidein starts
# on a node. If the token is not renewed, the glidein may wait in the queue for at most this number of seconds.
TOKEN_SECONDS = 86400
# Minimum time that ended glideins stay in the queue, in seconds. If there are very many, only the latest of them stay.
KEEP_ENDED_SECONDS = 3600
LOG_SECONDS = 7 * 86400  # time that the logs of ended glideins stay on disk, in seconds
MOST_LOGS = 500  # maximum number of ended glideins of an entry whose logs stay on disk; each has about 14 files


def submit(client: SiteClient, action: Submit, snapshot: Snapshot) -> None:
    """Submit the glideins of an action. All these glideins have the same entry and the same template."""
    entry = client.entry(action.entry)
    template = snapshot.description(action.template)
    if template is None and action.template:
        return
    folder = _prepare(client, entry, template, snapshot)
    request = entry.request
    python = entry.python or f"{sys.executable}:python3"
    macros = {
        "folder": str(folder), "python": in_environment(python).replace("$", "$(DOLLAR)"), "entry": entry.name,
        "cpus": str(request.cpus), "gpus": str(request.gpus), "memory": f"{request.memory}MB",
        "disk": f"{request.disk}MB", "queue_seconds": str(QUEUE_SECONDS),
        "keep_seconds": str(int(max(KEEP_ENDED_SECONDS, 2 * entry.breaker.backoff_seconds))),
        "node_requirements": _requirements(entry, action.avoid), "digest": action.template,
        "node_rank": _rank(action.prefer, action.last_resort), "model": template.model if template else "",
    }  # fmt: skip
    macros |= gpu_macros(template, entry)
    macros |= {"container_image": entry.container} if entry.container else {}
    if entry.container and entry.container.startswith("/"):  # the container's image is a file, which is sent to nodes
        macros["reachable"] = f"$(folder),$(bundle),{Path(entry.container).parent}"
    text = resources.find("submit_templates", "glidein.sub").read_text("utf-8")
    # If the entry has a `pool`, each submission copies the token and the other input files to this pool's access point.
    # There are two consequences:
    # - HTCondor cannot send the output to this machine while the glidein runs.
    # - The factory cannot renew the copied token. So HTCondor removes a glidein that still waits one day after its
    #   submission.
    spooled = {"stream_output": "false", "stream_error": "false", "waits_since": "QDate"}
    macros |= {**spooled, "queue_seconds": str(TOKEN_SECONDS)} if entry.pool else {}
    client.queue_of(entry.name).submit(f"{text}\nqueue {action.count}\n", macros, spool=entry.outer_pool is not None)


def _prepare(client: SiteClient, entry: Entry, template: Template | None, snapshot: Snapshot) -> Path:
    """Write the files that a glidein needs to start, and return the folder of these files."""
    template = template and client.template_for(entry, template)
    digest = template.digest if template else ""
    folder = client.entry_folder(entry, digest)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    used = {glidein.template for glidein in (*snapshot.glideins, *snapshot.ended)}
    folders = {folder, *(client.entry_folder(entry, each) for each in used)}
    running = {glidein.job for glidein in snapshot.glideins}
    delete_old_files(folder.parent, folders, snapshot.now - LOG_SECONDS, running, MOST_LOGS)
    release, archive = _condor_for(client, entry)
    settings = GlideinSettings(
        entry=entry.name, site=client.site.site, collector=client.collector.address, trust_domain=_trust_domain(),
        owners=owners(entry, snapshot), factory=snapshot.user, template=template, lanes=entry.lanes,
        memory=entry.request.model_memory, condor=release, bundle=archive,
        environment=_file_set(client, entry.environment),
        idle_seconds=entry.idle_seconds if template else entry.lifetime, lifetime=entry.lifetime,
        cache=entry.cache.folder, cache_gigabytes=entry.cache.gigabytes,
        upload_megabytes=entry.cache.upload_megabytes, users_code=entry.users_code, programs=entry.programs,
        compiled_key=compiled_key(entry.name, client.folder) if entry.cache.share_compiled else "",
        devices=entry.devices, price=entry.price, knobs=entry.knobs,
    )  # fmt: skip
    mint_token(client, entry, digest)
    publish(folder / "glidein.json", settings.to_json())
    # If the entry has a login host, the package glide.ssh sends glide.zip and start.sh to this host.
    if not entry.ssh:
        for name, content in bundle.start_files().items():
            publish(folder / name, content, 0o700)
    return folder


def _condor_for(client: SiteClient, entry: Entry) -> tuple[str | None, FileSet | None]:
    """Return HTCondor's release folder on the entry's nodes, and an archive of HTCondor for nodes without HTCondor.

    Each of the two is None if it is not known or not needed.
    """
    if entry.condor is None:
        archive = install.bundle()
        return _private_condor(), _file_set(client, str(archive)) if archive else None
    return (None, _file_set(client, entry.condor)) if is_archive(entry.condor) else (entry.condor, None)


def _file_set(client: SiteClient, name: str | None) -> FileSet | None:
    """Return the file set of an archive, an image or a folder; None if `name` is None.

    Args:
        name: path of the archive, the image or the folder, from a site file.

    Raises:
        CondorError: the path is not the path of an archive, an image or a folder.
    """
    if name is None:
        return None
    try:
        file = Path(name).stat() if Path(name).is_file() else None
        return client.with_key(_read_file_set(name, file and (file.st_mtime_ns, file.st_size, file.st_ino)))
    except (OSError, ValueError) as error:
        raise CondorError(str(error)) from None


def mint_token(client: SiteClient, entry: Entry, template: str) -> None:
    """Write the token for the glideins of an entry and a template.

    The token contains the entry's name. So an admin can revoke all tokens of one entry. The tokens of all other entries
    then stay valid.
    """
    path = client.entry_folder(entry, template) / "token"
    identity = f"{IDENTITY}{entry.name}@{_trust_domain()}"
    lifetime = int(entry.lifetime * (1 + SPREAD)) + TOKEN_SECONDS
    tokens.mint(path, identity, ("ADVERTISE_STARTD", "ADVERTISE_MASTER"), lifetime)


@lru_cache(64)
def _read_file_set(name: str, version: tuple[int, int, int] | None) -> FileSet:
    """Return the file set of an archive, an image or a folder.

    It takes time to read a large archive or image. So the result is cached until `version` changes.

    Args:
        version: modification time in ns, size in bytes and inode number of the archive or image; None for a folder.
    """
    return environment(name, Path("/"))


def _trust_domain() -> str:
    return parameter("TRUST_DOMAIN") or ""


def _requirements(entry: Entry, avoid: Iterable[str]) -> str:
    bad = ", ".join(map(quoted, avoid))
    return f"({entry.requirements}) && !member(TARGET.Machine, {{{bad}}})" if bad else entry.requirements


def _rank(prefer: Iterable[str], last: Iterable[str]) -> str:
    """Return a rank expression. The nodes in `prefer` are matched first, and the nodes in `last` are matched last."""
    good, bad = (", ".join(map(quoted, nodes)) for nodes in (prefer, last))
    ranks = [f"ifThenElse(member(TARGET.Machine, {{{good}}}) =?= true, 1, 0)"] if good else []
    ranks += [f"ifThenElse(member(TARGET.Machine, {{{bad}}}) =?= true, -1, 0)"] if bad else []
    return " + ".join(ranks) or "0"


def _private_condor() -> str | None:
    """Return the release folder of glide's private HTCondor; None if this process uses a different HTCondor."""
    found = install.find()
    return str(found.release_dir) if found and found.is_private else None
