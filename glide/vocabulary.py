"""The names glide shares between access point, node and user: ClassAd attributes, states, exit codes.

Imports nothing. No other module spells one of these names itself.
"""


class Machine:
    """Attributes of a lane's machine ad (all published by the node)."""

    TEMPLATE = "GlideTemplate"
    MODEL = "GlideModel"
    STATE = "GlideState"
    STATE_SINCE = "GlideStateSince"
    FAILURE = "GlideFailure"
    OWNER = "GlideOwner"
    ROOM = "GlideRoom"
    ID = "GlideId"
    ENTRY = "GlideEntry"
    SITE = "GlideSite"
    INVOKE = "GlideInvoke"
    SOCKET = "GlideSocket"
    RECORD_SECONDS = "GlideRecordSeconds"
    BATCH = "GlideBatch"
    BATCHING = "GlideBatching"
    PREFIX_HITS = "GlidePrefixHits"
    SERVED = "GlideServed"
    ERRORS = "GlideErrors"
    SERVED_SINCE = "GlideServedSince"
    SERVED_UNTIL = "GlideServedUntil"
    BUSY_SECONDS = "GlideBusySeconds"
    FETCH_SECONDS = "GlideFetchSeconds"
    IMPORT_SECONDS = "GlideImportSeconds"
    LOAD_SECONDS = "GlideLoadSeconds"
    WARM_SECONDS = "GlideWarmSeconds"
    GPU_NAME = "GlideGpuName"
    SERVICE = "GlideService"
    RETIRES = "GlideRetires"
    CACHED = "GlideCached"
    SHARES = "GlideShares"
    FETCHING = "GlideFetching"
    FETCHED = "GlideFetched"  # share of the bytes that are being fetched
    PEER = "GlidePeer"


class Job:
    """Attributes of an invocation job's ad, and (the first eight) of a glidein's outer job."""

    TEMPLATE = "GlideTemplate"
    MODEL = "GlideModel"
    ENTRY = "GlideEntry"
    STATE = "GlideState"
    STATE_SINCE = "GlideStateSince"
    FAILURE = "GlideFailure"
    SERVED = "GlideServed"
    ERRORS = "GlideErrors"
    SPEC = "GlideTemplateSpec"
    STICKY = "GlideSticky"
    BRINGS = "GlideBrings"
    LANE = "GlideLane"
    RUN = "GlideRun"
    PART = "GlidePart"
    RECORDS = "GlideRecords"
    LEFT = "GlideLeft"
    WANTED = "GlideWanted"


class State:
    """States of a model server, in the order a healthy one passes them."""

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


class Exit:
    """Exit codes of the programs users and HTCondor see."""

    OK = 0
    FAILED = 1
    INPUT = 2  # the input is wrong; nothing was submitted
    RECORD_ERRORS = 3  # finished, and some records have an error
    SERVER_LOST = 75  # the job lost its model server (EX_TEMPFAIL): HTCondor runs the job again
    INTERRUPTED = 130


# Environment of every job on a lane, set by the glidein's startd: the file that says where the model server listens.
SOCKET_VARIABLE = "GLIDE_SOCKET"
ID_VARIABLE = "GLIDE_ID"
# Environment of every process of an embedded pool; `glide pool down` finds strays by it.
POOL_VARIABLE = "GLIDE_POOL_HOME"
