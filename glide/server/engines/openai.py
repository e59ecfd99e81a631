"""The openai engine. It sends records to a model that runs elsewhere, behind an OpenAI-compatible endpoint.

No model is on the node, so loading only waits until the service is ready. The engine limits the number of requests in
flight, and pauses all requests if the service asks for a pause. The library httpx2 sends the requests. The package
`openai` cannot pause all requests, because it retries each request separately.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from glide.errors import TemplateError
from glide.server.engines import openai_api as api
from glide.server.engines.base import Completion, EngineRecord, RecordError
from glide.template import Template
from glide.vocabulary import State

CONNECT_SECONDS = 10.0  # maximum seconds to open a connection; a small number, so that the next try begins soon
FIRST_PAUSE = 0.5  # seconds between the first and the second try; the pause doubles before each further try
# `backoff` returns at most this number of seconds, even if the service asks for a longer pause. The service may recover
# earlier, and a record's timeout is 600 s by default.
LONGEST_PAUSE = 60.0
READY_PAUSE = 10.0  # maximum seconds between two checks whether the service is ready
KEYS = Path("~/.glide/keys")  # folder with the API keys, in the home folder of the account that runs the glideins
KEY_FILE_REFUSED = (
    "key_file is for the `service` of a site's entry, because a sweep with a key_file could send any key to any url"
)
RETRIED_STATUSES = (408, 409, 429)  # HTTP statuses, besides all 5xx, after which a request is repeated


class Refused(RecordError):
    """The service has refused the request, and its HTTP status shows that another try would not help."""


class NoAnswer(RecordError):
    """No try has succeeded: the service did not answer, was too busy, or reported an internal error."""


class BadAnswer(RecordError):
    """The service has reported success, but its answer contains no completion."""


class OpenAI:
    """The openai engine. It sends up to `parallel` requests at a time, and never repeats a successful request."""

    @dataclass(frozen=True)
    class Options:
        """
        url: base URL at which the nodes reach the service, such as http://host:8000/v1.
        model: name of the model at the service. By default, this is the model's name in the template.
        key_file: name of a file with the API key. The file must be in ~/.glide/keys of the account that runs the
            glideins on the nodes, and only this account may have access to it. This option is allowed only in the
            `service` of a site's entry, not in a sweep.
        chat: if true, send the prompt as the user's message to /chat/completions. If false, send it to /completions.
        system: system message that is sent before the user's message. This option needs `chat`.
        parallel: maximum number of requests in flight at the same time.
        ready_seconds: maximum seconds to wait until the service lists the model. Choose a number below the template's
            time limit for loading. Otherwise, the error message lacks the service's last answer.
        request_seconds: time limit of one HTTP request, in seconds.
        retries: maximum number of times that a request is repeated while the service is busy or fails. The record's
            timeout must be long enough for all tries. Each try may take `request_seconds`.
        """

        url: str = ""
        model: str = ""
        key_file: str = ""
        chat: bool = True
        system: str = ""
        parallel: int = 8
        ready_seconds: float = 600.0
        request_seconds: float = 300.0
        retries: int = 8

        def __post_init__(self) -> None:
            address = urlsplit(self.url)
            if "@" in address.netloc:  # refuse urls with a password first, because the messages below show the url
                raise ValueError(
                    "a url with a user or password is visible to everyone in the pool; "
                    "use the key_file of a site's service instead"
                )
            if self.key_file and not re.fullmatch(r"[\w-][\w.-]*", self.key_file):
                raise ValueError(f"key_file must be the name of a file in {KEYS} on the nodes, not {self.key_file!r}")
            odd = address.query or address.fragment or address.port == 0
            if address.scheme not in ("http", "https") or not address.hostname or odd:
                raise ValueError(f"the openai engine needs a url such as http://host:8000/v1, not {self.url!r}")
            if self.parallel < 1 or self.retries < 0:
                raise ValueError("parallel must be 1 or more, and retries 0 or more")
            if self.system and not self.chat:
                raise ValueError("a system message needs chat: true")

    @staticmethod
    def check_generate(generate: Mapping[str, Any], folder: Path | None = None) -> None:
        """Check options of `generate`, as described in `Engine`. The argument `folder` is not used."""
        api.options(generate, chat=True)

    def __init__(self, template: Template, options: Options):
        if options.key_file and template.service is None:
            raise TemplateError(KEY_FILE_REFUSED)
        self.options = options
        self.url = options.url.rstrip("/")
        self.model = options.model or template.model
        self.batch = options.parallel
        self.window = 16 * options.parallel
        self.key = ""
        self.resume_at = 0.0  # all requests wait until this time of the monotonic clock

    def prepare(self) -> None:
        import httpx2

        self.httpx = httpx2

    def load(self, folder: str | None, phase: Callable[[str], None]) -> None:
        phase(State.LOADING)
        self.key = read_key(KEYS / self.options.key_file) if self.options.key_file else ""
        self.client = self.httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            timeout=self.httpx.Timeout(None, connect=CONNECT_SECONDS),
            # Do not limit the number of connections. With a limit, requests may wait for a connection. If a waiting
            # request is cancelled, a connection becomes unusable (encode/httpcore#1093). The option `parallel` already
            # limits the number of requests.
            limits=self.httpx.Limits(max_connections=None, max_keepalive_connections=self.options.parallel),
        )
        # All requests run in a second thread. The main thread only waits, so a signal of the model server can interrupt
        # it at any time. After such a signal, the main thread cancels the requests.
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._wait_until_ready(), self.loop).result()

    def plan(self, records: Sequence[EngineRecord]) -> list[list[EngineRecord]]:
        """Divide records into calls of `parallel` records, so that a call takes only as long as its slowest record."""
        return [list(records[i : i + self.batch]) for i in range(0, len(records), self.batch)]

    def call(self, records: Sequence[EngineRecord]) -> list[Completion]:
        outcomes = [asyncio.run_coroutine_threadsafe(self._serve_alone(record), self.loop) for record in records]
        try:
            wait(outcomes)
        except Exception as interrupt:  # on RecordTimeout, return the answers that have arrived
            late = Completion.failed(interrupt)
            return [late if outcome.cancel() else outcome.result() for outcome in outcomes]
        return [outcome.result() for outcome in outcomes]

    def describe(self) -> dict[str, Any]:
        return {}

    async def _wait_until_ready(self) -> None:
        """Wait until the service lists the model.

        Raises:
            TemplateError: the service denies access, or has not listed the model within `ready_seconds`.
        """
        until = time.monotonic() + self.options.ready_seconds
        for attempt in count():
            left = until - time.monotonic()
            try:
                response = await self._send("GET", "models", max(1.0, min(left, self.options.request_seconds)))
                if response.status_code in (401, 403):
                    whom = f"the key in {KEYS / self.options.key_file}" if self.key else "requests without a key"
                    raise TemplateError(f"{self.url} refuses {whom}: {self._summary(response)}")
                if not (answer := self._problem_with_models(response)):
                    return
            except NoAnswer as error:
                answer = str(error)
            pause = min(backoff(attempt), READY_PAUSE)
            if time.monotonic() + pause >= until:
                budget = f"{self.options.ready_seconds:g} s (ready_seconds)"
                raise TemplateError(f"{self.url} was not ready within {budget}; its last answer: {answer}")
            await asyncio.sleep(pause)

    def _problem_with_models(self, response: Any) -> str:
        """Return what is wrong with an answer to GET /models. If the answer lists the model, return an empty text."""
        if not response.is_success:
            return self._summary(response)
        try:
            names = [str(model["id"]) for model in response.json()["data"]]
        except (ValueError, KeyError, TypeError):
            return f"{response.status_code} without a list of models"
        return "" if self.model in names else f"no model {self.model}; it has {', '.join(names[:20]) or 'none'}"

    async def _serve_alone(self, record: EngineRecord) -> Completion:
        try:
            return await self._serve(record)
        except Exception as error:  # do not raise the error: all requests of the call would be sent and paid for again
            return Completion.failed(error)

    async def _serve(self, record: EngineRecord) -> Completion:
        """Send a record's request until the request succeeds, the service refuses it, or all tries have failed."""
        path, body = api.request(record, self.model, self.options.chat, self.options.system)
        answer, pause = "", 0.0
        for attempt in range(1 + self.options.retries):
            await self._wait_before_try(pause)
            try:
                response = await self._send("POST", path, self.options.request_seconds, json=body)
            except NoAnswer as error:
                answer, pause = str(error), backoff(attempt)
                continue
            if response.is_success:
                return self._completion(record, response)
            answer = self._summary(response)
            if response.status_code not in RETRIED_STATUSES and response.status_code < 500:
                raise Refused(answer)
            requested = retry_after(response.headers.get("Retry-After", ""), time.time())
            pause = backoff(attempt, requested)
            if response.status_code == 429:
                # After too many requests (status 429), all requests pause. The service may say for how long.
                self.resume_at = max(self.resume_at, time.monotonic() + backoff(0, requested))
        raise NoAnswer(f"no completion after {1 + self.options.retries} tries; last answer: {answer}")

    async def _wait_before_try(self, pause: float) -> None:
        """Wait at least `pause` seconds. If all requests pause at present, wait at least until this common pause ends.

        The waiting time is multiplied by a random number from 1 to 2, so that requests are not repeated together.
        """
        while (left := max(pause, self.resume_at - time.monotonic())) > 0:
            await asyncio.sleep(left * random.uniform(1, 2))
            pause = 0.0

    async def _send(self, method: str, path: str, seconds: float, **content: Any) -> Any:
        """Send one HTTP request and return the response, even if its status is an error.

        Raises:
            NoAnswer: no complete response has arrived within `seconds`, or the connection failed.
        """
        # Limit the whole request with asyncio. httpx limits only single steps, so a slow answer might never end.
        try:
            return await asyncio.wait_for(self.client.request(method, path, **content), seconds)
        except asyncio.TimeoutError:
            raise NoAnswer(f"no answer within {seconds:.3g} s") from None
        except self.httpx.HTTPError as error:
            raise NoAnswer(f"{type(error).__name__} {error}".rstrip()) from None

    def _completion(self, record: EngineRecord, response: Any) -> Completion:
        try:
            return api.completion(record, response.json())
        except (ValueError, LookupError, TypeError, AttributeError):
            raise BadAnswer(self._summary(response)) from None

    def _summary(self, response: Any) -> str:
        """Return a response's status and error message in one line.

        The API key is replaced by [key], because some services repeat the key in their messages.
        """
        message = response.text
        with suppress(ValueError, LookupError, TypeError, AttributeError):
            error = response.json()
            error = error.get("error", error)
            message = error if isinstance(error, str) else error["message"]
        message = " ".join(str(message).split())
        message = message.replace(self.key, "[key]") if self.key else message
        return f"{response.status_code} {message[:500]}".rstrip()


