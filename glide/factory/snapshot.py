"""An observation of the pool as plain values: glideins, lanes and demand.

Each cycle of the factory builds a new snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from glide.template import Template
from glide.vocabulary import State, glide_id

# Jobs are counted for each model. If no glidein has reported a job's model, the job counts under the name `other`.
OTHER = "other"


@dataclass(frozen=True)
class Glidein:
    """A glidein, described by its outer job.

    Attributes:
        template: digest of the template that the glidein was submitted with; empty for a blank glidein.
        status: HTCondor's JobStatus of the outer job.
        starts: number of times that the outer job has started to run.
        age: seconds since the outer job got its present status.
        state: the last state that the model server reported: Warm or Failed. Empty before the first report.
        failure: why the glidein failed, or how its outer job ended; empty if neither is known.
        warm_seconds: seconds for which the glidein has been warm, or was warm before it ended.
        served: number of records served, including the records whose result is an error.
        errors: number of served records whose result is an error.
        model: name of the model that the glidein was submitted with.
        devices: number of GPUs that the glidein has requested, or of CPU cores if it has requested no GPU.
    """

    cluster: int
    proc: int
    entry: str
    template: str
    status: int
    starts: int = 0
    age: float = 0.0
    hold_reason: str = ""
    state: str = ""
    failure: str = ""
    host: str = ""
    warm_seconds: float = 0.0
    served: int = 0
    errors: int = 0
    model: str = ""
    devices: int = 1

    @property
    def job(self) -> str:
        return f"{self.cluster}.{self.proc}"

    @cached_property
    def glide_id(self) -> str:
        """The GlideId that the glidein's lanes have advertised since the outer job last started."""
        return glide_id(self.entry, self.job, self.starts)

    @property
    def is_failing(self) -> bool:
        """Whether its records fail, while other glideins serve the same template well (see glide.factory.health)."""
        return self.served > 0 and self.state == State.FAILED


@dataclass(frozen=True)
class Lane:
    """A slot of a glidein, described by its machine ad in the collector.

    Attributes:
        state: state of the model server.
        since: Unix time of the last change of state.
        record_seconds: seconds per record; 0 before the first engine call has ended.
        start_seconds: total time to fetch, import, load and warm up, in seconds.
        retires: Unix time after which the lane accepts no new job.
        name: name of the slot.
        fetched: fraction of the files' bytes that has arrived on the node, from 0 to 1. None if the lane fetches no
            files.
        cached: short digests of the file sets that are on the lane's host.
        asleep: digests of the templates that the lane's glidein can wake up.
        gpu_capability: CUDA compute capability of the glidein's GPUs; 0 if it has none.
        joules: energy that the glidein's GPUs have used, in J; None if it is not known.
        user: User of the invocation job that runs on the lane; empty if none does.
    """

    glide_id: str
    entry: str
    template: str
    model: str
    state: str
    claimed: bool
    failure: str = ""
    since: float = 0.0
    record_seconds: float = 0.0
    start_seconds: float = 0.0
    retires: float = float("inf")
    served: int = 0
    errors: int = 0
    name: str = ""
    fetched: float | None = None
    cached: tuple[str, ...] = ()
    asleep: tuple[str, ...] = ()
    gpu_capability: float = 0.0
    joules: float | None = None
    user: str = ""


@dataclass(frozen=True)
class StickyJob:
    """A sticky job that this factory submitted and that is in the queue.

    Attributes:
        template: digest of the template to load.
        lane: name of the slot that the job is for.
        hold_reason: why the job is held; empty if the job is not held. A held job has failed: it claimed no slot, or
            the template did not load.
    """

    template: str
    lane: str
    hold_reason: str = ""


@dataclass(frozen=True)
class Demand:
    """The unfinished invocation jobs of one run for one template.

    Attributes:
        idle: number of jobs that wait.
        running: number of jobs that run.
        wanted: the highest number of glideins that the run wants to use at the same time.
        spec: the template as the jobs describe it; None if no description was found.
        records: number of records in these jobs, plus the run's records that are in no job yet.
        best_effort: whether the demand is best effort. If so, no glidein is removed and no model is unloaded for it.
        standing: whether the jobs serve live calls. Their work never ends.
    """

    template: str
    model: str
    run: str
    user: str
    idle: int
    running: int
    wanted: int
    spec: Template | None = None
    records: int = 0
    best_effort: bool = False
    standing: bool = False

    @property
    def jobs(self) -> int:
        return self.idle + self.running


