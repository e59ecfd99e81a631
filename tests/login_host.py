"""A real sshd on loopback: the login host of a pool, with keys of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from glide.condor import EmbeddedPool
from glide.condor.pool import as_unprivileged
from tests.conftest import eventually
from tests.debian import fetched


class LoginHost:
    """sshd for this account alone, in whose sessions the pool's commands work.

    Args:
        settings: further lines of its configuration.
    """

    def __init__(self, folder: Path, pool: EmbeddedPool | None = None, **settings: str):
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        # sshd can listen on this port although the socket is bound, and nobody else gets the port before that.
        self.reserved = socket.socket()
        self.reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.reserved.bind(("127.0.0.1", 0))
        self.port = int(self.reserved.getsockname()[1])
        self.known_hosts = folder / "known_hosts"
        self.key = folder / "id_ed25519"
        _make_key(self.key)
        self.process: subprocess.Popen[bytes] | None = None
        environment = {"PATH": os.environ["PATH"], **(pool.environment() if pool else {})}
        self.settings = {
            "Port": str(self.port), "ListenAddress": "127.0.0.1", "HostKey": str(folder / "host_key"),
            "AuthorizedKeysFile": str(folder / "id_ed25519.pub"), "PasswordAuthentication": "no", "UsePAM": "no",
            "StrictModes": "no", "PidFile": "none",
            "SetEnv": " ".join(f"{name}={value}" for name, value in {"LANG": "C", **environment}.items()),
            **settings,
        }  # fmt: skip
        self.change_key()
        self.trust()

    @property
    def user(self) -> str:
        command = [*as_unprivileged(), "id", "-un"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def login(self, **changes: Any) -> dict[str, Any]:
        """The `ssh` of an entry."""
        return {
            "host": "127.0.0.1", "port": self.port, "user": self.user, "key": str(self.key),
            "known_hosts": str(self.known_hosts), "seconds": 20, **changes,
        }  # fmt: skip

    def change_key(self) -> None:
        """Give the host another key, as a new installation does, or somebody in between has."""
        for path in (self.folder / "host_key", self.folder / "host_key.pub"):
            path.unlink(missing_ok=True)
        _make_key(self.folder / "host_key")

    def trust(self) -> None:
        """Take the host's key for the one that is known."""
        kind, key, *_ = (self.folder / "host_key.pub").read_text().split()
        with self.known_hosts.open("a") as file:
            file.write(f"[127.0.0.1]:{self.port} {kind} {key}\n")

    def start(self) -> LoginHost:
        sshd = fetched("openssh-server", "libnss-wrapper")
        (wrapper,) = sshd.root.rglob("libnss_wrapper.so")
        user = pwd.getpwnam(self.user)
        # The account's own shell may be none, and its home is not a test's.
        passwd = self.folder / "passwd"
        passwd.write_text(f"{user.pw_name}:x:{user.pw_uid}:{user.pw_gid}::{self.home}:/bin/bash\n")
        (self.folder / "group").write_text(f"{user.pw_name}:x:{user.pw_gid}:\n")
        config = self.folder / "sshd_config"
        config.write_text("".join(f"{name} {value}\n" for name, value in self.settings.items()))
        environment = {
            **sshd.environment, "LD_PRELOAD": str(wrapper), "NSS_WRAPPER_PASSWD": str(passwd),
            "NSS_WRAPPER_GROUP": str(self.folder / "group"),
        }  # fmt: skip
        with (self.folder / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*as_unprivileged(), sshd.program("usr/sbin/sshd"), "-D", "-e", "-f", str(config)],
                env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        eventually(lambda: _listens(self.port), "sshd listens")
        return self

    def stop(self) -> None:
        """End it and its connections."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait(30)
            self.process = None

    def sessions(self) -> list[int]:
        """The processes that serve connections; what they run is not among them."""
        found: list[int] = []
        todo = [self.process.pid] if self.process else []
        while todo:
            command = ["pgrep", "-x", "-P", str(todo.pop()), "sshd"]
            children = [int(pid) for pid in subprocess.run(command, capture_output=True, text=True).stdout.split()]
            found += children
            todo += children
        return found

    def signal(self, number: int) -> None:
        """Send a signal to it and to what serves connections."""
        for pid in (*self.sessions(), *([self.process.pid] if self.process else ())):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def accepted(self) -> int:
        """How many connections have been let in."""
        return (self.folder / "sshd.log").read_text().count("Accepted publickey")


def _make_key(path: Path) -> None:
    program = shutil.which("ssh-keygen") or fetched("openssh-client").program("usr/bin/ssh-keygen")
    subprocess.run([program, "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
