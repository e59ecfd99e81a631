"""HTCondor's defaults are for hour-long jobs on a campus; these are the settings an embedded pool runs with.

Each knob stands with the reason that moved it. Paths, names and addresses are in glide.condor.pool.
"""

from glide.vocabulary import Job

KNOBS: dict[str, dict[str, str]] = {
    "Matching in about a second instead of a minute; the cycle delay caps the other two": {
        "NEGOTIATOR_INTERVAL": "1",
        "NEGOTIATOR_MIN_INTERVAL": "0",
        "NEGOTIATOR_CYCLE_DELAY": "0",
        "SCHEDD_INTERVAL": "5",
        "SCHEDD_MIN_INTERVAL": "1",
    },
    "A claim serves job after job; sticky state gains nothing from a fresh match": {
        "CLAIM_WORKLIFE": "-1",
        # Otherwise a starter that asks its shadow how to go on, before that has reaped its own file transfer, is told
        # to ask again in 5 s: a race that jobs with several input files mostly lose, and others at times.
        "GUIDANCE_KEEP_CALM_AND": "True",
        "JOB_START_DELAY": "0",
        "JOB_START_COUNT": "100",
    },
    "One user may use the whole access point: it is theirs": {
        "MAX_CONCURRENT_UPLOADS_PER_USER": "0",
        "MAX_CONCURRENT_UPLOADS": "100",
        "MAX_CONCURRENT_DOWNLOADS": "100",
    },
    "Ads of a glidein that died are gone after a minute, not after fifteen": {
        "UPDATE_INTERVAL": "15",
        "CLASSAD_LIFETIME": "60",
        "MASTER_UPDATE_INTERVAL": "15",
        "NEGOTIATOR_UPDATE_INTERVAL": "15",  # by default 300: it would be taken for dead most of the time
    },
    "A daemon that died is back in a second": {
        "MASTER_BACKOFF_CONSTANT": "1",
        "MASTER_BACKOFF_CEILING": "30",
    },
    "A dead host is noticed in half a minute": {
        "TCP_KEEPALIVE_INTERVAL": "10",
        "STARTD_CONTACT_TIMEOUT": "10",
    },
    "A glidein that is removed may bring its logs home, but not linger": {
        "MachineMaxVacateTime": "10",
        "KILLING_TIMEOUT": "10",
        "SHUTDOWN_GRACEFUL_TIMEOUT": "10",
        "SHUTDOWN_FAST_TIMEOUT": "8",
    },
    "What a glidein reports of itself is in its job's ad within a minute or two; by default it takes twenty": {
        "STARTER_UPDATE_INTERVAL": "60",
        "SHADOW_QUEUE_UPDATE_INTERVAL": "60",
    },
    "The pool lives on one machine that runs other things": {
        "PID_SNAPSHOT_INTERVAL": "300",  # a look at the process table costs in proportion to all of it
        "PERIODIC_EXPR_INTERVAL": "10",
        "START": "True",
        "SUSPEND": "False",
        "PREEMPT": "False",
        "KILL": "False",
        "RUNBENCHMARKS": "False",
        "CONDOR_FSYNC": "False",  # a queue that outlives a power cut is not worth a disk flush per job
        "MASTER_CHECK_NEW_EXEC_INTERVAL": "86400",
        "PREEN": "",
        "MAIL": "/bin/true",
        "SENDMAIL": "/bin/true",
        # Asking 15 plugins, Java and the container runtimes for their abilities delays every start. (An empty
        # FILETRANSFER_PLUGINS instead crashes the starter of 25.14.)
        "ENABLE_URL_TRANSFERS": "False",
        "JAVA": "",
        "DOCKER": "",
        "SINGULARITY": "",
        "MAX_DEFAULT_LOG": "20 Mb",
    },
}


# Attributes of a queued job that no node may change, although want_io_proxy lets it write the rest: the access point's
# PROTECTED_JOB_ATTRS. Not its IMMUTABLE_JOB_ATTRS: the schedd itself sets some of these while it spools a job's files.
PROTECTED: dict[str, tuple[str, ...]] = {
    "Which files a node reaches here; by itself, LimitDirectoryAccess keeps the others from having any effect": (
        "LimitDirectoryAccess", "WantIOProxy", "WantRemoteUpdates", "StreamOut", "StreamErr",
        "Iwd", "TransferInput", "TransferOutputRemaps", "OutputDestination", "Out", "Err", "In", "x509userproxy",
    ),
    "What the access point writes in the user's name, or removes": (
        "UserLog", "DAGManNodesLog", "JobAdInformationAttrs", "OtherJobRemoveRequirements",
    ),
    "What the job's next node runs, as the user": (
        "Cmd", "Args", "Arguments", "Env", "Environment", "TransferExecutable", "TransferPlugins", "Requirements",
    ),
    "When the job leaves the queue": (
        "OnExitRemove", "OnExitHold", "PeriodicRemove", "PeriodicHold", "LeaveJobInQueue",
    ),
    "Where its outputs go when they are gathered": (
        "TransferOutput", "SUBMIT_Iwd", "SUBMIT_TransferInput", "SUBMIT_TransferOutput", "SUBMIT_TransferOutputRemaps",
        "SUBMIT_Out", "SUBMIT_Err", "SUBMIT_UserLog", "SUBMIT_Cmd",
    ),
    "What glide reads of a job": (
        Job.TEMPLATE, Job.MODEL, Job.ENTRY, Job.SPEC, Job.STICKY, Job.BRINGS, Job.LANE, Job.RUN, Job.PART,
        Job.RECORDS, Job.LEFT, Job.WANTED, Job.MODEST,
    ),
}  # fmt: skip
# Without these a node gets at the user's other files, or has code of its own run as the user.
VITAL = (
    "LimitDirectoryAccess", "Iwd", "TransferInput", "UserLog", "Cmd", "Environment", "SUBMIT_Iwd", Job.SPEC,
)  # fmt: skip


def protected() -> str:
    """Return the value of PROTECTED_JOB_ATTRS."""
    return ", ".join(name for names in PROTECTED.values() for name in names)


def rendered() -> str:
    """The table as a piece of HTCondor configuration, reasons as comments."""
    return "\n".join(
        "\n".join([f"# {reason}", *(f"{name} = {value}" for name, value in knobs.items())])
        for reason, knobs in KNOBS.items()
    )
