"""A model server's process and its client's, as a glidein and a job start them, for the tests of both."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from glide.protocol.json_lines import read_results
from glide.server.settings import ServerSettings
from glide.server.supply import SupplySettings
from glide.sweep import calls
from glide.template import Template
from glide.vocabulary import ID_VARIABLE, SOCKET_VARIABLE, Exit, Job, Machine, State
from tests.conftest import eventually

TICKET = Path(__file__).resolve().parents[1] / "glide" / "invoke" / "ticket.sh"


class Call:
    """A client's process with its records, and what it has written.

    Args:
        attributes: further attributes of the job's ad, as ClassAd text.
        chirp: file with the address of the job's starter; None if nothing is streamed.
    """

    def __init__(
        self,
        server: Server,
        records: list[dict[str, Any]],
        template: str | None,
        attributes: Mapping[str, str] = {},
        chirp: Path | None = None,
    ):
        place = server.folder / f"call-{len(server.calls)}"
        self.out = place.with_suffix(".out")
        place.with_suffix(".in").write_text("".join(json.dumps(record) + "\n" for record in records))
        environment = {**os.environ, SOCKET_VARIABLE: str(server.door), ID_VARIABLE: "here-1.0"}
        user = server.template.owner if server.template else ""
        ad = f'User = "{user}"\n' + (f'{Job.TEMPLATE} = "{template}"\nNumJobStarts = 2\n' if template else "")
        place.with_suffix(".ad").write_text(ad + "".join(f"{name} = {text}\n" for name, text in attributes.items()))
        environment["_CONDOR_JOB_AD"] = str(place.with_suffix(".ad"))
        environment |= {"_CONDOR_CHIRP_CONFIG": str(chirp)} if chirp else {}
        self.process = subprocess.Popen(
            [str(TICKET), place.with_suffix(".in").name, self.out.name],
            env=environment, stderr=subprocess.PIPE, text=True, cwd=server.folder,
        )  # fmt: skip
        server.calls.append(self)

    def end(self) -> tuple[int, str]:
        """The exit code and the last words; a client that hangs fails the test."""
        try:
            _, words = self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            raise AssertionError("the client hangs") from None
        return self.process.returncode, words

    def results(self) -> list[dict[str, Any]]:
        """What a client that has ended well leaves."""
        code, words = self.end()
        assert code == Exit.OK, words
        return self.written()

    def written(self) -> list[dict[str, Any]]:
        """The results in its output, as the driver reads them."""
        return list(read_results(self.out))


class Server:
    """A model server's process for one template, as a glidein starts it."""

    def __init__(
        self,
        folder: Path,
        template: Template | None,
        lanes: int = 1,
        memory: float = 0,
        users_code: bool = True,
        **supply: Any,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.template = template
        self.door = folder / "door"
        self.log = folder / "server.log"
        self.calls: list[Call] = []
        if template is not None:
            (folder / "template.json").write_text(template.to_json())
        (folder / "server.json").write_text(
            ServerSettings(
                SupplySettings(**{"cache": str(folder / "cache"), **supply}),
                lanes,
                memory or None,
                users_code=users_code,
            ).to_json()
        )
        arguments = [folder / "server.json", folder / "template.json", self.door, self.log]
        self.process = subprocess.Popen([sys.executable, "-m", "glide.server", *map(str, arguments)])

    def states(self) -> Iterator[dict[str, Any]]:
        """What it advertises, from the moment there is something to connect to, and until it is gone."""
        eventually(lambda: self.door.exists() or self.process.poll() is not None, "the server's door")
        port, cookie = self.door.read_text().split()
        visit = socket.create_connection(("127.0.0.1", int(port)))
        visit.sendall(f"{cookie}\nwatch\n".encode())
        return _updates(visit)

    def now(self) -> dict[str, Any]:
        return next(self.states())

    def reached(self, state: str) -> dict[str, Any]:
        """Wait for a state; the other end of the road fails the test."""
        for attributes in self.states():
            if attributes[Machine.STATE] == state:
                return attributes
            assert attributes[Machine.STATE] != State.FAILED, attributes
        raise AssertionError(f"the server ended: {self.log.read_text()}")

    def call(
        self,
        records: list[dict[str, Any]],
        template: str | None = None,
        attributes: Mapping[str, str] = {},
        chirp: Path | None = None,
    ) -> Call:
        return Call(self, records, template, attributes, chirp)

    def busy(self) -> None:
        """Wait until it has served something."""
        eventually(lambda: self.now()[Machine.SERVED] > 0, "a record is served")

    @property
    def keeper(self) -> int:
        """The process that ends what the engine starts: the server's only child. Between two engines it has none."""
        (child,) = eventually(lambda: children(self.process.pid), "the engine's keeper")
        return child

    @property
    def engine(self) -> int:
        """The engine's process: its keeper's first child."""
        return eventually(lambda: children(self.keeper), "the engine's process")[0]

    def another_engine(self, than: int) -> int:
        """Wait until an engine has taken the place of a killed one."""
        return eventually(lambda: (engine := self.engine) != than and engine, "another engine")

    def stop(self) -> None:
        for process in (self.process, *(call.process for call in self.calls)):
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()


def _updates(visit: socket.socket) -> Iterator[dict[str, Any]]:
    attributes: dict[str, Any] = {}
    with visit, visit.makefile() as lines, suppress(ConnectionError):
        for line in lines:
            if line.startswith("- lane"):
                yield attributes
                attributes = {}
            else:
                name, value = line.split(" = ", 1)
                attributes[name] = json.loads(value)


def children(process: int) -> list[int]:
    with suppress(OSError):  # it has ended meanwhile
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


def failure(server: Server) -> str:
    """Why a server that must not become warm has failed."""
    for attributes in server.states():
        assert attributes[Machine.STATE] != State.WARM
        if attributes[Machine.STATE] == State.FAILED:
            return attributes[Machine.FAILURE]
    raise AssertionError(f"the server ended: {server.log.read_text()}")


def assert_exactly_once(results: list[dict[str, Any]], sent: list[dict[str, Any]]) -> None:
    times = Counter(result["custom_id"] for result in results)
    assert set(times) == {record["custom_id"] for record in sent}
    assert set(times.values()) <= {1}


def value(result: dict[str, Any]) -> Any:
    """Return what a session's future would return for a result, or raise what it would raise."""
    call = calls.Call({})
    call.set_outcome(result)
    return call.result(0)
