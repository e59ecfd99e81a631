"""Start a program, and wait until it serves its model."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glide.errors import TemplateError
from glide.programs import CONTEXT, Command, Program
from glide.server.engines.http_client import HttpClient, NoResponse, Response
from glide.server.engines.responses import lists_model, summary
from glide.server.engines.server import command as commands
from glide.server.engines.server.process import ProgramProcess
from glide.server.engines.server.share import share
from glide.template import Template
from glide.vocabulary import State

MOST_ADAPTERS = 8  # maximum number of LoRA adapters that a program uses in one batch, because each takes GPU memory
TRIES = 3  # maximum number of starts if another program takes the port first
HAS_MODULE = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"
PREFIX = "glide-program-"  # the name of a program's folder begins with this text
LONGEST_FOLDER = 40  # maximum length of the path of the folder in which a program's folder is made, in bytes
LISTENING = "0A"  # state of a listening socket in /proc/net/tcp
PAUSE = 0.1  # seconds between two checks whether the program is ready
ANSWER_SECONDS = 5.0  # time limit of one HTTP request of such a check, in seconds
TOKEN_SECONDS = 86400.0  # time limit of the first request; the supervisor's limit of the phase usually ends it earlier


@dataclass(frozen=True)
class Launch:
    """The program to start, and the values that its start needs.

    Attributes:
        args: further arguments of the program, from the user.
        command: the user's command; empty if the program is one of glide's programs.
        served_name: name of the model in requests; empty if glide chooses it.
        folder: folder of the model's files; None for a program without such files.
        prefix: words that start a command in the template's container; empty without a container.
        python: the Python of the template's environment.
        connections: maximum number of requests in flight.
        limit: number of prompts that the program must compute at the same time.
        compiled: folder for the code that the program compiles.
        adapters: path of each LoRA adapter, by name.
    """

    program: Program
    args: Sequence[str]
    command: str
    served_name: str
    template: Template
    folder: str | None
    prefix: Sequence[str]
    python: str
    connections: int
    limit: int
    compiled: Path
    adapters: Mapping[str, str] = field(default_factory=dict)


@dataclass
class RunningProgram:
    """A program that was started.

    Attributes:
        http: client for the program's API.
        model: name of the model in requests.
        port: port of the program; 0 if it listens at a Unix socket.
    """

    process: ProgramProcess
    http: HttpClient
    model: str
    port: int


class ProgramEnded(Exception):
    """The program has ended while it was starting."""


def launch(plan: Launch, phase: Callable[[str], None]) -> RunningProgram:
    """Start a program, wait until it is ready, and let it generate one token.

    There is no time limit, because the supervisor applies the time limits of the phases.

    Raises:
        TemplateError: the program cannot be started, has ended, or serves no request. The message says why.
    """
    phases = _Phases(phase, plan.program)
    for attempt in range(TRIES):
        running = _start(plan, phases)
        try:
            _wait_until_ready(plan, running)
            break
        except ProgramEnded:
            reason = running.process.end_reason()
            if attempt + 1 == TRIES or not running.process.port_was_taken:
                raise TemplateError(reason) from None
    phases.enter(State.WARMING)
    _generate_one_token(plan.program, running)
    return running


def _start(plan: Launch, phases: _Phases) -> RunningProgram:
    """Start a program. Its socket and its temporary files are in a folder that only this account can read."""
    program = plan.program
    work = work_folder()
    with suppress(OSError):  # for example, the disk is full: then the program reports this
        plan.compiled.mkdir(parents=True, exist_ok=True, mode=0o700)
    unix_socket = None if _uses_port(plan) else str(work / "api.sock")
    key, port = secrets.token_hex(16), _free_port()
    values = _values(plan, work, unix_socket, key, port)
    model = plan.served_name or program.model.format_map(values)
    if program.config:
        (work / "config.yaml").touch(0o600)
        (work / "config.yaml").write_text(program.config.format_map(values), "utf-8")
    # The PATH begins with the folder of the environment's Python, because its other commands are there, too.
    before = [str(Path(plan.python).parent)] if "/" in plan.python else []
    path = os.pathsep.join([*before, os.environ.get("PATH", os.defpath)])
    outer = {**os.environ, "TMPDIR": str(work), "PATH": path}
    outer.pop("PYTHONPATH", None)  # it names glide's code
    if not os.access(outer.get("HOME", ""), os.W_OK):
        outer["HOME"] = str(work)

    def exists(command: Command) -> bool:
        name = command.words[0].format_map(values)
        if command.module:
            test = [*plan.prefix, plan.python, "-c", HAS_MODULE, command.module]
        elif plan.prefix:
            test = [*plan.prefix, "sh", "-c", 'command -v "$1"', "sh", name]
        else:
            return shutil.which(name, path=path) is not None
        done = subprocess.run(test, env=outer, stdin=subprocess.DEVNULL, capture_output=True)
        return done.returncode == 0

    line = commands.command_line(program, plan.args, values, unix_socket is not None, exists, plan.adapters)
    variables = commands.variables(program, plan.args, values, outer)
    try:
        # Mount the program's folder into the container, because the container may not see the node's /tmp.
        prefix = [*plan.prefix[:-1], "--bind", str(work), *plan.prefix[-1:]] if plan.prefix else []
        process = ProgramProcess(program.name, [*prefix, *line], variables, phases.read, str(work))
    except OSError as error:
        raise TemplateError(f"{line[0]} cannot be started: {error.strerror}") from None
    return RunningProgram(
        process, HttpClient(f"http://127.0.0.1:{port}/v1", key, unix_socket, is_local=True), model,
        0 if unix_socket else port,
    )  # fmt: skip


def work_folder() -> Path:
    """Make a folder for a program's socket and temporary files. Delete the folders that earlier engines have left.

    Programs put Unix sockets with long names into the folder, and the path of a socket must be short (unix(7)). So if
    the path of this process's folder is too long, the new folder is in /tmp.
    """
    here = Path.cwd()
    place = here if len(os.fsencode(here)) <= LONGEST_FOLDER else Path("/tmp")
    for old in place.glob(f"{PREFIX}*"):
        status = old.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            continue
        with suppress(OSError), (old / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while the engine of the folder runs
            shutil.rmtree(old, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix="new-", dir=place))
    descriptor = os.open(new / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # this process holds the lock until it ends
    # Only now, other engines may find the folder and look for its lock.
    return new.rename(place / f"{PREFIX}{new.name.removeprefix('new-')}")


def _uses_port(plan: Launch) -> bool:
    """Return whether the program must listen at a port, because it cannot listen at a Unix socket."""
    return "{socket}" not in plan.command if plan.command else plan.program.socket_arguments is None


def _values(plan: Launch, work: Path, unix_socket: str | None, key: str, port: int) -> dict[str, str]:
    """Return the values of the placeholders in a program's description."""
    own = share()
    return {
        "path": plan.folder or "", "file": commands.model_file(plan.folder), "model": plan.template.model,
        "port": str(port), "socket": unix_socket or "", "cpus": str(own.cpus), "python": plan.python, "key": key,
        "address": unix_socket or "127.0.0.1", "config": str(work / "config.yaml"), "sequences": str(plan.limit),
        "context": str(CONTEXT * plan.limit),
        "here": str(Path(__file__).resolve().parents[3] / "programs"), "cache": str(plan.compiled),
        "connections": str(plan.connections + 4),
        "kv_gib": str(commands.spare_gib(own.memory, plan.template.megabytes)),
        "rank": str(commands.largest_rank(plan.adapters)), "adapters": str(min(len(plan.adapters), MOST_ADAPTERS)),
        "cores": commands.core_numbers(os.sched_getaffinity(0), own.cpus),
    }  # fmt: skip


