"""A trace: which nodes come and go, what a model costs on them, and the records that it is to serve."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from glide.config import SiteFile, load, place
from glide.config.reading import Name, Strict, part
from glide.config.site import unix_time
from glide.errors import InputError
from glide.glidein.settings import SPREAD
from glide.invoke.pack import START_SECONDS
from glide.template.spec import Keep


class Part(Strict):
    """A part of a trace; all of its numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False)


class Device(Part):
    """What a model costs on a kind of GPU.

    Attributes:
        record_seconds: that its engine takes for each record, in the batches that it makes.
        load_seconds: from the files on the node to a warm model.
        fetch_seconds: from nothing to the files on the node, beside what `files` says.
    """

    record_seconds: float = Field(gt=0)
    load_seconds: float = Field(0.0, ge=0)
    fetch_seconds: float = Field(0.0, ge=0)


class Nodes(Part):
    """Nodes of a kind: each has room for one glidein, and takes the glidein with it when it goes, without a word.

    One that comes back still has what was on its disk.

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
        if self.leave_every and self.leave is None:
            raise ValueError("leave_every without leave; say when the first is gone")
        last = (self.count - 1) * (self.leave_every - self.every)
        if self.leave is not None and self.leave + min(0.0, last) <= self.arrive:
            raise ValueError("some are gone before they come; compare arrive and every with leave and leave_every")
        return self


class Workload(Part):
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


class Files(Part):
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


class Costs(Part):
    """What HTCondor and glide cost, in seconds.

    Attributes:
        start: of the access point, for the start of a job; one after the other.
        match: until a lane without a claim gets a job that waits.
        turnover: of a lane, from one job to the next, beside what others' turns at the access point take.
        queue: from a glidein's submission to its start on a free node.
        glidein: from there to its model server.
        loss: until a lost job's records are in the queue again; from there they are matched and started.
        stream: age of the results that a lost node takes with it.
        look: of the driver, for each ad of a job or lane that it reads.
        gather: until the last results are the user's.
        measured: files with what `glide bench overhead|recovery --json` said, relative to the trace; where they tell
            costs (start and turnover, loss), these count.
    """

    start: float = Field(START_SECONDS, ge=0)
    match: float = Field(0.5, ge=0)
    turnover: float = Field(0.2, ge=0)
    queue: float = Field(2.0, ge=0)
    glidein: float = Field(4.0, ge=0)
    loss: float = Field(0.2, ge=0)
    stream: float = Field(1.0, ge=0)
    look: float = Field(5e-5, ge=0)
    gather: float = Field(1.0, ge=0)
    measured: tuple[str, ...] = ()


class Trace(Part):
    """One simulation.

    Attributes:
        site: the factory's file: its name, relative to this one, or its content. Whom it serves and what it keeps in
            readiness (`owners`, `ready`) do not matter to the one sweep here; entries with a service are refused.
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
        return unix_time(self.begins)


class TraceFile(Trace):
    """A trace, and what is different in its variants.

    Attributes:
        name: of the whole.
        variants: by name, keys of the trace with other values; what is not named is as above. Without variants there is
            one simulation.
    """

    name: Name
    variants: dict[Name, dict[str, Any] | None] = Field(default_factory=dict)


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
        trace = part(path, _merged(base, changes or {}), Trace, *where)
        try:
            costs = _measured(trace.costs, path.parent)
            site = _site(trace, path.parent)
            _check_lifetimes(trace, site)
        except ValueError as error:
            raise InputError(f"{place(path, *where)}: {error}") from None
        found[name] = trace.model_copy(update={"costs": costs}), site
    return found


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        merged[key] = _merged(base[key], value) if both else value
    return merged


def _site(trace: Trace, folder: Path) -> SiteFile:
    """The site, less what concerns others than the one sweep; ValueError where that cannot be on its entries."""
    site = trace.site if isinstance(trace.site, SiteFile) else load(folder / trace.site, SiteFile)
    names = [entry.name for entry in site.entries]
    for nodes in trace.nodes:
        if nodes.entry not in (None, *names):
            raise ValueError(f"nodes: {site.site} has no entry {nodes.entry}; it has {', '.join(names)}")
    for entry in site.entries:
        if entry.service:
            raise ValueError(f"site: {entry.name} passes records on to a service, which no trace describes")
    entries = [entry.model_copy(update={"ready": 0, "owners": ()}) for entry in site.entries]
    return site.model_copy(update={"entries": entries})


def _check_lifetimes(trace: Trace, site: SiteFile) -> None:
    """ValueError where a model takes longer to be warm than a glidein lives."""
    entries = {entry.name: entry for entry in site.entries}
    for nodes in trace.nodes:
        device, entry = trace.devices[nodes.device], entries[nodes.entry or site.entries[0].name]
        start = device.fetch_seconds + device.load_seconds + trace.costs.glidein
        retires = entry.lifetime * (1 - SPREAD)
        if start >= retires:
            raise ValueError(
                f"devices.{nodes.device}: its model is warm after {start:g} s, and glideins of {entry.name} take no"
                f" jobs any more after {retires:g} s (lifetime {entry.lifetime}, less {SPREAD:.0%})"
            )


def _measured(costs: Costs, folder: Path) -> Costs:
    """The costs, with those that benchmarks have measured; ValueError for a file that tells none."""
    recovery: float | None = None
    for name in costs.measured:
        where = f"costs.measured: {folder / name}"
        try:
            told = json.loads((folder / name).read_text("utf-8"))
        except OSError as error:
            raise ValueError(f"{where}: {error.strerror}") from None
        except ValueError:
            raise ValueError(f"{where}: it is not JSON") from None
        if isinstance(told, dict) and _is_positive(told.get("job_each_per_s")):  # glide bench overhead
            # On two lanes: while one's job is started, the other turns to its next.
            each = 1 / told["job_each_per_s"]
            costs = costs.model_copy(update={"start": each, "turnover": each})
        elif isinstance(told, dict) and "kills" in told and _is_positive(told.get("median_s")):  # glide bench recovery
            recovery = told["median_s"]
        else:
            raise ValueError(f"{where}: it has neither overhead's job_each_per_s nor recovery's median_s")
    if recovery is None:
        return costs
    again = costs.match + costs.start + costs.turnover  # until the records run, by whatever else was measured
    return costs.model_copy(update={"loss": max(0.0, recovery - again)})


def _is_positive(told: Any) -> bool:
    return isinstance(told, (int, float)) and 0 < told < float("inf")
