"""Send the HTTP requests of records to a service or to a local program, many at a time."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from glide.server.engines import openai_api as api
from glide.server.engines.base import Completion, EngineRecord, RecordError, RecordTimeout, Reports
from glide.server.engines.http_client import Cancellation, HttpClient, NoResponse, Response
from glide.server.engines.responses import backoff, retry_after, summary
from glide.server.engines.streams import OPTIONS, StreamReader, can_stream

RETRIED_STATUSES = (408, 409, 429)  # HTTP statuses, besides all 5xx, after which a request is repeated


class Refused(RecordError):
    """The service has refused the request, and its HTTP status shows that another try would not help."""


class NoAnswer(RecordError):
    """No try has succeeded: the service did not answer, was too busy, or reported an internal error."""


class BadAnswer(RecordError):
    """The service has reported success, but its answer contains no completion."""


@dataclass(frozen=True)
class Target:
    """Where and how requests are sent.

    Attributes:
        model: name of the model at the service.
        chat: whether a prompt that is a text becomes the message of a user.
        system: system message before such a message; empty for none.
        parallel: maximum number of requests in flight.
        prompts: maximum number of prompts in one request.
        most: maximum number of prompts in all requests in flight.
        seconds: time limit of one request.
        retries: maximum number of times that a request is repeated.
        token_ids: field of a request that adds the token IDs of prompt and text to the answer; empty if there is none.
        adapter_fields: fields of a request that uses a LoRA adapter, by name of the adapter; under "" the fields of a
            request without an adapter.
        adapter_embeds: whether embeddings can be computed with an adapter.
    """

    http: HttpClient
    model: str
    chat: bool
    system: str
    parallel: int
    prompts: int
    most: int
    seconds: float
    retries: int
    token_ids: str = ""
    adapter_fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    adapter_embeds: bool = False


@dataclass
class _Request:
    """An HTTP request that runs now.

    Attributes:
        records: the records whose prompts the request contains.
        unwanted: keys of the records whose results nobody needs any more.
        since: time by the monotonic clock when the request began.
    """

    records: list[EngineRecord]
    cancellation: Cancellation = field(default_factory=Cancellation)
    unwanted: set[int] = field(default_factory=set)
    since: float = field(default_factory=time.monotonic)

    @property
    def is_unwanted(self) -> bool:
        return self.unwanted.issuperset(record.key for record in self.records)


class RequestQueue:
    """The records that an engine has, and the threads that send their requests.

    A request of several records may fail. Then these records are sent again in smaller requests, until the failing
    record is alone in its request.

    Args:
        reports: object to which starts and outcomes of records are reported.
        on_no_response: function that is called when a request got no response. It may end this process.

    Attributes:
        waiting: records that are not in a request yet, by the name of their adapter; under "" those without an adapter.
            Records with different adapters are never in flight together, because vLLM (on CPUs) and llama.cpp then
            compute some records as if they had another adapter.
        adapter: the adapter of the records in flight.
        divided: lists of records whose request failed. Each list gets a request of its own, before all other records.
        most: maximum number of prompts in flight at present.
        overdue: number of cancelled requests since the last request that was not cancelled.
        running: the requests that run now.
        tasks: number of threads that serve records.
        in_flight: number of records that these threads serve.
        answered: number of requests that have ended, except cancelled ones.
    """

    def __init__(self, target: Target, reports: Reports, on_no_response: Callable[[], None] = lambda: None):
        self.target = target
        self.reports = reports
        self.on_no_response = on_no_response
        self.waiting: dict[str, deque[EngineRecord]] = {"": deque()}
        self.adapter = ""
        self.divided: deque[list[EngineRecord]] = deque()
        self.most = target.most
        self.overdue = 0
        self.running: list[_Request] = []
        self.tasks = self.in_flight = self.answered = 0
        self.lock = threading.Lock()
        self.resume_at = 0.0  # all requests wait until this time of the monotonic clock
        self.threads = ThreadPoolExecutor(target.parallel, thread_name_prefix="request")

    def submit(self, records: Sequence[EngineRecord]) -> None:
        """Add records. Their outcomes are reported later, in any order."""
        with self.lock:
            for record in records:
                waiting = self.waiting.setdefault(record.adapter or "", deque())
                if record.live:  # before all records that nobody waits for
                    waiting.insert(next((at for at, each in enumerate(waiting) if not each.live), len(waiting)), record)
                else:
                    waiting.append(record)
        self._start_requests()

    def cancel(self, late: Sequence[int], unwanted: Sequence[int]) -> None:
        """End the requests of records. Records that are not in the queue are ignored.

        Args:
            late: keys of records whose time limit is over.
            unwanted: keys of records whose results nobody needs.
        """
        late_keys, unwanted_keys = set(late), set(unwanted)
        with self.lock:
            dropped = []
            for adapter, waiting in self.waiting.items():
                if found := [record for record in waiting if record.key in unwanted_keys]:
                    dropped += found
                    self.waiting[adapter] = deque(record for record in waiting if record.key not in unwanted_keys)
            for records in [each for each in self.divided if unwanted_keys.issuperset(one.key for one in each)]:
                self.divided.remove(records)
                dropped += records
            for request in self.running:
                keys = {record.key for record in request.records}
                request.unwanted |= keys & unwanted_keys
                if keys & late_keys or request.is_unwanted:
                    request.cancellation.cancel()
        for record in dropped:
            self.reports.done(record.key, _late())

    def limit_to(self, most: int) -> None:
        """Lower the maximum number of prompts in flight. It rises again by one with each answer."""
        with self.lock:
            self.most = min(self.most, most)

    @property
    def oldest_seconds(self) -> float:
        """Number of seconds for which the oldest request has been running; 0 if none is running."""
        with self.lock:
            return time.monotonic() - self.running[0].since if self.running else 0.0

    def _start_requests(self) -> None:
        """Start requests for waiting records, as long as fewer than the maximum number of prompts are in flight."""
        with self.lock:
            while (
                self.in_flight < self.most and self.tasks < self.target.parallel and (records := self._next_records())
            ):
                self.in_flight += len(records)
                self.tasks += 1
                self.threads.submit(self._run, records)

    def _next_records(self) -> list[EngineRecord]:
        """Remove and return the records of the next request; none if no record may start now."""
        if self.divided:
            adapter = self.divided[0][0].adapter or ""
            if self.in_flight and adapter != self.adapter:
                return []
            self.adapter = adapter
            return self.divided.popleft()
        # The oldest live record is next, even if it has another adapter. Then the other records wait until none is in
        # flight, because records with different adapters are never in flight together.
        heads = {name: waiting[0] for name, waiting in self.waiting.items() if waiting}
        live = min((each for each in heads.values() if each.live), key=lambda each: each.key, default=None)
        if live is not None and (live.adapter or "") != self.adapter and self.in_flight:
            return []
        if live is not None:
            self.adapter = live.adapter or ""
        elif not self.waiting[self.adapter] and not self.in_flight:
            self.adapter = next(iter(heads), "")
        target, waiting = self.target, self.waiting[self.adapter]
        records = [waiting.popleft()] if waiting else []
        while (
            waiting
            and len(records) < target.prompts
            and api.can_share(records[0], waiting[0], target.chat, bool(target.token_ids))
        ):
            records.append(waiting.popleft())
        return records

    def _run(self, records: list[EngineRecord]) -> None:
        """Serve records in one request, and then start further requests."""
        try:
            self._serve(records)
        finally:
            with self.lock:
                self.in_flight -= len(records)
                self.tasks -= 1
            self._start_requests()

    def _serve(self, records: list[EngineRecord]) -> None:
        """Serve records in one request. If the request fails, put each half of the records back."""
        request = _Request(records)
        with self.lock:
            self.running.append(request)
        failure: Exception | None = None
        outcomes: Sequence[Completion] = ()
        try:
            self.reports.started([record.key for record in records])
            outcomes = self._outcomes(request)
        except Exception as error:
            failure = error
            outcomes = [Completion.failed(error)] * len(records)
        with self.lock:
            self.running.remove(request)
            if isinstance(failure, RecordTimeout):
                self.overdue += 1
            else:
                self.answered += 1
                self.overdue = 0
            self.most = min(self.target.most, self.most + 1)
        if failure and len(records) > 1 and not request.is_unwanted:
            middle = len(records) // 2
            self.reports.paused([record.key for record in records])
            with self.lock:
                self.divided.extendleft((records[middle:], records[:middle]))
            return
        for record, outcome in zip(records, outcomes, strict=True):
            self.reports.done(record.key, outcome)

    def _outcomes(self, request: _Request) -> Sequence[Completion]:
        """Send a request until it succeeds, the service refuses it, or all tries have failed.

        Raises:
            RecordError: the request failed.
            RecordTimeout: the request was cancelled.
        """
        target = self.target
        path, body = api.request(request.records, target.model, target.chat, target.system)
        adapter = request.records[0].adapter
        if adapter and (adapter not in target.adapter_fields or (path == "embeddings" and not target.adapter_embeds)):
            raise Refused(f"the program cannot use the adapter {adapter} for {path}")
        body |= target.adapter_fields.get(adapter, {})
        if target.token_ids and path == "completions":
            body = {**body, target.token_ids: True}
        answer, pause, reader = "", 0.0, None
        if can_stream(record := request.records[0]):
            body |= OPTIONS
        for attempt in range(1 + target.retries):
            self._wait_before_try(pause, request.cancellation)
            if can_stream(record):
                if reader is not None and reader.pieces:
                    self.reports.text(record.key, None)
                reader = StreamReader(partial(self.reports.text, record.key))
            read = reader.feed if reader else lambda block: None
            try:
                response = target.http.send("POST", path, target.seconds, body, request.cancellation, read)
            except NoResponse as error:
                if request.cancellation.event.is_set():
                    raise RecordTimeout(LATE) from None
                self.on_no_response()
                answer, pause = str(error), backoff(attempt)
                continue
            if response.is_success:
                return self._completions(request.records, response, reader)
            answer = summary(response)
            if response.status not in RETRIED_STATUSES and response.status < 500:
                raise Refused(answer)
            requested = retry_after(response.headers.get("Retry-After", ""), time.time())
            pause = backoff(attempt, requested)
            if response.status == 429:
                # After too many requests (status 429), all requests pause. The service may say for how long.
                self.resume_at = max(self.resume_at, time.monotonic() + backoff(0, requested))
        raise NoAnswer(f"no completion after {1 + target.retries} tries; last answer: {answer}")

    def _wait_before_try(self, pause: float, cancellation: Cancellation) -> None:
        """Wait at least `pause` seconds. If all requests pause at present, wait at least until this common pause ends.

        The waiting time is multiplied by a random number from 1 to 2, so that requests are not repeated together.

        Raises:
            RecordTimeout: the request was cancelled.
        """
        while (left := max(pause, self.resume_at - time.monotonic())) > 0:
            if cancellation.event.wait(left * random.uniform(1, 2)):
                raise RecordTimeout(LATE)
            pause = 0.0

    def _completions(
        self, records: Sequence[EngineRecord], response: Response, reader: StreamReader | None
    ) -> list[Completion]:
        try:
            return api.completions(records, reader.answer() if reader else response.json())
        except (ValueError, LookupError, TypeError, AttributeError):
            raise BadAnswer(summary(response)) from None


LATE = "no result within the record's timeout"


def _late() -> Completion:
    return Completion.failed(RecordTimeout(LATE))
