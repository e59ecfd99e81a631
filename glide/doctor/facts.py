"""What the doctor judges by, as plain values; who gathers them is glide.doctor.look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glide.condor.configuration import Configuration
from glide.condor.rights import Right
from glide.config import SiteFile
from glide.factory.snapshot import Snapshot
from glide.report.reasons import View

US = "this account"  # among those whose rights are asked for


@dataclass(frozen=True)
class Programs:
    """Versions of what is installed here: the bindings, and the registry's unrelated project `classad`, if it is."""

    bindings: str = ""
    classad: str = ""


@dataclass(frozen=True)
class Site:
    """A site's file, and its factory.

    Attributes:
        problems: of the file, a line each.
        missing: files of this machine that it names and that are not there.
        cycle_age: seconds since the factory's last cycle; None where there was none.
        troubles: what the factory did not see then, and what HTCondor refused it.
    """

    file: str
    view: View | None = None
    problems: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    cycle_age: float | None = None
    troubles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Folder:
    """A folder or a file with secrets: its permissions, and whether it is this account's."""

    path: str
    mode: int
    mine: bool = True


@dataclass(frozen=True)
class Token:
    """A token, of this account or of an entry's glideins; seconds are None where it never expires.

    `template` is the name of their folder: the digest's first sixteen letters, or blank.
    """

    path: str
    seconds_left: float | None = None
    entry: str = ""
    template: str = ""


@dataclass(frozen=True)
class Disk:
    """Bytes of the disk under a folder, and what the folder is."""

    path: str
    what: str
    free: int
    total: int


@dataclass(frozen=True)
class Node:
    """What a slot of a pool offers glideins. Memory in MB, that of each GPU too."""

    cpus: float = 0.0
    memory: float = 0.0
    gpus: float = 0.0
    gpu_memory: float | None = None


@dataclass(frozen=True)
class EventLog:
    """The access point's event log; an empty path where none is configured."""

    path: str = ""
    readable: bool = False


@dataclass(frozen=True)
class Trial:
    """What became of the test record, after how many seconds; `stuck` says where it was then, if it did not come back.

    `coming` where a glidein for it is on its way, waits for a node, or for others' to go.
    """

    seconds: float = 0.0
    stuck: str = ""
    coming: bool = False


@dataclass(frozen=True)
class Facts:
    """All that was to be seen; `unseen` says why the rest was not, by the name of what is missing here.

    Attributes:
        embedded: whether it is an embedded pool of glide's.
        ads: of all daemons: MyType, Name, CondorVersion, LastHeardFrom, MyCurrentTime, and what lanes say.
        clock: seconds by which the access point's clock is ahead of ours.
        jobs: ads of invocation jobs.
        nodes: what the pools have that entries submit to, by entry.
    """

    now: float = 0.0
    embedded: bool = False
    programs: Programs = Programs()
    sites: tuple[Site, ...] = ()
    folders: tuple[Folder, ...] = ()
    tokens: tuple[Token, ...] = ()
    disks: tuple[Disk, ...] = ()
    ads: tuple[Mapping[str, Any], ...] = ()
    negotiator: Configuration = field(default_factory=Configuration)
    schedd: Configuration = field(default_factory=Configuration)
    event_log: EventLog = EventLog()
    rights: tuple[Right, ...] = ()
    clock: float = 0.0
    jobs: tuple[Mapping[str, Any], ...] = ()
    nodes: Mapping[str, tuple[Node, ...]] = field(default_factory=dict)
    snapshot: Snapshot = field(default_factory=Snapshot)
    trial: Trial | None = None
    unseen: Mapping[str, str] = field(default_factory=dict)

    @property
    def views(self) -> list[View]:
        """The sites whose files are in order, and their factories."""
        return [site.view for site in self.sites if site.view]

    @property
    def files(self) -> list[SiteFile]:
        return [view.site for view in self.views]
