"""The HTCondor configuration of a glidein: a pure function of where it landed and what it was told."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from glide.arguments import arguments, environment
from glide.files.cache import default_folder
from glide.files.peers import directory_command
from glide.glidein.settings import Settings
from glide.server import settings as server_settings
from glide.server.supply import SupplySettings
from glide.vocabulary import ID_VARIABLE, POOL_VARIABLE, SOCKET_VARIABLE, Job, Machine, State

# Attributes by which a job has a starter run something else than its program, or write outside the job's folder.
PROGRAMS = (
    "PreCmd", "PostCmd", "ToolDaemonCmd", "TransferPlugins", "DockerImage", "ContainerImage", "SingularityImage",
    "TransferInputRemaps", "StarterUserLog", "ManifestDesired", "ManifestDir",
)  # fmt: skip
# What a job must be to run on a lane. It is matched by the reference to the ticket, and activated by the ticket's path.
TICKET = " && ".join((
    "TARGET.JobUniverse == 5", f'(TARGET.Cmd =?= "$$({Machine.INVOKE})" || TARGET.Cmd =?= {Machine.INVOKE})',
    "TARGET.TransferExecutable =?= false", '(TARGET.Environment ?: "") == "" && (TARGET.Env ?: "") == ""',
    'TARGET.ShouldTransferFiles == "YES"',
    *(f'(TARGET.Transfer{name} =!= false || TARGET.{name} == "/dev/null")' for name in ("Out", "Err")),
    *(f"TARGET.{name} =?= undefined" for name in PROGRAMS),
))  # fmt: skip
# The knobs of an entry whose lanes run whatever its owners submit, as the account of the glidein.
ANY_PROGRAM = {"GLIDE_RUNS": "True", "STARTER_JOB_HOOK_KEYWORD": ""}


@dataclass(frozen=True)
class Node:
    """Where a glidein landed: its scratch folder, its unique name, the programs it found."""

    folder: Path
    glide_id: str
    daemon_name: str
    python: str
    release_dir: Path
    libexec: Path
    lib: Path
    retires: int  # Unix time from when on it takes no further job
    cache: str  # where files stay
    host: str = "127.0.0.1"  # its address, as other nodes of the pool see it
    pool_home: str | None = None  # of the embedded pool it runs on: `glide pool down` finds its strays by it

    @property
    def door(self) -> Path:
        return self.folder / "server" / "door"

    @property
    def log(self) -> Path:
        return self.folder / "logs" / "ModelServerLog"

    @property
    def launcher(self) -> Path:
        return self.folder / "python"

    @property
    def invoke(self) -> Path:
        return self.folder / "code" / "glide" / "invoke" / "ticket.sh"

    @property
    def prepare(self) -> Path:
        """What the starter runs before each job of a lane."""
        return self.folder / "prepare"

    @property
    def advertise(self) -> Path:
        return self.folder / "code" / "glide" / "server" / "advertise.sh"


def cache_folder(settings: Settings, owner: str) -> str:
    """Where files stay on this node for the glideins of an owner; for this one alone where accounts are shared."""
    return os.path.expandvars(settings.cache) if settings.cache else str(default_folder(owner) or Path.cwd() / "cache")


def cache_limit(settings: Settings) -> int | None:
    """Bytes that they may take; None for most of the disk."""
    return int(settings.cache_gigabytes * 1e9) if settings.cache_gigabytes else None


def server(settings: Settings, node: Node) -> server_settings.Settings:
    """What the model server is told."""
    share = settings.upload_megabytes
    return server_settings.Settings(
        lanes=settings.lanes, memory=settings.memory, idle_seconds=settings.idle_seconds, factory=settings.factory,
        users_code=settings.users_code or len(settings.owners) == 1,
        supply=SupplySettings(
            cache=node.cache, limit=cache_limit(settings),
            glide_id=node.glide_id, host=node.host, upload_rate=share * 1e6 if share else None,
            directory=directory_command(node.release_dir / "bin"),
            plugins=str(node.libexec), environment=settings.environment,
        ),
    )  # fmt: skip


def preparation(node: Node) -> str:
    """Return the script whose output the starter puts into a job's ad before it runs the job.

    START accepts jobs that look right. But a job may describe its program or environment by an expression that START
    and the starter evaluate to different values, and BASH_ENV or LD_PRELOAD would run code before the ticket does.
    """
    given = {"Cmd": f'"{node.invoke}"', "TransferExecutable": "false", "Environment": '""', "Env": '""'}
    given |= dict.fromkeys(PROGRAMS, "undefined")
    lines = "\n".join(f"{name} = {value}" for name, value in given.items())
    return f"#!/bin/sh\nprintf '%s\\n' {shlex.quote(lines)}\n"


def render(settings: Settings, node: Node) -> str:
    """The text of the glidein's condor_config."""
    sections = (
        _place(settings, node),
        _pool(settings),
        _lanes(settings, node),
        _server(settings, node),
        _lifetime(settings),
    )
    lines = [f"{name} = {value}" for section in (*sections, settings.knobs) for name, value in section.items()]
    return "\n".join(["# Written by a glidein at its start.", *lines, ""])


