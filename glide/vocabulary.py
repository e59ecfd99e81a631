"""Names that the access point, the nodes and the users share: ClassAd attributes, states and exit codes.

This module imports nothing, so that code on nodes can use it.
"""


class Machine:
    """Attributes of a lane's machine ad. The node publishes all these attributes."""

    TEMPLATE = "GlideTemplate"  # digest of the template that the model server holds
    MODEL = "GlideModel"  # name of the template's model
    STATE = "GlideState"  # model server's state: Blank, Fetching, Importing, Loading, Warming, Warm, Draining or Failed
    STATE_SINCE = "GlideStateSince"  # Unix time of the last change of state
    FAILURE = "GlideFailure"  # reason why the state is Failed
    OWNER = "GlideOwner"  # the only User whose jobs the lane serves; set if the template contains code of this User
    ROOM = "GlideRoom"  # memory that another template may use on this lane while the lane is idle, in MB
    ID = "GlideId"  # name of the glidein; made from the entry, the outer job, and the outer job's number of restarts
    ENTRY = "GlideEntry"  # name of the entry in the site file
    SITE = "GlideSite"  # name of the site in the site file
    INVOKE = "GlideInvoke"  # path of the program that invocation jobs run
    SOCKET = "GlideSocket"  # path of the file from which jobs on the lane read the model server's port and key
    RECORD_SECONDS = "GlideRecordSeconds"  # time per record as a moving average, in seconds
    BATCH = "GlideBatch"  # number of records that one engine call should have
    BATCHING = "GlideBatching"  # how the engine batches prompts: static, continuous, equal lengths or single
    PREFIX_HITS = "GlidePrefixHits"  # share of prompt tokens, from 0 to 1, that the engine reused from earlier prompts
    SERVED = "GlideServed"  # number of records served so far
    ERRORS = "GlideErrors"  # number of served records whose result is an error
    SERVED_SINCE = "GlideServedSince"  # Unix time when the first engine call began
    SERVED_UNTIL = "GlideServedUntil"  # Unix time when the last engine call ended
    BUSY_SECONDS = "GlideBusySeconds"  # total time of all engine calls, in seconds
    FETCH_SECONDS = "GlideFetchSeconds"  # time to fetch the files, in seconds
    IMPORT_SECONDS = "GlideImportSeconds"  # time to import the engine's libraries, in seconds; fetch and import overlap
    LOAD_SECONDS = "GlideLoadSeconds"  # time to load the model, in seconds
    WARM_SECONDS = "GlideWarmSeconds"  # time to warm up, in seconds
    GPU_NAME = "GlideGpuName"  # name of the GPU that the engine uses; absent if it uses none
    SERVICE = "GlideService"  # URL of the service that runs the model, if the model is not on this node
    RETIRES = "GlideRetires"  # Unix time after which the lane accepts no new job
    CACHED = "GlideCached"  # short digests of the file sets that are on the host
    SHARES = "GlideShares"  # short digests of the file sets that the node gives to peers
    FETCHING = "GlideFetching"  # short digests of file sets that are being fetched, each with the Unix start time
    FETCHED = "GlideFetched"  # bytes that have arrived divided by all bytes to fetch, from 0 to 1
    PEER = "GlidePeer"  # address at which the node gives files to peers