def _wait_until_ready(plan: Launch, running: RunningProgram) -> None:
    """Wait until a program is ready and lists its model. Raise ProgramEnded if the program has ended."""
    while _problem(plan, running):
        if running.process.has_ended:
            raise ProgramEnded
        time.sleep(PAUSE)


def _problem(plan: Launch, running: RunningProgram) -> str:
    """Return why a program is not ready yet; an empty text if it is ready."""
    if running.port and not is_own_listener(running.port):
        return "the program does not listen yet"
    try:
        if plan.program.ready:
            answer = running.http.send("GET", plan.program.ready, ANSWER_SECONDS)
            if not answer.is_success:
                return summary(answer)
        if not plan.program.lists_models:
            return ""
        answer = running.http.send("GET", "models", ANSWER_SECONDS)
        problem = lists_model(answer, running.model)
        if problem and plan.command and not plan.served_name and (only := _only_model(answer)):
            running.model = only
            return ""
        return problem
    except NoResponse as error:
        return str(error)


def _generate_one_token(program: Program, running: RunningProgram) -> None:
    """Let a program generate one token. A program can be ready, but unable to serve.

    Raises:
        TemplateError: the program refused all kinds of requests, or ended.
    """
    message = {"role": "user", "content": "Hello"}
    common = {"model": running.model, "max_tokens": 1, "temperature": 0}
    trials: list[tuple[str, dict[str, Any]]] = [
        ("completions", {**common, "prompt": "Hello"}), ("chat/completions", {**common, "messages": [message]}),
        ("embeddings", {"model": running.model, "input": "Hello"}),
    ]  # fmt: skip
    answers = []
    for path, body in trials:
        try:
            answer = running.http.send("POST", path, TOKEN_SECONDS, body)
        except NoResponse as error:
            time.sleep(PAUSE)
            ended = running.process.end_reason() if running.process.has_ended else f"no answer: {error}"
            raise TemplateError(f"the first request failed: {ended}") from None
        if answer.is_success:
            return
        answers.append(f"/v1/{path}: {summary(answer)}")
    raise TemplateError(f"{program.name} is ready, but serves no request: {'; '.join(answers)[:600]}")


