"""HTCondor's defaults are for hour-long jobs on a campus; these are the settings an embedded pool runs with.

Each knob stands with the reason that moved it. Paths, names and addresses are in glide.condor.pool.
"""

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


def rendered() -> str:
    """The table as a piece of HTCondor configuration, reasons as comments."""
    return "\n".join(
        "\n".join([f"# {reason}", *(f"{name} = {value}" for name, value in knobs.items())])
        for reason, knobs in KNOBS.items()
    )
