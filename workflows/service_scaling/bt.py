"""How long do services take to become available that are started at the same time, and where does that time go?

Experiment 1 of RADICAL-Pilot's services (Figure 3). A service is a glidein with one lane and a model server of its own.
`launch` goes from its job in HTCondor's queue to its server's first word, `init` from there to the server's being warm
(fetching, importing, loading, warming up), `publish` from there to a client's seeing it in the collector.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean

from endpoint import OPTIONS
from matplotlib.figure import Figure
from services import MODEL, Claim, Clients, say, services, told, until

from glide.bench.rig import Rig
from glide.condor import AccessPoint, Collector
from glide.report.experiment import Comparison, Experiment, Measured, arguments, number, positive
from glide.report.sweep.figures import GREEN, ORANGE, RED, style
from glide.template import Template
from glide.vocabulary import Job, Machine, State

COUNTS = {"noop": (1, 2, 4, 8, 16, 32), "transformers": (1, 2, 4, 8, 16)}
LOAD_SECONDS = 10.0  # of the noop engine: about what 16 GB of weights take from a local disk
ALMOST, NEGLIGIBLE = 1.5, 0.1  # as we read the paper's words: so much longer, and such a share
PARTS = {"launch": ORANGE, "init": GREEN, "publish": RED}  # as in the paper's figure


@dataclass(frozen=True)
class Start:
    """Of one service, in seconds."""

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
    parser.add_argument("--most", type=positive, default=32, help="services at once")
    parser.add_argument("--load", type=float, default=LOAD_SECONDS, help="seconds that the noop engine loads")
    parser.add_argument("--engines", nargs="+", choices=COUNTS, default=list(COUNTS), help="which of them")
    asked = parser.parse_args()
    templates = {
        "noop": Template("noop", "noop", options={"load_seconds": asked.load}),
        "transformers": Template.of_folder("verifier", "transformers", MODEL, OPTIONS),
    }
    experiment = Experiment("bt", "Bootstrap time of services", "What does it take until services can be used?")
    counts = {engine: [count for count in COUNTS[engine] if count <= asked.most] for engine in asked.engines}
    starts = [
        start
        for repeat in range(asked.repeat)
        for engine, some in counts.items()
        for count in some
        for start in bring_up(templates[engine], count, repeat)
    ]
    account(experiment, starts, asked.load)
    experiment.leave(asked.out, figure(grouped(starts)))


def bring_up(template: Template, count: int, repeat: int) -> list[Start]:
    """Have so many services at once on a fresh pool, because as many clients ask for them."""
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

        until(are_submitted, "glideins are submitted")
        until(are_seen, "services are warm")
        clients.remove()
        until(lambda: len(_said(bench, template)) >= count, "servers' words are on the access point", 0.25)
        said = _said(bench, template)
    starts = [
        Start(template.engine, count, repeat, up - submitted[glidein], is_warm - up, seen[glidein] - is_warm)
        for glidein, (up, is_warm) in said.items()
    ]
    last = max(start.total for start in starts)
    say(f"{count} services of {template.engine}: {last:.1f} s until all can be used")
    return starts


def _said(bench: Rig, template: Template) -> dict[str, tuple[float, float]]:
    """When each glidein's server said its first word, and when that it is warm (Unix time)."""
    found = {}
    for log in (bench.folder / "home" / "factory").rglob("*.out"):
        times = _times(log, template.model)
        if State.WARM in times:
            found[f"bench-{log.stem}"] = times[State.FETCHING], times[State.WARM]
    return found


def _times(log: Path, model: str) -> dict[str, float]:
    states = re.findall(rf"^model server: (\S+) {model} (\w+)", log.read_text("utf-8"), re.MULTILINE)
    return {state: datetime.fromisoformat(when).timestamp() for when, state in states}


# ---- what is left of it --------------------------------------------------------------------------

