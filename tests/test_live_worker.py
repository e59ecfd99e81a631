"""glide.live.worker: a process of its own for HTCondor's bindings."""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path

from glide.live.worker import CondorWorker


class Subject:
    def nothing(self) -> None:
        pass

    def blocks(self) -> int:
        gc.collect()
        return sys.getallocatedblocks()


def test_questions_need_no_memory_that_stays(monkeypatch):
    """Python's cache of looked-up names kept each question's own text of the method's name, up to 4,096 of them."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    worker = CondorWorker(Subject)

    async def growth() -> int:
        for _ in range(10):
            await worker.ask("nothing")
        before = await worker.ask("blocks")
        for _ in range(1000):
            await worker.ask("nothing")
        return int(await worker.ask("blocks")) - before

    try:
        assert asyncio.run(growth()) < 50
    finally:
        worker.stop()
