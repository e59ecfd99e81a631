"""The openai engine: a model that is served elsewhere, by any service with an OpenAI-compatible endpoint.

What a node holds is not the model but the way to it: that the service is ready, how many requests it is sent
at once, and until when it has asked to be spared. HTTP is httpx2's business. The `openai` package would not make this
smaller: its retries know nothing of each other, so that a pause for all requests needs a loop of our own all the same.
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
from glide.server.engines import Completion, Record, RecordError, UnknownOption, WrongOption
from glide.template import Template
from glide.vocabulary import State

CONNECT_SECONDS = 10.0  # a host that does not even say no is tried again, and not waited for as for an answer
FIRST_PAUSE = 0.5  # seconds before the second try, doubled before each further one
LONGEST_PAUSE = 60.0  # even where the service asks for more: it may be well again, and a record has 600 s in all
READY_PAUSE = 10.0  # and while nothing but a question for its models is at stake
KEYS = Path("~/.glide/keys")  # on nodes, of the glideins' account
NOT_A_SITES = "key_file is for the `service` of a site's entry: a sweep that named one could send any key to any url"
RETRIED = (408, 409, 429)  # of the answers that blame the request; those that blame the service all are

# What transformers calls an option, and what the API does. `do_sample` decides on the temperature.
API_NAMES = {
    "max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p",
    "stop": "stop", "stop_strings": "stop", "seed": "seed",
}  # fmt: skip


class Refused(RecordError):
    """The service will not serve this record, however often it is asked."""


class NoAnswer(RecordError):
    """The service did not answer, or only that it is too busy or has failed, as often as it was tried."""


class BadAnswer(RecordError):
    """The service says that it has served the record, but there is no completion in its answer."""


class OpenAI:
    """Sends `parallel` requests at a time. What the service has answered is never asked again."""

    @dataclass(frozen=True)
    class Options:
        """
        url: the service's base as nodes reach it, such as http://host:8000/v1.
        model: what the service calls the model; by default what the template does.
        key_file: the name of a file with the API key, which lies in ~/.glide/keys of the account that glideins have on
            the nodes, and which nobody else may read. It is for the `service` of a site's entry, not for sweeps.
        chat: ask /chat/completions, the prompt being the user's message; else /completions.
        system: the system's message before it.
        parallel: requests at once.
        ready_seconds: how long loading waits for the service to name the model among its models; less than
            the template's budget for loading, which would end it without the service's last answer.
        request_seconds: how long to wait for the answer to one HTTP request.
        retries: how often a request is repeated that met a busy or failing service. With request_seconds this
            should stay below a record's timeout, which ends the repeating too.
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
            if "@" in address.netloc:  # first, as the other message quotes the url
                raise ValueError(
                    "a url with a user or password would be seen by all; a site's service may have a key_file"
                )
            if self.key_file and not re.fullmatch(r"[\w-][\w.-]*", self.key_file):
                raise ValueError(f"key_file is the name of a file in {KEYS} on the nodes, not {self.key_file!r}")
            odd = address.query or address.fragment or address.port == 0
            if address.scheme not in ("http", "https") or not address.hostname or odd:
                raise ValueError(f"the openai engine needs a url such as http://host:8000/v1, not {self.url!r}")
            if self.parallel < 1 or self.retries < 0:
                raise ValueError("parallel must be 1 or more, and retries 0 or more")
            if self.system and not self.chat:
                raise ValueError("a system message needs chat")

    @staticmethod
    def check_generate(generate: Mapping[str, Any], folder: Path | None = None) -> None:
        """Raise UnknownOption or WrongOption for an option that no request could be sent with."""
        api_options(generate)
        if generate.get("temperature") and "do_sample" not in generate:
            raise WrongOption("temperature", "has no effect without do_sample: true; add that, or leave it out")

    def __init__(self, template: Template, options: Options):
        if options.key_file and template.service is None:
            raise TemplateError(NOT_A_SITES)
        self.options = options
        self.url = options.url.rstrip("/")
        self.model = options.model or template.model
        self.batch = options.parallel
        self.window = 16 * options.parallel
        self.key = ""
        self.resume = 0.0  # when the service may be asked again, by the monotonic clock

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
            # No limit to connections: `parallel` is one, and a request that is cancelled while it waits for the
            # pool leaves it a connection that nobody can use (encode/httpcore#1093).
            limits=self.httpx.Limits(max_connections=None, max_keepalive_connections=self.options.parallel),
        )
        # Requests live in a thread, the only one: the front's signal then meets a main thread that only waits, and
        # can cancel them where they are.
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._become_ready(), self.loop).result()

    def plan(self, records: Sequence[Record]) -> list[list[Record]]:
        """Calls in which all requests are under way at once: the time a call takes is then each record's own."""
        return [list(records[i : i + self.batch]) for i in range(0, len(records), self.batch)]

    def call(self, records: Sequence[Record]) -> list[Completion]:
        outcomes = [asyncio.run_coroutine_threadsafe(self._outcome(record), self.loop) for record in records]
        try:
            wait(outcomes)
        except Exception as interrupt:  # their time is over; those that have their answer by now keep it
            late = Completion.failed(interrupt)
            return [late if outcome.cancel() else outcome.result() for outcome in outcomes]
        return [outcome.result() for outcome in outcomes]

    def describe(self) -> dict[str, Any]:
        return {}

    async def _become_ready(self) -> None:
        """Wait until the service names the model; TemplateError when it refuses us, or time is up."""
        until = time.monotonic() + self.options.ready_seconds
        for attempt in count():
            left = until - time.monotonic()
            try:
                response = await self._ask("GET", "models", max(1.0, min(left, self.options.request_seconds)))
                if response.status_code in (401, 403):
                    whom = f"the key in {KEYS / self.options.key_file}" if self.key else "us, without a key_file"
                    raise TemplateError(f"{self.url} refuses {whom}: {self._said(response)}")
                if not (answer := self._lacks(response)):
                    return
            except NoAnswer as error:
                answer = str(error)
            pause = min(backoff(attempt), READY_PAUSE)
            if time.monotonic() + pause >= until:
                budget = f"{self.options.ready_seconds:g} s (ready_seconds)"
                raise TemplateError(f"{self.url} was not ready within {budget}; its last answer: {answer}")
            await asyncio.sleep(pause)

    def _lacks(self, response: Any) -> str:
        """What is wrong with an answer about the service's models; nothing if ours is among them."""
        if not response.is_success:
            return self._said(response)
        try:
            names = [str(model["id"]) for model in response.json()["data"]]
        except (ValueError, KeyError, TypeError):
            return f"{response.status_code}, and no list of models"
        return "" if self.model in names else f"no model {self.model}, but {', '.join(names[:20]) or 'none'}"

    async def _outcome(self, record: Record) -> Completion:
        try:
            return await self._serve(record)
        except Exception as error:  # this record's alone: raised, it would have the others paid for again
            return Completion.failed(error)

    async def _serve(self, record: Record) -> Completion:
        """Ask until there is an answer that is worth having, or the retries are spent."""
        path, body = self._request(record)
        answer, pause = "", 0.0
        for attempt in range(1 + self.options.retries):
            await self._rest(pause)
            try:
                response = await self._ask("POST", path, self.options.request_seconds, json=body)
            except NoAnswer as error:
                answer, pause = str(error), backoff(attempt)
                continue
            if response.is_success:
                return self._completion(response)
            answer = self._said(response)
            if response.status_code not in RETRIED and response.status_code < 500:
                raise Refused(answer)
            wished = retry_after(response.headers.get("Retry-After", ""), time.time())
            pause = backoff(attempt, wished)
            if response.status_code == 429:  # the others wait as after a first refusal: they have not had this one's
                self.resume = max(self.resume, time.monotonic() + backoff(0, wished))
        raise NoAnswer(f"{1 + self.options.retries} tries; the last: {answer}")

    async def _rest(self, pause: float) -> None:
        """Let a request's own pause pass, and the one that the service has asked of all.

        Up to twice as long, so that requests which failed together do not come back together.
        """
        while (left := max(pause, self.resume - time.monotonic())) > 0:
            await asyncio.sleep(left * random.uniform(1, 2))
            pause = 0.0

    async def _ask(self, method: str, path: str, seconds: float, **content: Any) -> Any:
        """The service's response, whatever it is; NoAnswer when there is none within so many seconds."""
        # By the clock, and not by httpx's timeouts, which a service that trickles never reaches.
        try:
            return await asyncio.wait_for(self.client.request(method, path, **content), seconds)
        except asyncio.TimeoutError:
            raise NoAnswer(f"nothing within {seconds:.3g} s") from None
        except self.httpx.HTTPError as error:
            raise NoAnswer(f"{type(error).__name__} {error}".rstrip()) from None

    def _request(self, record: Record) -> tuple[str, dict[str, Any]]:
        body = {"model": self.model, **api_options(record.generate)}
        if not self.options.chat:
            return "completions", {**body, "prompt": record.prompt}
        messages = [{"role": "user", "content": record.prompt}]
        if self.options.system:
            messages.insert(0, {"role": "system", "content": self.options.system})
        return "chat/completions", {**body, "messages": messages}

    def _completion(self, response: Any) -> Completion:
        try:
            answer = response.json()
            choice = answer["choices"][0]
            text = (choice["message"]["content"] if self.options.chat else choice["text"]) or ""
            tokens = (answer.get("usage") or {}).get("completion_tokens") or 0
        except (ValueError, LookupError, TypeError, AttributeError):
            raise BadAnswer(self._said(response)) from None
        if not isinstance(text, str) or not isinstance(tokens, int):
            raise BadAnswer(self._said(response))
        return Completion(text, tokens)

    def _said(self, response: Any) -> str:
        """An answer's status and the service's words for it, in a line without the key, which some services repeat."""
        words = response.text
        with suppress(ValueError, LookupError, TypeError, AttributeError):
            error = response.json()
            error = error.get("error", error)
            words = error if isinstance(error, str) else error["message"]
        words = " ".join(str(words).split())
        words = words.replace(self.key, "[key]") if self.key else words
        return f"{response.status_code} {words[:500]}".rstrip()


