"""Names that the access point, the nodes and the users share: ClassAd attributes, states and exit codes.

This module imports nothing, so that code on nodes can use it.
"""


class Machine:
    """Attributes of a lane's machine ad. The node publishes all these attributes."""

    TEMPLATE = "GlideTemplate"  # digest of the template that the lane offers
    MODEL = "GlideModel"  # name of the template's model
    STATE = "GlideState"  # server's state: Blank, Fetching, Importing, Loading, Warming, Warm, Asleep, Draining, Failed
    STATE_SINCE = "GlideStateSince"  # Unix time of the last change of state
    FAILURE = "GlideFailure"  # reason why the state is Failed, or why the last engine ended
    OWNER = "GlideOwner"  # the only User whose jobs the lane serves; set if the template contains code of this User
    ROOM = "GlideRoom"  # MB of memory for a new template: free memory and memory of unused templates; absent if unknown
    ID = "GlideId"  # name of the glidein: ENTRY-CLUSTER.PROC, with rN at the end after N restarts of the outer job
    ENTRY = "GlideEntry"  # name of the entry in the site file
    PROTOCOL = "GlideProtocol"  # version of the requests that the glidein serves; absent in glideins of version 1
    SITE = "GlideSite"  # name of the site in the site file
    INVOKE = "GlideInvoke"  # path of the ticket, the program that invocation jobs run on the node
    SOCKET = "GlideSocket"  # path of the file from which jobs on the lane read the model server's port and key
    RECORD_SECONDS = "GlideRecordSeconds"  # engine time per record in seconds, as a moving average
    BATCH = "GlideBatch"  # number of records that one engine call should have
    BATCHING = "GlideBatching"  # "static", "continuous", "equal lengths", "single", or the name of the serving program
    PREFIX_HITS = "GlidePrefixHits"  # share of prompt tokens that were reused from earlier prompts, from 0 to 1
    ADAPTERS = "GlideAdapters"  # names of the LoRA adapters in memory, separated by commas; absent if there are none
    ASLEEP = "GlideAsleep"  # digests of templates that are loaded in main memory only, separated by commas
    SERVED = "GlideServed"  # number of records served so far
    ERRORS = "GlideErrors"  # number of served records whose result is an error
    SERVED_SINCE = "GlideServedSince"  # Unix time when the first engine call began
    SERVED_UNTIL = "GlideServedUntil"  # Unix time when the last engine call ended
    BUSY_SECONDS = "GlideBusySeconds"  # total time of all engine calls, in seconds
    FETCH_SECONDS = "GlideFetchSeconds"  # time to fetch the files, in seconds
    IMPORT_SECONDS = "GlideImportSeconds"  # time to import the engine's libraries, in seconds; fetch and import overlap
    LOAD_SECONDS = "GlideLoadSeconds"  # time to load the model, in seconds
    WARM_SECONDS = "GlideWarmSeconds"  # time to warm up the loaded model, in seconds
    GPU_NAME = "GlideGpuName"  # name of the GPU that the engine uses; absent if the engine uses no GPU
    GPU_CAPABILITY = "GlideGpuCapability"  # lowest CUDA compute capability of the glidein's GPUs; absent without GPUs
    GPU_JOULES = "GlideGpuJoules"  # energy in J that the glidein's GPUs have used since its model server started
    DEVICES = "GlideDevices"  # number of devices (GPUs, or CPU cores without GPUs) of the glidein, divided by its lanes
    PRICE = "GlidePrice"  # price of one device for one hour, from the site file; absent if the site file has none
    SERVICE = "GlideService"  # URL of the service that runs the model, if the model is not on this node
    RETIRES = "GlideRetires"  # Unix time after which the lane accepts no new job
    CACHED = "GlideCached"  # short digests of the file sets in the host's cache, separated by commas
    SHARES = "GlideShares"  # short digests of the file sets that the node serves to peers, separated by commas
    FETCHING = "GlideFetching"  # file sets that are being fetched: DIGEST:TIME, where TIME is the Unix start time
    FETCHED = "GlideFetched"  # fetched bytes divided by all bytes to fetch, from 0 to 1
    PEER = "GlidePeer"  # address at which the node serves files to peers


