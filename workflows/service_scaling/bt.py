"""If services start at the same time, after how many seconds can they be used, and which parts does this time have?

This is experiment 1 of the paper on RADICAL-Pilot's services (Figure 3). A service is a glidein with one lane. The time
until a client can use it has three parts. `launch` begins when the glidein's job is in HTCondor's queue, and ends with
the model server's first line of output. `init` begins with this line and ends when the server is warm. It includes
fetching, importing, loading and warming up. `publish` begins when the server is warm, and ends when a client sees the
server in the collector.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean

from clients import Clients
from endpoint import OPTIONS
from matplotlib.figure import Figure
from services import MODEL, Claim, record, report_progress, services, wait_until

from glide.bench.rig import Rig
from glide.condor import AccessPoint, Collector
from glide.report.experiment import Comparison, Experiment, Measurement, arguments, number, positive
from glide.report.sweep.figures import GREEN, ORANGE, RED, style
from glide.template import Template
from glide.vocabulary import Job, Machine, State

COUNTS = {"noop": (1, 2, 4, 8, 16, 32), "transformers": (1, 2, 4, 8, 16)}
# Load time of the noop engine, in seconds. 16 GB of weights load from a local disk in about this time.
LOAD_SECONDS = 10.0
# The paper gives no numbers for two of its phrases. Here "almost constant" means at most the ratio ALMOST, and
# "negligible" means at most the share NEGLIGIBLE.
ALMOST, NEGLIGIBLE = 1.5, 0.1
PARTS = {"launch": ORANGE, "init": GREEN, "publish": RED}  # parts of the time, with the colours of the paper's figure


@dataclass(frozen=True)
class Start:
    """The start of one service, with the seconds of its three parts."""

    engine: str
    services: int
    repeat: int
    launch: float
    init: float
    publish: float

    @property
    def total(self) -> float:
        return self.launch + self.init + self.publish


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "bt", "About 5 minutes on two cores, on HTCondor pools of its own.", 1)
    parser.add_argument("--most", type=positive, default=32, help="maximum number of services at the same time")
    parser.add_argument("--load", type=float, default=LOAD_SECONDS, help="load time of the noop engine, in seconds")
    parser.add_argument("--engines", nargs="+", choices=COUNTS, default=list(COUNTS), help="engines to measure")
    asked = parser.parse_args()
    templates = {
        "noop": Template("noop", "noop", options={"load_seconds": asked.load}),
        "transformers": Template.of_folder("verifier", "transformers", MODEL, OPTIONS),
    }
    experiment = Experiment("bt", "Bootstrap time of services", "How long does it take until services can be used?")
    counts = {engine: [count for count in COUNTS[engine] if count <= asked.most] for engine in asked.engines}
    starts = [
        start
        for repeat in range(asked.repeat)
        for engine, some in counts.items()
        for count in some
        for start in start_services(templates[engine], count, repeat)
    ]
    account(experiment, starts, asked.load)
    experiment.write(asked.out, figure(grouped(starts)))


def start_services(template: Template, count: int, repeat: int) -> list[Start]:
    """Start `count` services together on a new pool, and return the times of each start.

    This function submits `count` clients, and the factory starts a service for each client.
    """
    with services(count) as bench:
        clients = Clients(bench, template, count, [[]] * count)
        access_point, collector = AccessPoint(), Collector()
        warm = f'{Machine.TEMPLATE} == "{template.digest}" && {Machine.STATE} == "{State.WARM}"'
        submitted: dict[str, float] = {}
        seen: dict[str, float] = {}

        def are_submitted() -> bool:
            for job in access_point.jobs(f"{Job.ENTRY} =!= undefined", ["ClusterId", "ProcId"]):
                submitted.setdefault(f"bench-{job['ClusterId']}.{job['ProcId']}", time.time())
            return len(submitted) == count

        def are_seen() -> bool:
            for lane in collector.lanes([Machine.ID], warm):
                seen.setdefault(lane[Machine.ID], time.time())
            return len(seen) == count

        wait_until(are_submitted, "glideins are not submitted")
        wait_until(are_seen, "services are not warm")
        clients.remove()
        reported = "the output of servers is not on the access point"
        wait_until(lambda: len(_reported_times(bench, template)) >= count, reported, 0.25)
        times = _reported_times(bench, template)
    starts = [
        Start(template.engine, count, repeat, up - submitted[glidein], is_warm - up, seen[glidein] - is_warm)
        for glidein, (up, is_warm) in times.items()
    ]
    last = max(start.total for start in starts)
    report_progress(f"{count} services of {template.engine}: {last:.1f} s until all can be used")
    return starts


def _reported_times(bench: Rig, template: Template) -> dict[str, tuple[float, float]]:
    """Return for each glidein two Unix times: when its server printed the first line, and when its server was warm."""
    found = {}
    for log in (bench.folder / "home" / "factory").rglob("*.out"):
        times = _times(log, template.model)
        if State.WARM in times:
            found[f"bench-{log.stem}"] = times[State.FETCHING], times[State.WARM]
    return found


def _times(log: Path, model: str) -> dict[str, float]:
    states = re.findall(rf"^model server: (\S+) {model} (\w+)", log.read_text("utf-8"), re.MULTILINE)
    return {state: datetime.fromisoformat(when).timestamp() for when, state in states}


# ---- evaluation ----------------------------------------------------------------------------------

# The key is an engine and a number of services. The value has the starts of these services, grouped by repeats.
Groups = Mapping[tuple[str, int], Sequence[Sequence[Start]]]


def grouped(starts: Sequence[Start]) -> Groups:
    found: dict[tuple[str, int], dict[int, list[Start]]] = {}
    for start in starts:
        found.setdefault((start.engine, start.services), {}).setdefault(start.repeat, []).append(start)
    return {key: list(repeats.values()) for key, repeats in found.items()}


def part(repeats: Sequence[Sequence[Start]], name: str) -> Measurement:
    """Return the seconds of a part of the time. The value of a repeat is the mean over the services of this repeat."""
    return Measurement(tuple(fmean(getattr(start, name) for start in starts) for starts in repeats), "s")


def account(experiment: Experiment, starts: Sequence[Start], load: float) -> None:
    experiment.columns = ("engine", "services", *PARTS, "slowest launch", "until all can be used")
    experiment.data["starts"] = [asdict(start) for start in starts]
    groups = grouped(starts)
    for (engine, count), repeats in groups.items():
        slowest = Measurement(tuple(max(start.launch for start in some) for some in repeats), "s")
        last = Measurement(tuple(max(start.total for start in some) for some in repeats), "s")
        experiment.rows.append((engine, count, *(part(repeats, name) for name in PARTS), slowest, last))
    experiment.notes += [
        f"We take up to {ALMOST:g}× as almost constant, and up to {NEGLIGIBLE:.0%} as negligible.",
        "The factory is configured to start all services at once. By default it starts three glideins with a model that"
        " has not been warm yet, and the others when one of these is warm.",
        f"The noop engine loads for {load:g} s, which stand for the load of a large model. The transformers engine has"
        " the model of workflows/promptverify; most of its init is the import of torch and transformers.",
        "All services share this machine's cores and one access point. A launch includes matching by the negotiator,"
        " and the start of condor_master, condor_startd and the server.",
        "Launch begins when the jobs are first seen in the queue, and ends with the server's first line of output. Init"
        " ends, and publish begins, when the model is warm. Publish ends when the service is first seen in the"
        " collector. Queue and collector are queried twenty times per second. A startd collects changes for a second"
        " before it sends its ads. So a publish takes about a second, or less if another change came shortly before.",
    ]
    claims: list[Claim] = []
    for engine in dict.fromkeys(start.engine for start in starts):
        claims += compare(engine, {count: repeats for (name, count), repeats in groups.items() if name == engine})
    record(claims, experiment)


def compare(engine: str, mine: Mapping[int, Sequence[Sequence[Start]]]) -> list[Claim]:
    """Compare the paper's statements about its Figure 3 with the times that were measured here for one engine."""
    least, most = min(mine), max(mine)
    seconds = {count: {name: part(repeats, name) for name in (*PARTS, "total")} for count, repeats in mine.items()}
    grown = _ratio(seconds[most]["launch"], seconds[least]["launch"])
    over = {count: _ratio(each["publish"], each["launch"]) for count, each in seconds.items()}
    init = {count: _ratio(each["init"], each["total"]) for count, each in seconds.items()}
    besides = {count: Measurement(tuple(100 * (1 - run) for run in each.runs), "%") for count, each in init.items()}
    what = f"mean launch with {most} services at once, over {least} ({engine}; the paper: almost constant to 160)"
    return [
        Claim(
            "launch is almost constant up to 160 services",
            f"with {most} services of {engine} it is {number(grown.median, '×')} that with {least}",
            Comparison(what, None, "×", grown, better="less", goal=ALMOST),
        ),
        Claim(
            "publish is shorter than launch",
            f"publish over launch is, by the number of services, {_each(over)} ({engine})",
            Comparison(
                f"publish over launch, largest of 1 to {most} services ({engine}; the paper: below 1)",
                None, "×", _most(over), better="less", goal=1,
            ),
        ),
        Claim(
            "launch and publish are negligible against init",
            f"their share of the time is, by the number of services, {_each(besides)} ({engine})",
            Comparison(
                f"launch and publish together, share of the bootstrap time, largest of 1 to {most} services ({engine};"
                " the paper: negligible)",
                None, "%", _most(besides), better="less", goal=100 * NEGLIGIBLE,
            ),
        ),
    ]  # fmt: skip


