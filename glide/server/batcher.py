"""The queue of records between the jobs and an engine.

The queue chooses the next records for the engine, and delivers the engine's results to the jobs. When an engine dies,
the engine's records return to the queue.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from glide.protocol.result import result_line
from glide.server.engine import DeadEngine
from glide.server.job import QueuedRecord, RecordQueue, oldest_first
from glide.server.suspects import next_calls

# A message to an engine contains work for about this number of seconds. If messages were longer, the records of a new
# job would wait longer for the engine.
CALL_SECONDS = 0.5
# The same for records of invocation jobs while a standing job is connected. A live call waits for at most two such
# messages, or for two engine calls if these take longer.
LIVE_CALL_SECONDS = 0.1
MOST_CALLS_IN_A_ROW = 8  # after this number of messages with live calls, records of invocation jobs get a message


class Batcher:
    """The records that wait in the queues of the jobs, and the records that an engine is serving.

    Args:
        on_write_error: function that is called as `on_write_error(job, error)` if the results of a job cannot be
            written.

    Attributes:
        jobs: the jobs that are served now; the oldest job is first.
        suspects: lists of records. Each list may contain the record that killed an engine. The lists are served before
            all other records, one after another, each in a separate call.
        in_flight: records that were sent to the engine and have no result yet. The dict's keys are the numbers that
            identify the records in messages to and from the engine.
        work: event that is set when records may be waiting.
        live_work: event that is set when a live call may be waiting.
        in_a_row: number of messages with live calls since the last message with records of invocation jobs.
        next_key: key that the next record gets when it is sent to an engine.
        finished: number of records that have got a result.
    """

    def __init__(self, on_write_error: Callable[[RecordQueue, OSError], None]):
        self.on_write_error = on_write_error
        self.jobs: list[RecordQueue] = []
        self.suspects: deque[list[QueuedRecord]] = deque()
        self.in_flight: dict[int, QueuedRecord] = {}
        self.work = asyncio.Event()
        self.live_work = asyncio.Event()
        self.in_a_row = 0
        self.next_key = 0
        self.finished = 0

    def next_records(self, wanted: int) -> list[QueuedRecord]:
        """Remove the next records from the queue and return them.

        If `suspects` is not empty, return its first list of records. Otherwise, return live calls. If none waits,
        return records of invocation jobs.

        Args:
            wanted: maximum number of records, except of suspects.
        """
        if self.suspects:
            return self.suspects.popleft()
        others = [job for job in self.jobs if not job.is_live]
        # Without an end, live calls must not keep the jobs of other users from the engine.
        is_turn = self.in_a_row >= MOST_CALLS_IN_A_ROW and any(job.waiting for job in others)
        if not is_turn and (calls := self.next_calls(wanted)):
            self.in_a_row += 1
            return calls
        self.in_a_row = 0
        return oldest_first(others, wanted)

    def next_calls(self, wanted: int) -> list[QueuedRecord]:
        """Remove the next live calls from the queue, at most `wanted`, and return them."""
        return oldest_first([job for job in self.jobs if job.is_live], wanted)

    @property
    def waiting_calls(self) -> int:
        """Number of live calls that wait."""
        return sum(len(job.waiting) for job in self.jobs if job.is_live)

    @property
    def has_only_calls(self) -> bool:
        """Whether all jobs are standing jobs."""
        return all(job.is_live for job in self.jobs)

    def records_for(self, batch: int, seconds_per_record: float) -> int:
        """Return how many records give an engine work for CALL_SECONDS: a multiple of `batch`, but not 0.

        With a standing job, return how many records give it work for LIVE_CALL_SECONDS. If live calls wait, return
        `batch`, so that their engine call is as short as possible.

        Args:
            batch: maximum number of records in an engine call. A call with fewer records takes longer per record.
            seconds_per_record: measured engine time for a record, in seconds; 0 before the first measurement.
        """
        if not seconds_per_record or self.waiting_calls:
            return batch
        seconds = LIVE_CALL_SECONDS if any(job.is_live for job in self.jobs) else CALL_SECONDS
        return batch * max(1, int(seconds / seconds_per_record / batch))

    def serve_message(self, items: Sequence[QueuedRecord]) -> dict[str, Any]:
        """Return the message that makes the engine serve these records, and add the records to `in_flight`.

        If there is a live call among them, the engine must send each result at once.
        """
        # Many records share one `generate` object, which may be long. So the message contains each such object once.
        options = {id(item.request.generate): item.request.generate for item in items}
        kinds = {each: number for number, each in enumerate(options)}
        serve = []
        for item in items:
            self.in_flight[self.next_key] = item
            request = item.request
            kind = kinds[id(request.generate)]
            serve.append((self.next_key, request.prompt, kind, request.task, request.adapter, request.stream))
            self.next_key += 1
            item.job.note_sent(item)
        live = any(item.job.is_live for item in items)
        return {"serve": serve, "generate": list(options.values()), "live": live}

    def still_in_flight(self, keys: Iterable[int]) -> list[QueuedRecord]:
        """Return the records that have these keys and no result yet."""
        return [self.in_flight[key] for key in keys if key in self.in_flight]

    def deliver(self, done: Sequence[tuple[int, str, bool]]) -> int:
        """Write results to the output files of their jobs, and return the number of results that are errors.

        Args:
            done: for each finished record, its key, its result as JSON text, and whether the result is an error.

        Raises:
            ValueError: a result is not a JSON object in one line.
        """
        for key, text, _ in done:
            item = self.in_flight[key]
            job = item.job
            line = result_line(text, item.request.custom_id, job.job_request.glidein, item.attempts)
            try:
                if not item.is_unwanted:
                    job.add_result(item, line)
            except OSError as error:
                self.on_write_error(job, error)
            del self.in_flight[key]
            job.note_answered()
        self.finished += len(done)
        return sum(failed for _, _, failed in done)

    def requeue_after_death(self, running: Sequence[int], death: DeadEngine) -> int:
        """Put the records of a dead engine back into the queue.

        The records of the running call become suspects, because one of these records may have killed the engine. The
        engine's other records return to the queues of their jobs.

        If there is only one suspect, this record gets an error as its result in two cases:

        - The engine has exited, or the model server has killed the engine because of the engine's behaviour.
        - Another engine has already died in a call that had only this record.

        Args:
            running: keys of the records in the call that was running.
            death: exception that describes how the engine died.

        Returns:
            The number of records that got an error as their result: 0 or 1.
        """
        suspects = [item for item in self.still_in_flight(running) if not item.is_unwanted]
        for key in running:
            self.in_flight.pop(key, None)
        for item in reversed(self.in_flight.values()):
            if item.is_unwanted:
                item.job.note_answered()
            else:
                item.job.put_back(item)
        self.in_flight.clear()
        calls, culprit = next_calls(suspects, death.self_inflicted)
        self.suspects.extendleft(reversed(calls))
        self.work.set()
        if culprit is None:
            return 0
        self.in_flight[-1] = culprit
        error = {"type": "EngineDied", "message": f"the engine {death} on this record"}
        return self.deliver([(-1, json.dumps({"text": None, "tokens": 0, "error": error, "seconds": 0.0}), True)])
