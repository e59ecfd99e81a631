"""Run commands on a login host over one SSH connection.

The first command opens the connection. If the connection fails, a pause begins. During the pause, all commands fail.
The first command after the pause opens a new connection.
"""

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
    # The import of fabric and paramiko takes longer than a typical command of glide. So only type checkers import the
    # packages here. At run time, each function that uses a package imports the package.
    import fabric
    import paramiko

CONNECT_SECONDS = 15.0
KEEPALIVE_SECONDS = 15
MOST_BYTES = 1 << 28  # maximum size of a command's output in bytes; the ads of a large queue have a tenth of this size
# Pauses between two attempts to reach a host, in seconds. FIRST_PAUSE follows the first failure. Each further failure
# doubles the pause, up to LONGEST_PAUSE.
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 300.0


class SshError(CondorError):
    """The host was not reached, or the connection broke. A broken connection does not show whether the command ran."""


@dataclass(frozen=True)
class CommandOutput:
    """The exit code, the output and the error output of a command."""

    code: int
    output: str
    errors: str

    @property
    def last_line(self) -> str:
        """The last line of the error output.

        If the error output is empty, return the last line of the output. If the output is empty, too, return a text
        with the exit code.
        """
        lines = (self.errors.strip() or self.output.strip()).splitlines()
        return lines[-1] if lines else f"exit code {self.code}"


class SshLink:
    """Runs commands on a login host, one at a time. Several threads may use the same object."""

    def __init__(self, login: Login):
        self.login = login
        self._lock = threading.Lock()
        self._connection: fabric.Connection | None = None
        self._last_error = ""
        self._retry_seconds = FIRST_PAUSE
        self._next_try = 0.0

    def run(self, command: str, stdin: bytes = b"") -> CommandOutput:
        """Run a command in the host's shell.

        Raises:
            SshError: the host cannot be reached, the command took longer than `login.seconds`, or the connection broke.
                After such an error, a pause begins. During the pause, each call immediately raises the same error.
        """
        with self._lock:
            if time.monotonic() < self._next_try:
                raise SshError(self._last_error)
            try:
                result = self._run(command, stdin)
            except Exception as error:  # fabric, paramiko and the system raise errors of many classes
                raise self._connection_failed(_explain(error, self.login)) from None
            self._retry_seconds = FIRST_PAUSE
            return result

    def _run(self, command: str, stdin: bytes) -> CommandOutput:
        connection = self._open_connection()
        late = threading.Event()
        started = time.monotonic()
        # When the time is over, the whole connection is closed, because closing only the channel could block.
        timer = threading.Timer(self.login.seconds, _end, (late, connection.transport))
        timer.start()
        try:
            # fabric's own method `run` is not used, because it copies standard input slowly, character by character.
            channel = connection.create_session()
            channel.exec_command(command)
            with suppress(OSError):  # the command ended before it read all input; its output contains the reason
                channel.sendall(stdin)
                channel.shutdown_write()
            output, errors = (file.read(MOST_BYTES) for file in _outputs(channel))
            if MOST_BYTES in (len(output), len(errors)):
                raise OSError(f"a command on the host wrote more than {MOST_BYTES >> 20} MB")
            code = channel.recv_exit_status()
            channel.close()
            if code == -1:
                raise EOFError
        except Exception as error:
            if late.is_set() or _is_timeout(error, started, self.login.seconds):
                raise TimeoutError(self.login.seconds) from None
            raise
        finally:
            timer.cancel()
        return CommandOutput(code, *(written.decode("utf-8", "replace") for written in (output, errors)))

    def close(self) -> None:
        """Close the connection. The next command opens a new connection."""
        connection, self._connection = self._connection, None
        for hop in _hops(connection):  # fabric's `close` leaves connections to jump hosts open
            with suppress(Exception):
                hop.client.close()

    def _open_connection(self) -> fabric.Connection:
        if self._connection is None or not self._connection.is_connected:
            self.close()
            started, limit = time.monotonic(), _connect_limit(self.login)
            self._connection = _connection(self.login)
            try:
                self._connection.open()
            except Exception as error:
                if _is_timeout(error, started, limit):
                    raise TimeoutError(limit) from None
                raise
            self._connection.transport.set_keepalive(KEEPALIVE_SECONDS)
        return self._connection

    def _connection_failed(self, why: str) -> SshError:
        self.close()
        self._last_error = f"{self.login.name}: {why}"
        self._next_try = time.monotonic() + self._retry_seconds
        self._retry_seconds = min(2 * self._retry_seconds, LONGEST_PAUSE)
        return SshError(self._last_error)