class Job:
    """Attributes in the ads of invocation jobs, of sticky jobs, and of the outer jobs of glideins."""

    TEMPLATE = "GlideTemplate"  # digest of the template that the job wants; in outer jobs, the glidein's first template
    MODEL = "GlideModel"  # name of the model in this template
    ENTRY = "GlideEntry"  # outer job: name of the entry that the glidein was submitted to
    # A glidein can set an attribute of its outer job only if the name begins with Chirp. It sets these six attributes:
    STATE = "ChirpGlideState"  # outer job: the last state that the glidein's model server reported
    STATE_SINCE = "ChirpGlideStateSince"  # outer job: Unix time when the state in ChirpGlideState began
    FAILURE = "ChirpGlideFailure"  # outer job: reason why the state in ChirpGlideState is Failed
    SERVED = "ChirpGlideServed"  # outer job: number of records served so far
    ERRORS = "ChirpGlideErrors"  # outer job: number of served records whose result is an error
    REPORTED_START = "ChirpGlideStart"  # outer job: NumShadowStarts of the glidein that set these attributes
    SPEC = "GlideTemplateSpec"  # the template that the job wants, as JSON; the factory starts glideins with it
    STICKY = "GlideSticky"  # true if this is a sticky job: a job that makes a lane load another template
    BRINGS = "GlideBrings"  # sticky job: digest of the template that the lane must load
    LANE = "GlideLane"  # sticky job: name of the slot that must load the template
    RUN = "GlideRun"  # name of the sweep or session that the job belongs to
    SWEEP = "GlideSweep"  # job of a driver: path of the sweep file
    PART = "GlidePart"  # name of the group of records that the job carries; unique in the run
    PROTOCOL = "GlideProtocol"  # version of the job's requests; a lane of an older version cannot serve them
    RECORDS = "GlideRecords"  # number of records that the job carries
    LEFT = "GlideLeft"  # number of the run's records that are in no job yet
    WANTED = "GlideWanted"  # maximum number of glideins that the run may have at the same time
    BEST_EFFORT = "GlideModest"  # true for best effort: no glidein or model has to make room for the job
    TIMED = "GlideTimed"  # true if the model server must write the job's arrival time and end time to the error output
    EARLY = "GlideEarly"  # true if the job may start on a lane before the lane is Warm; it waits on the lane
    KEEP = "GlideKeep"  # number of records, from the start of the input, that a running job keeps; it gives back others
    STANDING = "GlideStanding"  # true if this is a standing job, which serves live calls until it is ended
    PRECEDES = "GlidePrecedes"  # true if a lane may evict another job for this standing job
    STREAM = "GlideStreamSeconds"  # seconds between two transfers of results to the access point; 1 if absent
    FOLDER = "GlideFolder"  # folder that contained the job file when the user ran `glide submit`
    INITIAL_DIR = "GlideInitialDir"  # the job's initialdir, before `glide gather` changes it


class State:
    """States of a model server.

    A healthy server passes through the states from Blank to Draining in this order, but without Asleep. A server that
    sleeps goes from Warm to Asleep, and later through Loading to Warm again.
    """

    BLANK = "Blank"
    FETCHING = "Fetching"
    IMPORTING = "Importing"
    LOADING = "Loading"
    WARMING = "Warming"
    WARM = "Warm"
    ASLEEP = "Asleep"  # loaded in main memory; the GPU memory is free for another template (GlideAsleep)
    DRAINING = "Draining"
    FAILED = "Failed"

    COMING_UP = (BLANK, FETCHING, IMPORTING, LOADING, WARMING)
    EARLY = COMING_UP[1:]  # a job with GlideEarly may start on a lane in one of these states, and waits there for Warm
    USABLE = (*EARLY, WARM)  # a driver's job may start on a lane in one of these states


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


# A completed job with spooled outputs stays in the queue until its outputs are fetched. After this number of seconds,
# the job leaves the queue in any case.
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


# Each glidein's token contains an identity, which begins with this text. The collector writes this identity into the
# glidein's ads, so that jobs can recognise genuine lanes.
IDENTITY = "glidein-"
# The glidein's startd sets these two environment variables for every job on a lane. SOCKET_VARIABLE is the path of the
# file with the model server's port and key. ID_VARIABLE is the GlideId.
SOCKET_VARIABLE = "GLIDE_SOCKET"
ID_VARIABLE = "GLIDE_ID"


def glide_id(entry: str, job: str, starts: int) -> str:
    """Return the GlideId, which names a glidein in ads, results and logs. It changes when the outer job restarts.

    Args:
        entry: name of the glidein's entry.
        job: the glidein's outer job, CLUSTER.PROC.
        starts: number of times that the outer job has started, according to NumShadowStarts.
    """
    return f"{entry}-{job}" + (f"r{starts - 1}" if starts > 1 else "")


# A failure with this text is not the fault of a template: the node lacks what the template's program needs, for example
# an instruction set, a driver, or a capability of the GPU.
UNSUITABLE = "this node cannot run the program"
# Every process of an engine has this environment variable. Its value identifies the engine.
ENGINE_VARIABLE = "GLIDE_ENGINE"
# Every process of an embedded pool has this environment variable. With it, `glide pool down` finds all these processes.
POOL_VARIABLE = "GLIDE_POOL_HOME"
