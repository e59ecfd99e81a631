"""Models of a site file, which lists the entries to which a factory may submit glideins, and their limits."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from pydantic import Field, field_validator, model_validator

from glide.config.model import checked_options
from glide.config.reading import Integer, Line, Name, Number, Strict, Time
from glide.config.site_values import AbsolutePath, EntryName, KnobName, KnobValue, ProgramName, Requirements, User


class ResourceRequest(Strict):
    """The resources that each glidein requests from its outer pool.

    Attributes:
        cpus: number of CPU cores.
        memory: main memory in MB. If the entry has no GPUs, the files of a model must fit into this memory.
        disk: disk space in MB. If the cache is in the job's folder, this space must also hold fetched and unpacked
            files.
        gpus: number of GPUs. A model uses one GPU, or all GPUs if the model's options contain `device: all`.
        gpu_memory: minimum memory of each GPU in MB. The files of a model must fit into gpu_memory × gpus. By default
            there is no minimum. Without a minimum, an entry with GPUs accepts models of any size, and each glidein of
            the entry holds only one model at a time.
    """

    cpus: Integer = Field(1, ge=1)
    memory: Integer = Field(2048, ge=1)
    disk: Integer = Field(1024, ge=1)
    gpus: Integer = Field(0, ge=0)
    gpu_memory: Integer | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _has_a_gpu(self) -> ResourceRequest:
        if self.gpu_memory is not None and self.gpus == 0:
            raise ValueError("gpu_memory without gpus; set gpus: 1, or remove gpu_memory")
        return self

    @property
    def model_memory(self) -> int | None:
        """Return the memory in MB that a model may use, on all GPUs together. None: the GPUs' memory is unknown."""
        if self.gpus:
            return self.gpu_memory and self.gpu_memory * self.gpus
        return self.memory


class Downtime(Strict):
    """A period in which the factory submits no glideins to an entry. Queued and running glideins stay.

    Attributes:
        start: date and time at which the downtime begins, in the format 2027-01-04 08:00. A time without a time zone is
            UTC.
        end: date and time at which the downtime ends, in the same format.
        reason: text that is shown to users whose jobs wait.
    """

    start: Time
    end: Time
    reason: Line

    @model_validator(mode="after")
    def _ends_after_its_start(self) -> Downtime:
        if unix_time(self.end) <= unix_time(self.start):
            raise ValueError("end is not after start; correct one of them")
        return self

    def contains(self, now: float) -> bool:
        """Return whether the downtime includes this Unix time."""
        return unix_time(self.start) <= now < unix_time(self.end)


def unix_time(time: datetime) -> float:
    """Return a date and time as Unix time. A time without a time zone is UTC."""
    return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp()


class Breaker(Strict):
    """The circuit breaker. It stops submissions while the glideins of an entry, or of one model in an entry, fail.

    Attributes:
        failures: number of failures in a row after which submissions stop. A glidein fails if it never becomes warm.
            Until the first glidein is warm, `failures` also limits how many glideins are tried at the same time. For a
            new model, this limit is four times as high if other models are warm on the entry, the files of the new
            model are verified, and it contains no user's code.
        backoff_seconds: time for which submissions stop, in seconds. When the time is over, the factory tries one
            glidein. If this glidein fails, too, the time doubles, up to one day.
    """

    failures: Integer = Field(3, ge=1)
    backoff_seconds: Number = Field(600.0, gt=0)


class Pool(Strict):
    """An outer pool. Glideins are submitted to this pool, and join another pool.

    The factory needs a token of this pool, and sends the files of each glidein to the pool's access point.

    Attributes:
        collector: address of the pool's collector.
        schedd: name of the pool's access point. The name is needed only if the pool has more than one access point.
    """

    collector: Line
    schedd: Line | None = None


