"""Check whether a login host has everything that glideins need. The checks are in QUESTIONS."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from glide.condor import Collector
from glide.condor.collector import parse_address
from glide.condor.install import OLDEST
from glide.config import Entry, Login
from glide.errors import CondorError
from glide.ssh.access_point import access_point_at
from glide.vocabulary import Job

COMMANDS = (
    "condor_submit", "condor_q", "condor_rm", "condor_qedit", "condor_ping", "condor_status", "condor_version", "bash",
    "flock", "timeout", "tar", "base64", "sha256sum", "mktemp", "find",
)  # fmt: skip
SPACE = 500  # disk space that must be free on the host for glide's files, in MB
SKEW_SECONDS = 5.0  # largest accepted difference between the clocks of the host and this machine, in seconds
CONNECT_SECONDS = 5  # time limit of a connection from the host to the collector, in seconds


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        question: name of the check.
        found: text that describes what the check found.
        fix: how to solve the problem; empty if there is no problem.
    """

    question: str
    found: str
    fix: str = ""


def check(login: Login, entries: list[Entry]) -> list[CheckResult]:
    """Run all checks on a login host, and return their results.

    If the host cannot be reached, return only one result. Its `fix` is the error message.

    Args:
        entries: the entries whose glideins are submitted on this host.
    """
    try:
        access_point_at(login).versions()
    except CondorError as error:
        return [CheckResult("login", "no", str(error))]
    answers = [CheckResult("login", f"as {_ask(login, 'id -un')} on {_ask(login, 'hostname')}")]
    for question, judge in QUESTIONS.items():
        try:
            answers.append(CheckResult(question, *judge(login, entries)))
        except (CondorError, ValueError, LookupError, AttributeError) as error:  # a host may print unexpected text
            answers.append(CheckResult(question, "no answer", f"{type(error).__name__}: {error}"))
    return answers


def _ask(login: Login, script: str, *arguments: str) -> str:
    return access_point_at(login).shell(script, *arguments).strip()


FoundAndFix = tuple[str] | tuple[str, str]


def _commands(login: Login, entries: list[Entry]) -> FoundAndFix:
    missing = _ask(login, 'for name; do command -v "$name" >/dev/null || echo "$name"; done', "sh", *COMMANDS).split()
    if missing:
        return f"no {', '.join(missing)}", "add them to the PATH of the host's non-interactive shells (~/.bashrc)"
    return ("all there",)


def _version(login: Login, entries: list[Entry]) -> FoundAndFix:
    version = _ask(login, "condor_version | head -n 1")
    number = re.search(r"(\d+)\.\d+\.\d+", version)
    fix = "" if number and int(number[1]) >= OLDEST else f"the host needs HTCondor {OLDEST} or newer"
    return f"HTCondor {number[0] if number else version}", fix


def _queue(login: Login, entries: list[Entry]) -> FoundAndFix:
    access_point = access_point_at(login)
    names = {entry.name for entry in entries}
    jobs = access_point.jobs(f"{Job.ENTRY} =!= undefined", [Job.ENTRY])
    ours = sum(job[Job.ENTRY] in names for job in jobs)
    return (f"this account is {access_point.user}, with {ours} glideins in the queue",)


def _space(login: Login, entries: list[Entry]) -> FoundAndFix:
    free = int(_ask(login, 'cd "$0" && df -Pm . | tail -n 1', login.folder).split()[3])
    return f"{free} MB free", "" if free >= SPACE else f"free {SPACE} MB, or name a `folder` on another disk"


def _nodes(login: Login, entries: list[Entry]) -> FoundAndFix:
    slots = access_point_at(login).slots(("Machine", "TotalSlotGPUs", "GPUs_DeviceName"))
    gpus: Counter[str] = Counter()
    for slot in slots:
        gpus[str(slot.get("GPUs_DeviceName", "GPU"))] += int(slot.get("TotalSlotGPUs", 0))
    found = ", ".join(f"{count} {name}" for name, count in gpus.items() if count) or "no GPUs"
    nodes = len({slot.get("Machine") for slot in slots})
    wanted = [entry.name for entry in entries if entry.request.gpus]
    fix = f"{', '.join(wanted)} asks for GPUs, but no node advertises one" if wanted and found == "no GPUs" else ""
    return f"{nodes} nodes, {found}", fix or ("" if nodes else "its collector has no ad of a node")


def _clock(login: Login, entries: list[Entry]) -> FoundAndFix:
    before = time.time()
    there = float(_ask(login, "date +%s.%N"))
    off = max(0.0, before - there, there - time.time())
    return f"{off:.1f} s off", "" if off <= SKEW_SECONDS else "set the clock that is wrong: does an NTP daemon run?"


def _outward(login: Login, entries: list[Entry]) -> FoundAndFix:
    """Check whether the login host can connect to the collector of the pool that glideins join.

    Glideins on nodes need this connection. The nodes cannot be reached directly, so the login host is tested instead.
    """
    host, port = parse_address(Collector().address)
    script = f'timeout {CONNECT_SECONDS} bash -c ": < /dev/tcp/$0/$1" 2>/dev/null && echo open || echo closed'
    if _ask(login, script, host, str(port)) == "open":
        return (f"{host}:{port} is open for the host",)
    return (
        f"{host}:{port} is closed for the host",
        "glideins must reach it: is there a firewall, or is it an internal address?",
    )


def _bundles(login: Login, entries: list[Entry]) -> FoundAndFix:
    return (", ".join(access_point_at(login).versions()) or "none yet (glide site deploy, or the first submission)",)


QUESTIONS: dict[str, Callable[[Login, list[Entry]], FoundAndFix]] = {
    "commands": _commands,
    "version": _version,
    "queue": _queue,
    "disk": _space,
    "nodes": _nodes,
    "clock": _clock,
    "our collector": _outward,
    "bundles": _bundles,
}
