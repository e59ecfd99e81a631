"""Fetch the files of templates to this node, and serve these files to peers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glide.files import Cache, Tree
from glide.files.file_set import without_other_files
from glide.files.peers import short_digest
from glide.files.share import ChunkServer, SharedTree
from glide.server.keeper import under_keeper
from glide.server.log import log_line
from glide.system import ending_with_us
from glide.template import FileSet, Template
from glide.vocabulary import Machine

STEPS = 10  # number of steps in which the progress of fetching is advertised; each step updates the lanes' ads
MOST_ADVERTISED = 32  # maximum number of cached trees that an ad names; it names the trees that were used last


@dataclass(frozen=True)
class SupplySettings:
    """The settings for fetching files to a node and for serving files to peers.

    Attributes:
        cache: folder of the cache. All glideins of this account on this host share this folder.
        limit: maximum size of the cache in bytes; None if the cache may use most of its disk.
        glide_id: name of this glidein among its peers; empty if this glidein exchanges no files with peers.
        host: address of this host, as peers see it.
        directory: the command that prints the peers' addresses. The first item is the program. The other items are the
            program's arguments. Empty if there are no peers.
        upload_rate: maximum number of bytes per second that all peers together may take from this glidein; None for no
            limit.
        plugins: HTCondor's libexec folder on this node, which contains the file transfer plugins; None if this node has
            no plugins.
        compiled_key: key with which glideins of the same entry exchange compiled code; empty if they do not.
        environment: environment in which an engine runs if the template names no environment; None for this node's own
            Python.
    """

    cache: str
    limit: int | None = None
    glide_id: str = ""
    host: str = "127.0.0.1"
    directory: Sequence[str] = ()
    upload_rate: float | None = None
    plugins: str | None = None
    compiled_key: str = ""
    environment: FileSet | None = None


class FetchFailed(Exception):
    """The files of a template are not on this node and could not be fetched. The message says why."""


class FileSupply:
    """Fetches the files of templates to this node, and serves them to peers.

    A *tree* is the folder with the files of a file set. It is fetched and cached as a whole.

    Args:
        changed: event that is set when `ad_attributes` has changed.

    Attributes:
        private: folder of the cache for private files. HTCondor deletes it when the glidein ends.
        cache_error: reason why the cache cannot be used; empty if the cache can be used.
        chunk_server: server that gives files to peers; None if there is no cache, or if this glidein exchanges no files
            with peers.
        address: address where peers reach the chunk server; empty before the chunk server has started.
        fetching: the trees that are being fetched. The keys are the trees' digests. Each value is the Unix time when
            fetching began.
        progress: the progress of these trees. The keys are the trees' digests. Each value is a pair: the number of the
            tree's bytes that are on this node, and the number of all its bytes.
        held: the locks that keep trees in the cache. `held[template][tree]` is the file descriptor of one lock. Both
            keys are digests.
    """

    def __init__(self, settings: SupplySettings, changed: asyncio.Event):
        self.settings = settings
        self.changed = changed
        self.private = Path.cwd() / "private"
        self.cache: Cache | None = None
        self.cache_error = ""
        try:
            self.cache = Cache(Path(settings.cache), settings.limit)
        except OSError as error:  # the server continues without a cache, so that it can report the error
            self.cache_error = f"the node's cache cannot be used: {error}"
        self.chunk_server = ChunkServer(self.cache, settings.upload_rate) if self.cache and settings.glide_id else None
        self.address = ""
        self.fetching: dict[str, int] = {}
        self.progress: dict[str, tuple[int, int]] = {}
        self.held: dict[str, dict[str, int]] = {}

    @property
    def fetched_share(self) -> float | str:
        """The progress of fetching, as a number from 0 to 1; an empty text while the progress is unknown.

        Add up the bytes of all trees that are being fetched. The progress is the share of these bytes that is already
        on this node. The progress is rounded down to a multiple of 1/STEPS.
        """
        here, whole = (sum(column) for column in zip(*self.progress.values(), strict=True)) if self.progress else (0, 0)
        return int(here / whole * STEPS) / STEPS if whole else ""

    async def start(self) -> None:
        """Start to serve files to peers, if this glidein exchanges files with peers."""
        if self.chunk_server:
            self.address = f"{self.settings.host}:{await self.chunk_server.start(self.settings.host)}"

    def stop(self) -> None:
        if self.chunk_server:
            self.chunk_server.stop()
        for template in list(self.held):
            self._release(template)

    async def ensure_files(self, template: Template) -> str | None:
        """Fetch a template's files if they are not on this node. Return the path of the files' folder.

        If the template has no files, or a service has the model, return None.

        Raises:
            FetchFailed: the files cannot be fetched.
        """
        if not template.files or template.service:
            return None  # a path without files was not checked, so it could be anything, even a private folder
        return await self._ensure_only(template, template.file_set)

    async def ensure_adapters(self, template: Template) -> dict[str, str]:
        """Do the same for the template's LoRA adapters. Return the paths of their folders, by name of the adapter."""
        sets = {} if template.service else template.adapter_sets
        return {name: await self._ensure_only(template, each) for name, each in sets.items()}

    async def _ensure_only(self, template: Template, file_set: FileSet) -> str:
        """Fetch a file set if it is not on this node. Return the path of a folder that has only its files.

        Raises:
            FetchFailed: the files cannot be fetched.
        """
        folder = await self._ensure_local(template, file_set)
        if folder != file_set.path:  # the cache's folder has only these files
            return folder
        # The path is a part of the view's name. So no template can change the links in the view of another one.
        name = hashlib.sha256(f"{Tree.of(file_set).digest}{folder}".encode()).hexdigest()
        return str(without_other_files(Path(folder), file_set.files, Path.cwd() / f"files-{name[:16]}"))

    async def ensure_environment(self, template: Template) -> str | None:
        """Fetch the environment of a template's engine if it is not on this node. Return the environment's path.

        Return None if the engine runs in the node's own Python.

        Raises:
            FetchFailed: the environment cannot be fetched.
        """
        environment = template.environment or self.settings.environment
        if environment is None or template.service:
            return None
        if not environment.files:
            return environment.path
        return await self._ensure_local(template, environment, unpack=True)

    def visible_folders(self, template: Template) -> list[str]:
        """Return the folders of the node that a template's engine needs if it runs in a container.

        These are the model server's folder, and the folders in which the template's files may be.
        """
        paths = [template.path or "", *(each.path for each in template.adapters.values())]
        return [os.getcwd(), self.settings.cache, *(path for path in paths if path and Path(path).is_dir())]

    async def _ensure_local(self, template: Template, file_set: FileSet, unpack: bool = False) -> str:
        """Fetch a file set into the cache if the cache lacks it. Return the file set's path on this node.

        The cache keeps the file set until `release` is called for the template.
        """
        if self.cache is None:
            raise FetchFailed(self.cache_error)
        tree = Tree.of(file_set)
        held = self.held.setdefault(template.digest, {})
        if tree.digest not in held:
            held[tree.digest] = self._cache_of(tree).hold(tree.digest)
        since = self.fetching[tree.digest] = int(time.time())
        # Do not share the files of a template that has `keep: nothing`. The files are soon deleted, so peers cannot
        # rely on them. In addition, such templates are used to measure the time that fetching takes without peers.
        chunk_server = self.chunk_server if file_set.key and template.keep != "nothing" else None
        if chunk_server and not tree.owner:
            chunk_server.offers[tree.digest] = SharedTree(tree, file_set.key)
        self.changed.set()
        what = f"{template.model}'s {'environment' if unpack else 'files'}"
        try:
            report = await self._fetch(what, file_set, tree.digest, since, unpack, swarm=chunk_server is not None)
        finally:
            self.progress.pop(tree.digest, None)
            self.fetching.pop(tree.digest, None)  # another fetch of this tree may have removed the key
            self.changed.set()
        if chunk_server and (tree.owner or report["folder"] == file_set.path):
            chunk_server.offers[tree.digest] = SharedTree(tree, file_set.key, Path(report["folder"]))
        return str(report["place"])

    def _cache_of(self, tree: Tree) -> Cache:
        """Return the cache for a tree. Private files have their own cache, which ends with this glidein.

        All glideins of this account share the other cache. Some of these glideins may serve other users.
        """
        assert self.cache is not None  # _ensure_local has checked this
        return Cache(self.private) if tree.owner else self.cache

    async def _fetch(
        self, what: str, file_set: FileSet, tree: str, since: int, unpack: bool, swarm: bool
    ) -> dict[str, Any]:
        """Fetch a file set in a separate process, `python -m glide.files`, and return the report of this process.

        Raises:
            FetchFailed: the process reported a failure, or ended without a report.
        """
        settings = self.settings
        swarm_settings = {
            "glide_id": settings.glide_id, "since": since, "key": file_set.key, "directory": list(settings.directory),
            "host": settings.host,
        }  # fmt: skip
        request = {
            "parcel": asdict(file_set), "open": unpack,
            "cache": {"folder": str(self.private) if file_set.owner else settings.cache, "limit": settings.limit},
            "plugins": settings.plugins, "swarm": swarm_settings if swarm else None,
        }  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            # The process may run conda-unpack, a program from the user's environment. So a keeper runs the process.
            # The keeper kills all processes that conda-unpack leaves behind.
            *under_keeper([sys.executable, "-m", "glide.files"]),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            start_new_session=True, preexec_fn=ending_with_us(signal.SIGTERM),
        )  # fmt: skip
        report: dict[str, Any] = {}
        try:
            assert process.stdin and process.stdout
            process.stdin.write(json.dumps(request).encode())
            process.stdin.close()
            async for line in process.stdout:
                report |= json.loads(line)
                if "size" in report and "folder" not in report:
                    before = self.fetched_share
                    self.progress[tree] = sum(report[name] for name in ("cached", "source", "peers")), report["size"]
                    if self.fetched_share != before:
                        self.changed.set()
        except asyncio.CancelledError:
            log_line(f"stopped fetching {what}: {_summary(report)}")
            raise
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)
            code = await process.wait()
        if "folder" not in report:
            raise FetchFailed(report.get("failed") or f"{what} not fetched: the process ended with exit code {code}")
        if "size" in report:
            log_line(f"{what}: {_summary(report)}")
        return report

    def delete_cached(self, template: Template) -> None:
        """Delete a template's files from the cache. Call this method only for a template with `keep: nothing`."""
        self.release(template)
        self._delete(Tree.of(file_set) for file_set in template.file_sets)

    def release(self, template: Template) -> None:
        """Allow the cache to delete a template's files when the cache needs space. Delete private files immediately.

        Peers can fetch a file until the cache deletes it.
        """
        self._release(template.digest)
        self._delete(tree for file_set in template.file_sets if (tree := Tree.of(file_set)).owner)

    def _delete(self, trees: Iterable[Tree]) -> None:
        for tree in trees if self.cache else ():
            if tree.owner and self.chunk_server:
                self.chunk_server.offers.pop(tree.digest, None)
            self._cache_of(tree).delete_tree(tree.digest)
        if not any((self.private / "trees").glob("*.lock")):  # also delete what an interrupted fetch has left
            shutil.rmtree(self.private, ignore_errors=True)

    def _release(self, template: str) -> None:
        for descriptor in self.held.pop(template, {}).values():
            os.close(descriptor)

    def ad_attributes(self) -> dict[str, Any]:
        """Return the ad attributes that describe the files on this node. The ad of each lane gets these attributes.

        The attributes name each tree by its short digest.
        """
        cached = [] if self.cache is None else [tree for tree in self.cache.trees if tree not in self.fetching]
        return {
            Machine.CACHED: ",".join(map(short_digest, cached[:MOST_ADVERTISED])),
            Machine.SHARES: ",".join(map(short_digest, self.chunk_server.offers)) if self.chunk_server else "",
            Machine.FETCHING: ",".join(f"{short_digest(tree)}:{since}" for tree, since in self.fetching.items()),
            Machine.FETCHED: self.fetched_share,
            Machine.PEER: self.address,
        }


def _summary(report: dict[str, Any]) -> str:
    parts = {name: report.get(name, 0) / 1e6 for name in ("size", "cached", "source", "peers")}
    return "{size:.0f} MB, {cached:.0f} from the cache, {source:.0f} from the source, {peers:.0f} from peers".format(
        **parts
    )