def _ratio(one: Measurement, other: Measurement) -> Measurement:
    return Measurement(tuple(first / second for first, second in zip(one.runs, other.runs, strict=True)), "×")


def _each(values: Mapping[int, Measurement]) -> str:
    return ", ".join(f"{count}: {number(each.median, each.unit)}" for count, each in values.items())


def _most(values: Mapping[int, Measurement]) -> Measurement:
    """Return the largest value of each repeat."""
    largest = map(max, zip(*(each.runs for each in values.values()), strict=True))
    return Measurement(tuple(largest), next(iter(values.values())).unit)


def figure(groups: Groups) -> Figure:
    """Draw a panel for each engine. A panel has a stacked bar for each number of services."""
    engines = list(dict.fromkeys(engine for engine, _ in groups))
    with style():
        drawn = Figure(figsize=(7.2, 2.9))
        (panels,) = drawn.subplots(1, len(engines), squeeze=False)
        for axes, engine in zip(panels, engines, strict=True):
            mine = {str(count): repeats for (name, count), repeats in groups.items() if name == engine}
            base = [0.0] * len(mine)
            for name, colour in PARTS.items():
                heights = [part(repeats, name).median for repeats in mine.values()]
                axes.bar(list(mine), heights, bottom=base, color=colour, label=name, width=0.65, edgecolor="white")
                base = [one + more for one, more in zip(base, heights, strict=True)]
            axes.set(title=f"engine: {engine}", xlabel="services started at once", ylabel="bootstrap time (s)")
            axes.grid(True)
        drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(PARTS))
        return drawn


if __name__ == "__main__":
    main()
