"""The engine `server`. It starts a program, waits until the program is ready, and sends records to the program."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from glide.errors import TemplateError
from glide.programs import COMMAND, LARGE_GPU, PROGRAMS, Command, Program, check_command, flags
from glide.server.engines import openai_api as api
from glide.server.engines.base import EngineRecord, Reports
from glide.server.engines.http_client import NoResponse
from glide.server.engines.request_queue import RequestQueue, Target
from glide.server.engines.responses import summary
from glide.server.engines.server import command as commands
from glide.server.engines.server.launch import Launch, ask_limit, launch
from glide.server.engines.server.process import log_line
from glide.server.engines.server.share import tree_megabytes
from glide.server.gpus import gpu_megabytes, wait_until_free
from glide.template import Template

SPARE_FILES = 256  # number of files that this process opens besides its connections
SLOW_SECONDS = 60.0  # if a request takes longer than this, waiting in the program's queue could exceed its timeout
METRICS_SECONDS = 2.0  # seconds between two readings of the program's counters, and time limit of a reading
LONGEST_REQUEST = 86400.0  # time limit of a request in seconds; the record's timeout usually ends it earlier
SLEEP_SECONDS = 120.0  # time limit of a request that lets the program sleep or wake up
RETRIES = 3  # maximum number of times that a request is repeated after the program reported an internal error
END_SECONDS = 5.0  # after a connection broke, wait this number of seconds for the program's end


class Server:
    """The engine `server`. It starts a program that serves the model, and keeps `batch` prompts in flight."""

    @dataclass(frozen=True)
    class Options:
        """
        program: program that serves the model: `vllm`, `sglang`, `llamacpp` (llama-server, or the Python package
            xllamacpp) or `transformers` (transformers serve). The environment must contain it.
        args: further arguments of the program, as a list of texts. Each program has a list of flags that only set
            numbers or choose from names. With other flags, only your own jobs can use the loaded model.
        command: command that serves the model, in place of `program`. It may contain {path} (the model's folder),
            {file} (its GGUF file), {model} (its name), {port} or {socket} (where it must listen), {cpus} and {python}.
            No shell runs the command. Only your own jobs can use the loaded model.
        chat: if true, send a prompt as the user's message to /chat/completions. If false, send it to /completions.
        system: system message that is sent before the user's message. This option needs `chat`.
        parallel: maximum number of prompts in flight at the same time. With 0, this is at least twice the number that
            the program computes at the same time. So prompts always wait in the program, and it is never idle.
        served_name: name of the model in requests. By default the name under which glide starts the program.
        hang_seconds: if the program has requests, but generates no token for this number of seconds, glide kills it and
            starts it again. If the program reports no counters, glide waits until a record has exceeded its timeout. If
            the program then gives no answer for this number of seconds, glide kills it.
        """

        __pydantic_config__ = {"coerce_numbers_to_str": True}  # noqa: RUF012 - numbers in `args` need no quotes

        program: Literal["", "vllm", "sglang", "llamacpp", "transformers"] = ""
        args: tuple[str, ...] = ()
        command: str = ""
        chat: bool = False
        system: str = ""
        parallel: int = 0
        served_name: str = ""
        hang_seconds: float = 300.0

        def __post_init__(self) -> None:
            if bool(self.program) == bool(self.command):
                raise ValueError("the server engine needs either a program or a command")
            if self.program and self.program not in PROGRAMS:
                raise ValueError(f"unknown program {self.program!r:.40}; use {', '.join(PROGRAMS)}, or a command")
            if self.command:
                check_command(self.command)
                if self.args:
                    raise ValueError("args are only for a program; write all arguments of a command into the command")
            elif own := sorted(set(flags(self.args)) & set(PROGRAMS[self.program].own_flags)):
                raise ValueError(f"glide itself sets {own[0]}; remove it from args")
            if not 0 <= self.parallel <= commands.LARGEST_LIMIT:
                raise ValueError(f"parallel must be a number from 0 to {commands.LARGEST_LIMIT}")
            if not self.hang_seconds > 0:
                raise ValueError("hang_seconds must be above 0")
            if self.system and not self.chat:
                raise ValueError("a system message needs chat: true")

    @staticmethod
    def check_generate(generate: Mapping[str, Any], folder: Path | None = None) -> None:
        """Check options of `generate`, as described in `Loadable`. The argument `folder` is not used."""
        api.options(generate, chat=True)

    def __init__(
        self,
        template: Template,
        options: Options,
        prefix: Sequence[str] = (),
        python: str = sys.executable,
        compiled: Path = Path("compiled"),
    ):
        """Create the engine.

        Args:
            prefix: words that start a command in the template's container; empty without a container.
            python: the Python of the template's environment.
            compiled: folder for code that programs compile for a model and a GPU.
        """
        self.template = template
        self.options = options
        self.prefix = list(prefix)
        self.python = python
        self.compiled = compiled.absolute()
        self.program = self._chosen_program()
        self.limit = commands.limit(self.program, options.args) or self.program.limit
        self.adapters: Mapping[str, str] = {}  # folders of the LoRA adapters
        self.queue: RequestQueue | None = None
        self.megabytes = 0.0
        self.gpu = ""
        self.counters: dict[str, float] = {}

    def _chosen_program(self) -> Program:
        if self.options.program:
            return PROGRAMS[self.options.program]
        return replace(COMMAND, commands=(Command(tuple(check_command(self.options.command))),))

    @property
    def batch(self) -> int:
        """Number of prompts in flight.

        While a list of prompts ends, its last prompts leave places free in the program. So further lists must wait.
        """
        wanted = max(2 * self.limit, self.limit + 2 * self.program.prompts)
        return self.options.parallel or min(wanted, commands.LARGEST_LIMIT)

    @property
    def window(self) -> int:
        return 16 * self.batch

    def use_adapters(self, folders: Mapping[str, str]) -> None:
        if self.program.adapters is None:
            raise TemplateError(f"{self.program.name} cannot use adapters")
        self.adapters = commands.link_adapters(
            folders, self.program.needs_file, Path.cwd() / f"adapters-{self.template.digest[:16]}"
        )

    def prepare(self) -> None:
        """Do nothing, because the program imports its packages itself."""

    def load(self, folder: str | None, phase: Callable[[str], None]) -> None:
        if self.program.needs_file:
            commands.check_model_file(folder)
        found = wait_until_free()
        before = sum(gpu.used for gpu in found)
        self.gpu = found[0].name if found else ""
        if found:  # HTCondor shortens the UUIDs, and some programs accept only whole ones
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.identifier for gpu in found)
        options = self.options
        is_large = min((gpu.total for gpu in found), default=0.0) >= LARGE_GPU
        if is_large and self.program.large_limit and not commands.limit(self.program, options.args):
            self.limit = self.program.large_limit
        _allow_connections(self.batch)
        self.running = launch(
            Launch(
                self.program, options.args, options.command, options.served_name, self.template, folder, self.prefix,
                self.python, self.batch, self.limit,
                self.compiled, self.adapters,
            ),
            phase,
        )  # fmt: skip
        self.limit = ask_limit(self.running, self.program) or self.limit
        used = gpu_megabytes() - before if found else tree_megabytes(os.getpid())
        self.megabytes = used if used > 0 else self.template.megabytes  # the driver may not have answered
        self._read_counters()  # a program that hangs later does not show which counters it has
        threading.Thread(target=self.running.process.end_this_process_with_program, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def can_sleep(self) -> bool:
        mode = self.program.sleep_mode
        return mode is not None and mode.flag in flags(self.options.args) and not self.running.port

    def sleep(self) -> float | None:
        assert self.program.sleep_mode is not None
        return self._post(self.program.sleep_mode.sleep)

    def wake(self) -> float | None:
        assert self.program.sleep_mode is not None
        return self._post(self.program.sleep_mode.wake)

    def _post(self, path: str) -> float | None:
        """Send an empty request. Return the memory that the program then uses in MB, or None if the request failed.

        Other programs may use the same GPUs. So the result is the memory before the request, and its change.
        """
        before = gpu_megabytes()
        try:
            answer = self.running.http.send("POST", path, SLEEP_SECONDS)
        except NoResponse as error:
            log_line(f"{self.program.name}: no answer to {path}: {error}")
            return None
        if not answer.is_success:
            log_line(f"{self.program.name}: {path}: {summary(answer)}")
            return None
        changed = self.megabytes + gpu_megabytes() - before
        self.megabytes = max(0.0, changed) if self.gpu else tree_megabytes(os.getpid())
        return self.megabytes

    # ---- records ---------------------------------------------------------------------------------

    def submit(self, records: Sequence[EngineRecord], reports: Reports) -> None:
        if self.queue is None:
            target = Target(
                self.running.http, self.running.model, self.options.chat, self.options.system, parallel=self.batch,
                prompts=min(self.program.prompts, self.batch), most=self.batch, seconds=LONGEST_REQUEST,
                retries=RETRIES, token_ids=self.program.token_ids, adapter_fields=self._adapter_fields(),
                adapter_embeds=self.program.adapters is not None and self.program.adapters.embeds,
            )  # fmt: skip
            self.queue = RequestQueue(target, reports, self._wait_for_end)
        self.queue.submit(records)

    def cancel(self, late: Sequence[int], unwanted: Sequence[int]) -> None:
        if self.queue is not None:
            self.queue.cancel(late, unwanted)

    def describe(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "megabytes": self.megabytes, "batching": self.program.name, "adapters": list(self.adapters),
        }  # fmt: skip
        if self.gpu:
            facts["gpu"] = self.gpu
        asked = sum(self.counters.get(name, 0.0) for name in self.program.queries_metrics)
        if asked > 0:
            facts["prefix_hits"] = min(1.0, self.counters.get(self.program.hits_metric, 0.0) / asked)
        return facts

    def _adapter_fields(self) -> dict[str, dict[str, Any]]:
        form = self.program.adapters
        if form is None or not self.adapters:
            return {}
        fields = {name: form.fields(name, number) for number, name in enumerate(self.adapters)}
        return {name: {**form.always, **own} for name, own in {"": {}, **fields}.items()}

    def _wait_for_end(self) -> None:
        """Wait for some seconds. If the program has ended, this process ends, too, and no record gets an error."""
        with suppress(subprocess.TimeoutExpired):
            self.running.process.process.wait(END_SECONDS)
            time.sleep(LONGEST_REQUEST)  # another thread is ending this process

    def _watch(self) -> None:
        """Read the program's counters, and adapt the number of prompts in flight.

        If the program hangs, end this process.
        """
        last: object = None
        since = time.monotonic()
        while True:
            time.sleep(METRICS_SECONDS)
            queue = self.queue
            if queue is None or not queue.in_flight:
                since = time.monotonic()
                continue
            self._read_counters()
            progress = [self.counters.get(name) for name in self.program.progress_metrics]
            counts = any(value is not None for value in progress)
            waiting = int(self.counters.get(self.program.waiting_metric, 0.0))
            if waiting and queue.oldest_seconds > SLOW_SECONDS:
                queue.limit_to(commands.fewer_prompts(queue.in_flight, waiting, self.program.prompts))
            # Without counters, a long answer looks like a hang. So wait until a record's timeout is over.
            if (now := (queue.answered, progress)) != last or not (counts or queue.overdue):
                last, since = now, time.monotonic()
            elif time.monotonic() - since > self.options.hang_seconds:
                self._end_hanging_program("generated no token" if counts else "gave no answer")

    def _end_hanging_program(self, what: str) -> None:
        """End this process with a signal, and not with an exit code.

        After an exit code, a record that was alone in its request would get an error immediately. That could be wrong,
        because an earlier record, whose request was cancelled, may have caused the hang. After a signal, the model
        server tries the record once more.
        """
        log_line(f"{self.program.name} {what} for {self.options.hang_seconds:g} s, so glide kills it")
        os.kill(os.getpid(), signal.SIGTERM)  # the keeper then ends the program

    def _read_counters(self) -> None:
        if not self.program.progress_metrics:
            return
        with suppress(NoResponse):
            answer = self.running.http.send("GET", "/metrics", METRICS_SECONDS)
            if answer.is_success:
                self.counters = counters(answer.text)


def _allow_connections(count: int) -> None:
    """Raise this process's limit of open files, if possible, so that it can have this number of connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def counters(text: str) -> dict[str, float]:
    """Return the counters in Prometheus' text format. Counters of one name with different labels are added up."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if matched := re.fullmatch(r"([A-Za-z_:][\w:]*)(?:\{.*\})?\s+([-+.\deE]+)(?:\s+\d+)?", line):
            with suppress(ValueError):
                found[matched[1]] = found.get(matched[1], 0.0) + float(matched[2])
    return found
