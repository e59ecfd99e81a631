"""The names glide shares between access point, node and user: ClassAd attributes, states, exit codes.

Imports nothing. No other module spells one of these names itself.
"""


class Machine:
    """Attributes of a lane's machine ad (all published by the node)."""

    TEMPLATE = "GlideTemplate"  # digest of the template that it holds
    MODEL = "GlideModel"  # the template's model, by name
    STATE = "GlideState"  # of its model server, as State below
    STATE_SINCE = "GlideStateSince"  # Unix time of the last change of state
    FAILURE = "GlideFailure"  # why it Failed
    OWNER = "GlideOwner"  # whom alone it serves, where it holds a user's own code
    ROOM = "GlideRoom"  # MB that another template may take here, while it is idle
    ID = "GlideId"  # entry, outer job, and how often that was restarted
    ENTRY = "GlideEntry"  # of the site file
    SITE = "GlideSite"  # of the site file
    INVOKE = "GlideInvoke"  # path of what invocation jobs run
    SOCKET = "GlideSocket"  # where the model server listens for them
    RECORD_SECONDS = "GlideRecordSeconds"  # seconds a record, moving average
    BATCH = "GlideBatch"  # records that an engine call should have
    BATCHING = "GlideBatching"  # how prompts share the model: static, continuous, equal lengths or single
    PREFIX_HITS = "GlidePrefixHits"  # share of prompt tokens that were computed before
    SERVED = "GlideServed"  # records so far
    ERRORS = "GlideErrors"  # of them with an error
    SERVED_SINCE = "GlideServedSince"  # Unix time of the first
    SERVED_UNTIL = "GlideServedUntil"  # and of the last one's end
    BUSY_SECONDS = "GlideBusySeconds"  # in which the engine computed
    FETCH_SECONDS = "GlideFetchSeconds"  # what fetching the files took
    IMPORT_SECONDS = "GlideImportSeconds"  # importing the engine's libraries, beside that
    LOAD_SECONDS = "GlideLoadSeconds"  # loading the model
    WARM_SECONDS = "GlideWarmSeconds"  # warming it up
    GPU_NAME = "GlideGpuName"  # the device, where it is a GPU
    SERVICE = "GlideService"  # url of the service that has the model, where it is not here
    RETIRES = "GlideRetires"  # Unix time from when on it takes no further job
    CACHED = "GlideCached"  # trees of files that its host has, by short digest
    SHARES = "GlideShares"  # those that it gives to peers
    FETCHING = "GlideFetching"  # those that it fetches, and since when
    FETCHED = "GlideFetched"  # share of the bytes that are being fetched
    PEER = "GlidePeer"  # where peers ask for them


class Job:
    """Attributes of an invocation job's ad, and (the first eight) of a glidein's outer job."""

    TEMPLATE = "GlideTemplate"  # digest of the template that it wants, or was sent with
    MODEL = "GlideModel"  # its name
    ENTRY = "GlideEntry"  # of a glidein: where it was submitted
    # What a glidein reports of itself. Of all attributes, a node may set only those that begin with Chirp.
    STATE = "ChirpGlideState"  # of a glidein's server
    STATE_SINCE = "ChirpGlideStateSince"  # Unix time of that
    FAILURE = "ChirpGlideFailure"  # why it Failed
    SERVED = "ChirpGlideServed"  # records so far
    ERRORS = "ChirpGlideErrors"  # of them with an error
    SPEC = "GlideTemplateSpec"  # the template itself, from which a factory starts glideins
    STICKY = "GlideSticky"  # it brings a template to a lane
    BRINGS = "GlideBrings"  # the digest of that
    LANE = "GlideLane"  # the lane it is for
    RUN = "GlideRun"  # the sweep or session that it is of
    PART = "GlidePart"  # which of its parts it carries
    RECORDS = "GlideRecords"  # how many records those are
    LEFT = "GlideLeft"  # the run's records that are in no job yet
    WANTED = "GlideWanted"  # most glideins that the run is to have at once
    MODEST = "GlideModest"  # no glidein is to unload its model or to go for it
    TIMED = "GlideTimed"  # its error output is to say from when to when the server had it
    FOLDER = "GlideFolder"  # of the job file that glide submit was given
    INITIAL_DIR = "GlideInitialDir"  # the job's initialdir, while glide gather has its outputs written elsewhere


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


# A completed job whose outputs are spooled stays in the queue until they are gathered, and at most this long.
KEPT_SECONDS = 30 * 24 * 3600
LEAVE_IN_QUEUE = f"JobStatus == {JobStatus.COMPLETED} && time() - CompletionDate < {KEPT_SECONDS}"


class Exit:
    """Exit codes of the programs users and HTCondor see."""

    OK = 0  # it is done
    FAILED = 1  # it could not be done; the message says why
    INPUT = 2  # the input is wrong; nothing was submitted
    RECORD_ERRORS = 3  # finished, and some records have an error
    SERVER_LOST = 75  # the job lost its model server (EX_TEMPFAIL): HTCondor runs the job again
    INTERRUPTED = 130  # what was started is stopped; a sweep goes on with `glide sweep resume`


# What begins the identity of every glidein's token; the collector writes it into the ads that come with one.
IDENTITY = "glidein-"
# Environment of every job on a lane, set by the glidein's startd: the file that says where the model server listens.
SOCKET_VARIABLE = "GLIDE_SOCKET"
ID_VARIABLE = "GLIDE_ID"
# Environment of everything that an engine starts: which engine that was.
ENGINE_VARIABLE = "GLIDE_ENGINE"
# Environment of every process of an embedded pool; `glide pool down` finds strays by it.
POOL_VARIABLE = "GLIDE_POOL_HOME"