class Login(Strict):
    """A login host. The factory logs in there by SSH, and submits glideins with HTCondor's own commands.

    SSH's own configuration (`~/.ssh/config`) applies, too. Host keys are always checked. The factory refuses a host if
    the host's key is unknown, or if the key differs from the known key.

    Attributes:
        host: name or address of the login host.
        user: user name on the login host. By default SSH's configuration decides.
        port: port of the SSH server. By default SSH's configuration decides.
        key: file with the private key. By default SSH's agent and usual key files are used. A daemon has no agent,
            so it needs a key without a passphrase.
        jump: host through which SSH connects, in the form [user@]host[:port]. By default SSH's configuration decides.
        known_hosts: file with the known host keys. By default SSH's configuration decides.
        schedd: name of the access point. By default HTCondor's configuration on the login host decides.
        folder: folder for glide's files on the login host, relative to the home folder. Nodes need no access to this
            folder.
        seconds: time limit of one command on the login host, in seconds.
    """

    host: Line
    user: Line | None = None
    port: Integer | None = Field(None, ge=1, le=65535)
    key: Line | None = None
    jump: Line | None = None
    known_hosts: Line | None = None
    schedd: Line | None = None
    folder: str = Field(".glide", pattern=r"^[\w.@+/-]+$")
    seconds: Number = Field(30.0, gt=0)

    @property
    def name(self) -> str:
        """Return a name for messages: the host, and the user, port and access point if the site file sets them."""
        user, port = f"{self.user}@" if self.user else "", f":{self.port}" if self.port else ""
        return f"{user}{self.host}{port}{f' ({self.schedd})' if self.schedd else ''}"


class CacheSettings(Strict):
    """The cache of files on a node. All glideins of one account share the cache, and later glideins reuse it.

    Attributes:
        folder: folder on a disk of the node. The path may begin with an environment variable of the node
            (`$SCRATCH/glide`). By default a folder in /var/tmp that belongs to the glideins' account. Name a folder in
            two cases: (1) Glideins run under a shared account, for example `nobody`. (2) HTCondor gives each job its
            own /var/tmp (MOUNT_UNDER_SCRATCH). In both cases, HTCondor deletes the default cache when a glidein ends.
        gigabytes: maximum size of the cache in GB. By default 95 % of the disk.
        upload_megabytes: maximum rate at which each glidein sends files to other nodes, in MB per second. By default
            no limit.
        share_compiled: whether nodes get the code that serving programs compile (torch.compile, Triton) from other
            nodes of the entry. A node then compiles code only if no other node with the same GPU type and environment
            offers it. Nobody can check such code, so use this only if you trust all nodes of the entry.
    """

    folder: Line | None = None
    gigabytes: Number | None = Field(None, gt=0)
    upload_megabytes: Number | None = Field(None, gt=0)
    share_compiled: bool = Field(False, strict=True)


class ServiceSettings(Strict):
    """A service outside the pool that serves a model. The glideins of the entry pass records on to the service.

    Glideins of other entries can load the same model at the same time.

    Attributes:
        serves: name of the model in sweeps (GlideModel).
        options: options of the openai engine, such as url, model or key_file.
    """

    serves: Name
    options: dict[str, Any]

    @field_validator("options")
    @classmethod
    def _checked_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        return checked_options("openai", options)