def read_key(path: Path) -> str:
    """The API key in a file; TemplateError, which never quotes it, when others may read it or there is none."""
    try:
        with path.expanduser().open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            key = file.read().strip()
    except (OSError, RuntimeError) as error:  # RuntimeError: a ~ whose home is not known
        raise TemplateError(f"key_file {path}: {getattr(error, 'strerror', None) or error}") from None
    if mode & 0o077:
        raise TemplateError(f"key_file {path} is open to others than its owner (mode {mode:o}); chmod it to 600")
    if not re.fullmatch(rb"[!-~]+", key):  # here: the HTTP library would quote what it cannot send
        raise TemplateError(f"key_file {path} does not hold a key: one line of ASCII without spaces")
    return key.decode("ascii")


def api_options(generate: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of `generate` as the API names them.

    Without `do_sample: true` the temperature is 0: text is greedy, as on every engine. With it, what is not given is
    left to the service.

    Raises:
        UnknownOption: the API can't express an option.
    """
    asked = {name: value for name, value in generate.items() if name != "do_sample"}
    for name in asked:
        if name not in API_NAMES:
            raise UnknownOption(name, f"not in this API, which has do_sample, {', '.join(API_NAMES)}")
    if {"stop", "stop_strings"} <= asked.keys():
        raise WrongOption("stop_strings", "stop and stop_strings are one option in this API; give one of them")
    options = {API_NAMES[name]: value for name, value in asked.items()}
    return options if generate.get("do_sample") else {**options, "temperature": 0}


def backoff(attempt: int, wished: float = 0.0) -> float:
    """Seconds from a failed try to the next, no fewer than the service wished, within reason."""
    return min(max(FIRST_PAUSE * 2 ** min(attempt, 16), wished), LONGEST_PAUSE)


def retry_after(value: str, now: float) -> float:
    """A Retry-After header as seconds from `now`: it has seconds, or a date (RFC 9110, 10.2.3); 0 if neither."""
    with suppress(ValueError):
        return float(value)
    with suppress(ValueError, OverflowError):
        return parsedate_to_datetime(value).timestamp() - now
    return 0.0
