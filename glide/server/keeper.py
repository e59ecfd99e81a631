"""Run an engine, and end all processes that the engine has started: `python -I -S keeper.py PROGRAM ARGUMENT…`.

User code in the engine may start further processes. Such a process may leave the engine's process session (setsid). It
may also lose its parent (double fork). So the keeper is a *child subreaper*: if a descendant of the keeper loses its
parent, the kernel makes the keeper the new parent. In this way, each remaining descendant becomes a child of the keeper
at some time.

In three cases, the keeper ends its children until no child is left, and then ends:

- The engine ends.
- The keeper gets one of the signals in ENDING.
- The keeper's own parent ends.

The keeper runs outside the engine's container and environment. So this file is started by its path, and imports only
the standard library.
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

# The keeper exits with this code if SIGKILL ended the program. If SIGKILL ended the keeper itself, the parent of the
# keeper sees the exit code -9.
KILLED = 128 + signal.SIGKILL
FORWARDED = (signal.SIGUSR1, signal.SIGUSR2)  # signals that the keeper forwards to the program
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
HANDLED = {signal.SIGCHLD, *FORWARDED, *ENDING}
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
# The keeper waits this number of seconds between two tries to kill its children. A try fails, for example, if one of
# the children runs a setuid program.
RETRY_SECONDS = 0.2
GENTLE_SECONDS = 1.0  # seconds that the engine's processes get to end by themselves after SIGTERM
GENTLE_PAUSE = 0.02  # seconds between two checks whether they have ended


def under_keeper(program: list[str]) -> list[str]:
    """Return the command that runs a program under a keeper."""
    return [sys.executable, "-I", "-S", __file__, *program]


def kill_marked(variable: str, prefix: str) -> None:
    """Kill the processes of this account that have a certain environment variable.

    An engine's processes have this variable. They can remain after their keeper was killed.

    Args:
        variable: name of the environment variable.
        prefix: the variable's value must begin with this text. Otherwise, the process is not killed.
    """
    wanted = f"{variable}={prefix}".encode()

    def is_marked(process: str) -> bool:
        environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")  # a zombie's environ is empty
        return any(each.startswith(wanted) for each in environment)

    while found := list(_processes(is_marked)):
        if not _kill(found):
            return  # the remaining processes cannot be killed, because they belong to root now
        time.sleep(0.01)


def main(program: list[str]) -> None:
    """Run a program, kill its descendants after its end, and exit with the program's exit code or signal."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an ignored SIGCHLD would lose the children's exit codes
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    child = os.fork()
    if child == 0:
        os.setsid()  # user code may send signals to its process group, so the keeper must not be in it
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these signals, but the program must not
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvp(program[0], program)
    # The keeper's standard input is a copy of the engine's connection to the model server. Close this copy. Otherwise
    # the connection would stay open after the engine's end.
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    code = _serve_until_end(child)
    _end_children()
    if code < 0 and code != -signal.SIGKILL:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else KILLED)


def _serve_until_end(child: int) -> int:
    """Forward signals to the program until the program ends. If one of the signals in ENDING arrives, kill the program.

    Return the program's exit code. If a signal ended the program, return the signal's number with a minus sign.
    """
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
    """End the keeper's children until none is left. They get SIGTERM at first, and SIGKILL after GENTLE_SECONDS.

    After SIGTERM, a serving engine deletes its shared memory and its temporary files.

    When a child ends, the child's own children become children of the keeper.
    """
    own = str(os.getpid())

    def is_child(process: str) -> bool:
        return Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1] == own

    gentle_until = time.monotonic() + GENTLE_SECONDS
    asked: set[int] = set()
    try:
        while True:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            if time.monotonic() < gentle_until:
                fresh = [process for process in _processes(is_child) if process not in asked]
                _kill(fresh, signal.SIGTERM)
                asked.update(fresh)
                time.sleep(GENTLE_PAUSE)
            elif _kill(_processes(is_child)):
                os.waitpid(-1, 0)
            else:
                time.sleep(RETRY_SECONDS)
    except ChildProcessError:
        return


def _reaped() -> Iterator[tuple[int, int]]:
    """Yield the process id and the wait status of each child that has ended."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended


def _processes(is_wanted: Callable[[str], bool]) -> Iterator[int]:
    """Yield the ids of the processes of this account that `is_wanted` selects, except the id of this process.

    Args:
        is_wanted: function that gets a process id as text, and returns whether the process is selected.
    """
    for name in os.listdir("/proc"):
        with suppress(OSError, IndexError):  # the process may have ended or belong to another account
            if name.isdigit() and int(name) != os.getpid() and is_wanted(name):
                yield int(name)


def _kill(processes: Iterator[int] | list[int], number: int = signal.SIGKILL) -> int:
    """Send a signal to processes, and return the number of processes that got it."""
    killed = 0
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process, number)
            killed += 1
    return killed


if __name__ == "__main__":
    main(sys.argv[1:])
