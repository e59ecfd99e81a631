"""What strangers, jobs and disks do to a model server: each costs itself, and nobody else."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from glide.arguments import arguments, environment
from glide.glidein.bundle import PACKAGE
from glide.protocol.request import LINE_BYTES
from glide.server.engine import EngineHandle
from glide.server.job import CALL_BYTES, QUEUE_BYTES, ServedJob, oldest_first
from glide.server.log import trim
from glide.server.model_server import MOST_UNAUTHENTICATED
from glide.server.stream import ResultStream
from glide.server.ticket import LINE_BYTES as VISITOR_BYTES
from glide.server.ticket import JobRequest
from glide.system import tail
from glide.template import Template
from glide.vocabulary import Exit, Machine, State
from tests.conftest import eventually
from tests.server_rig import Server


def connected(server: Server) -> tuple[socket.socket, str]:
    eventually(server.door.exists, "the server's door")
    port, cookie = server.door.read_text("utf-8").split()
    return socket.create_connection(("127.0.0.1", int(port)), timeout=60), cookie


def handed_in(server: Server, source: Path, output: Path, ad: str = "") -> str:
    """What a server answers to a ticket, to its end."""
    visit, cookie = connected(server)
    with visit:
        visit.sendall("".join(f"{word}\n" for word in (cookie, source.parent, source, output, ad, "", "here")).encode())
        return visit.makefile(encoding="utf-8").read()


def descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


# ---- strangers -----------------------------------------------------------------------------------


def test_unauthenticated_connections_are_limited_and_get_no_data(start):
    server = start()
    server.reached(State.WARM)
    before = descriptors(server)
    for said in ("café\nwatch\n".encode(), b"\xff\n\n", b"x" * (2 * VISITOR_BYTES), b"\n" * 100, b"wrong\nwatch\n"):
        visit, _ = connected(server)
        with visit:
            visit.sendall(said)
            with suppress(ConnectionResetError):  # it has not read to the end
                assert visit.recv(1) == b""
    silent = [connected(server)[0] for _ in range(3 * MOST_UNAUTHENTICATED)]
    assert len(server.call([{"custom_id": "a", "prompt": "text"}]).results()) == 1
    eventually(lambda: descriptors(server) <= before + MOST_UNAUTHENTICATED, "the oldest have to go")
    for visit in silent:
        visit.close()
    eventually(lambda: descriptors(server) <= before, "the descriptors are closed")
    assert "Traceback" not in server.log.read_text("utf-8")


# ---- what jobs bring -----------------------------------------------------------------------------

GOOD = b'{"custom_id": "good", "prompt": "text"}\n'
RECORD = '{"custom_id": "a", "prompt": "text", %s}\n'
WRONG_LINES = {
    "no JSON": b"{\n",
    "no object": b"[1]\n",
    "no text": b"\xff\xfe\xfa\n",
    "deep": b"[" * 200_000 + b"\n",
    "huge number": b'{"custom_id": "a", "prompt": "text", "timeout": ' + b"1" * 5000 + b"}\n",
    "name": b'{"custom_id": 1, "prompt": "text"}\n',
    "half a name": b'{"custom_id": "\\ud800", "prompt": "text"}\n',
    "no prompt": b'{"custom_id": "a"}\n',
    "prompt": b'{"custom_id": "a", "prompt": ["text"]}\n',
    "generate": (RECORD % '"generate": [1]').encode(),
    "deep generate": (RECORD % ('"generate": {"a": ' + "[" * 100 + "]" * 100 + "}")).encode(),
    "timeout": (RECORD % '"timeout": -1').encode(),
    "no timeout": (RECORD % '"timeout": NaN').encode(),
    "endless timeout": (RECORD % '"timeout": 1e999').encode(),
    "true timeout": (RECORD % '"timeout": true').encode(),
    "attempts": (RECORD % '"attempts": "x"').encode(),
    "default": b'{"generate": 7}\n' + GOOD.replace(b"good", b"a"),
    "long": b'{"custom_id": "a", "prompt": "' + b"x" * LINE_BYTES + b'"}\n',
}


def test_wrong_input_line_is_reported_with_its_number(start, tmp_path):
    server = start()
    server.reached(State.WARM)
    source, output = tmp_path / "in", tmp_path / "out"
    for name, line in WRONG_LINES.items():
        source.write_bytes(GOOD + b"\n" + line)
        *words, last = handed_in(server, source, output).splitlines()
        assert last == f"exit {Exit.INPUT}", name
        assert f"wrong input: line {4 if name == 'default' else 3}: " in words[0] and len(words[0]) < 1000, name
    source.write_bytes(GOOD)
    assert handed_in(server, source, output) == "exit 0\n"
    assert "Traceback" not in server.log.read_text("utf-8")
    assert server.log.read_text("utf-8").count("Loading") == 1


def test_unusable_job_files_do_not_stop_model_server(start, tmp_path):
    server = start()
    server.reached(State.WARM)
    fifo, output, ad = tmp_path / "fifo", tmp_path / "out", tmp_path / ".job.ad"
    os.mkfifo(fifo)
    (tmp_path / "in").write_bytes(GOOD)
    for source, target in ((fifo, output), (Path("/dev/zero"), output), (tmp_path / "in", fifo), (tmp_path, output)):
        assert handed_in(server, source, target).endswith(f"exit {Exit.SERVER_LOST}\n")
    for lines in ("SlotID = 99\n", "SlotID = -7\n", "SlotID = x\n"):
        (tmp_path / ".machine.ad").write_text(lines, "utf-8")
        answer = handed_in(server, tmp_path / "in", output, str(ad))
        assert answer.startswith("refused: ") and answer.endswith(f"exit {Exit.SERVER_LOST}\n")
    ad.write_bytes(b'GlideSticky = true\nUser = "\xff"\n')
    (tmp_path / ".machine.ad").unlink()
    for source in (fifo, Path("/dev/zero"), tmp_path / "in"):
        assert handed_in(server, source, output, str(ad)).endswith(f"exit {Exit.INPUT}\n")
    assert handed_in(server, tmp_path / "in", output) == "exit 0\n"


def job(source: Path, output: Path) -> ServedJob:
    ticket = JobRequest(source, output, "", "", 0, False, "here", 0, False, "", 0.0, False)
    return ServedJob(ticket, None, results=ResultStream(output, "err", ""))  # type: ignore[arg-type]


def test_bytes_in_queue_and_engine_call_are_limited(tmp_path):
    source = tmp_path / "in"
    with source.open("wb") as file:
        for number in range(100):
            file.write(json.dumps({"custom_id": str(number), "prompt": "x" * 1_000_000}).encode() + b"\n")

    async def served() -> list[str]:
        jobs, work = [job(source, tmp_path / "out")], asyncio.Event()
        serving = asyncio.create_task(jobs[0].serve(work))
        names = []
        while len(names) < 100:
            await asyncio.wait_for(work.wait(), 60)
            assert jobs[0].waiting_bytes < QUEUE_BYTES + 2_000_000
            items = oldest_first(jobs, 1000)
            assert sum(item.size for item in items) < CALL_BYTES + 2_000_000
            names += [item.request.custom_id for item in items]
            jobs[0].unanswered -= len(items)
            work.clear()
            await asyncio.sleep(0)
            jobs[0].answered.set()
        assert await serving == Exit.OK and jobs[0].waiting_bytes == 0
        return names

    assert asyncio.run(served()) == [str(number) for number in range(100)]


# ---- results -------------------------------------------------------------------------------------


class Breaking:
    """An access point's file, whose connection breaks at every seventh append, half-way."""

    def __init__(self) -> None:
        self.content = b""
        self.appends = 0

    async def append(self, name: str, data: bytes) -> None:
        self.appends += 1
        if self.appends % 7 == 0:
            self.content += data[: len(data) // 2]
            raise OSError("the connection is lost")
        self.content += data


def test_result_lines_arrive_complete_despite_broken_connections(tmp_path, monkeypatch):
    monkeypatch.setattr(ResultStream, "PIECE", 1000)
    stream = ResultStream(tmp_path / "out", "err", "chirp")
    texts = ["", "x" * 300, "y" * 5000, "z" * 999] * 5
    point = Breaking()

    async def stream_all() -> None:
        for number, text in enumerate(texts):
            stream.add(json.dumps({"custom_id": str(number), "text": text}).encode() + b"\n")
            stream.begun += 1
            stream.file.flush()
            while stream.reported_begun < stream.begun:
                try:
                    await stream._append(point, stream.written, stream.begun)  # type: ignore[arg-type]
                except OSError:
                    stream.line_break = b"\n"

    asyncio.run(stream_all())
    seen: dict[str, str] = {}
    for line in point.content.split(b"\n"):
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if "custom_id" in content:
            seen[content["custom_id"]] = content["text"]
    assert seen == {str(number): text for number, text in enumerate(texts)}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a job a disk of its own to fill")
def test_full_disk_is_reported_as_node_failure(start, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    server = start()
    server.reached(State.WARM)
    source = tmp_path / "in"
    source.write_bytes(b"".join(GOOD.replace(b"good", str(n).encode()) for n in range(5000)))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        assert handed_in(server, source, disk / "out").endswith(f"exit {Exit.SERVER_LOST}\n")
        reason = failure_after(server)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert "results cannot be written on this node: [Errno 28] No space left on device" in reason


def failure_after(server: Server) -> str:
    return next(ad[Machine.FAILURE] for ad in server.states() if ad[Machine.STATE] == State.FAILED)


# ---- logs ----------------------------------------------------------------------------------------


def test_log_end_stays_readable_after_log_is_trimmed(tmp_path):
    log = tmp_path / "log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"a" * 50)
        trim(log, 100)
        assert log.stat().st_size == 50
        writer.write(b"b" * 100)
        trim(log, 100)
        assert log.stat().st_size == 0
        assert log.with_name("log.old").read_bytes() == b"b" * 100
        writer.write("new words: ü".encode())
    assert tail(log, 100) == "new words: ü"
    assert tail(log, 100, since=4) == "words: ü"
    assert tail(log, 100, since=150) == "new words: ü"
    assert tail(log, 2) == "ü"
    assert tail(tmp_path / "missing", 100) == ""


def test_server_messages_remain_in_truncated_glidein_output(tmp_path):
    """By start.sh itself, with a program in a folder with spaces in place of Python."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    program = folder / "long winded"
    program.write_text(
        f"""#!/bin/sh
        echo "model server: first" >>logs/ModelServerLog
        while [ ! -e "{folder}/heard" ]; do sleep 0.05; done
        yes "engine: some words" | head -c 9000000 >>logs/ModelServerLog
        echo "model server: an engine has died" >>logs/ModelServerLog
        while [ ! -e "{folder}/end" ]; do sleep 0.05; done
        """,
        "utf-8",
    )
    program.chmod(0o700)
    output = folder / "out"
    with output.open("wb") as file:
        process = subprocess.Popen(
            ["sh", PACKAGE / "glidein" / "start.sh"], cwd=folder, stdout=file,
            env={**os.environ, "GLIDE_PYTHON": f"/nowhere/python:{program}"},
        )  # fmt: skip
    try:
        eventually(lambda: b"first" in output.read_bytes(), "the first words")
        (folder / "heard").touch()
        eventually(lambda: b"an engine has died" in output.read_bytes(), "what the server reports")
    finally:
        (folder / "end").touch()
        process.wait(60)
    assert 5_000_000 < output.stat().st_size < 5_001_000
    assert b"log shortened to its first 5000000 bytes" in output.read_bytes()


# ---- clocks and names ----------------------------------------------------------------------------


def test_system_clock_jump_does_not_affect_load_time(start, tmp_path, monkeypatch):
    steps = "import time\nreal, began = time.time, time.monotonic()\n"
    steps += "time.time = lambda: real() + (1e6 if time.monotonic() > began + 0.5 else 0)\n"
    (tmp_path / "sitecustomize.py").write_text(steps, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = start(load_seconds=2.5)
    warm: dict[str, Any] = server.reached(State.WARM)
    assert 2.4 < warm[Machine.LOAD_SECONDS] < 1e5


def test_model_server_works_in_folder_with_special_characters(tmp_path):
    server = Server(tmp_path / 'a node\'s "folder"', Template("m", "noop"))
    try:
        server.reached(State.WARM)
        assert len(server.call([{"custom_id": "a", "prompt": "text"}]).results()) == 1
    finally:
        server.stop()


def test_htcondor_arguments_and_environment_keep_spaces_and_quotes():
    assert arguments(["a", "b c", "it's", 'say "x"', ""]) == "\"a 'b c' 'it''s' 'say \"\"x\"\"' ''\""
    assert environment({"A": "b", "C": "d e"}) == "\"A=b 'C=d e'\""


# ---- silence of an engine ------------------------------------------------------------------------


def test_idle_time_before_a_call_is_not_silence():
    """An idle engine sends no messages. Only the time since it has work may count against it."""
    engine = EngineHandle.__new__(EngineHandle)
    engine.pending_calls, engine.is_calling, engine.concurrent = deque(), False, False
    engine.last_message_at = time.monotonic() - 10_000
    assert engine.silent_seconds == 0
    engine.sent(3)
    assert engine.silent_seconds < 5_000
    engine.last_message_at = time.monotonic() - 10_000
    engine.sent(2)  # it had work already, and was silent
    assert engine.silent_seconds > 5_000