def _place(settings: Settings, node: Node) -> dict[str, str]:
    return {
        "RELEASE_DIR": str(node.release_dir), "BIN": "$(RELEASE_DIR)/bin", "SBIN": "$(RELEASE_DIR)/sbin",
        "LIBEXEC": str(node.libexec), "LIB": str(node.lib), "SHARE": "$(RELEASE_DIR)/share/condor",
        "LOCAL_DIR": str(node.folder), "LOG": "$(LOCAL_DIR)/logs", "EXECUTE": "$(LOCAL_DIR)/execute",
        "SPOOL": "$(LOCAL_DIR)/spool", "LOCK": "$(LOCAL_DIR)/lock", "RUN": "$(LOCAL_DIR)/lock",
        "LOCAL_CONFIG_FILE": "", "LOCAL_CONFIG_DIR": "", "PROCD_ADDRESS": "$(LOCK)/procd",
        # A fresh name at every start: ads of an earlier life must not be taken for this one's.
        "MASTER_NAME": node.daemon_name, "STARTD_NAME": node.daemon_name,
        "DAEMON_LIST": "MASTER, STARTD, MODELSERVER", "DC_DAEMON_LIST": "MASTER, STARTD",
        "MODELSERVER": str(node.launcher),
        "MODELSERVER_ARGS": arguments(
            ["-m", "glide.server", f"{node.folder}/server.json", f"{node.folder}/template.json", str(node.door),
             str(node.log)]
        ),
        # The server is a child that has cost minutes to warm: back soon, but not in a tight loop.
        "MASTER_MODELSERVER_BACKOFF_CONSTANT": "1", "MASTER_MODELSERVER_BACKOFF_CEILING": "60",
    }  # fmt: skip


def _pool(settings: Settings) -> dict[str, str]:
    loopback = settings.collector.lstrip("<").startswith(("127.", "localhost"))
    return {
        "COLLECTOR_HOST": settings.collector,
        **({"NETWORK_INTERFACE": "127.0.0.1", "NO_DNS": "True", "DEFAULT_DOMAIN_NAME": "localdomain"} if loopback
           else {"CCB_ADDRESS": "$(COLLECTOR_HOST)"}),
        "USE_SHARED_PORT": "False",
        # The outer job's daemons are another family: their session keys mean nothing to this pool.
        "SEC_USE_FAMILY_SESSION": "False",
        "TRUST_DOMAIN": settings.trust_domain, "UID_DOMAIN": settings.trust_domain,
        "FILESYSTEM_DOMAIN": "$(STARTD_NAME)",
        "SEC_DEFAULT_AUTHENTICATION": "REQUIRED", "SEC_DEFAULT_AUTHENTICATION_METHODS": "IDTOKENS",
        "SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS", "SEC_DEFAULT_INTEGRITY": "REQUIRED",
        "SEC_DEFAULT_ENCRYPTION": "OPTIONAL",
        "SEC_TOKEN_DIRECTORY": "$(LOCAL_DIR)/tokens.d", "SEC_TOKEN_SYSTEM_DIRECTORY": "$(LOCAL_DIR)/tokens.d",
        "ALLOW_READ": "", "ALLOW_WRITE": "", "ALLOW_ADMINISTRATOR": "", "ALLOW_DAEMON": "", "ALLOW_CONFIG": "",
        "ALLOW_CLIENT": "*",
    }  # fmt: skip