Groups = Mapping[tuple[str, int], Sequence[Sequence[Start]]]  # by engine and number of services, the repeats


def grouped(starts: Sequence[Start]) -> Groups:
    found: dict[tuple[str, int], dict[int, list[Start]]] = {}
    for start in starts:
        found.setdefault((start.engine, start.services), {}).setdefault(start.repeat, []).append(start)
    return {key: list(repeats.values()) for key, repeats in found.items()}


def part(repeats: Sequence[Sequence[Start]], name: str) -> Measured:
    """A part's seconds, the mean over the services of each repeat."""
    return Measured(tuple(fmean(getattr(start, name) for start in starts) for starts in repeats), "s")


def account(experiment: Experiment, starts: Sequence[Start], load: float) -> None:
    experiment.columns = ("engine", "services", *PARTS, "slowest launch", "until all can be used")
    experiment.data["starts"] = [asdict(start) for start in starts]
    groups = grouped(starts)
    for (engine, count), repeats in groups.items():
        slowest = Measured(tuple(max(start.launch for start in some) for some in repeats), "s")
        last = Measured(tuple(max(start.total for start in some) for some in repeats), "s")
        experiment.rows.append((engine, count, *(part(repeats, name) for name in PARTS), slowest, last))
    claims: list[Claim] = []
    for engine in dict.fromkeys(start.engine for start in starts):
        mine = {count: repeats for (name, count), repeats in groups.items() if name == engine}
        least, most = min(mine), max(mine)
        grown = Measured(tuple(_ratio(part(mine[most], "launch"), part(mine[least], "launch"))), "×")
        what = f"launch with {most} services at once, over {least} ({engine}; theirs: almost constant to 160)"
        experiment.compared.append(Comparison(what, None, "×", grown))
        claims += compare(engine, mine, grown.median)
    experiment.notes += told(claims)
    experiment.notes += [
        "The factory is told to start all at once: by itself it starts three of what it has not yet seen warm, and the "
        "others when one of these is.",
        f"The noop engine loads for {load:g} s, which stand for what a large model takes; the transformers engine "
        "has the model of workflows/promptverify, whose init is the import of torch and transformers.",
        "All services share this machine's cores and one access point, where theirs had a GPU each. A launch has a "
        "turn of the negotiator and the start of condor_master, condor_startd and the server in it.",
        "Launch is counted from the moment the jobs were first seen in the queue, publish to the moment the service "
        "was first seen in the collector, each asked twenty times a second.",
    ]


def compare(engine: str, mine: Mapping[int, Sequence[Sequence[Start]]], grown: float) -> list[Claim]:
    """What the paper says of its Figure 3, for the services of an engine."""
    medians = {count: {name: part(repeats, name).median for name in PARTS} for count, repeats in mine.items()}
    over = {count: each["publish"] / each["launch"] for count, each in medians.items()}
    rest = {count: 100 * (1 - each["init"] / sum(each.values())) for count, each in medians.items()}
    return [
        Claim(
            "launch is almost constant up to 160 services",
            f"with {max(mine)} services of {engine} it is {number(grown, '×')} that with {min(mine)}", grown <= ALMOST,
        ),
        Claim(
            "publish is shorter than launch",
            f"it is, of that, with {_each(over, '×')} ({engine})", max(over.values()) < 1,
        ),
        Claim(
            "launch and publish are negligible against init",
            f"they are, of the whole, with {_each(rest, '%')} ({engine})", max(rest.values()) <= 100 * NEGLIGIBLE,
        ),
    ]  # fmt: skip


def _each(values: Mapping[int, float], unit: str) -> str:
    return ", ".join(f"{count} at once {number(value, unit)}" for count, value in values.items())


def _ratio(one: Measured, other: Measured) -> list[float]:
    return [first / second for first, second in zip(one.runs, other.runs, strict=True)]


def figure(groups: Groups) -> Figure:
    """Stacked bars by the number of services, a panel for each engine."""
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