class Job:
    """Attributes in the ads of invocation jobs, of sticky jobs, and of the outer jobs of glideins."""

    TEMPLATE = "GlideTemplate"  # digest of the template that the job wants, or that the glidein was submitted with
    MODEL = "GlideModel"  # name of the model in this template
    ENTRY = "GlideEntry"  # outer job: name of the entry that the glidein was submitted to
    # A glidein sets the next five attributes. A node may set only attributes whose names begin with Chirp.
    STATE = "ChirpGlideState"  # outer job: the last state that the glidein's model server reported
    STATE_SINCE = "ChirpGlideStateSince"  # outer job: Unix time when the state in ChirpGlideState began
    FAILURE = "ChirpGlideFailure"  # outer job: reason why the state in ChirpGlideState is Failed
    SERVED = "ChirpGlideServed"  # outer job: number of records served so far
    ERRORS = "ChirpGlideErrors"  # outer job: number of served records whose result is an error
    SPEC = "GlideTemplateSpec"  # the template as JSON; a factory starts glideins with this template
    STICKY = "GlideSticky"  # true if this is a sticky job: a job that makes a lane load another template
    BRINGS = "GlideBrings"  # sticky job: digest of the template that the lane must load
    LANE = "GlideLane"  # sticky job: name of the slot that must load the template
    RUN = "GlideRun"  # name of the sweep or session that the job belongs to
    PART = "GlidePart"  # name of the part of the run's records that the job contains
    RECORDS = "GlideRecords"  # number of records in the job
    LEFT = "GlideLeft"  # number of the run's records that are in no job yet
    WANTED = "GlideWanted"  # maximum number of glideins that the run may have at the same time
    BEST_EFFORT = "GlideModest"  # true for best effort: for this job, no glidein is removed, and no model is unloaded
    TIMED = "GlideTimed"  # true if the job's error output must contain two times: the start and the end of its service
    FOLDER = "GlideFolder"  # folder that contained the job file when the user ran `glide submit`
    INITIAL_DIR = "GlideInitialDir"  # job's original initialdir; set when `glide gather` changes the job's initialdir


class State:
    """States of a model server. A healthy server passes through the states from Blank to Draining in this order."""

    BLANK = "Blank"
    FETCHING = "Fetching"
    IMPORTING = "Importing"
    LOADING = "Loading"
    WARMING = "Warming"
    WARM = "Warm"
    DRAINING = "Draining"
    FAILED = "Failed"

    COMING_UP = (BLANK, FETCHING, IMPORTING, LOADING, WARMING)


class JobStatus:
    """HTCondor's JobStatus codes."""

    IDLE = 1
    RUNNING = 2
    REMOVED = 3
    COMPLETED = 4
    HELD = 5
    TRANSFERRING = 6
    SUSPENDED = 7

    NAMES = ("?", "idle", "running", "removed", "completed", "held", "transferring", "suspended")


# A completed job with spooled outputs stays in the queue until its outputs are fetched. The maximum time is
# KEPT_SECONDS.
KEPT_SECONDS = 30 * 24 * 3600
LEAVE_IN_QUEUE = f"JobStatus == {JobStatus.COMPLETED} && time() - CompletionDate < {KEPT_SECONDS}"


class Exit:
    """Exit codes of the programs that users and HTCondor run."""

    OK = 0  # success
    FAILED = 1  # failure; the message gives the cause
    INPUT = 2  # the input is wrong; nothing was submitted
    RECORD_ERRORS = 3  # the command finished, but some results are errors
    SERVER_LOST = 75  # the job lost its model server (EX_TEMPFAIL); HTCondor runs the job again
    INTERRUPTED = 130  # the command was interrupted; `glide sweep resume` continues an interrupted sweep


# The identity in every glidein's token begins with this text. The collector writes the identity into the glidein's ads.
IDENTITY = "glidein-"
# The glidein's startd sets these two environment variables for every job on a lane. SOCKET_VARIABLE is the path of the
# file with the model server's port and key. ID_VARIABLE is the GlideId.
SOCKET_VARIABLE = "GLIDE_SOCKET"
ID_VARIABLE = "GLIDE_ID"


def glide_id(entry: str, job: str, starts: int) -> str:
    """Return the GlideId of a glidein, as all its ads, results and logs have it. Each restart changes the GlideId.

    Args:
        entry: name of the glidein's entry.
        job: the glidein's outer job, CLUSTER.PROC.
        starts: number of times that the outer job has started, according to NumShadowStarts.
    """
    return f"{entry}-{job}" + (f"r{starts - 1}" if starts > 1 else "")


# Every process of an engine has this environment variable. Its value identifies the engine.
ENGINE_VARIABLE = "GLIDE_ENGINE"
# Every process of an embedded pool has this environment variable. With it, `glide pool down` finds remaining processes.
POOL_VARIABLE = "GLIDE_POOL_HOME"
