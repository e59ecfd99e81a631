"""HTCondor settings of an embedded pool. HTCondor's own defaults suit a campus pool where a job takes an hour.

KNOBS groups the settings by their reason. Settings of paths, names and addresses are in glide.condor.pool.
"""

from glide.vocabulary import Job

KNOBS: dict[str, dict[str, str]] = {
    "Match in about a second instead of a minute; the cycle delay is a lower limit of the two intervals": {
        "NEGOTIATOR_INTERVAL": "1",
        "NEGOTIATOR_MIN_INTERVAL": "0",
        "NEGOTIATOR_CYCLE_DELAY": "0",
        "SCHEDD_INTERVAL": "1",
        "SCHEDD_MIN_INTERVAL": "0",
    },
    "A job starts and ends without pauses": {
        # After the transfer of the input files, the starter asks the shadow for the next step. The shadow may not have
        # noticed the end of the transfer yet. In this case, the shadow tells the starter to ask again after 5 s. This
        # delays most jobs with several input files, and some other jobs. The following parameter prevents the delay.
        "GUIDANCE_KEEP_CALM_AND": "True",
        "JOB_START_DELAY": "0",
        "JOB_START_COUNT": "100",
    },
    "A job gives records back a second after the driver has asked it, instead of up to 30 s": {
        # The schedd tells the shadow of a job that an attribute of the job has changed. If the shadow has not asked for
        # the last change yet, the schedd tells it again after this number of seconds.
        "SCHEDD_JOB_QUEUE_NOTIFY_UPDATES": "1",
    },
    "One user may use the whole access point, which is their own": {
        # Since HTCondor 25.11, a user gets at most this number of matches in each negotiation cycle, even if no file
        # waits for its transfer. The default is a fifth of MAX_CONCURRENT_UPLOADS. 0 means no limit.
        "MAX_CONCURRENT_UPLOADS_PER_USER": "0",
        # These two apply only to files of more than 100 MiB (BYTES_REQUIRED_TO_QUEUE_FOR_TRANSFER).
        "MAX_CONCURRENT_UPLOADS": "100",
        "MAX_CONCURRENT_DOWNLOADS": "100",
    },
    "A driver that was held and released, or that has failed, starts again after seconds instead of five minutes": {
        "SCHEDULER_UNIVERSE_COOL_DOWN_DURATION": "2",
    },
    "Ads of a glidein that died expire after one minute instead of fifteen": {
        "UPDATE_INTERVAL": "15",
        "CLASSAD_LIFETIME": "60",
        "MASTER_UPDATE_INTERVAL": "15",
        # By default, the negotiator sends its ad every 300 s. But the ad expires after 60 s (CLASSAD_LIFETIME).
        "NEGOTIATOR_UPDATE_INTERVAL": "15",
    },
    "A daemon that died is restarted after a second": {
        "MASTER_BACKOFF_CONSTANT": "1",
        "MASTER_BACKOFF_CEILING": "30",
    },
    "A dead host is noticed within half a minute": {
        "TCP_KEEPALIVE_INTERVAL": "10",
        "STARTD_CONTACT_TIMEOUT": "10",
    },
    "A removed glidein has time to transfer its logs, and not longer": {
        "MachineMaxVacateTime": "10",
        "KILLING_TIMEOUT": "10",
        "SHUTDOWN_GRACEFUL_TIMEOUT": "10",
        "SHUTDOWN_FAST_TIMEOUT": "8",
    },
    "A glidein's report is in its job's ad after one or two minutes instead of twenty": {
        "STARTER_UPDATE_INTERVAL": "60",
        "SHADOW_QUEUE_UPDATE_INTERVAL": "60",
    },
    "The pool shares one machine with other programs": {
        "PID_SNAPSHOT_INTERVAL": "300",  # seconds between two scans of all processes of the machine
        "PERIODIC_EXPR_INTERVAL": "10",
        "START": "True",
        "SUSPEND": "False",
        "PREEMPT": "False",
        "KILL": "False",
        "RUNBENCHMARKS": "False",
        # Disk flushes would slow each job down, and would protect the queue only from a power failure.
        "CONDOR_FSYNC": "False",
        "MASTER_CHECK_NEW_EXEC_INTERVAL": "86400",
        "PREEN": "",
        "MAIL": "/bin/true",
        "SENDMAIL": "/bin/true",
        # By default, HTCondor asks 15 file transfer plugins, Java and the container runtimes for their capabilities.
        # This delays every start. An empty FILETRANSFER_PLUGINS crashes the starter of HTCondor 25.14.
        "ENABLE_URL_TRANSFERS": "False",
        "JAVA": "",
        "DOCKER": "",
        "SINGULARITY": "",
        "MAX_DEFAULT_LOG": "20 Mb",
    },
}


