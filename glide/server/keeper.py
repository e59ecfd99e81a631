"""Run an engine and end everything that it has started: `python -I -S keeper.py PROGRAM ARGUMENT…`.

A user's code may start processes that leave their session and their parent (setsid, double fork). The keeper is a
*child subreaper*: the kernel makes every orphan below it its own child. So it kills its children until it has none,
and only then ends itself. It does so when the program ends, when it gets SIGTERM, and when its own parent ends.

It runs outside the engine's container and environment, by its path, with the standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

KILLED = 128 + signal.SIGKILL  # the exit code when the program was killed by SIGKILL; -9 means that the keeper was
FORWARDED = (signal.SIGUSR1, signal.SIGUSR2)
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
HANDLED = {signal.SIGCHLD, *FORWARDED, *ENDING}
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
RETRY_SECONDS = 0.2  # before the next attempt at children that may not be killed, a setuid program say


def kept(program: list[str]) -> list[str]:
    """Return the command that runs a program under a keeper."""
    return [sys.executable, "-I", "-S", __file__, *program]


def end_marked(variable: str, begins: str) -> None:
    """Kill all processes of this account that were started with such a value of an environment variable.

    For what a keeper leaves that was itself killed.
    """
    wanted = f"{variable}={begins}".encode()

    def is_marked(process: str) -> bool:
        environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")  # a zombie has none
        return any(each.startswith(wanted) for each in environment)

    while found := list(_processes(is_marked)):
        if not _kill(found):
            return  # they belong to root now
        time.sleep(0.01)


def main(program: list[str]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # when it is ignored, children leave no exit code
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    child = os.fork()
    if child == 0:
        os.setsid()  # a call that signals its process group must not reach the model server
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these two
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvp(program[0], program)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)  # the engine's channel must end with the engine
    code = _serve_until_end(child)
    _end_children()
    if code < 0 and code != -signal.SIGKILL:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else KILLED)


def _serve_until_end(child: int) -> int:
    """Forward signals to the program; return its exit code, negative for the signal that killed it."""
    while True:
        number = signal.sigwait(HANDLED)
        if number in FORWARDED:
            os.kill(child, number)
        elif number in ENDING:
            os.kill(child, signal.SIGKILL)
        else:
            for process, status in _reaped():
                if process == child:
                    return os.waitstatus_to_exitcode(status)


def _end_children() -> None:
    """Kill all children, and the grandchildren that thereby become children, until there are none."""
    own = str(os.getpid())

    def is_child(process: str) -> bool:
        return Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1] == own

    try:
        while True:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            if _kill(_processes(is_child)):
                os.waitpid(-1, 0)
            else:
                time.sleep(RETRY_SECONDS)
    except ChildProcessError:
        return


def _reaped() -> Iterator[tuple[int, int]]:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended


def _processes(is_wanted: Callable[[str], bool]) -> Iterator[int]:
    for name in os.listdir("/proc"):
        with suppress(OSError, IndexError):  # it has ended, or belongs to another account
            if name.isdigit() and int(name) != os.getpid() and is_wanted(name):
                yield int(name)


def _kill(processes: Iterator[int] | list[int]) -> int:
    """Send SIGKILL, and return how many got it."""
    killed = 0
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)
            killed += 1
    return killed


if __name__ == "__main__":
    main(sys.argv[1:])
