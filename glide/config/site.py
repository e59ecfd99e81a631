"""A site file: the entries where a factory may submit glideins, and their limits."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints, field_validator, model_validator

from glide.config.reading import Line, Name, Number, Strict, Time, Whole
from glide.config.sweep import checked_options
from glide.files.environment import REGISTRIES

# What a factory keeps in its site's folder, beside a folder for each entry.
OWN_FILES = (
    "accounts", "drained", "factory.log", "file", "journal.jsonl", "journal.jsonl.1", "lock", "peers", "seed",
    "users.lock", "while-used.lock",
)  # fmt: skip


class Request(Strict):
    """What a glidein asks its outer pool for.

    Attributes:
        cpus: cores.
        memory: MB.
        disk: MB, for what is fetched and unpacked, too, unless `cache` names a folder elsewhere.
        gpus: how many; a model is on one of them, unless its options say `device: all`.
        gpu_memory: MB that each must have at least; by it is known what a model may take.
    """

    cpus: Whole = Field(1, ge=1)
    memory: Whole = Field(2048, ge=1)
    disk: Whole = Field(1024, ge=1)
    gpus: Whole = Field(0, ge=0)
    gpu_memory: Whole | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _has_a_gpu(self) -> Request:
        if self.gpu_memory is not None and self.gpus == 0:
            raise ValueError("gpu_memory without gpus; set gpus: 1, or leave it out")
        return self

    @property
    def model_memory(self) -> int | None:
        """MB that a model may take here, on all GPUs together; None where nobody knows."""
        if self.gpus:
            return self.gpu_memory and self.gpu_memory * self.gpus
        return self.memory


class Downtime(Strict):
    """When nothing is submitted to an entry.

    Attributes:
        start, end: as 2027-01-04 08:00; times without a zone are UTC.
        reason: what is told to those who wait.
    """

    start: Time
    end: Time
    reason: Line

    @model_validator(mode="after")
    def _ends_after_its_start(self) -> Downtime:
        if unix_time(self.end) <= unix_time(self.start):
            raise ValueError("it ends before it starts")
        return self

    def contains(self, now: float) -> bool:
        """Whether it is on at this Unix time."""
        return unix_time(self.start) <= now < unix_time(self.end)


def unix_time(time: datetime) -> float:
    """A time that a user wrote; without a zone it is UTC."""
    return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp()


class Breaker(Strict):
    """When to stop trying.

    Attributes:
        failures: glideins in a row that were never warm, after which nothing is submitted for a while.
        backoff_seconds: that while; twice as long after each further one.
    """

    failures: Whole = Field(3, ge=1)
    backoff_seconds: Number = Field(600.0, gt=0)


class Pool(Strict):
    """Another pool than the one that glideins join.

    The factory needs a token of that pool; what glideins start from is spooled to its access point.

    Attributes:
        collector: its address.
        schedd: name of its access point; may be left out where there is one.
    """

    collector: Line
    schedd: Line | None = None


class Login(Strict):
    """A host to log in to by SSH, whose access point takes glideins: HTCondor's own commands are used there.

    What SSH's own configuration (`~/.ssh/config`) says of the host counts, too. Host keys are always checked: one that
    is not known, or not the known one, is refused.

    Attributes:
        host: its name or address.
        user, port: by default as SSH's configuration has them.
        key: file of the private key; by default SSH's agent and usual files. A daemon has no agent, and no
            passphrase.
        jump: the host to go through, as [user@]host[:port].
        known_hosts: file of host keys; by default the account's own.
        schedd: name of the access point, where the host's configured one is not meant.
        folder: of ours on it, relative to the home folder; its nodes need not see it.
        seconds: that a command may take there.
    """

    host: Line
    user: Line | None = None
    port: Whole | None = Field(None, ge=1, le=65535)
    key: Line | None = None
    jump: Line | None = None
    known_hosts: Line | None = None
    schedd: Line | None = None
    folder: str = Field(".glide", pattern=r"^[\w.@+/-]+$")
    seconds: Number = Field(30.0, gt=0)

    @property
    def name(self) -> str:
        """The host, with what tells it from others of that name."""
        user, port = f"{self.user}@" if self.user else "", f":{self.port}" if self.port else ""
        return f"{user}{self.host}{port}{f' ({self.schedd})' if self.schedd else ''}"


class Cache(Strict):
    """Where the files of models stay on a node, for all glideins there and those to come.

    Attributes:
        folder: on a disk of the node, where it may begin with a variable of the node's (`$SCRATCH/glide`); by default
            one of the glideins' account in /var/tmp. A folder must be named for files to stay where that account is not
            their owner's own (`nobody`), or where HTCondor gives each job its own /var/tmp (MOUNT_UNDER_SCRATCH).
        gigabytes: that it may take; by default 95 % of its disk.
        upload_megabytes: a second that other nodes may take from each glidein; by default no limit.
    """

    folder: Line | None = None
    gigabytes: Number | None = Field(None, gt=0)
    upload_megabytes: Number | None = Field(None, gt=0)


class Service(Strict):
    """A model that is served elsewhere: an entry's glideins pass records on to it, beside others that load it.

    Attributes:
        serves: the model, by the name that sweeps give it (GlideModel).
        options: those of the openai engine: url, model, key_file, …
    """

    serves: Name
    options: dict[str, Any]

    @field_validator("options")
    @classmethod
    def _of_the_engine(cls, options: dict[str, Any]) -> dict[str, Any]:
        return checked_options("openai", options)


def _is_whole(name: str | None) -> str | None:
    """Site files may lie anywhere, and what they name is read by a daemon that waits for no web server."""
    if name is None or name.startswith(("/", *REGISTRIES)):
        return name
    raise ValueError(f"{name} is no whole path")


def _is_free(name: str) -> str:
    """An entry has a folder of its name in its site's folder."""
    if name in OWN_FILES:
        raise ValueError(f"the factory has a file of its own that is called {name}; give the entry another name")
    return name


