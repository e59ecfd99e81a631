"""Compute the HTCondor configuration of a glidein from the glidein's settings and a description of its node."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from glide.arguments import arguments, environment
from glide.files.cache import default_folder
from glide.files.peers import directory_command
from glide.glidein.settings import GlideinSettings
from glide.protocol.request import VERSION
from glide.server.settings import ServerSettings
from glide.server.supply import SupplySettings
from glide.vocabulary import ID_VARIABLE, POOL_VARIABLE, SOCKET_VARIABLE, Job, Machine, State

# With these attributes, a job could make the starter run any program, or write files outside the job's folder. So
# lanes refuse jobs that have one of these attributes.
FORBIDDEN_ATTRIBUTES = (
    "PreCmd", "PostCmd", "ToolDaemonCmd", "TransferPlugins", "DockerImage", "ContainerImage", "SingularityImage",
    "TransferInputRemaps", "StarterUserLog", "ManifestDesired", "ManifestDir",
)  # fmt: skip
# With these conditions, START accepts a job only if the job's program (Cmd) is the ticket. While the negotiator matches
# the job, Cmd is the text $$(GlideInvoke). Later, on the lane, Cmd is the ticket's path. START accepts both values.
TICKET_REQUIREMENTS = " && ".join((
    "TARGET.JobUniverse == 5", f'(TARGET.Cmd =?= "$$({Machine.INVOKE})" || TARGET.Cmd =?= {Machine.INVOKE})',
    "TARGET.TransferExecutable =?= false", '(TARGET.Environment ?: "") == "" && (TARGET.Env ?: "") == ""',
    'TARGET.ShouldTransferFiles == "YES"',
    *(f'(TARGET.Transfer{name} =!= false || TARGET.{name} == "/dev/null")' for name in ("Out", "Err")),
    *(f"TARGET.{name} =?= undefined" for name in FORBIDDEN_ATTRIBUTES),
))  # fmt: skip
# With these HTCondor settings, lanes accept jobs with any program, not only with the ticket. All users in the entry's
# `owners` can then run any program under the glidein's account.
ANY_PROGRAM = {"GLIDE_RUNS": "True", "STARTER_JOB_HOOK_KEYWORD": ""}


@dataclass(frozen=True)
class GlideinNode:
    """The node on which a glidein runs, and the names and files of the glidein on this node.

    Attributes:
        folder: the outer job's scratch folder.
        daemon_name: name of the glidein's HTCondor daemons. The name is different at each start of the glidein.
        python: path of the Python that runs the model server.
        release_dir: HTCondor's release folder.
        libexec: folder `libexec` of the release.
        lib: folder `lib` of the release.
        retires: Unix time after which the lanes accept no further job.
        cache: folder in which files stay for later glideins.
        host: address of this node, as other nodes of the pool see it.
        pool_home: GLIDE_HOME of the outer pool, if glide itself has started this pool; otherwise None. The environment
            of the glidein's processes contains this value, so that `glide pool down` finds the processes.
    """

    folder: Path
    glide_id: str
    daemon_name: str
    python: str
    release_dir: Path
    libexec: Path
    lib: Path
    retires: int
    cache: str
    host: str = "127.0.0.1"
    pool_home: str | None = None

    @property
    def endpoint(self) -> Path:
        """File with the port and the secret of the model server."""
        return self.folder / "server" / "door"

    @property
    def log(self) -> Path:
        return self.folder / "logs" / "ModelServerLog"

    @property
    def python_launcher(self) -> Path:
        """Script that starts the node's Python with glide's code."""
        return self.folder / "python"

    @property
    def invoke(self) -> Path:
        """Path of the ticket, which invocation jobs run."""
        return self.folder / "code" / "glide" / "invoke" / "ticket.sh"

    @property
    def prepare_hook(self) -> Path:
        """Script that the starter runs before each job of a lane."""
        return self.folder / "prepare"

    @property
    def advertise(self) -> Path:
        """Script that updates the ads of the lanes. The startd runs the script as a cron job."""
        return self.folder / "code" / "glide" / "server" / "advertise.sh"


def cache_folder(settings: GlideinSettings, owner: str) -> str:
    """Return the folder of the cache.

    If the entry names a folder, return this folder. If the entry names no folder, return one of these folders:

    - In an embedded pool: the pool's cache.
    - If the account that runs the glidein is `owner`: the default folder of this account.
    - In all other cases: a folder in the job's scratch folder. HTCondor deletes this folder when the job ends.

    Args:
        owner: owner of the outer job.
    """
    return os.path.expandvars(settings.cache) if settings.cache else str(default_folder(owner) or Path.cwd() / "cache")


def cache_limit(settings: GlideinSettings) -> int | None:
    """Return the maximum size of the cache in bytes; None if the cache may use most of its disk."""
    return int(settings.cache_gigabytes * 1e9) if settings.cache_gigabytes else None


def server_settings(settings: GlideinSettings, node: GlideinNode) -> ServerSettings:
    """Return the settings of the glidein's model server."""
    share = settings.upload_megabytes
    return ServerSettings(
        lanes=settings.lanes, memory=settings.memory, idle_seconds=settings.idle_seconds, factory=settings.factory,
        users_code=settings.users_code or len(settings.owners) == 1, programs=settings.programs,
        supply=SupplySettings(
            cache=node.cache, limit=cache_limit(settings),
            glide_id=node.glide_id, host=node.host, upload_rate=share * 1e6 if share else None,
            directory=directory_command(node.release_dir / "bin"),
            plugins=str(node.libexec), environment=settings.environment, compiled_key=settings.compiled_key,
        ),
    )  # fmt: skip


