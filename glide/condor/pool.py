"""An embedded pool: one machine's own HTCondor, started and stopped without touching the system.

Everything is under GLIDE_HOME (0700): configuration, signing key, queue, logs. No fixed port; bound to
loopback. Two of them with different GLIDE_HOMEs do not notice each other.
"""

from __future__ import annotations

import logging
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from glide.arguments import environment
from glide.condor import install, knobs, processes, tokens
from glide.condor.collector import endpoint
from glide.condor.processes import Process
from glide.errors import CondorError, InputError
from glide.system import tail
from glide.vocabulary import POOL_VARIABLE, Machine

START_BUDGET = 45.0  # seconds from start to a schedd and a startd that answer
LISTEN_SECONDS = 2.0  # for the kernel to take a connection, whatever the collector is doing
_log = logging.getLogger("glide")
UNUSABLE = ',"\\$'  # in the name of GLIDE_HOME: lists of files, quotes and macros of HTCondor
LAST_BYTES = 1 << 16  # of a log, in which its last lines are
TOOL_SECONDS = 30.0  # for one of HTCondor's tools to end
REAP_SECONDS = 2.0  # until init has reaped what it inherited
STOP_BUDGET = 8.0  # seconds an orderly stop may take before the rest is killed


def home() -> Path:
    """GLIDE_HOME, by default under XDG_STATE_HOME.

    Raises:
        InputError: its name has characters that separate or quote names in HTCondor's own files.
    """
    chosen = os.environ.get("GLIDE_HOME")
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    path = Path(chosen).absolute() if chosen else state / "glide"
    if wrong := sorted({each for each in str(path) if each in UNUSABLE or not each.isprintable()}):
        raise InputError(
            f"GLIDE_HOME {str(path)!r}: HTCondor cannot use a folder with {' '.join(map(repr, wrong))} in its name;"
            " set GLIDE_HOME to another one"
        )
    return path


