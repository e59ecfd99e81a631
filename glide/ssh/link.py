"""One connection to a login host: opened when needed, used again, and left alone for a while when it is broken."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glide.config import Login
from glide.errors import CondorError

if TYPE_CHECKING:
    # Where they are needed, they are imported: that takes longer than most commands do.
    import fabric
    import paramiko

CONNECT_SECONDS = 15.0
KEEPALIVE_SECONDS = 15
MOST_BYTES = 1 << 28  # that a command may write; the queue of a large pool is a tenth of that
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 300.0  # seconds; a host that is down is not to be asked at every cycle


class LinkError(CondorError):
    """The host was not reached, or the connection broke: what a command did there is not known."""


@dataclass(frozen=True)
class Said:
    """What a command wrote, and how it ended."""

    code: int
    output: str
    errors: str

    @property
    def last_words(self) -> str:
        lines = (self.errors.strip() or self.output.strip()).splitlines()
        return lines[-1] if lines else f"exit code {self.code}"


class Link:
    """Runs commands on a login host; safe to use from several threads."""

    def __init__(self, login: Login):
        self.login = login
        self._lock = threading.Lock()
        self._connection: fabric.Connection | None = None
        self._broken = ""
        self._pause = FIRST_PAUSE
        self._next_try = 0.0

    def run(self, command: str, stdin: bytes = b"") -> Said:
        """Run a command of the host's shell.

        Raises:
            LinkError: the host cannot be reached, the command took longer than `seconds`, or the connection broke.
                After that the host is left alone for a while; who asks meanwhile gets the same error at once.
        """
        with self._lock:
            if time.monotonic() < self._next_try:
                raise LinkError(self._broken)
            try:
                said = self._run(command, stdin)
            except Exception as error:  # of two libraries and the system, each in its own words
                raise self._lost(_explained(error, self.login)) from None
            self._pause = FIRST_PAUSE
            return said

    def _run(self, command: str, stdin: bytes) -> Said:
        connection = self._opened()
        late = threading.Event()
        # All of it: a peer that does not read keeps even the closing of a channel waiting.
        timer = threading.Timer(self.login.seconds, _end, (late, connection.transport))
        timer.start()
        try:
            # By the channel itself: fabric's `run` copies standard input character by character.
            channel = connection.create_session()
            channel.exec_command(command)
            with suppress(OSError):  # it has ended without reading all, and says why
                channel.sendall(stdin)
                channel.shutdown_write()
            output, errors = (file.read(MOST_BYTES) for file in _outputs(channel))
            if MOST_BYTES in (len(output), len(errors)):
                raise OSError(f"a command there wrote more than {MOST_BYTES >> 20} MB")
            code = channel.recv_exit_status()
            channel.close()
        except Exception:
            if late.is_set():
                raise TimeoutError from None
            raise
        finally:
            timer.cancel()
        if code == -1:
            raise TimeoutError if late.is_set() else EOFError
        return Said(code, *(written.decode("utf-8", "replace") for written in (output, errors)))

    def close(self) -> None:
        """Give the connection up; the next command opens another one."""
        connection, self._connection = self._connection, None
        for hop in _hops(connection):  # fabric leaves the others open
            with suppress(Exception):
                hop.client.close()

    def _opened(self) -> fabric.Connection:
        if self._connection is None or not self._connection.is_connected:
            self.close()
            self._connection = _connection(self.login)
            self._connection.open()
            self._connection.transport.set_keepalive(KEEPALIVE_SECONDS)
        return self._connection

    def _lost(self, why: str) -> LinkError:
        self.close()
        self._broken = f"{self.login.name}: {why}"
        self._next_try = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return LinkError(self._broken)


def _end(late: threading.Event, transport: paramiko.Transport) -> None:
    late.set()
    transport.close()


def _outputs(channel: paramiko.Channel) -> tuple[Any, Any]:
    return channel.makefile("rb"), channel.makefile_stderr("rb")


def _connection(login: Login) -> fabric.Connection:
    """A connection to be, which trusts known host keys alone, on the way there as well."""
    import fabric
    import paramiko

    logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # what goes wrong comes as an exception, too
    patience = min(CONNECT_SECONDS, login.seconds)
    options: dict[str, Any] = {
        "banner_timeout": patience, "auth_timeout": patience,
        "channel_timeout": login.seconds,  # an hour by default
    }  # fmt: skip
    if login.key:
        options |= {"key_filename": str(Path(login.key).expanduser()), "allow_agent": False, "look_for_keys": False}
    gateway = None
    if login.jump:
        gateway = fabric.Connection(login.jump, connect_timeout=patience, connect_kwargs=dict(options))
    connection = fabric.Connection(
        login.host, login.user, login.port, gateway=gateway, connect_timeout=patience, connect_kwargs=options
    )
    for hop in _hops(connection):
        hop.client.set_missing_host_key_policy(paramiko.RejectPolicy())
        hop.client.load_system_host_keys(login.known_hosts and str(Path(login.known_hosts).expanduser()))
    return connection


def _hops(connection: fabric.Connection | None) -> Iterator[fabric.Connection]:
    """A connection, and those it goes through; a proxy's command is none."""
    hop: Any = connection
    while hasattr(hop, "client"):
        yield hop
        hop = hop.gateway


def _explained(error: Exception, login: Login) -> str:
    """What went wrong, and what to do about it."""
    import paramiko

    known = login.known_hosts or "~/.ssh/known_hosts"
    if isinstance(error, paramiko.BadHostKeyException):
        return (
            f"the host key of {error.hostname} is not the one in {known}: it was installed anew, or somebody is in"
            " between; ask its admin before you replace the line there"
        )
    if isinstance(error, paramiko.AuthenticationException):
        return f"it does not accept us ({error}); is our public key in its authorized_keys, and `user` and `key` right?"
    if "not found in known_hosts" in str(error):
        return f"its host key is unknown ({error}); compare it with its admin's and add it to {known} (ssh-keyscan)"
    if isinstance(error, EOFError):
        return "the connection broke"
    if isinstance(error, TimeoutError):
        return f"no answer within {login.seconds:g} s"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