def _end(late: threading.Event, transport: paramiko.Transport) -> None:
    late.set()
    transport.close()


def _outputs(channel: paramiko.Channel) -> tuple[Any, Any]:
    return channel.makefile("rb"), channel.makefile_stderr("rb")


def _connect_limit(login: Login) -> float:
    """Return the time limit for each step of opening a connection, in seconds."""
    return min(CONNECT_SECONDS, login.seconds)


def _is_timeout(error: Exception, started: float, limit: float) -> bool:
    import paramiko

    if isinstance(error, TimeoutError) or str(error) == "Authentication timeout.":
        return True
    # After a timeout, paramiko may raise an SSHException with a vague message, such as "No existing session". Errors
    # with other causes have the same messages. So count the error as a timeout only if the time limit has passed.
    late = time.monotonic() - started >= limit
    return late and type(error) is paramiko.SSHException and not _is_unknown_key(error)


def _is_unknown_key(error: Exception) -> bool:
    return "not found in known_hosts" in str(error)


def _connection(login: Login) -> fabric.Connection:
    """Return a new connection to a login host. The connection is not open yet.

    The connection's method `open` fails if the key of the login host, or of a jump host, is unknown.
    """
    import fabric
    import paramiko

    logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # no log is needed: paramiko also raises each error
    timeout = _connect_limit(login)
    options: dict[str, Any] = {
        "banner_timeout": timeout, "auth_timeout": timeout,
        "channel_timeout": login.seconds,  # time limit to open a channel, in seconds; paramiko's default is an hour
    }  # fmt: skip
    if login.key:
        options |= {"key_filename": str(Path(login.key).expanduser()), "allow_agent": False, "look_for_keys": False}
    gateway = None
    if login.jump:
        gateway = fabric.Connection(login.jump, connect_timeout=timeout, connect_kwargs=dict(options))
    connection = fabric.Connection(
        login.host, login.user, login.port, gateway=gateway, connect_timeout=timeout, connect_kwargs=options
    )
    for hop in _hops(connection):
        hop.client.set_missing_host_key_policy(paramiko.RejectPolicy())
        hop.client.load_system_host_keys(login.known_hosts and str(Path(login.known_hosts).expanduser()))
    return connection


def _hops(connection: fabric.Connection | None) -> Iterator[fabric.Connection]:
    """Yield a connection and the connections to its jump hosts. Proxy commands are left out."""
    hop: Any = connection
    while hasattr(hop, "client"):
        yield hop
        hop = hop.gateway


def _explain(error: Exception, login: Login) -> str:
    """Return an error message for the user: the cause of an error, and for common errors also what to do."""
    import paramiko

    known = login.known_hosts or "~/.ssh/known_hosts"
    if isinstance(error, paramiko.BadHostKeyException):
        return (
            f"the host key of {error.hostname} is not the one in {known}: the host was installed again, or another host"
            " answers in its place; ask its admin before you replace the line in that file"
        )
    if isinstance(error, paramiko.AuthenticationException):
        return (
            f"the host refuses the login ({error}); check `user` and `key`, and that its authorized_keys contains your"
            " public key"
        )
    if _is_unknown_key(error):
        return (
            f"its host key is unknown ({error}); ask its admin whether it is right and add it to {known} (ssh-keyscan)"
        )
    if isinstance(error, EOFError):
        return "the connection broke"
    if isinstance(error, TimeoutError):
        return f"no answer within {error.args[0]:g} s"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