def ask_limit(running: RunningProgram, program: Program) -> int | None:
    """Ask a program how many prompts it computes at the same time. Return None if it does not report this number."""
    if not program.limit_path:
        return None
    with suppress(NoResponse, ValueError, LookupError, TypeError):
        value: Any = running.http.send("GET", program.limit_path, ANSWER_SECONDS).json()
        for key in program.limit_keys:
            value = value[key]
        return max(1, min(int(value), commands.LARGEST_LIMIT))
    return None


class _Phases:
    """Reports the phases of a program's start. Loading begins with the program, or with a line of its output."""

    def __init__(self, phase: Callable[[str], None], program: Program):
        self._phase = phase
        self._program = program
        self._lock = threading.Lock()
        self._entered = [State.IMPORTING]
        if not program.loading:
            self.enter(State.LOADING)

    def enter(self, state: str) -> None:
        """Report a phase, unless this phase or a later one was already reported."""
        order = (State.IMPORTING, State.LOADING, State.WARMING)
        with self._lock:
            if order.index(state) > order.index(self._entered[-1]):
                if state == State.WARMING and self._entered[-1] == State.IMPORTING:
                    self._phase(State.LOADING)
                self._entered.append(state)
                self._phase(state)

    def read(self, line: str) -> None:
        """Report the phase that begins with a line of output, if any."""
        if self._program.loading and re.search(self._program.loading, line):
            self.enter(State.LOADING)
        if self._program.warming and re.search(self._program.warming, line) and State.LOADING in self._entered:
            self.enter(State.WARMING)


def is_own_listener(port: int) -> bool:
    """Return whether a process of this account listens at a port of this node.

    Another account could listen there first, to get the API key and the prompts, and to forge answers.
    """
    tables = [Path(f"/proc/net/{name}") for name in ("tcp", "tcp6")]
    owners = [owner for table in tables if table.exists() for owner in listeners(table.read_text("ascii"), port)]
    return bool(owners) and set(owners) == {os.geteuid()}


def listeners(table: str, port: int) -> list[int]:
    """Return the accounts whose processes listen at a port, as numbers.

    Args:
        table: content of /proc/net/tcp or /proc/net/tcp6.
    """
    found = []
    for line in table.splitlines()[1:]:
        _, local, _, state, _, _, _, owner, *_ = line.split()
        if state == LISTENING and int(local.rpartition(":")[2], 16) == port:
            found.append(int(owner))
    return found


def _only_model(answer: Response) -> str:
    """Return the name of the model that /v1/models lists. If it lists none or several, return an empty text."""
    with suppress(ValueError, LookupError, TypeError):
        (only,) = answer.json()["data"]
        return str(only["id"])
    return ""


def _free_port() -> int:
    """Return a port that no program uses. Another program can take it before the caller uses it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
