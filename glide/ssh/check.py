"""What a login host has of what glideins need: a table of questions, each with its command and its judge."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from glide.condor import Collector
from glide.condor.collector import endpoint
from glide.condor.install import OLDEST
from glide.config import Entry, Login
from glide.errors import CondorError
from glide.ssh.access_point import access_point_at
from glide.vocabulary import Job

COMMANDS = (
    "condor_submit", "condor_q", "condor_rm", "condor_qedit", "condor_ping", "condor_status", "condor_version", "bash",
    "flock", "timeout", "tar", "base64", "sha256sum", "mktemp", "find",
)  # fmt: skip
SPACE = 500  # MB, for bundles and what glideins say
SKEW_SECONDS = 5.0  # tokens and ages are compared across hosts
CONNECT_SECONDS = 5


@dataclass(frozen=True)
class Answer:
    """What was found, and what to do about it where it is not well."""

    question: str
    found: str
    fix: str = ""


def check(login: Login, entries: list[Entry]) -> list[Answer]:
    """Ask a login host everything; where it cannot be reached, that is the only answer.

    Args:
        entries: those whose glideins are to be submitted there.
    """
    try:
        access_point_at(login).versions()
    except CondorError as error:
        return [Answer("login", "no", str(error))]
    answers = [Answer("login", f"as {_ask(login, 'id -un')} on {_ask(login, 'hostname')}")]
    for question, judge in QUESTIONS.items():
        try:
            answers.append(Answer(question, *judge(login, entries)))
        except (CondorError, ValueError, LookupError, AttributeError) as error:  # hosts say the oddest things
            answers.append(Answer(question, "no answer", f"{type(error).__name__}: {error}"))
    return answers


def _ask(login: Login, script: str, *arguments: str) -> str:
    return access_point_at(login).shell(script, *arguments).strip()


Found = tuple[str] | tuple[str, str]


def _commands(login: Login, entries: list[Entry]) -> Found:
    missing = _ask(login, 'for name; do command -v "$name" >/dev/null || echo "$name"; done', "sh", *COMMANDS).split()
    if missing:
        return f"no {', '.join(missing)}", "put them on the PATH of its shells that are not interactive (~/.bashrc)"
    return ("all there",)


def _version(login: Login, entries: list[Entry]) -> Found:
    version = _ask(login, "condor_version | head -n 1")
    number = re.search(r"(\d+)\.\d+\.\d+", version)
    fix = "" if number and int(number[1]) >= OLDEST else f"HTCondor {OLDEST} or newer is needed there"
    return f"HTCondor {number[0] if number else version}", fix


def _queue(login: Login, entries: list[Entry]) -> Found:
    access_point = access_point_at(login)
    names = {entry.name for entry in entries}
    jobs = access_point.jobs(f"{Job.ENTRY} =!= undefined", [Job.ENTRY])
    ours = sum(job[Job.ENTRY] in names for job in jobs)
    return (f"we are {access_point.user}, with {ours} glideins there",)


def _space(login: Login, entries: list[Entry]) -> Found:
    free = int(_ask(login, 'cd "$0" && df -Pm . | tail -n 1', login.folder).split()[3])
    return f"{free} MB free", "" if free >= SPACE else f"make room for {SPACE} MB, or name a `folder` elsewhere"


def _nodes(login: Login, entries: list[Entry]) -> Found:
    slots = access_point_at(login).nodes(("Machine", "TotalSlotGPUs", "GPUs_DeviceName"))
    gpus: Counter[str] = Counter()
    for slot in slots:
        gpus[str(slot.get("GPUs_DeviceName", "GPU"))] += int(slot.get("TotalSlotGPUs", 0))
    told = ", ".join(f"{count} {name}" for name, count in gpus.items() if count) or "no GPUs"
    nodes = len({slot.get("Machine") for slot in slots})
    wanted = [entry.name for entry in entries if entry.request.gpus]
    fix = f"{', '.join(wanted)} asks for GPUs, and no node there tells of any" if wanted and told == "no GPUs" else ""
    return f"{nodes} nodes, {told}", fix or ("" if nodes else "its collector knows of no node")


def _clock(login: Login, entries: list[Entry]) -> Found:
    before = time.time()
    there = float(_ask(login, "date +%s.%N"))
    off = max(0.0, before - there, there - time.time())
    return f"{off:.1f} s off", "" if off <= SKEW_SECONDS else "set one of the two clocks: is there an NTP daemon?"


def _outward(login: Login, entries: list[Entry]) -> Found:
    """Glideins connect to the pool that they join; the login host is as near to them as we come."""
    host, port = endpoint(Collector().address)
    script = f'timeout {CONNECT_SECONDS} bash -c ": < /dev/tcp/$0/$1" 2>/dev/null && echo open || echo closed'
    if _ask(login, script, host, str(port)) == "open":
        return (f"{host}:{port} is open from there",)
    return (
        f"{host}:{port} is closed from there",
        "glideins must reach it: a firewall, or an address inside?",
    )


def _bundles(login: Login, entries: list[Entry]) -> Found:
    return (", ".join(access_point_at(login).versions()) or "none yet (glide site deploy, or the first submission)",)


QUESTIONS: dict[str, Callable[[Login, list[Entry]], Found]] = {
    "commands": _commands,
    "version": _version,
    "queue": _queue,
    "disk": _space,
    "nodes": _nodes,
    "clock": _clock,
    "our collector": _outward,
    "bundles": _bundles,
}
