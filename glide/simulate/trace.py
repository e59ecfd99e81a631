"""The format of a trace. A trace describes three things:

- the nodes that come and go
- the time that a model needs to load and to compute
- the sweep to simulate
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from glide.config import SiteFile, load, position
from glide.config.reading import Name, Strict, load_part
from glide.config.site import unix_time
from glide.errors import InputError
from glide.glidein.settings import SPREAD
from glide.invoke.pack import START_SECONDS
from glide.template.spec import Keep


class TraceSection(Strict):
    """A part of a trace. Its numbers must be finite."""

    model_config = ConfigDict(allow_inf_nan=False)


class Device(TraceSection):
    """The times that the model takes on one kind of GPU.

    Attributes:
        record_seconds: seconds that the engine needs per record, if the engine chooses the size of the batches.
        load_seconds: seconds from the arrival of the files on the node until the model is warm.
        fetch_seconds: seconds that a fetch of the files takes. If the trace has `files`, the transfer time is added.
    """

    record_seconds: float = Field(gt=0)
    load_seconds: float = Field(0.0, ge=0)
    fetch_seconds: float = Field(0.0, ge=0)


class Nodes(TraceSection):
    """Nodes of one kind. Each node runs one glidein, which is lost without warning when the node leaves.

    When a node returns, it still has the files that were on its disk.

    Attributes:
        device: kind of GPU of these nodes; one of `devices`.
        entry: name of an entry of the site. Glideins of this entry run on these nodes. By default the first entry.
        count: number of nodes.
        arrive: time at which the first node arrives, in seconds.
        every: seconds from the arrival of a node to the arrival of the next node.
        leave: time at which the first node leaves, in seconds. By default nodes stay to the end.
        leave_every: seconds from the departure of a node to the departure of the next node. `leave_every` requires
            `leave`.
        stay: average time that a node stays, in seconds. Each time is random. Do not give both `stay` and `leave`.
            Without `stay`, no node leaves at a random time.
        away: average time between the departure of a node and its return, in seconds. Each time is random. `away`
            requires `stay`. By default nodes do not return.
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
    def _has_consistent_times(self) -> Nodes:
        if self.stay is not None and self.leave is not None:
            raise ValueError("the keys `leave` and `stay` exclude each other; remove one of them")
        if self.away is not None and self.stay is None:
            raise ValueError("the key `away` requires the key `stay`, the average time that a node stays; add `stay`")
        if self.leave_every and self.leave is None:
            raise ValueError("the key `leave_every` requires the key `leave`, the first node's departure; add `leave`")
        last = (self.count - 1) * (self.leave_every - self.every)
        if self.leave is not None and self.leave + min(0.0, last) <= self.arrive:
            raise ValueError("some nodes leave before they arrive; correct arrive, every, leave or leave_every")
        return self


class Workload(TraceSection):
    """The sweep to simulate.

    Attributes:
        records: number of records.
        glideins: maximum number of glideins that run at the same time, as in a sweep file.
        batch: number of records in an engine call.
        pack: number of engine calls in an HTCondor job. With `auto`, glide chooses the size of each job.
        keep: what stays on a node after a job: the loaded state (`state`), only its files (`files`), or `nothing`.
        results: how results reach the access point. With `streamed`, each result is sent when it is ready. With
            `brought home`, all results are transferred when the job ends, as HTCondor does by default. Then a lost job
            has no results.
    """

    records: int = Field(ge=1)
    glideins: int = Field(ge=1)
    batch: int = Field(1, ge=1)
    pack: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    keep: Keep = "state"
    results: Literal["streamed", "brought home"] = "streamed"

    @property
    def fixed(self) -> int | None:
        """Return the number of records per job, or None if the packer chooses this number."""
        return None if self.pack == "auto" else self.pack * self.batch


class Files(TraceSection):
    """The files that a node needs before it can load the model.

    Attributes:
        megabytes: size of the model and its environment together, in MB.
        origin: maximum rate at which the source of the files sends to all nodes together, in MB/s.
        node: maximum rate at which one node receives, in MB/s.
        peers: whether nodes that have the files send them to other nodes.
    """

    megabytes: float = Field(ge=0)
    origin: float = Field(gt=0)
    node: float = Field(gt=0)
    peers: bool = True


class Costs(TraceSection):
    """The time that HTCondor and glide take, in seconds.

    Attributes:
        start: seconds that the access point needs to start a job. The access point starts one job after the other.
        match: seconds until a lane without a claim gets a waiting job.
        turnover: seconds from the end of a job to the start of the next job on the lane. The seconds of `start` are not
            included.
        queue: seconds from the submission of a glidein to its start on a free node.
        glidein: seconds from the start of a glidein to the start of its model server.
        loss: seconds from the loss of a job until the driver can send its records again. The seconds of `match`,
            `start` and `turnover` are not included.
        stream: seconds until a computed result is on the access point. If a node is lost, its results of the last
            `stream` seconds are lost.
        look: seconds that the driver needs to read the ad of one job or lane.
        gather: seconds from the end of the last job until its results have been gathered.
        measured: files with the output of `glide bench overhead --json` or `glide bench recovery --json`. The paths are
            relative to the trace. The output of `overhead` replaces `start` and `turnover`. The output of `recovery`
            replaces `loss`. By default no files.
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


class Trace(TraceSection):
    """One simulation.

    Attributes:
        site: site file of the factory. Give its name relative to the trace, or its content. `owners` and `ready` are
            ignored. No entry may have the key `service`.
        devices: how many seconds the model needs to load and to compute, for each kind of GPU.
        nodes: nodes that come and go.
        workload: sweep that begins at 0 s.
        files: files that nodes fetch from a source of limited bandwidth. By default a fetch takes only fetch_seconds.
        costs: time that HTCondor and glide take.
        begins: date and time at which the simulation begins. Only the downtimes of entries depend on it. A time without
            a time zone is UTC.
        until: time at which the simulation ends if the sweep has not finished, in seconds. The default is 30 days.
        seed: seed of the random numbers.
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
                known = ", ".join(self.devices)
                raise ValueError(f"nodes have the unknown device {each.device!r}; use one of {known}")
        return self

    @property
    def epoch(self) -> float:
        """Return the Unix time at which the simulation begins."""
        return unix_time(self.begins)


