"""`glide serve` in a thread, with real model servers but without HTCondor: standing jobs start as a starter does it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai

from glide.live.identity import LiveIdentity
from glide.live.jobs import PoolState, QueuedJob
from glide.serve.models import Catalogue, OfferedModel
from glide.serve.run import ServeSettings, serve
from glide.serve.users import TokenFile
from glide.template import Template
from glide.vocabulary import ID_VARIABLE, SOCKET_VARIABLE, Job, State
from glide.web.guard import listen
from tests.conftest import eventually
from tests.server_rig import TICKET, Server

ADA, BOB = "ada-token", "bob-token"


class StandingCall:
    """The process of a standing job on a model server."""

    def __init__(self, server: Server, template: Template, name: str, line: str, glidein: str):
        self.name = name
        self.template = template.digest
        self.glidein = glidein
        self.input = server.folder / f"{name}.in"
        self.input.write_text(line)
        ad = server.folder / f"{name}.ad"
        ad.write_text(f'User = "{template.owner}"\n{Job.TEMPLATE} = "{template.digest}"\n{Job.STANDING} = true\n')
        environment = {
            **os.environ, SOCKET_VARIABLE: str(server.door), ID_VARIABLE: glidein, "_CONDOR_JOB_AD": str(ad),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [str(TICKET), self.input.name, f"{name}.out"], env=environment, cwd=server.folder, text=True,
            stderr=subprocess.PIPE,
        )  # fmt: skip

    def end(self) -> tuple[int, str]:
        """Wait for the job's end. Return its exit code and its error output."""
        _, words = self.process.communicate(timeout=60)
        return self.process.returncode, words


class LocalWorker:
    """In place of HTCondor: it starts each standing job on one of the given model servers."""

    def __init__(self, servers: list[Server]):
        self.servers = servers
        self.calls: list[StandingCall] = []
        self.waiting: dict[str, tuple[Template, str, tuple[str, ...]]] = {}

    def glidein(self, server: Server) -> str:
        return f"here-{self.servers.index(server) + 1}.0"

    async def ask(self, method: str, *arguments: Any) -> Any:
        return getattr(self, method)(*arguments)

    def user(self) -> str:
        return "ada@here"

    def collector_address(self) -> str:
        return "<127.0.0.1:9618>"

    def submit(self, template: Template, invitations: dict[str, str], most: int, avoid: tuple[str, ...]) -> None:
        self.waiting |= {name: (template, line, avoid) for name, line in invitations.items()}
        self._match()

    def _match(self) -> None:
        """Start each waiting job on a model server that runs and has no other job."""
        for name, (template, line, avoid) in list(self.waiting.items()):
            busy = {call.glidein for call in self.calls if call.process.poll() is None} | set(avoid)
            for server in self.servers:
                if server.process.poll() is None and server.door.exists() and self.glidein(server) not in busy:
                    self.calls.append(StandingCall(server, template, name, line, self.glidein(server)))
                    del self.waiting[name]
                    break

    def observe(self, digests: list[str]) -> PoolState:
        self._match()
        jobs = [QueuedJob(name, name, template.digest, None, "") for name, (template, _, _) in self.waiting.items()]
        jobs += [
            QueuedJob(call.name, call.name, call.template, 3600.0, "") for call in self.calls
            if call.process.poll() is None
        ]  # fmt: skip
        return PoolState(tuple(jobs), dict.fromkeys(digests, ((State.WARM, ""),)))

    def drivers(self, sources: list[str]) -> dict[str, tuple[str, str]]:
        return {}

    def remove(self, ids: list[str], reason: str) -> None:
        for name in ids:
            self.waiting.pop(name, None)
            for call in self.calls:
                if call.name == name:
                    call.process.kill()

    def stop(self) -> None:
        for call in self.calls:
            call.process.kill()
            call.process.wait()
            if call.process.stderr is not None:
                call.process.stderr.close()


class Serving:
    """A running `glide serve`."""

    def __init__(self, folder: Path, models: list[OfferedModel], worker: LocalWorker, port: int = 0, **settings: Any):
        self.folder = folder
        self.models = models
        self.worker = worker
        folder.mkdir(mode=0o700, exist_ok=True)
        tokens = folder / "tokens"
        tokens.write_text(f"{ADA} ada\n{BOB} bob\n")
        tokens.chmod(0o600)
        self.listening = listen("127.0.0.1", port)
        self.port = self.listening.getsockname()[1]
        catalogue = Catalogue({model.name: model for model in models})
        self.identity = LiveIdentity.load(folder)
        main = serve(
            ServeSettings(folder, self.listening, None, **settings), catalogue, TokenFile(tokens), self.identity, worker  # type: ignore[arg-type]
        )  # fmt: skip
        self.main = main
        self.task: asyncio.Task[None] | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        async def run() -> None:
            self.loop, self.task = asyncio.get_running_loop(), asyncio.current_task()
            await self.main

        with suppress(asyncio.CancelledError):
            asyncio.run(run())

    def client(self, token: str = ADA, **options: Any) -> openai.OpenAI:
        """A client of the real package, which does not try again by itself."""
        base = f"http://127.0.0.1:{self.port}/v1"
        return openai.OpenAI(base_url=base, api_key=token, **{"max_retries": 0, "timeout": 60, **options})

    def stop(self) -> None:
        if self.thread.is_alive() and self.task is not None:
            self.loop.call_soon_threadsafe(self.task.cancel)
            self.thread.join(30)
        self.listening.close()


def offered(
    name: str = "echo", glideins: int = 2, idle_seconds: float | None = None, **options: Any
) -> OfferedModel:  # fmt: skip
    """A model of the noop engine."""
    template = Template(name, "noop", options=options)
    return OfferedModel(name, template, glideins, idle_seconds, Path("/nowhere"), "", None)


def metrics(running: Serving) -> str:
    return running.client().with_options().get(f"http://127.0.0.1:{running.port}/metrics", cast_to=str)


def ask(client: openai.OpenAI, text: str, model: str = "echo", **options: Any) -> str:
    """The answer to a chat with one message."""
    answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **options)
    return str(answer.choices[0].message.content)


def at_once(function: Callable[[int], Any], count: int) -> list[Any]:
    """Call a function in several threads at the same time, and return its results, or the errors."""
    results: list[Any] = [None] * count

    def run(number: int) -> None:
        try:
            results[number] = function(number)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def ready(serving: Serving, lanes: int = 1) -> Serving:
    """Wait until lanes are connected."""

    def connected() -> bool:
        client = serving.client()
        states = client.get("/glide/status", cast_to=object)["models"].values()  # type: ignore[index]
        return all(state["lanes"] >= lanes for state in states)

    eventually(connected, f"{lanes} connected lanes")
    return serving


def raw(running: Serving, data: bytes, seconds: float = 30.0) -> bytes:
    """Send bytes to the server, and return what it answers until it closes the connection."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=seconds) as connection:
        connection.sendall(data)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
        return answer


def with_body(content: dict[str, Any]) -> bytes:
    """A request with this JSON."""
    body = json.dumps(content).encode()
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer ada-token\r\n"
