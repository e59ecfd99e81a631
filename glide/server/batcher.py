"""The records of some jobs, in calls to an engine and back: which go next, whose results come, what a death leaves."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from glide.server.engine import DeadEngine
from glide.server.job import Item, Job, oldest_first
from glide.server.suspects import next_calls

CALL_SECONDS = 0.5  # a window is about this much work, so that no job waits long behind another's


class Batcher:
    """What jobs have waiting and an engine is working on.

    Args:
        unwritten: is called with a job whose results cannot be written, and why.

    Attributes:
        jobs: the oldest first.
        suspects: calls to make alone, before anything else.
        work: set when records may wait.
        finished: how many records have had a result.
    """

    def __init__(self, unwritten: Callable[[Job, OSError], None]):
        self.unwritten = unwritten
        self.jobs: list[Job] = []
        self.suspects: deque[list[Item]] = deque()
        self.flying: dict[int, Item] = {}
        self.work = asyncio.Event()
        self.next_key = 0
        self.finished = 0

    def take(self, batch: int, window: int, pace: float) -> list[Item]:
        """Return the next records: suspects alone, else about CALL_SECONDS of the jobs' work at this pace."""
        if self.suspects:
            return self.suspects.popleft()
        wanted = min(window, max(batch, int(CALL_SECONDS / pace))) if pace else batch
        return oldest_first(self.jobs, wanted)

    def request(self, items: Sequence[Item]) -> dict[str, Any]:
        """Return the message that has an engine serve these records."""
        # A job's are one object, and may be long.
        options = {id(item.request.generate): item.request.generate for item in items}
        kinds = {each: number for number, each in enumerate(options)}
        serve = []
        for item in items:
            self.flying[self.next_key] = item
            serve.append((self.next_key, item.request.prompt, kinds[id(item.request.generate)]))
            self.next_key += 1
            item.job.results.begun += 1
        return {"serve": serve, "generate": list(options.values())}

    def running(self, keys: Iterable[int]) -> list[Item]:
        """Return the records with these keys that have no result yet."""
        return [self.flying[key] for key in keys if key in self.flying]

    def settle(self, done: Sequence[tuple[int, dict[str, Any]]]) -> int:
        """Give results to the jobs, and return how many are errors."""
        for key, result in done:
            item = self.flying[key]
            job = item.job
            stamp = {"glidein": job.ticket.glidein, "attempts": item.attempts}
            try:
                if not job.gone:
                    job.results.add({"custom_id": item.request.custom_id, **result, **stamp})
            except OSError as error:
                self.unwritten(job, error)
            del self.flying[key]
            job.unanswered -= 1
            if job.unanswered == 0:
                job.answered.set()
        self.finished += len(done)
        return sum(result["error"] is not None for _, result in done)

    def bury(self, begun: Sequence[int], death: DeadEngine) -> int:
        """Sort what was in a dead engine, and return how many records have an error now.

        The running call's records are suspects, the others only wait.
        """
        suspects = [item for item in self.running(begun) if not item.job.gone]
        for key in begun:
            self.flying.pop(key, None)
        for item in reversed(self.flying.values()):
            item.job.put_back(item)
        self.flying.clear()
        calls, culprit = next_calls(suspects, death.own_doing)
        self.suspects.extendleft(reversed(calls))
        self.work.set()
        if culprit is None:
            return 0
        self.flying[-1] = culprit
        error = {"type": "EngineDied", "message": f"the engine {death} on this record"}
        return self.settle([(-1, {"text": None, "tokens": 0, "error": error, "seconds": 0.0})])
