"""The facts that the doctor's checks need, as plain values. glide.doctor.observe gathers these facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glide.condor.configuration import Configuration
from glide.condor.rights import Authorization
from glide.config import SiteFile
from glide.factory.snapshot import Snapshot
from glide.live.status import ModelStatus
from glide.report.reasons import QueueView

US = "this account"  # in findings and in Authorization.who, this text stands for the account that runs the doctor


@dataclass(frozen=True)
class Programs:
    """Versions of installed Python packages.

    Attributes:
        bindings: version of HTCondor's Python bindings.
        classad: version of the PyPI project `classad`, which is unrelated to HTCondor; empty if it is not installed.
    """

    bindings: str = ""
    classad: str = ""


@dataclass(frozen=True)
class Site:
    """A site file and its factory.

    Attributes:
        file: path of the site file.
        view: the site and the state of its factory; None if the site file has mistakes.
        problems: the mistakes in the site file, one line each.
        missing: files that the site file names but that do not exist on this machine.
        cycle_age: seconds since the factory's last cycle; None if the factory has had no cycle.
        troubles: what failed in the factory's last cycle, with one text for each failure. Queries of queues and of the
            collector can fail, and HTCondor can refuse actions.
    """

    file: str
    view: QueueView | None = None
    problems: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    cycle_age: float | None = None
    troubles: tuple[str, ...] = ()


@dataclass(frozen=True)
class PrivatePath:
    """A folder or file with secrets.

    Attributes:
        mode: permission bits of the folder or file.
        mine: whether this account owns the folder or file.
    """

    path: str
    mode: int
    mine: bool = True


@dataclass(frozen=True)
class Token:
    """A token of this account, or of an entry's glideins.

    Attributes:
        seconds_left: seconds until the token expires; None if it never expires.
        entry: name of the entry whose glideins use the token; empty for a token of this account.
        template: the first 16 characters of the digest of the glideins' template, or `blank` for glideins without a
            template; empty for a token of this account.
    """

    path: str
    seconds_left: float | None = None
    entry: str = ""
    template: str = ""


@dataclass(frozen=True)
class Disk:
    """The disk that holds a folder.

    Attributes:
        path: path of the folder.
        what: a phrase that describes the purpose of the folder.
        free, total: free space and size of the disk, in bytes.
    """

    path: str
    what: str
    free: int
    total: int


@dataclass(frozen=True)
class SlotOffer:
    """The resources that a slot of a pool offers to a glidein.

    Attributes:
        cpus: number of CPU cores.
        memory: memory in MB.
        gpus: number of GPUs.
        gpu_memory: memory of each GPU in MB; None if the slot does not advertise this number.
    """

    cpus: float = 0.0
    memory: float = 0.0
    gpus: float = 0.0
    gpu_memory: float | None = None


@dataclass(frozen=True)
class EventLogState:
    """The access point's event log.

    Attributes:
        path: path of the event log; empty if no event log is configured.
        readable: whether this account can read the event log.
    """

    path: str = ""
    readable: bool = False


@dataclass(frozen=True)
class TrialOutcome:
    """The outcome of the test record.

    Attributes:
        seconds: seconds until the result came back, or until the doctor stopped waiting.
        stuck: why the result did not come back; empty if it came back.
        in_progress: whether the result may still come. For example, the record's glidein is starting or waits for a
            node, or glideins with other templates fill the entries.
    """

    seconds: float = 0.0
    stuck: str = ""
    in_progress: bool = False


@dataclass(frozen=True)
class Facts:
    """All facts that could be gathered.

    Attributes:
        now: Unix time when the facts were gathered.
        embedded: whether the pool is glide's embedded pool.
        ads: ads of all daemons and lanes. Each ad has only the attributes that the checks use.
        clock: seconds by which the access point's clock is ahead of this machine's clock.
        jobs: ads of invocation jobs.
        serve: the models of `glide serve`; empty if no server runs with this GLIDE_HOME.
        nodes: for each entry, the slots of the pool to which the entry submits. The key is the name of the entry.
        unavailable: for each fact that could not be gathered, the reason. The key is the name of the fact. The
            attribute for such a fact has its default value.
    """

    now: float = 0.0
    embedded: bool = False
    programs: Programs = Programs()
    sites: tuple[Site, ...] = ()
    folders: tuple[PrivatePath, ...] = ()
    tokens: tuple[Token, ...] = ()
    disks: tuple[Disk, ...] = ()
    ads: tuple[Mapping[str, Any], ...] = ()
    negotiator: Configuration = field(default_factory=Configuration)
    schedd: Configuration = field(default_factory=Configuration)
    event_log: EventLogState = EventLogState()
    rights: tuple[Authorization, ...] = ()
    clock: float = 0.0
    jobs: tuple[Mapping[str, Any], ...] = ()
    nodes: Mapping[str, tuple[SlotOffer, ...]] = field(default_factory=dict)
    serve: tuple[ModelStatus, ...] = ()
    snapshot: Snapshot = field(default_factory=Snapshot)
    trial: TrialOutcome | None = None
    unavailable: Mapping[str, str] = field(default_factory=dict)

    @property
    def views(self) -> list[QueueView]:
        """The sites whose files have no mistakes, with the states of their factories."""
        return [site.view for site in self.sites if site.view]

    @property
    def files(self) -> list[SiteFile]:
        """The site files that have no mistakes."""
        return [view.site for view in self.views]
