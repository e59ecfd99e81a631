"""A trace: which nodes come and go, what a model costs on them, and the records that it is to serve."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from glide.config import SiteFile, load, place
from glide.config.reading import Name, Strict
from glide.errors import InputError
from glide.invoke.pack import START_SECONDS
from glide.template.spec import Keep


class Device(Strict):
    """What a model costs on a kind of GPU.

    Attributes:
        record_seconds: that its engine takes for each record, in the batches that it makes.
        load_seconds: from the files on the node to a warm model.
        fetch_seconds: from nothing to the files on the node, beside what `files` says.
    """

    record_seconds: float = Field(gt=0)
    load_seconds: float = Field(0.0, ge=0)
    fetch_seconds: float = Field(0.0, ge=0)


class Nodes(Strict):
    """Nodes of a kind: each has room for one glidein, and takes the glidein with it when it goes, without a word.

    Attributes:
        device: of each; one of the trace's devices.
        entry: of the site, where glideins are submitted for them; by default its first.
        count: how many.
        arrive: seconds at which the first is there.
        every: seconds from one's arrival to the next one's.
        leave: seconds at which the first is gone; by default they stay.
        leave_every: seconds from one's end to the next one's.
        stay: seconds that each is there: a random time, so long on average.
        away: seconds after which each is back, on the same terms; by default it is gone for good.
    """

    device: str
    entry: Name | None = None
    count: int = Field(1, ge=1)
    arrive: float = Field(0.0, ge=0)
    every: float = Field(0.0, ge=0)
    leave: float | None = Field(None, ge=0)
    leave_every: float = Field(0.0, ge=0)
    stay: float | None = Field(None, gt=0)
    away: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _goes_in_one_way(self) -> Nodes:
        if self.stay is not None and self.leave is not None:
            raise ValueError("leave says when they go, and stay how long they are there; leave one of them out")
        if self.away is not None and self.stay is None:
            raise ValueError("away without stay; say how long they are there on average")
        return self


class Workload(Strict):
    """The sweep.

    Attributes:
        records: how many.
        glideins: how many may run at once, as in a sweep file.
        batch: records of an engine call.
        pack: engine calls per HTCondor job, or auto.
        keep: what stays on a node from job to job: the state, its files, or nothing.
        results: streamed to the access point as they come, or brought home by the job at its end, as jobs do that know
            nothing better; then a lost job's work is lost as a whole.
    """

    records: int = Field(ge=1)
    glideins: int = Field(ge=1)
    batch: int = Field(1, ge=1)
    pack: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    keep: Keep = "state"
    results: Literal["streamed", "brought home"] = "streamed"

    @property
    def fixed(self) -> int | None:
        """Records per job, where that is fixed."""
        return None if self.pack == "auto" else self.pack * self.batch


class Files(Strict):
    """What has to be on a node before the model can be loaded.

    Attributes:
        megabytes: model and environment together.
        origin: MB/s that where they lie gives to all nodes together.
        node: MB/s that a node takes.
        peers: whether nodes that have them give them on.
    """

    megabytes: float = Field(ge=0)
    origin: float = Field(gt=0)
    node: float = Field(gt=0)
    peers: bool = True


# What benchmarks have measured of the costs below: their key, and how it becomes one.
MEASURED = {
    "job_each_per_s": ("start", lambda rate: 1 / rate),  # glide bench overhead
    "median_s": ("loss", lambda seconds: seconds),  # glide bench recovery
}


class Costs(Strict):
    """What HTCondor and glide cost, in seconds.

    Attributes:
        start: of the access point, for the start of a job; one after the other.
        match: until a lane without a claim gets a job that waits.
        turnover: of a lane, from one job to the next, beside what others' turns at the access point take.
        queue: from a glidein's submission to its start on a free node.
        glidein: from there to its model server.
        loss: until a lost job's records are in the queue again.
        stream: age of the results that a lost node takes with it.
        look: of the driver, for each ad of a job or lane that it reads.
        gather: until the last results are the user's.
        measured: files with what `glide bench overhead|recovery --json` said, relative to the trace; they come first.
    """

    start: float = Field(START_SECONDS, ge=0)
    match: float = Field(1.0, ge=0)
    turnover: float = Field(0.2, ge=0)
    queue: float = Field(2.0, ge=0)
    glidein: float = Field(4.0, ge=0)
    loss: float = Field(0.7, ge=0)
    stream: float = Field(1.0, ge=0)
    look: float = Field(5e-5, ge=0)
    gather: float = Field(1.0, ge=0)
    measured: tuple[str, ...] = ()


class Trace(Strict):
    """One simulation.

    Attributes:
        site: the factory's file: its name, relative to this one, or its content.
        devices: what the model costs on each kind of GPU.
        nodes: that come and go.
        workload: the sweep that begins at 0 s.
        files: what nodes fetch, where that is to share an origin's bandwidth.
        costs: of HTCondor and glide.
        begins: date and time of 0 s, for downtimes; UTC.
        until: seconds after which it ends, whatever is done by then; by default 30 days.
        seed: of what is random.
    """

    site: str | SiteFile
    devices: dict[str, Device] = Field(min_length=1)
    nodes: list[Nodes] = Field(min_length=1)
    workload: Workload
    files: Files | None = None
    costs: Costs = Costs()
    begins: datetime = datetime(2027, 1, 1)
    until: float = Field(30 * 86400.0, gt=0)
    seed: int = 1

    @model_validator(mode="after")
    def _knows_its_devices(self) -> Trace:
        for each in self.nodes:
            if each.device not in self.devices:
                raise ValueError(f"there are nodes with {each.device!r}; devices are {', '.join(self.devices)}")
        return self

    @property
    def epoch(self) -> float:
        """Unix time of 0 s."""
        return self.begins.replace(tzinfo=self.begins.tzinfo or timezone.utc).timestamp()


class TraceFile(Trace):
    """A trace, and what is different in its variants.

    Attributes:
        name: of the whole.
        variants: by name, keys of the trace with other values; what is not named is as above. Without variants there is
            one simulation.
    """

    name: Name
    variants: dict[Name, dict[str, Any]] = Field(default_factory=dict)


def read(path: Path) -> dict[str, tuple[Trace, SiteFile]]:
    """The simulations that a file asks for, by name.

    Raises:
        InputError: each problem as `file:line: what is wrong`.
    """
    file = load(path, TraceFile)
    base = file.model_dump(exclude={"name", "variants"}, exclude_unset=True)
    found = {}
    for name, changes in (file.variants or {file.name: {}}).items():
        where = ("variants", name) if name in file.variants else ()
        try:
            trace = Trace.model_validate(_merged(base, changes))
            trace = trace.model_copy(update={"costs": _measured(trace.costs, path.parent)})
            site = trace.site if isinstance(trace.site, SiteFile) else load(path.parent / trace.site, SiteFile)
            for each in trace.nodes:
                if each.entry not in (None, *(entry.name for entry in site.entries)):
                    raise ValueError(f"nodes: {site.site} has no entry {each.entry}")
        except ValidationError as error:
            problems = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            raise InputError(*(f"{place(path, *where)}: {problem}" for problem in problems)) from None
        except ValueError as error:
            raise InputError(f"{place(path, *where)}: {error}") from None
        found[name] = trace, site
    return found


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        merged[key] = _merged(base[key], value) if both else value
    return merged


def _measured(costs: Costs, folder: Path) -> Costs:
    """The costs, with those that benchmarks have measured; ValueError for a file that has none."""
    found: dict[str, float] = {}
    for name in costs.measured:
        try:
            told = json.loads((folder / name).read_text())
        except OSError as error:
            raise ValueError(f"costs.measured: {folder / name}: {error.strerror}") from None
        known = {cost: convert(told[key]) for key, (cost, convert) in MEASURED.items() if key in told}
        if not known:
            raise ValueError(f"costs.measured: {folder / name} has none of {', '.join(MEASURED)}")
        found |= known
    return costs.model_copy(update=found)