def _is_expression(requirements: str) -> str:
    """A ClassAd expression in one line, as a job file has it; a YAML block may have several."""
    from glide.condor import bindings

    line = " ".join(requirements.split("\n")).strip()
    try:
        for text in (line, f"({line}) && true"):  # as it is used, too: a comment would hide the parenthesis
            bindings.classad2.ExprTree(text)
    except (ValueError, RuntimeError, bindings.classad2.ClassAdException):
        raise ValueError(
            f"HTCondor cannot read {line!r}; check its operators and parentheses, remove comments"
        ) from None
    if problem := next((each for each in line if each < " " or each == "\x7f"), ""):
        raise ValueError(f"remove the character {problem!r}")
    return line


Place = Annotated[Line | None, AfterValidator(_is_whole)]
EntryName = Annotated[Name, AfterValidator(_is_free)]
Requirements = Annotated[str, AfterValidator(_is_expression)]
User = Annotated[str, StringConstraints(pattern=r"^[^\s\"\\$\x00-\x1f\x7f-\x9f]+$")]
KnobName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$")]
KnobValue = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$")]


class Entry(Strict):
    """One place where the factory may submit glideins.

    Attributes:
        name: by which limits, logs, metrics and glideins speak of it; one alone has it, over all sites of an account.
        pool: where its glideins are submitted; by default the pool that they join.
        ssh: the same, where only a login host reaches the access point.
        service: what its glideins pass records on to, instead of loading a model.
        max_glideins: at most so many in the queue, running or not.
        lanes: slots of a glidein that share its model server; two hide a job's turnover.
        request: what a glidein asks for.
        requirements: further HTCondor requirements on the nodes.
        python: an interpreter on the nodes that imports the engine's packages; by default the factory's own, where
            nodes see it, else python3.
        environment: what engines run in, where a model names nothing else: a packed environment or an image here, which
            travels, or a folder or an image that nodes have (glide.files.environment); by default the nodes' `python`.
        container: image that HTCondor runs the glideins in, as container_image of a job file; nodes choose Docker or
            Apptainer. HTCondor need not be in it.
        condor: HTCondor's release folder on the nodes, or an archive with one here, which travels; by default this
            access point's private one, if it has one and they see it, else their own, else the private one travels.
        owners: whose jobs the lanes serve (User, as in condor_q); by default the factory's own account.
        users_code: whether several owners may bring code of their own (Python functions, environments). It runs as the
            account that all share on a node, and there it can reach what the others have.
        idle_seconds: a glidein without a job for so long ends itself.
        lifetime: after about so many seconds (10 % more or less, so that not all go at once) it takes no further job;
            it is gone when its last one has ended, and `idle_seconds` later at most.
        ready: so many glideins are kept in readiness, without a model or idle, for whatever is wanted next.
        max_idle: at most so many of them waiting in the outer pool's queue.
        submits_per_cycle: at most so many submissions at once, so that a wrong view cannot flood a site.
        removals_per_cycle: the same for removals.
        cache: where files of models stay on the nodes.
        downtimes: when nothing is submitted.
        breaker: when to stop trying.
        knobs: further HTCondor configuration of the glideins.
    """

    name: EntryName
    pool: Pool | None = None
    ssh: Login | None = None
    service: Service | None = None
    max_glideins: Whole = Field(ge=0)
    lanes: Whole = Field(2, ge=1)
    request: Request = Request()
    requirements: Requirements = "true"
    python: Line | None = None
    environment: Place = None
    container: Line | None = None
    condor: Place = None
    owners: tuple[User, ...] = ()
    users_code: bool = Field(False, strict=True)
    idle_seconds: Whole = Field(300, ge=1)
    lifetime: Whole = Field(86400, ge=60)
    ready: Whole = Field(0, ge=0)
    max_idle: Whole = Field(100, ge=1)
    submits_per_cycle: Whole = Field(10, ge=1)
    removals_per_cycle: Whole = Field(20, ge=1)
    cache: Cache = Cache()
    downtimes: tuple[Downtime, ...] = ()
    breaker: Breaker = Breaker()
    knobs: dict[KnobName, KnobValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_in_one_place(self) -> Entry:
        if self.pool and self.ssh:
            raise ValueError("pool and ssh are two places; leave one of them out")
        return self

    @property
    def away(self) -> Pool | Login | None:
        """Where its glideins are submitted, unless it is the pool that they join."""
        return self.pool or self.ssh


class SiteFile(Strict):
    """One site.

    Attributes:
        site: its name.
        max_glideins: a limit over all entries.
        interval: of the factory's cycles, in seconds.
        entries: where glideins may be submitted.
    """

    site: Name
    max_glideins: Whole | None = Field(None, ge=0)
    interval: Number = Field(2.0, gt=0)
    entries: list[Entry] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_a_free_name(self) -> SiteFile:
        """Behind a login host, a site's folder is beside what all sites share there."""
        shared = self.site in ("bundles", "lock", "access_point") or self.site.startswith("word.")
        if shared and any(entry.ssh for entry in self.entries):
            raise ValueError(f"glide has a file of its own that is called {self.site}; give the site another name")
        return self

    @field_validator("entries")
    @classmethod
    def _unique_names(cls, entries: list[Entry]) -> list[Entry]:
        names = [entry.name for entry in entries]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two entries are named {name}")
        return entries
