"""The openai engine. It sends records to a model that runs elsewhere, behind an OpenAI-compatible endpoint.

No model is on the node, so loading only waits until the service is ready. The engine limits the number of requests in
flight, and pauses all requests if the service asks for a pause. The package `openai` cannot pause all requests, because
it retries each request separately.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from glide.errors import TemplateError
from glide.server.engines import openai_api as api
from glide.server.engines.base import EngineRecord, Reports
from glide.server.engines.http_client import HttpClient, NoResponse
from glide.server.engines.request_queue import RequestQueue, Target
from glide.server.engines.responses import backoff, lists_model, summary
from glide.template import Template
from glide.vocabulary import State

READY_PAUSE = 10.0  # maximum seconds between two checks whether the service is ready
KEYS = Path("~/.glide/keys")  # folder with the API keys, in the home folder of the account that runs the glideins
KEY_FILE_REFUSED = (
    "key_file is for the `service` of a site's entry, because a sweep with a key_file could send any key to any url"
)


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
        self.queue: RequestQueue | None = None

    def prepare(self) -> None:
        """Do nothing, because this engine needs no packages."""

    def load(self, folder: str | None, phase: Callable[[str], None]) -> None:
        phase(State.LOADING)
        self.key = read_key(KEYS / self.options.key_file) if self.options.key_file else ""
        self.http = HttpClient(self.url, self.key)
        self._wait_until_ready()

    def submit(self, records: Sequence[EngineRecord], reports: Reports) -> None:
        if self.queue is None:
            options = self.options
            self.queue = RequestQueue(
                Target(
                    self.http, self.model, options.chat, options.system, options.parallel, prompts=1,
                    most=options.parallel, seconds=options.request_seconds, retries=options.retries,
                ),
                reports,
            )  # fmt: skip
        self.queue.submit(records)

    def cancel(self, late: Sequence[int], unwanted: Sequence[int]) -> None:
        if self.queue is not None:
            self.queue.cancel(late, unwanted)

    def describe(self) -> dict[str, Any]:
        return {}

    def _wait_until_ready(self) -> None:
        """Wait until the service lists the model.

        Raises:
            TemplateError: the service denies access, or has not listed the model within `ready_seconds`.
        """
        until = time.monotonic() + self.options.ready_seconds
        for attempt in count():
            left = until - time.monotonic()
            try:
                response = self.http.send("GET", "models", max(1.0, min(left, self.options.request_seconds)))
                if response.status in (401, 403):
                    whom = f"the key in {KEYS / self.options.key_file}" if self.key else "requests without a key"
                    raise TemplateError(f"{self.url} refuses {whom}: {summary(response)}")
                if not (answer := lists_model(response, self.model)):
                    return
            except NoResponse as error:
                answer = str(error)
            pause = min(backoff(attempt), READY_PAUSE)
            if time.monotonic() + pause >= until:
                budget = f"{self.options.ready_seconds:g} s (ready_seconds)"
                raise TemplateError(f"{self.url} was not ready within {budget}; its last answer: {answer}")
            time.sleep(pause)


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