class Entry(Strict):
    """A place to which the factory may submit glideins, with its limits.

    Attributes:
        name: name of the entry in logs, metrics and GlideIds. The name must be unique among all sites of the factory's
            account.
        pool: outer pool to which the glideins are submitted. By default the pool that the glideins join.
        ssh: login host of the outer pool, if only the login host can reach the pool's access point. By default none.
            An entry cannot have both `pool` and `ssh`.
        service: service outside the pool. Glideins send records to this service. By default glideins load a model.
        max_glideins: maximum number of glideins in the queue, running or not.
        lanes: number of lanes (slots) of a glidein. The lanes share one model server. With two lanes, one job computes
            while another job starts or ends.
        request: resources that each glidein requests.
        requirements: further ClassAd requirements that a node must meet.
        python: Python interpreter on the nodes. The interpreter must be able to import the engine's packages. By
            default the factory's own interpreter, or python3 on a node that does not have this interpreter.
        environment: environment in which engines run if the model names no environment. Write one of these: (1) the
            absolute path of a packed environment or image on this host. This file is sent to the nodes. (2) the
            absolute path of a folder or image on the nodes. (3) the address of an image (docker://…). By default
            engines run in the `python` of the nodes.
        container: container image in which HTCondor runs the glideins, written like container_image in a job file. The
            nodes use Docker or Apptainer. The image need not contain HTCondor. By default glideins run without a
            container.
        condor: absolute path of HTCondor: a release folder on the nodes, or an archive on this host. The archive is
            sent to the nodes. By default a node uses the first HTCondor that it finds in these places: (1) the folder
            where glide has installed HTCondor on this host, if the node shares this folder; (2) the node's PATH; (3) an
            archive of glide's HTCondor, which this host sends. If glide has not installed HTCondor, only (2) is left.
        owners: users whose jobs the lanes serve, in the form of User in condor_q (ada@here.example.org). By default
            only the factory's own account.
        users_code: whether the owners may bring code of their own if there are several owners. Such code is a Python
            function, an environment, a command of the engine `server`, or a program or flag that `programs` does not
            allow. On a node all owners share one account, so one owner's code can read the files of the others.
        programs: programs of the engine `server`, with the flags of each, that the entry does not treat as a user's
            code (vllm: [--max-model-len, --dtype]). This matters only if there are several owners. By default glide's
            own list for each program (`listed_flags` in glide/programs).
        idle_seconds: seconds without a job after which a glidein ends itself. But a glidein that was submitted without
            a model (see `ready`) waits for its whole lifetime.
        lifetime: seconds after which a glidein accepts no further job. Each glidein gets up to 10 % more or less, so
            that glideins do not all end together. A glidein ends at most `idle_seconds` after its last job.
        ready: number of glideins that the factory keeps ready for the next model that jobs want. A ready glidein is
            idle, or has no model.
        max_idle: maximum number of glideins that wait in the outer pool's queue.
        submits_per_cycle: maximum number of glideins that are submitted in one cycle of the factory. If the factory has
            a wrong view of the pool, this limit protects the site from too many glideins.
        removals_per_cycle: maximum number of glideins that are removed in one cycle of the factory.
        cache: cache of model files on the nodes.
        downtimes: periods in which nothing is submitted. By default none.
        breaker: circuit breaker, which stops submissions while glideins fail.
        price: price of one device for one hour, for the costs in reports. A device is a GPU, or a CPU core if the
            glideins request no GPU. By default no costs are reported.
        knobs: further HTCondor settings for glideins (name: value). They override glide's settings. By default none.
    """

    name: EntryName
    pool: Pool | None = None
    ssh: Login | None = None
    service: ServiceSettings | None = None
    max_glideins: Integer = Field(ge=0)
    lanes: Integer = Field(2, ge=1)
    request: ResourceRequest = ResourceRequest()
    requirements: Requirements = "true"
    python: Line | None = None
    environment: AbsolutePath = None
    container: Line | None = None
    condor: AbsolutePath = None
    owners: tuple[User, ...] = ()
    users_code: bool = Field(False, strict=True)
    programs: dict[ProgramName, list[str]] | None = None
    idle_seconds: Integer = Field(300, ge=1)
    lifetime: Integer = Field(86400, ge=60)
    ready: Integer = Field(0, ge=0)
    max_idle: Integer = Field(100, ge=1)
    submits_per_cycle: Integer = Field(10, ge=1)
    removals_per_cycle: Integer = Field(20, ge=1)
    cache: CacheSettings = CacheSettings()
    downtimes: tuple[Downtime, ...] = ()
    breaker: Breaker = Breaker()
    price: Number | None = Field(None, ge=0)
    knobs: dict[KnobName, KnobValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_consistent(self) -> Entry:
        if self.pool and self.ssh:
            raise ValueError("an entry has either pool or ssh; remove one of them")
        if self.cache.share_compiled and self.users_code and len(self.owners) > 1:
            raise ValueError("with share_compiled, one owner's code could change what others run; remove users_code")
        return self

    @property
    def devices(self) -> int:
        """Return the number of devices of each glidein: GPUs, or CPU cores if the glideins request no GPU."""
        return self.request.gpus or self.request.cpus

    @property
    def outer_pool(self) -> Pool | Login | None:
        """Return the pool to which glideins are submitted. Return None if this is also the pool that they join."""
        return self.pool or self.ssh


class SiteFile(Strict):
    """A site, which consists of the entries that one factory supplies with glideins.

    Attributes:
        site: name of the site.
        max_glideins: maximum number of glideins of all entries together. By default no limit.
        interval: seconds between two cycles of the factory.
        entries: places to which glideins may be submitted; at least one.
    """

    site: Name
    max_glideins: Integer | None = Field(None, ge=0)
    interval: Number = Field(2.0, gt=0)
    entries: list[Entry] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_no_reserved_name(self) -> SiteFile:
        """Refuse a site's name if a file in glide's folder on a login host has the same name."""
        shared = self.site in ("bundles", "lock", "access_point") or self.site.startswith("word.")
        if shared and any(entry.ssh for entry in self.entries):
            raise ValueError(f"glide has a file of its own called {self.site}; give the site another name")
        return self

    @field_validator("entries")
    @classmethod
    def _unique_names(cls, entries: list[Entry]) -> list[Entry]:
        names = [entry.name for entry in entries]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two entries are named {name}; rename one")
        return entries