def _lanes(settings: Settings, node: Node) -> dict[str, str]:
    variables = {SOCKET_VARIABLE: str(node.door), ID_VARIABLE: node.glide_id}
    variables |= {POOL_VARIABLE: node.pool_home} if node.pool_home else {}
    own = f"{Machine.OWNER} =?= undefined || {Machine.OWNER} =?= TARGET.User"
    settled = ",".join((State.BLANK, State.WARM, State.FAILED))
    owners = " || ".join(f'TARGET.User =?= "{owner}"' for owner in settings.owners)
    return {
        "NUM_CPUS": str(settings.lanes), "NUM_SLOTS": str(settings.lanes), "SLOT_TYPE_1": "cpus=1",
        "NUM_SLOTS_TYPE_1": str(settings.lanes),
        # The server owns the GPU; a lane's job only talks to it.
        "STARTD_DETECT_GPUS": "", "MACHINE_RESOURCE_GPUs": "0",
        Machine.ID: f'"{node.glide_id}"', Machine.ENTRY: f'"{settings.entry}"', Machine.SITE: f'"{settings.site}"',
        Machine.INVOKE: f'"{node.invoke}"', Machine.SOCKET: f'"{node.door}"', Machine.RETIRES: str(node.retires),
        "STARTD_ATTRS": ", ".join(
            [Machine.ID, Machine.ENTRY, Machine.SITE, Machine.INVOKE, Machine.SOCKET, Machine.RETIRES]
        ),
        # A reused claim rechecks START but not the job's requirements, so START tests the state as well.
        # A glidein's own job names a template too, and must not become a glidein within this one.
        # Where code of one owner is, nobody else is served. A sticky job may put another state in an idle one's place.
        "START": f'(({Machine.STATE} =?= "{State.WARM}" && TARGET.{Job.TEMPLATE} =?= {Machine.TEMPLATE}'
                 f" && ({own}) && ({owners})) || (TARGET.{Job.STICKY} =?= true"
                 f' && stringListMember({Machine.STATE}, "{settled}")'
                 f' && (TARGET.User =?= "{settings.factory}" || (({own}) && ({owners})))))'
                 f" && ($(GLIDE_RUNS)) && TARGET.{Job.ENTRY} =?= undefined && time() < {Machine.RETIRES}",
        # Whoever submits: the ticket, and nothing else. A job's own keyword does not count where one is set here.
        "GLIDE_RUNS": TICKET,
        "STARTER_JOB_HOOK_KEYWORD": "GLIDE", "GLIDE_HOOK_PREPARE_JOB_BEFORE_TRANSFER": str(node.prepare),
        "STARTER_ALLOW_JOB_PRE_AND_POST_CMD": "False", "ENABLE_SSH_TO_JOB": "False",
        "SUSPEND": "False", "PREEMPT": "False", "KILL": "False", "CLAIM_WORKLIFE": "-1",
        "STARTER_JOB_ENVIRONMENT": environment(variables),
        # Nothing about a lane's job is worth a look every few seconds.
        "STARTER_UPDATE_INTERVAL": "60", "RUNBENCHMARKS": "False",
        # Each look at the process table costs in proportion to all processes of the node, other glideins' included.
        "PID_SNAPSHOT_INTERVAL": "300",
        # Asking the plugins, Java and the container runtimes for their abilities delays the start by seconds.
        "ENABLE_URL_TRANSFERS": "False", "JAVA": "", "DOCKER": "", "SINGULARITY": "",
    }  # fmt: skip


def _server(settings: Settings, node: Node) -> dict[str, str]:
    return {
        # WaitForExit: the job never exits, and its every "- update:true" goes to the collector.
        "STARTD_CRON_JOBLIST": "GLIDE",
        "STARTD_CRON_GLIDE_EXECUTABLE": str(node.advertise),
        "STARTD_CRON_GLIDE_ARGS": arguments([str(node.door), str(settings.lanes)]),
        "STARTD_CRON_GLIDE_MODE": "WaitForExit", "STARTD_CRON_GLIDE_PERIOD": "1",
    }  # fmt: skip


def _lifetime(settings: Settings) -> dict[str, str]:
    return {
        # Ads of a node that vanished without a word are gone after a minute, not after fifteen.
        "UPDATE_INTERVAL": "15", "MASTER_UPDATE_INTERVAL": "15", "CLASSAD_LIFETIME": "60",
        "TCP_KEEPALIVE_INTERVAL": "10", "MachineMaxVacateTime": "5", "KILLING_TIMEOUT": "5",
        "SHUTDOWN_FAST_TIMEOUT": "5", "SHUTDOWN_GRACEFUL_TIMEOUT": "5",
        "MASTER_CHECK_NEW_EXEC_INTERVAL": "86400", "PREEN": "", "MAX_DEFAULT_LOG": "5 Mb",
    }  # fmt: skip
