"""What gives the states on this node their files, and gives them on to peers."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glide.files import Cache, Tree
from glide.files.peers import short
from glide.files.share import Offer, Share
from glide.server.keeper import kept
from glide.server.log import say
from glide.system import end_with_parent
from glide.template import Parcel, Template
from glide.vocabulary import Machine

STEPS = 10  # of progress: each is an update of the ad
MOST_NAMED = 32  # trees in an ad, those used last


@dataclass(frozen=True)
class SupplySettings:
    """
    cache: the folder that all glideins of this account on this host share.
    limit: bytes that it may take; None for most of its disk.
    glide_id: who we are to peers; empty to have none.
    host: our address as peers see it.
    directory: the command that finds them (glide.files.peers.Directory).
    upload_rate: bytes a second that peers may take from us; None for no limit.
    plugins: HTCondor's libexec on this node.
    environment: what engines run in where their template names nothing else; None for this node's own Python.
    """

    cache: str
    limit: int | None = None
    glide_id: str = ""
    host: str = "127.0.0.1"
    directory: Sequence[str] = ()
    upload_rate: float | None = None
    plugins: str | None = None
    environment: Parcel | None = None


class Unfetched(Exception):
    """A template's files are not to be had, and why."""


class Supply:
    """The files of the templates on this node.

    Args:
        changed: to be set when what is told of it has changed.
    """

    def __init__(self, settings: SupplySettings, changed: asyncio.Event):
        self.settings = settings
        self.changed = changed
        self.cache: Cache | None = None
        self.problem = ""  # with the cache
        try:
            self.cache = Cache(Path(settings.cache), settings.limit)
        except OSError as error:  # the server stays, to say so
            self.problem = f"the node's cache cannot be used: {error}"
        self.share = Share(self.cache, settings.upload_rate) if self.cache and settings.glide_id else None
        self.address = ""
        self.fetching: dict[str, int] = {}  # since when, by tree
        self.progress: dict[str, tuple[int, int]] = {}  # bytes that are here of all, by tree
        self.holding: dict[str, dict[str, int]] = {}  # descriptors that keep a template's trees from being evicted

    @property
    def fetched(self) -> float | str:
        """Which share of what is being fetched is here, in steps worth telling; empty while that is unknown."""
        here, whole = (sum(column) for column in zip(*self.progress.values(), strict=True)) if self.progress else (0, 0)
        return int(here / whole * STEPS) / STEPS if whole else ""

    async def start(self) -> None:
        """Open the door for peers."""
        if self.share:
            self.address = f"{self.settings.host}:{await self.share.start(self.settings.host)}"

    def stop(self) -> None:
        if self.share:
            self.share.stop()
        for template in list(self.holding):
            self._let_go(template)

    async def bring(self, template: Template) -> str | None:
        """Where a template's files are on this node, brought there if need be; Unfetched when they can't be."""
        if not template.files or template.service:
            return template.path
        return await self._bring(template, template.parcel)

    async def bring_environment(self, template: Template) -> str | None:
        """The same of what its engine runs in; None for the node's own Python."""
        environment = template.environment or self.settings.environment
        if environment is None or template.service:
            return None
        if not environment.files:
            return environment.path
        return await self._bring(template, environment, open=True)

    def folders(self, template: Template) -> list[str]:
        """Where a template's files may be, and what serves them works."""
        own = [template.path] if template.path and Path(template.path).is_dir() else []
        return [os.getcwd(), self.settings.cache, *own]

    async def _bring(self, template: Template, parcel: Parcel, open: bool = False) -> str:
        if self.cache is None:
            raise Unfetched(self.problem)
        tree = Tree(parcel.files)
        holding = self.holding.setdefault(template.digest, {})
        if tree.digest not in holding:
            holding[tree.digest] = self.cache.hold(tree.digest)
        since = self.fetching[tree.digest] = int(time.time())
        # What is thrown away after each job is nobody's to rely on; and such a job is to cost what it costs alone.
        share = self.share if parcel.key and template.keep != "nothing" else None
        if share:
            share.offers[tree.digest] = Offer(tree, parcel.key)
        self.changed.set()
        what = f"{template.model}'s {'environment' if open else 'files'}"
        try:
            said = await self._fetched(what, parcel, tree.digest, since, open, swarm=share is not None)
        finally:
            self.progress.pop(tree.digest, None)
            self.fetching.pop(tree.digest, None)  # another template of the same files may have been faster
            self.changed.set()
        if share and said["folder"] == parcel.path:
            share.offers[tree.digest] = Offer(tree, parcel.key, Path(parcel.path))
        return str(said["place"])

    async def _fetched(
        self, what: str, parcel: Parcel, tree: str, since: int, open: bool, swarm: bool
    ) -> dict[str, Any]:
        settings = self.settings
        neighbours = {
            "glide_id": settings.glide_id, "since": since, "key": parcel.key, "directory": list(settings.directory),
            "host": settings.host,
        }  # fmt: skip
        request = {
            "parcel": asdict(parcel), "cache": {"folder": settings.cache, "limit": settings.limit}, "open": open,
            "plugins": settings.plugins, "swarm": neighbours if swarm else None,
        }  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            *kept([sys.executable, "-m", "glide.files"]),  # conda-unpack is a user's code
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            start_new_session=True, preexec_fn=functools.partial(end_with_parent, signal.SIGTERM),
        )  # fmt: skip
        said: dict[str, Any] = {}
        try:
            assert process.stdin and process.stdout
            process.stdin.write(json.dumps(request).encode())
            process.stdin.close()
            async for line in process.stdout:
                said |= json.loads(line)
                if "size" in said and "folder" not in said:
                    before = self.fetched
                    self.progress[tree] = sum(said[name] for name in ("cached", "source", "peers")), said["size"]
                    if self.fetched != before:
                        self.changed.set()
        except asyncio.CancelledError:
            say(f"no more of {what}: {_account(said)}")
            raise
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)
            code = await process.wait()
        if "folder" not in said:
            raise Unfetched(said.get("failed") or f"the process that fetches them ended with {code}")
        if "size" in said:
            say(f"{what}: {_account(said)}")
        return said

    def forget(self, template: Template) -> None:
        """Delete a template's files from the cache, for those who compare what keeping them is worth."""
        self.release(template)
        for parcel in template.parcels:
            if self.cache:
                self.cache.forget(Tree(parcel.files).digest)

    def release(self, template: Template) -> None:
        """A template's files may make room for others'; until they do, peers may have them."""
        self._let_go(template.digest)

    def _let_go(self, template: str) -> None:
        for descriptor in self.holding.pop(template, {}).values():
            os.close(descriptor)

    def facts(self) -> dict[str, Any]:
        """What is told of it in the ad: trees by their short names."""
        cached = [] if self.cache is None else [tree for tree in self.cache.trees if tree not in self.fetching]
        return {
            Machine.CACHED: ",".join(map(short, cached[:MOST_NAMED])),
            Machine.SHARES: ",".join(map(short, self.share.offers)) if self.share else "",
            Machine.FETCHING: ",".join(f"{short(tree)}:{since}" for tree, since in self.fetching.items()),
            Machine.FETCHED: self.fetched,
            Machine.PEER: self.address,
        }


def _account(said: dict[str, Any]) -> str:
    parts = {name: said.get(name, 0) / 1e6 for name in ("size", "cached", "source", "peers")}
    return "{size:.0f} MB, {cached:.0f} from the cache, {source:.0f} from the source, {peers:.0f} from peers".format(
        **parts
    )