def prepare_script(node: GlideinNode) -> str:
    """Return a script that the starter runs before each job. The script prints attributes for the job's ad.

    The attributes set the job's program to the ticket, and clear the job's environment. START has already checked the
    program and the environment. But a job's ad may contain expressions in place of these values. START and the starter
    may get different results from an expression. The environment is cleared for one more reason: variables such as
    BASH_ENV or LD_PRELOAD can run code before the ticket.
    """
    attributes = {"Cmd": f'"{node.invoke}"', "TransferExecutable": "false", "Environment": '""', "Env": '""'}
    attributes |= dict.fromkeys(FORBIDDEN_ATTRIBUTES, "undefined")
    lines = "\n".join(f"{name} = {value}" for name, value in attributes.items())
    return f"#!/bin/sh\nprintf '%s\\n' {shlex.quote(lines)}\n"


def render(settings: GlideinSettings, node: GlideinNode) -> str:
    """Return the text of the glidein's condor_config."""
    sections = (
        _place(settings, node),
        _pool(settings),
        _lanes(settings, node),
        _server(settings, node),
        _lifetime(settings),
    )
    lines = [f"{name} = {value}" for section in (*sections, settings.knobs) for name, value in section.items()]
    return "\n".join(["# Written by a glidein at its start.", *lines, ""])


def _place(settings: GlideinSettings, node: GlideinNode) -> dict[str, str]:
    return {
        "RELEASE_DIR": str(node.release_dir), "BIN": "$(RELEASE_DIR)/bin", "SBIN": "$(RELEASE_DIR)/sbin",
        "LIBEXEC": str(node.libexec), "LIB": str(node.lib), "SHARE": "$(RELEASE_DIR)/share/condor",
        "LOCAL_DIR": str(node.folder), "LOG": "$(LOCAL_DIR)/logs", "EXECUTE": "$(LOCAL_DIR)/execute",
        "SPOOL": "$(LOCAL_DIR)/spool", "LOCK": "$(LOCAL_DIR)/lock", "RUN": "$(LOCAL_DIR)/lock",
        "LOCAL_CONFIG_FILE": "", "LOCAL_CONFIG_DIR": "", "PROCD_ADDRESS": "$(LOCK)/procd",
        # The daemons get a new name at each start. So ads of an earlier start are not mistaken for ads of this one.
        "MASTER_NAME": node.daemon_name, "STARTD_NAME": node.daemon_name,
        "DAEMON_LIST": "MASTER, STARTD, MODELSERVER", "DC_DAEMON_LIST": "MASTER, STARTD",
        "MODELSERVER": str(node.python_launcher),
        "MODELSERVER_ARGS": arguments(
            ["-m", "glide.server", f"{node.folder}/server.json", f"{node.folder}/template.json", str(node.endpoint),
             str(node.log)]
        ),
        # If the model server ends, the master restarts it almost immediately, and not after HTCondor's default pause.
        # If the model server ends again and again, the pause grows, up to 60 seconds.
        "MASTER_MODELSERVER_BACKOFF_CONSTANT": "1", "MASTER_MODELSERVER_BACKOFF_CEILING": "60",
    }  # fmt: skip