@dataclass(frozen=True)
class EmbeddedPool:
    """The pool whose state is in one folder. Holds nothing else, so it survives any caller."""

    home: Path

    @property
    def folder(self) -> Path:
        return self.home / "pool"

    @property
    def config(self) -> Path:
        return self.folder / "condor_config"

    @property
    def logs(self) -> Path:
        return self.folder / "log"

    # ---- starting and stopping -------------------------------------------------------------------

    def up(self, cores: int | None = None, address: str = "127.0.0.1", settings: Mapping[str, str] = {}) -> None:
        """Start the pool and wait until its queue and its slots answer; harmless when it is up, or only busy.

        Args:
            cores: CPUs that the pool's own execution point offers; all of the machine's by default.
            address: of this machine, at which the pool listens.
            settings: further HTCondor configuration.

        Raises:
            CondorError: it did not come up within START_BUDGET, and the message has the log's last lines; or it
                runs and does not answer.
        """
        if self.is_up():
            return
        deadline = time.monotonic() + START_BUDGET
        while masters := self.daemons("condor_master"):  # its jobs are somebody's: it is waited for, never replaced
            time.sleep(0.2)
            if self.is_up():
                return
            if time.monotonic() > deadline:
                raise CondorError(
                    f"the embedded pool of {self.home} runs (condor_master is process {masters[0].pid}) but does not "
                    f"answer; {self.logs} may say why, and `glide pool down` ends it"
                )
        installation = install.ensure()
        self.down()  # whatever an earlier life left
        self._write(installation, cores or os.cpu_count() or 1, address, settings)
        with (self.logs / "master.out").open("ab") as output:
            master = subprocess.Popen(
                [*_with_own_mount(self.folder / "spool"), installation.program("condor_master"), "-f"],
                env={**os.environ, "CONDOR_CONFIG": str(self.config), POOL_VARIABLE: str(self.home)},
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_BUDGET
        while not self.is_up():
            if master.poll() is not None or time.monotonic() > deadline:
                self.down()
                raise CondorError(f"the embedded pool did not start; {self.logs} says:\n{self._last_words()}")
            time.sleep(0.2)

    def down(self) -> None:
        """Stop the pool: in order if its master still lives, else by force. Leaves no process and no lock."""
        mine = self.daemons("condor_master")
        for process in mine:
            process.send(signal.SIGQUIT)  # HTCondor's fast shutdown
        deadline = time.monotonic() + STOP_BUDGET
        while mine and self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        # A pool whose master was killed has daemons, jobs and glideins left that nobody stops.
        while left := self.processes():
            for process in left:
                process.send(signal.SIGKILL)
            time.sleep(0.05)
        for process in mine:
            with suppress(ChildProcessError):  # ours to reap if we started it, init's otherwise
                os.waitpid(process.pid, 0)
        deadline = time.monotonic() + REAP_SECONDS
        while any(Path(f"/proc/{process.pid}").exists() for process in mine) and time.monotonic() < deadline:
            time.sleep(0.05)
        for folder in ("lock", "run", "address", "execute"):
            shutil.rmtree(self.folder / folder, ignore_errors=True)

    def is_up(self) -> bool:
        """Whether collector, schedd and an execution point of this pool answer."""
        if not any(self.folder.glob("address/*")):
            return False
        # Not those of hundreds of glideins.
        own = f'{Machine.ID} =?= undefined && MyType =!= "DaemonMaster"'
        status = self.tool("condor_status", "-any", "-constraint", own, "-af", "MyType", check=False).split()
        return {"Scheduler", "Negotiator"} <= set(status) and bool({"Machine", "Slot", "StartDaemon"} & set(status))

    def listens(self) -> bool:
        """Whether connections are taken where this pool's collector was last: what is known at once."""
        with suppress(OSError, CondorError):
            where = endpoint((self.folder / "address" / "collector").read_text("utf-8"))
            with socket.create_connection(where, timeout=LISTEN_SECONDS):
                return True
        return False

    def processes(self) -> list[Process]:
        """Every process of this pool, glideins and jobs included."""
        return processes.with_variable(POOL_VARIABLE, str(self.home))

    def daemons(self, name: str) -> list[Process]:
        """The pool's own daemons of this name, such as condor_schedd, without those of glideins."""
        return [each for each in processes.daemons(self.processes(), name) if self._is_own(each)]

    def glidein_masters(self) -> list[Process]:
        """The condor_master of each glidein."""
        return [each for each in processes.daemons(self.processes(), "condor_master") if not self._is_own(each)]

    def _is_own(self, process: Process) -> bool:
        return process.variable("CONDOR_CONFIG") == str(self.config)

    # ---- talking to it ---------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """What a client of this pool needs in its environment."""
        installation = install.find()
        variables = {"CONDOR_CONFIG": str(self.config)}
        if os.getuid() == 0:
            variables["CONDOR_IDS"] = f"{_account().pw_uid}.{_account().pw_gid}"
        if installation and str(installation.bin) not in os.environ.get("PATH", "").split(":"):
            variables["PATH"] = f"{installation.bin}:{installation.sbin}:{os.environ.get('PATH', '')}"
        return variables

    def tool(self, name: str, *arguments: str, check: bool = True) -> str:
        """Run one of HTCondor's own tools against this pool and return what it printed."""
        installation = install.find()
        if installation is None:
            raise CondorError("HTCondor is not installed; `glide pool up` installs it")
        try:
            done = subprocess.run(
                [installation.program(name), *arguments],
                env={**os.environ, **self.environment()}, capture_output=True, encoding="utf-8", errors="replace",
                timeout=TOOL_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise CondorError(f"{name} has no answer within {TOOL_SECONDS:.0f} s") from None
        if check and done.returncode != 0:
            raise CondorError(f"{name} failed: {done.stderr.strip()}")
        return done.stdout

    # ---- configuration ---------------------------------------------------------------------------

    def _write(self, installation: install.Installation, cores: int, address: str, further: Mapping[str, str]) -> None:
        for folder in ("", "log", "spool", "execute", "lock", "run", "address", "passwords.d", "tokens.d"):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
            (self.folder / folder).chmod(0o700)
        self.home.chmod(0o700)
        key = self.folder / "passwords.d" / "POOL"
        if not key.exists():
            with open(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(64))
        trust = self.folder / "trust_domain"
        if not trust.exists():
            trust.write_text(f"glide-{secrets.token_hex(4)}", "utf-8")
        text = self._configuration(installation, cores, address, trust.read_text("utf-8"))
        self.config.write_text(text + "".join(f"{name} = {value}\n" for name, value in further.items()), "utf-8")
        identity = f"{_account().pw_name}@{trust.read_text('utf-8')}"
        tokens.mint(self.folder / "tokens.d" / "owner", identity, environment={**os.environ, **self.environment()})

    def _configuration(self, installation: install.Installation, cores: int, address: str, trust: str) -> str:
        settings = installation.paths() | {
            "LOCAL_DIR": str(self.folder),
            "LOG": "$(LOCAL_DIR)/log", "SPOOL": "$(LOCAL_DIR)/spool", "EXECUTE": "$(LOCAL_DIR)/execute",
            "LOCK": "$(LOCAL_DIR)/lock", "RUN": "$(LOCAL_DIR)/run", "LOCAL_CONFIG_FILE": "", "LOCAL_CONFIG_DIR": "",
            "DAEMON_LIST": "MASTER, COLLECTOR, NEGOTIATOR, SCHEDD, STARTD",
            "EVENT_LOG": "$(LOG)/EventLog", "EVENT_LOG_MAX_SIZE": "100000000",
            # No fixed port: the collector takes a free one and says where in its address file.
            "CONDOR_HOST": address, "COLLECTOR_HOST": "$(CONDOR_HOST):0", "NETWORK_INTERFACE": address,
            "USE_SHARED_PORT": "True", "SHARED_PORT_PORT": "0", "DAEMON_SOCKET_DIR": "auto",
            "COLLECTOR_ADDRESS_FILE": "$(LOCAL_DIR)/address/collector",
            "SCHEDD_ADDRESS_FILE": "$(LOCAL_DIR)/address/schedd",
            "MASTER_ADDRESS_FILE": "$(LOCAL_DIR)/address/master",
            "SHARED_PORT_DAEMON_AD_FILE": "$(LOCAL_DIR)/address/shared_port_ad",
            "PROCD_ADDRESS": "$(RUN)/procd",
            "COLLECTOR_NAME": f"glide {trust}",
            "FULL_HOSTNAME": "localhost", "DEFAULT_DOMAIN_NAME": "localdomain", "NO_DNS": "True",
            # Who may: this account does all; a glidein's token may only advertise. Tokens come first, because
            # root's clients cannot prove by file system that they are the account root's pool runs as.
            "UID_DOMAIN": trust, "FILESYSTEM_DOMAIN": trust, "TRUST_DOMAIN": trust,
            "SEC_DEFAULT_AUTHENTICATION": "REQUIRED", "SEC_DEFAULT_INTEGRITY": "REQUIRED",
            "SEC_DEFAULT_ENCRYPTION": "OPTIONAL", "SEC_DEFAULT_AUTHENTICATION_METHODS": "IDTOKENS, FS",
            "SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS, FS",
            "SEC_PASSWORD_DIRECTORY": "$(LOCAL_DIR)/passwords.d", "SEC_TOKEN_DIRECTORY": "$(LOCAL_DIR)/tokens.d",
            "SEC_TOKEN_SYSTEM_DIRECTORY": "$(LOCAL_DIR)/tokens.d",
            "SEC_TOKEN_POOL_SIGNING_KEY_FILE": "$(LOCAL_DIR)/passwords.d/POOL",
            "OWNER": f"{_account().pw_name}@$(UID_DOMAIN)",
            "ALLOW_READ": "$(OWNER)", "ALLOW_WRITE": "$(OWNER)", "ALLOW_ADMINISTRATOR": "$(OWNER)",
            "ALLOW_DAEMON": "$(OWNER)", "ALLOW_NEGOTIATOR": "$(OWNER)", "ALLOW_CLIENT": "*", "ALLOW_CONFIG": "",
            "ALLOW_ADVERTISE_STARTD": "$(OWNER), glidein-*@$(TRUST_DOMAIN)",
            "ALLOW_ADVERTISE_MASTER": "$(OWNER), glidein-*@$(TRUST_DOMAIN)",
            "ALLOW_ADVERTISE_SCHEDD": "$(OWNER)",
            # To HTCondor, who may advertise may read; the queue is none of a glidein's business.
            "SCHEDD.DENY_READ": "glidein-*@$(TRUST_DOMAIN)",
            # Nor does a node change what its job is.
            "PROTECTED_JOB_ATTRS": knobs.protected(),
            # The execution point that glideins run on.
            "NUM_CPUS": str(cores), "SLOT_TYPE_1": "100%", "SLOT_TYPE_1_PARTITIONABLE": "True", "NUM_SLOTS_TYPE_1": "1",
            "STARTER_JOB_ENVIRONMENT": environment({POOL_VARIABLE: str(self.home)}),
        }  # fmt: skip
        lines = [f"{name} = {value}" for name, value in settings.items()]
        return "\n".join(["# Written by glide pool up.", *lines, "", knobs.rendered(), ""])

    def _last_words(self) -> str:
        lines: list[str] = []
        for log in ("master.out", "MasterLog", "CollectorLog", "SchedLog", "StartLog"):
            lines += [f"  {log}: {line}" for line in tail(self.logs / log, LAST_BYTES).splitlines()[-3:]]
        return "\n".join(lines)


def _account() -> pwd.struct_passwd:
    """Whom the pool's daemons and jobs run as: this user, or for root an unprivileged account."""
    if os.getuid() != 0:
        return pwd.getpwuid(os.getuid())
    for name in ("daemon", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise CondorError("root needs an unprivileged account (daemon or nobody) for HTCondor, and there is none")


def as_unprivileged() -> list[str]:
    """HTCondor refuses to run root's jobs, so root's pool runs under another name in a user namespace.

    To the kernel it stays root's own (files, signals), to HTCondor it is a personal pool of that account.
    """
    if os.getuid() != 0:
        return []
    return _under(_account())


def _under(account: pwd.struct_passwd) -> list[str]:
    return ["unshare", "--user", f"--map-user={account.pw_uid}", f"--map-group={account.pw_gid}"]


def _with_own_mount(folder: Path) -> list[str]:
    """Return what to start a pool's master with, so that its daemons see a folder as a mount of its own.

    A job's shadow checks no hard links, and makes one to any file of the user when the job's node asks for it; but
    hard links end at mounts.
    """
    space = ["unshare", "--mount", "--propagation", "private"]
    space += [] if os.getuid() == 0 else ["--user", "--map-root-user"]
    account = _under(_account())
    start = [*space, "sh", "-c", 'mount --bind "$0" "$0" && exec "$@"', str(folder), *account]
    if subprocess.run([*start, "true"], stdin=subprocess.DEVNULL, capture_output=True).returncode == 0:
        return start
    _log.warning(
        "no mount namespace on this host: code on a lane may read files of yours by hard links in the pool's spool"
    )
    return as_unprivileged()
