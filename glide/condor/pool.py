"""Start and stop an embedded pool: an HTCondor pool on one machine, which needs no change to the system.

All files of the pool are in the folder GLIDE_HOME (mode 0700): configuration, signing key, queue and logs. The pool has
no fixed port. By default, it listens only on the loopback address. Pools in different folders are independent.
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
from glide.condor.collector import parse_address
from glide.condor.processes import Process
from glide.errors import CondorError, InputError
from glide.system import tail
from glide.vocabulary import POOL_VARIABLE, Machine

START_BUDGET = 45.0  # time limit from the start of the pool until its daemons answer, in seconds
LISTEN_SECONDS = 2.0  # time limit to connect to the collector, in seconds; even a busy collector is faster
_log = logging.getLogger("glide")
FORBIDDEN = ',"\\$'  # characters that GLIDE_HOME must not contain; HTCondor uses them for lists, quotes and macros
LAST_BYTES = 1 << 16  # maximum number of bytes to read from the end of a log, to show its last lines
TOOL_SECONDS = 30.0  # time limit of one of HTCondor's tools, in seconds
REAP_SECONDS = 2.0  # time limit until a stopped master disappears from /proc, in seconds
STOP_BUDGET = 8.0  # time limit for the master to stop the pool, in seconds; after that, remaining processes are killed


def home() -> Path:
    """Return the folder of glide's files: GLIDE_HOME, or by default the folder `glide` in XDG_STATE_HOME.

    Raises:
        InputError: the path contains a character that HTCondor does not allow in a path.
    """
    chosen = os.environ.get("GLIDE_HOME")
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    path = Path(chosen).absolute() if chosen else state / "glide"
    if wrong := sorted({each for each in str(path) if each in FORBIDDEN or not each.isprintable()}):
        raise InputError(
            f"GLIDE_HOME {str(path)!r}: HTCondor does not allow these characters in a path: "
            f"{' '.join(map(repr, wrong))}; set GLIDE_HOME to another folder"
        )
    return path


@dataclass(frozen=True)
class EmbeddedPool:
    """An embedded pool. Its state is in the folder `home`, so each process can create its own object for the pool."""

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
        """Start the pool and wait until its queue and its slots answer. Do nothing if they answer already.

        Args:
            cores: number of CPUs that the pool's own execution point offers. None: all CPUs of the machine.
            address: IP address of this machine at which the pool listens.
            settings: further HTCondor configuration: a dict from parameter to value.

        Raises:
            CondorError: the pool did not start within START_BUDGET seconds, or is running but does not answer. If the
                pool did not start, the message contains the last lines of the pool's logs.
        """
        if self.is_up():
            return
        deadline = time.monotonic() + START_BUDGET
        # If condor_master is running, the pool may have jobs. A stop of the pool would interrupt the jobs. So do not
        # stop the pool. Wait until the pool answers.
        while masters := self.daemons("condor_master"):
            time.sleep(0.2)
            if self.is_up():
                return
            if time.monotonic() > deadline:
                raise CondorError(
                    f"the embedded pool of {self.home} runs (condor_master is process {masters[0].pid}) but does not "
                    f"answer; look for the reason in {self.logs}, or stop the pool with `glide pool down`"
                )
        installation = install.ensure()
        self.down()  # stop what an earlier pool in this folder left behind
        self._write(installation, cores or os.cpu_count() or 1, address, settings)
        with (self.logs / "master.out").open("ab") as output:
            master = subprocess.Popen(
                [*self._with_own_mounts(), installation.program("condor_master"), "-f"],
                env={**os.environ, "CONDOR_CONFIG": str(self.config), POOL_VARIABLE: str(self.home)},
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_BUDGET
        while not self.is_up():
            if master.poll() is not None or time.monotonic() > deadline:
                self.down()
                raise CondorError(f"the embedded pool did not start; {self.logs} says:\n{self._log_ends()}")
            time.sleep(0.2)

    def down(self) -> None:
        """Stop the pool. Kill the processes that its master does not stop. Delete lock and address files."""
        mine = self.daemons("condor_master")
        for process in mine:
            process.send(signal.SIGQUIT)  # SIGQUIT makes a master stop its pool fast
        deadline = time.monotonic() + STOP_BUDGET
        while mine and self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        # If the master was killed, nothing else stops the pool's daemons, jobs and glideins.
        while left := self.processes():
            for process in left:
                process.send(signal.SIGKILL)
            time.sleep(0.05)
        for process in mine:
            with suppress(ChildProcessError):  # waiting works only if this process started the master
                os.waitpid(process.pid, 0)
        deadline = time.monotonic() + REAP_SECONDS
        while any(Path(f"/proc/{process.pid}").exists() for process in mine) and time.monotonic() < deadline:
            time.sleep(0.05)
        for folder in ("lock", "run", "address", "execute"):
            shutil.rmtree(self.folder / folder, ignore_errors=True)

    def is_up(self) -> bool:
        """Return whether the collector, schedd, negotiator and an execution point of this pool answer."""
        if not any(self.folder.glob("address/*")):
            return False
        # The query leaves out the ads of glideins, because they are not needed, and there may be hundreds.
        own = f'{Machine.ID} =?= undefined && MyType =!= "DaemonMaster"'
        status = self.tool("condor_status", "-any", "-constraint", own, "-af", "MyType", check=False).split()
        return {"Scheduler", "Negotiator"} <= set(status) and bool({"Machine", "Slot", "StartDaemon"} & set(status))

    def listens(self) -> bool:
        """Return whether the collector's last known address accepts connections. This is quicker than `is_up`."""
        with suppress(OSError, CondorError):
            where = parse_address((self.folder / "address" / "collector").read_text("utf-8"))
            with socket.create_connection(where, timeout=LISTEN_SECONDS):
                return True
        return False

    def processes(self) -> list[Process]:
        """Return all processes of this pool, including the processes of glideins and jobs."""
        return processes.with_variable(POOL_VARIABLE, str(self.home))

    def daemons(self, name: str) -> list[Process]:
        """Return the pool's daemons that run the program `name`, such as condor_schedd. Leave out glideins' daemons."""
        return [each for each in processes.daemons(self.processes(), name) if self._is_own(each)]

    def glidein_masters(self) -> list[Process]:
        """Return the condor_master of each glidein."""
        return [each for each in processes.daemons(self.processes(), "condor_master") if not self._is_own(each)]

    def _is_own(self, process: Process) -> bool:
        return process.variable("CONDOR_CONFIG") == str(self.config)

    def _with_own_mounts(self) -> list[str]:
        """Return a prefix for a command, as a list of arguments. It makes the jobs' folders mounts for the command.

        Code on a node can ask the shadow of its job to create a hard link in the job's folder, which is in the spool or
        in GLIDE_JOBS. The shadow does not check the target of the link, so the target may be any file of the job's
        owner. A hard link cannot lead to another mount, so with these mounts, the shadow cannot create such a link.
        """
        space = ["unshare", "--mount", "--propagation", "private"]
        space += [] if os.getuid() == 0 else ["--user", "--map-root-user"]
        script = 'mount --bind "$0" "$0" && mount --bind "$1" "$1" && shift && exec "$@"'
        folders = [str(self.folder / "spool"), str(self.folder / "jobs")]
        start = [*space, "sh", "-c", script, *folders, *_under(account())]
        if subprocess.run([*start, "true"], stdin=subprocess.DEVNULL, capture_output=True).returncode == 0:
            return start
        _log.warning(
            "this host allows no mount namespace: code on a lane may read your files through hard links in the pool's"
            " folders of jobs"
        )
        return as_unprivileged()

    # ---- clients ---------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Return environment variables for programs that use this pool, as a dict from name to value."""
        installation = install.find()
        variables = {"CONDOR_CONFIG": str(self.config)}
        if os.getuid() == 0:
            variables["CONDOR_IDS"] = f"{account().pw_uid}.{account().pw_gid}"
        if installation and str(installation.bin) not in os.environ.get("PATH", "").split(":"):
            variables["PATH"] = f"{installation.bin}:{installation.sbin}:{os.environ.get('PATH', '')}"
        return variables

    def tool(self, name: str, *arguments: str, check: bool = True) -> str:
        """Run one of HTCondor's tools for this pool, and return the tool's output.

        Raises:
            CondorError: HTCondor is not installed, the tool did not end within TOOL_SECONDS, or the tool failed and
                `check` is true.
        """
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
            raise CondorError(f"{name} has not ended within {TOOL_SECONDS:.0f} s") from None
        if check and done.returncode != 0:
            raise CondorError(f"{name} failed: {done.stderr.strip()}")
        return done.stdout

    # ---- configuration ---------------------------------------------------------------------------

    def _write(self, installation: install.Installation, cores: int, address: str, further: Mapping[str, str]) -> None:
        for folder in ("", "log", "spool", "jobs", "execute", "lock", "run", "address", "passwords.d", "tokens.d"):
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
        identity = f"{account().pw_name}@{trust.read_text('utf-8')}"
        tokens.mint(self.folder / "tokens.d" / "owner", identity, environment={**os.environ, **self.environment()})

    def _configuration(self, installation: install.Installation, cores: int, address: str, trust: str) -> str:
        settings = installation.paths() | {
            "LOCAL_DIR": str(self.folder),
            "LOG": "$(LOCAL_DIR)/log", "SPOOL": "$(LOCAL_DIR)/spool", "EXECUTE": "$(LOCAL_DIR)/execute",
            "GLIDE_JOBS": "$(LOCAL_DIR)/jobs",
            "LOCK": "$(LOCAL_DIR)/lock", "RUN": "$(LOCAL_DIR)/run", "LOCAL_CONFIG_FILE": "", "LOCAL_CONFIG_DIR": "",
            "DAEMON_LIST": "MASTER, COLLECTOR, NEGOTIATOR, SCHEDD, STARTD",
            "EVENT_LOG": "$(LOG)/EventLog", "EVENT_LOG_MAX_SIZE": "100000000",
            # No port is fixed. The collector chooses a free port and writes it into its address file.
            "CONDOR_HOST": address, "COLLECTOR_HOST": "$(CONDOR_HOST):0", "NETWORK_INTERFACE": address,
            "USE_SHARED_PORT": "True", "SHARED_PORT_PORT": "0", "DAEMON_SOCKET_DIR": "auto",
            "COLLECTOR_ADDRESS_FILE": "$(LOCAL_DIR)/address/collector",
            "SCHEDD_ADDRESS_FILE": "$(LOCAL_DIR)/address/schedd",
            "MASTER_ADDRESS_FILE": "$(LOCAL_DIR)/address/master",
            "SHARED_PORT_DAEMON_AD_FILE": "$(LOCAL_DIR)/address/shared_port_ad",
            "PROCD_ADDRESS": "$(RUN)/procd",
            "COLLECTOR_NAME": f"glide {trust}",
            "FULL_HOSTNAME": "localhost", "DEFAULT_DOMAIN_NAME": "localdomain", "NO_DNS": "True",
            # The account OWNER has all rights. Glideins authenticate with a token, and may only advertise. If root uses
            # the pool, OWNER is an unprivileged account. Root must then authenticate as OWNER:
            # - The method IDTOKENS authenticates root as OWNER.
            # - The method FS authenticates root as root.
            # So each list of methods below begins with IDTOKENS.
            "UID_DOMAIN": trust, "FILESYSTEM_DOMAIN": trust, "TRUST_DOMAIN": trust,
            "SEC_DEFAULT_AUTHENTICATION": "REQUIRED", "SEC_DEFAULT_INTEGRITY": "REQUIRED",
            "SEC_DEFAULT_ENCRYPTION": "OPTIONAL", "SEC_DEFAULT_AUTHENTICATION_METHODS": "IDTOKENS, FS",
            "SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS, FS",
            "SEC_PASSWORD_DIRECTORY": "$(LOCAL_DIR)/passwords.d", "SEC_TOKEN_DIRECTORY": "$(LOCAL_DIR)/tokens.d",
            "SEC_TOKEN_SYSTEM_DIRECTORY": "$(LOCAL_DIR)/tokens.d",
            "SEC_TOKEN_POOL_SIGNING_KEY_FILE": "$(LOCAL_DIR)/passwords.d/POOL",
            "OWNER": f"{account().pw_name}@$(UID_DOMAIN)",
            "ALLOW_READ": "$(OWNER)", "ALLOW_WRITE": "$(OWNER)", "ALLOW_ADMINISTRATOR": "$(OWNER)",
            "ALLOW_DAEMON": "$(OWNER)", "ALLOW_NEGOTIATOR": "$(OWNER)", "ALLOW_CLIENT": "*", "ALLOW_CONFIG": "",
            "ALLOW_ADVERTISE_STARTD": "$(OWNER), glidein-*@$(TRUST_DOMAIN)",
            "ALLOW_ADVERTISE_MASTER": "$(OWNER), glidein-*@$(TRUST_DOMAIN)",
            "ALLOW_ADVERTISE_SCHEDD": "$(OWNER)",
            # By default, the right to advertise includes the right to read. So without the next line, glideins could
            # read the queue.
            "SCHEDD.DENY_READ": "glidein-*@$(TRUST_DOMAIN)",
            "PROTECTED_JOB_ATTRS": knobs.protected(),
            # The pool's own execution point, which runs glideins, has one partitionable slot.
            "NUM_CPUS": str(cores), "SLOT_TYPE_1": "100%", "SLOT_TYPE_1_PARTITIONABLE": "True", "NUM_SLOTS_TYPE_1": "1",
            "STARTER_JOB_ENVIRONMENT": environment({POOL_VARIABLE: str(self.home)}),
        }  # fmt: skip
        lines = [f"{name} = {value}" for name, value in settings.items()]
        return "\n".join(["# Written by glide pool up.", *lines, "", knobs.rendered(), ""])

    def _log_ends(self) -> str:
        lines: list[str] = []
        for log in ("master.out", "MasterLog", "CollectorLog", "SchedLog", "StartLog"):
            lines += [f"  {log}: {line}" for line in tail(self.logs / log, LAST_BYTES).splitlines()[-3:]]
        return "\n".join(lines)


def account() -> pwd.struct_passwd:
    """Return the account of the pool's daemons and jobs. If the user is root, this is an unprivileged account."""
    if os.getuid() != 0:
        return pwd.getpwuid(os.getuid())
    for name in ("daemon", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise CondorError(
        "root needs an unprivileged account for HTCondor, but this system has neither an account `daemon` nor an"
        " account `nobody`"
    )


def as_unprivileged() -> list[str]:
    """Return a prefix for commands, as a list of arguments. If the user is not root, the list is empty.

    HTCondor refuses to run jobs of root. With this prefix, a command of root runs in a user namespace. Inside the
    namespace, the processes and files seem to belong to an unprivileged account. Outside, they belong to root.
    """
    if os.getuid() != 0:
        return []
    return _under(account())


def _under(account: pwd.struct_passwd) -> list[str]:
    return ["unshare", "--user", f"--map-user={account.pw_uid}", f"--map-group={account.pw_gid}"]