def _pool(settings: GlideinSettings) -> dict[str, str]:
    loopback = settings.collector.lstrip("<").startswith(("127.", "localhost"))
    return {
        "COLLECTOR_HOST": settings.collector,
        **({"NETWORK_INTERFACE": "127.0.0.1", "NO_DNS": "True", "DEFAULT_DOMAIN_NAME": "localdomain"} if loopback
           else {"CCB_ADDRESS": "$(COLLECTOR_HOST)"}),
        "USE_SHARED_PORT": "False",
        # HTCondor's daemons on a node can share a security session, the family session. The daemons of the outer pool
        # have created the family session of this node. The overlay pool does not know this session. So the glidein does
        # not use the session.
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


def _lanes(settings: GlideinSettings, node: GlideinNode) -> dict[str, str]:
    variables = {SOCKET_VARIABLE: str(node.endpoint), ID_VARIABLE: node.glide_id}
    variables |= {POOL_VARIABLE: node.pool_home} if node.pool_home else {}
    own = f"{Machine.OWNER} =?= undefined || {Machine.OWNER} =?= TARGET.User"
    settled = ",".join((State.BLANK, State.WARM, State.FAILED))
    almost_warm = f'stringListMember({Machine.STATE}, "{",".join(State.EARLY)}")'
    early = f"TARGET.{Job.EARLY} =?= true && TARGET.{Job.STICKY} =!= true && {almost_warm}"
    attributes = {
        Machine.ID: f'"{node.glide_id}"', Machine.ENTRY: f'"{settings.entry}"', Machine.SITE: f'"{settings.site}"',
        Machine.PROTOCOL: str(VERSION),
        Machine.INVOKE: f'"{node.invoke}"', Machine.SOCKET: f'"{node.endpoint}"', Machine.RETIRES: str(node.retires),
        Machine.DEVICES: str(settings.devices / settings.lanes),
        **({} if settings.price is None else {Machine.PRICE: str(float(settings.price))}),
    }  # fmt: skip
    owners = " || ".join(f'TARGET.User =?= "{owner}"' for owner in settings.owners)
    return {
        "NUM_CPUS": str(settings.lanes), "NUM_SLOTS": str(settings.lanes), "SLOT_TYPE_1": "cpus=1",
        "NUM_SLOTS_TYPE_1": str(settings.lanes),
        # Lanes have no GPU, because only the model server uses the GPU. A job on a lane only connects to the server.
        "STARTD_DETECT_GPUS": "", "MACHINE_RESOURCE_GPUs": "0",
        **attributes, "STARTD_ATTRS": ", ".join(attributes),
        # An invocation job's requirements check the lane's template and the lane's state. When HTCondor reuses a claim,
        # it checks START again, but not the job's requirements. So START also checks the lane's template and state.
        # If a user's code is loaded, START accepts only this user's jobs and the factory's sticky jobs.
        # START refuses outer jobs (they have GlideEntry), because a glidein must not run inside another glidein.
        # A job with GlideEarly may start while the template is fetched or loaded, and then waits on the lane.
        # So a lane that has just become warm is not idle while HTCondor matches and starts the job.
        "START": f'((({Machine.STATE} =?= "{State.WARM}" || ({early}))'
                 f" && TARGET.{Job.TEMPLATE} =?= {Machine.TEMPLATE}"
                 f" && ({own}) && ({owners})) || (TARGET.{Job.STICKY} =?= true"
                 f' && stringListMember({Machine.STATE}, "{settled}")'
                 f' && (TARGET.User =?= "{settings.factory}" || (({own}) && ({owners})))))'
                 f" && ($(GLIDE_RUNS)) && TARGET.{Job.ENTRY} =?= undefined && time() < {Machine.RETIRES}",
        # START contains the macro GLIDE_RUNS. This macro accepts only jobs whose program is the ticket.
        "GLIDE_RUNS": TICKET_REQUIREMENTS,
        # A hook keyword tells the starter which hooks to run. A job's ad can contain a hook keyword. The starter
        # ignores the job's hook keyword, because this configuration sets a hook keyword, too. So the starter runs only
        # glide's hook.
        "STARTER_JOB_HOOK_KEYWORD": "GLIDE", "GLIDE_HOOK_PREPARE_JOB_BEFORE_TRANSFER": str(node.prepare_hook),
        "STARTER_ALLOW_JOB_PRE_AND_POST_CMD": "False", "ENABLE_SSH_TO_JOB": "False",
        "SUSPEND": "False", "PREEMPT": "False", "KILL": "False",
        # Live calls come before batches: if no lane is free, HTCondor evicts another job for one with this attribute.
        # With a retirement time, the negotiator would not consider the lane until this time is over.
        "RANK": f"ifThenElse(TARGET.{Job.PRECEDES} =?= true, 1.0, 0.0)", "MAXJOBRETIREMENTTIME": "0",
        "STARTER_JOB_ENVIRONMENT": environment(variables),
        "STARTER_UPDATE_INTERVAL": "60", "RUNBENCHMARKS": "False",
        # HTCondor reads the node's process table only every 300 seconds. Reading the table takes long on a node with
        # many processes, for example of other glideins.
        "PID_SNAPSHOT_INTERVAL": "300",
        # The startd does not test file transfer plugins, Java and container runtimes. These tests would delay the start
        # of the glidein by seconds.
        "ENABLE_URL_TRANSFERS": "False", "JAVA": "", "DOCKER": "", "SINGULARITY": "",
    }  # fmt: skip


def _server(settings: GlideinSettings, node: GlideinNode) -> dict[str, str]:
    return {
        # The startd runs advertise.sh as a cron job. This script never exits. In the mode WaitForExit, the startd waits
        # for the end of a script before it starts the script again. When advertise.sh prints "- update:true", the
        # startd sends the lane's ad to the collector immediately.
        "STARTD_CRON_JOBLIST": "GLIDE",
        "STARTD_CRON_GLIDE_EXECUTABLE": str(node.advertise),
        "STARTD_CRON_GLIDE_ARGS": arguments([str(node.endpoint), str(settings.lanes)]),
        "STARTD_CRON_GLIDE_MODE": "WaitForExit", "STARTD_CRON_GLIDE_PERIOD": "1",
    }  # fmt: skip


def _lifetime(settings: GlideinSettings) -> dict[str, str]:
    return {
        # If a node vanishes, its ads expire after one minute instead of fifteen minutes.
        "UPDATE_INTERVAL": "15", "MASTER_UPDATE_INTERVAL": "15", "CLASSAD_LIFETIME": "60",
        "TCP_KEEPALIVE_INTERVAL": "10", "MachineMaxVacateTime": "5", "KILLING_TIMEOUT": "5",
        "SHUTDOWN_FAST_TIMEOUT": "5", "SHUTDOWN_GRACEFUL_TIMEOUT": "5",
        "MASTER_CHECK_NEW_EXEC_INTERVAL": "86400", "PREEN": "", "MAX_DEFAULT_LOG": "5 Mb",
    }  # fmt: skip