@dataclass(frozen=True)
class Snapshot:
    """The state of the pool that the queues and the collector report at one moment.

    Attributes:
        unavailable_sources: reasons why the access point or the collector is unavailable: no answer, or an implausible
            answer. Empty if both are available. If one is unavailable, no action is safe.
        unavailable_entries: names of the entries whose queues are unavailable, each with the reason.
        ended: glideins that ended in the last hour, or the latest of them if there are very many. The `age` of such a
            glidein is the time since it ended.
        retargets: sticky jobs in the queue.
        config_errors: errors in site files. A running factory continues with the earlier version of its site file.
        now: Unix time of this observation.
        user: the factory's User at the access point.
    """

    glideins: tuple[Glidein, ...] = ()
    lanes: tuple[Lane, ...] = ()
    demands: tuple[Demand, ...] = ()
    unavailable_sources: tuple[str, ...] = ()
    ended: tuple[Glidein, ...] = ()
    now: float = 0.0
    user: str = ""
    unavailable_entries: Mapping[str, str] = field(default_factory=dict)
    retargets: tuple[StickyJob, ...] = ()
    config_errors: tuple[str, ...] = ()

    def templates_of(self, glidein: Glidein) -> set[str]:
        """Return the digests of the templates that a glidein has or will soon have.

        For each lane of the glidein, take the first template that exists:

        1. the template of a sticky job for this lane, if the sticky job is in the queue and is not held
        2. the template that the lane advertises
        3. the template that the glidein was submitted with

        If the glidein has no lanes, take only the third template.
        """
        found = self._templates.get(glidein.glide_id)
        if found is None:
            lanes = self.lanes_of.get(glidein.glide_id, [])
            templates = {self._retargeted.get(lane.name, lane.template or glidein.template) for lane in lanes}
            found = self._templates[glidein.glide_id] = templates or {glidein.template}
        return found

    @cached_property
    def _templates(self) -> dict[str, set[str]]:
        """The answers of `templates_of`, by GlideId. A plan asks several times for each of thousands of glideins."""
        return {}

    @cached_property
    def lanes_of(self) -> dict[str, list[Lane]]:
        """For each GlideId, the lanes that advertise this GlideId."""
        found: dict[str, list[Lane]] = {}
        for lane in self.lanes:
            found.setdefault(lane.glide_id, []).append(lane)
        return found

    @cached_property
    def wanted(self) -> frozenset[str]:
        """The templates that jobs want."""
        return frozenset(demand.template for demand in self.demands)

    @cached_property
    def claimed(self) -> frozenset[str]:
        """The GlideIds of the glideins with a lane that is claimed."""
        return frozenset(lane.glide_id for lane in self.lanes if lane.claimed)

    @cached_property
    def models(self) -> dict[str, str]:
        """For each template, the model name that glideins report. Names from users' jobs are not trusted."""
        # Ads may have different model names for one template. A name from a lane's ad replaces a name from a job's ad.
        holders: list[Lane | Glidein] = [*self.ended, *self.glideins, *self.lanes]
        return {each.template: each.model for each in holders if each.template and each.model}

    @cached_property
    def _retargeted(self) -> dict[str, str]:
        return {each.lane: each.template for each in self.retargets if not each.hold_reason}

    def glideins_of(self, entry: str) -> tuple[list[Glidein], list[Glidein]]:
        """Return two lists of an entry's glideins: those that have not ended, and those that have."""
        return (
            [glidein for glidein in self.glideins if glidein.entry == entry],
            [glidein for glidein in self.ended if glidein.entry == entry],
        )

    def description(self, digest: str) -> Template | None:
        """Return the description of the template with this digest; None if no job describes the template."""
        return next((demand.spec for demand in self.demands if demand.template == digest and demand.spec), None)