# If a job has want_io_proxy, the job's node can change attributes of the job in the queue. No node may change the
# attributes below. The attributes are in groups. The key of each group says what the group's attributes determine.
#
# The access point protects these attributes with HTCondor's parameter PROTECTED_JOB_ATTRS. The parameter
# IMMUTABLE_JOB_ATTRS is not suitable, because this parameter also restricts the schedd. When the schedd spools the
# files of a job, the schedd must set some of these attributes.
PROTECTED: dict[str, tuple[str, ...]] = {
    "Which files of the access point a node reaches; LimitDirectoryAccess alone makes the others harmless": (
        "LimitDirectoryAccess", "WantIOProxy", "WantRemoteUpdates", "StreamOut", "StreamErr",
        "Iwd", "TransferInput", "TransferOutputRemaps", "OutputDestination", "Out", "Err", "In", "x509userproxy",
    ),
    "Which files the access point writes as the user, and which jobs it removes": (
        "UserLog", "DAGManNodesLog", "JobAdInformationAttrs", "OtherJobRemoveRequirements",
    ),
    "What the job's next node runs as the user": (
        "Cmd", "Args", "Arguments", "Env", "Environment", "TransferExecutable", "TransferPlugins", "Requirements",
    ),
    "When the job leaves the queue": (
        "OnExitRemove", "OnExitHold", "PeriodicRemove", "PeriodicHold", "LeaveJobInQueue",
    ),
    "Where the job's outputs are written when they are gathered": (
        "TransferOutput", "SUBMIT_Iwd", "SUBMIT_TransferInput", "SUBMIT_TransferOutput", "SUBMIT_TransferOutputRemaps",
        "SUBMIT_Out", "SUBMIT_Err", "SUBMIT_UserLog", "SUBMIT_Cmd",
    ),
    "What glide reads of a job": (
        Job.TEMPLATE, Job.MODEL, Job.ENTRY, Job.SPEC, Job.STICKY, Job.BRINGS, Job.LANE, Job.RUN, Job.PART,
        Job.RECORDS, Job.LEFT, Job.WANTED, Job.BEST_EFFORT, Job.STANDING, Job.PRECEDES,
    ),
}  # fmt: skip
# If an attribute in VITAL is not protected, a node can access any file of the user, or run any code as the user.
VITAL = (
    "LimitDirectoryAccess", "Iwd", "TransferInput", "UserLog", "Cmd", "Environment", "SUBMIT_Iwd", Job.SPEC,
)  # fmt: skip


def protected() -> str:
    """Return all attributes in PROTECTED, as the value of HTCondor's parameter PROTECTED_JOB_ATTRS."""
    return ", ".join(name for names in PROTECTED.values() for name in names)


def rendered() -> str:
    """Return KNOBS as the text of an HTCondor configuration file, with the reasons as comments."""
    return "\n".join(
        "\n".join([f"# {reason}", *(f"{name} = {value}" for name, value in knobs.items())])
        for reason, knobs in KNOBS.items()
    )
