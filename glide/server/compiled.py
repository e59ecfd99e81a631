"""Keep the code that serving programs compile, get it from peers, and offer it to peers."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from glide.files import Tree
from glide.files.compiled import CompiledCode
from glide.files.peers import Directory
from glide.files.share import SharedTree
from glide.server.gpus import gpus
from glide.server.log import log_line
from glide.server.supply import FileSupply
from glide.template import Template

Result = TypeVar("Result")
WAIT_SECONDS = 90.0  # time limit of the search for compiled code


class CompiledSupply:
    """Provides the compiled code of one template.

    Args:
        supply: object that fetches files to this node, and offers them to peers.
    """

    def __init__(self, supply: FileSupply, template: Template):
        self.supply = supply
        self.template = template
        self._lock: int | None = None

    async def ensure(self) -> Path:
        """Return the folder for code that a serving program compiles.

        Usually the folder is in the node's cache, so that later glideins start faster. For a template with an owner, it
        is in the glidein's own folder. If the entry shares compiled code, and the cache has none, get it from a peer.
        """
        code = await self._code()
        if code is None:
            return Path.cwd() / "compiled" / self.template.digest[:24]
        try:
            if self._exchanges and code.is_missing:
                await asyncio.wait_for(self._fetch(code), WAIT_SECONDS)
        except Exception as error:  # whatever a peer has sent, the program can compile the code itself
            log_line(f"{self.template.model}: compiled code cannot be fetched: {error!r}")
        try:
            if self._lock is None:
                self._lock = code.use()
        except OSError as error:
            log_line(f"{self.template.model}: compiled code cannot be stored: {error}")
        return code.place

    def close(self) -> None:
        """Allow other processes to delete the code."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def share(self) -> None:
        """Offer to peers the code that the program has compiled. Call this method when the template is warm."""
        code = await self._code()
        if code is not None and self._exchanges:
            try:
                code.prove()
                if tree := await asyncio.to_thread(code.pack):
                    self._offer(code, tree)
            except OSError as error:
                log_line(f"{self.template.model}: compiled code is not offered to peers: {error}")

    async def distrust(self) -> None:
        """If the code came from a peer, delete it. Call this method if the program has ended before it was warm."""
        code = await self._code()
        if code is not None and code.is_unproven and self.supply.chunk_server:
            log_line(f"{self.template.model}: compiled code of a peer is deleted, because the program did not start")
            self.supply.chunk_server.offers.pop(code.name, None)
            self.close()
            await asyncio.to_thread(code.distrust)

    async def _fetch(self, code: CompiledCode) -> None:
        settings, began = self.supply.settings, time.monotonic()
        directory = Directory(settings.directory)
        tree = await _in_daemon(partial(code.fetch, directory, settings.compiled_key, settings.host, settings.glide_id))
        if tree is not None:
            took = f"{tree.size / 1e6:.1f} MB in {time.monotonic() - began:.1f} s"
            log_line(f"{self.template.model}: compiled code came from a peer: {took}")
            self._offer(code, tree)

    @property
    def _exchanges(self) -> bool:
        return bool(self.supply.settings.compiled_key and self.supply.chunk_server)

    async def _code(self) -> CompiledCode | None:
        """Return the template's compiled code in the cache; None if code of the template is never cached."""
        template, supply = self.template, self.supply
        if template.engine != "server" or template.owner or supply.cache is None:
            return None
        environment = template.environment or supply.settings.environment
        if environment is None:
            known = sys.version
        else:  # the path of a fetched environment may differ between nodes
            known = Tree.of(environment).digest if environment.files else environment.path
        devices = [gpu.name for gpu in await asyncio.to_thread(gpus)]
        return CompiledCode.of(
            Path(supply.settings.cache) / "compiled", template.digest, known, devices, self.supply.settings.compiled_key
        )

    def _offer(self, code: CompiledCode, tree: Tree) -> None:
        assert self.supply.chunk_server is not None
        self.supply.chunk_server.offers[code.name] = SharedTree(tree, self.supply.settings.compiled_key, code.packed)
        self.supply.changed.set()


async def _in_daemon(call: Callable[[], Result]) -> Result:
    """Run a call in a thread that does not keep this process alive. Return its result."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: Exception | None) -> None:
        if not future.done():
            future.set_exception(error) if error else future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, failure = None, None
        try:
            result = call()
        except Exception as error:
            failure = error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, daemon=True).start()
    return await future