class TraceFile(Trace):
    """A trace file, which describes one simulation or several variants of it.

    Attributes:
        name: name of the trace.
        variants: names of variants, each with the keys that it changes. Each variant is one simulation, and takes all
            other keys from the trace. By default the trace itself is the only simulation.
    """

    name: Name
    variants: dict[Name, dict[str, Any] | None] = Field(default_factory=dict)


def read(path: Path) -> dict[str, tuple[Trace, SiteFile]]:
    """Read a trace file. Return a dict from the name of each simulation to the simulation's trace and site.

    Raises:
        InputError: the file has problems. The error names each problem as `file:line: what is wrong`.
    """
    file = load(path, TraceFile)
    base = file.model_dump(exclude={"name", "variants"}, exclude_unset=True)
    simulations = {}
    for name, changes in (file.variants or {file.name: {}}).items():
        where = ("variants", name) if name in file.variants else ()
        trace = load_part(path, _merged(base, changes or {}), Trace, *where)
        try:
            costs = _with_measured(trace.costs, path.parent)
            site = _site(trace, path.parent)
            _check_lifetimes(trace, site)
        except ValueError as error:
            raise InputError(f"{position(path, *where)}: {error}") from None
        simulations[name] = trace.model_copy(update={"costs": costs}), site
    return simulations


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with these changes. Mappings are merged key by key. Other new values replace the old values."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        merged[key] = _merged(base[key], value) if both else value
    return merged


def _site(trace: Trace, folder: Path) -> SiteFile:
    """Return the site of a trace. `ready` and `owners` are removed, because they do not matter to a single sweep.

    Raises:
        ValueError: there are two possible causes:
            - The trace refers to an entry that the site does not have.
            - An entry of the site has the key `service`. A simulation does not support this key.
    """
    site = trace.site if isinstance(trace.site, SiteFile) else load(folder / trace.site, SiteFile)
    names = [entry.name for entry in site.entries]
    for nodes in trace.nodes:
        if nodes.entry not in (None, *names):
            raise ValueError(f"nodes: {site.site} has no entry {nodes.entry}; use one of {', '.join(names)}")
    for entry in site.entries:
        if entry.service:
            raise ValueError(f"site: entry {entry.name} has a service, which cannot be simulated; remove the entry")
    entries = [entry.model_copy(update={"ready": 0, "owners": ()}) for entry in site.entries]
    return site.model_copy(update={"entries": entries})


def _check_lifetimes(trace: Trace, site: SiteFile) -> None:
    """Raise ValueError if the lifetime of a glidein is too short for its model to become warm."""
    entries = {entry.name: entry for entry in site.entries}
    for nodes in trace.nodes:
        device, entry = trace.devices[nodes.device], entries[nodes.entry or site.entries[0].name]
        start = device.fetch_seconds + device.load_seconds + trace.costs.glidein
        retires = entry.lifetime * (1 - SPREAD)
        if start >= retires:
            raise ValueError(
                f"devices.{nodes.device}: the model needs {start:g} s to become warm, but a glidein of {entry.name} may"
                f" accept jobs for only {retires:g} s ({1 - SPREAD:.0%} of its lifetime); use a longer lifetime"
            )


def _with_measured(costs: Costs, folder: Path) -> Costs:
    """Return the costs. Values from the benchmark reports in `measured` replace the values in the trace.

    Raises:
        ValueError: a file of `measured` is not the output of `glide bench overhead` or `glide bench recovery`.
    """
    recovery: float | None = None
    for name in costs.measured:
        where = f"costs.measured: {folder / name}"
        try:
            report = json.loads((folder / name).read_text("utf-8"))
        except OSError as error:
            raise ValueError(f"{where}: {error.strerror}") from None
        except ValueError:
            raise ValueError(f"{where}: not JSON; {_NAME_A_REPORT}") from None
        if isinstance(report, dict) and _is_positive(report.get("job_each_per_s")):  # a report of glide bench overhead
            # The benchmark has two lanes. In each round, the lanes do these two steps at the same time:
            # - One lane starts a job. This step takes the time `start`.
            # - The other lane ends a job and gets the next job. This step takes the time `turnover`.
            # Then the lanes swap roles. One job starts in each round. So the length of a round is the measured time per
            # job. The simulation assumes that each of the two steps lasts for the whole round.
            each = 1 / report["job_each_per_s"]
            costs = costs.model_copy(update={"start": each, "turnover": each})
        elif isinstance(report, dict) and "kills" in report and _is_positive(report.get("median_s")):
            recovery = report["median_s"]  # a report of glide bench recovery
        else:
            raise ValueError(f"{where}: must have job_each_per_s, or both kills and median_s; {_NAME_A_REPORT}")
    if recovery is None:
        return costs
    # The benchmark measures the time until the records run again. Subtract the time of match, start and turnover,
    # because `loss` does not include this time.
    again = costs.match + costs.start + costs.turnover
    return costs.model_copy(update={"loss": max(0.0, recovery - again)})


_NAME_A_REPORT = "name the output of `glide bench overhead --json` or `glide bench recovery --json`"


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 < value < float("inf")