def read_key(path: Path) -> str:
    """Return the API key in a file.

    Raises:
        TemplateError: the file cannot be read, is accessible to other accounts, or has no key. No message quotes the
            key.
    """
    try:
        with path.expanduser().open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            key = file.read().strip()
    except (OSError, RuntimeError) as error:  # a RuntimeError means that the home folder is unknown
        raise TemplateError(f"cannot read key_file {path}: {getattr(error, 'strerror', None) or error}") from None
    if mode & 0o077:
        raise TemplateError(f"key_file {path} is accessible to others than its owner (mode {mode:o}); chmod it to 600")
    if not re.fullmatch(rb"[!-~]+", key):  # refuse an invalid key here, because the HTTP library's error would show it
        raise TemplateError(f"key_file {path} does not hold a key; write it there as one line of ASCII without spaces")
    return key.decode("ascii")


def backoff(attempt: int, requested: float = 0.0) -> float:
    """Return the seconds to wait after a failed try, at most LONGEST_PAUSE.

    Args:
        attempt: number of the failed try, counted from 0.
        requested: seconds for which the service has asked the engine to wait.
    """
    return min(max(FIRST_PAUSE * 2 ** min(attempt, 16), requested), LONGEST_PAUSE)


def retry_after(value: str, now: float) -> float:
    """Return how many seconds the header Retry-After asks a client to wait.

    The header's value is a number of seconds or a date (RFC 9110, 10.2.3). If the value is a date, return the seconds
    from the Unix time `now` to this date. If the value is neither a number nor a date, return 0.
    """
    with suppress(ValueError):
        return float(value)
    with suppress(ValueError, OverflowError):
        return parsedate_to_datetime(value).timestamp() - now
    return 0.0
