"""What rt.py and it.py have in common: clients that ask services, strong and weak scaling, local and remote.

A request's time has three parts, as in the paper. `communication` is what it spends between client and server: the
record's and the result's file and the socket, and for remote services HTTP and the latency, too. `service` is what
it spends in the server (and in the endpoint) but not in the engine: waiting to be taken up, being read, queued, handed
on, and written.
`inference` is what the model takes.
"""

from __future__ import annotations

import argparse
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

from endpoint import NAME as REMOTE
from matplotlib.figure import Figure
from services import Carriers, Claim, Clients, Endpoints, endpoints, say, services, told

from glide.bench.rig import Rig
from glide.report.experiment import Comparison, Experiment, Measured, arguments, positive
from glide.report.sweep.figures import GREEN, ORANGE, RED, style
from glide.template import Template

COUNTS = (1, 2, 4, 8, 16)
LATENCY = 0.47e-3  # seconds each way between client and remote service: theirs, from node to node
IN_JOBS = "in jobs"
ORDER = ("strong", "weak", IN_JOBS)
OWN, OWN_LANES = 2, 2  # services for glide's own way, one for each core, and lanes of each, as sites have them
PARTS = {"communication": ORANGE, "service": GREEN, "inference": RED}  # as in the paper's figures


Setting = tuple[str, str, int, int]  # scaling, where, clients, services


@dataclass(frozen=True)
class Workload:
    """What clients ask for.

    Attributes:
        prompts: so many different ones.
        engine, path, generate: of the local services.
        one: options of the engine for requests that are served one at a time.
        own: those for glide's own way.
    """

    prompts: Callable[[int], list[str]]
    engine: str = "noop"
    path: Path | None = None
    one: dict[str, Any] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=dict)
    generate: dict[str, Any] = field(default_factory=dict)

    def template(self, where: str, options: dict[str, Any]) -> Template:
        if where == REMOTE:
            return Template(REMOTE, "noop")  # what serves it says the entry
        return Template.of_folder(where, self.engine, self.path, options)

    def shares(self, clients: int, requests: int) -> list[list[str]]:
        """The requests of each client."""
        prompts = self.prompts(clients * requests)
        return [prompts[number::clients] for number in range(clients)]


@dataclass(frozen=True)
class Run:
    """Clients that have asked services: seconds of a request (of the parts, the mean), and requests a second.

    `latency` is what an endpoint has added to each way.
    """

    scaling: str
    where: str
    clients: int
    services: int
    requests: int
    median: float
    p95: float
    mean: float
    communication: float
    service: float
    inference: float
    rate: float
    latency: float = 0.0


Compare = Callable[[Mapping[Setting, Sequence[Run]], Sequence[int]], Iterator[Claim]]  # with the paper, by counts


def options(what: str, name: str, minutes: int, requests: int) -> argparse.Namespace:
    """The command line of both experiments."""
    parser = arguments(what, name, f"About {minutes} minutes on two cores, on HTCondor pools of its own.", 1)
    parser.add_argument("--requests", type=positive, default=requests, help="of each client")
    parser.add_argument(
        "--counts", type=positive, nargs="+", default=COUNTS, help="of services; as many clients as the most of them"
    )
    asked = parser.parse_args()
    asked.counts = sorted(set(asked.counts))
    return asked


def conduct(experiment: Experiment, work: Workload, asked: argparse.Namespace, compare: Compare) -> None:
    """Measure as asked, and leave the account of it, with what the paper says first."""
    runs = list(measure(work, asked.counts, asked.requests, asked.repeat))
    found = account(experiment, runs)
    experiment.compared += latencies(runs)
    experiment.notes[:0] = told(list(compare(found, asked.counts)))
    experiment.leave(asked.out, figure(found))


def measure(work: Workload, counts: Sequence[int], requests: int, repeat: int) -> Iterator[Run]:
    """All settings: the most clients on each number of services, and as many clients as services."""
    most = counts[-1]
    with endpoints(most, LATENCY, work.path) as remote:
        for number in range(repeat):
            for count in counts:
                say(f"run {number + 1} of {repeat}: {count} local and {count} remote services, {most} clients")
                with services(count, most // count, remote.urls[:count], parallel=1) as bench:
                    strong = list(_ask(bench, work, remote, "strong", most, count, requests))
                    yield from strong
                    if count == most:  # each with a lane, so that fewer clients have a service each, too
                        for few in counts[:-1]:
                            yield from _ask(bench, work, remote, "weak", few, few, requests)
                        yield from (replace(run, scaling="weak") for run in strong)
            if OWN in counts:
                yield from _own_way(work, remote, most, requests)


def _ask(
    bench: Rig, work: Workload, remote: Endpoints, scaling: str, clients: int, count: int, requests: int
) -> Iterator[Run]:
    """Local services first, then remote ones; both are there before any request is made."""
    shares = work.shares(clients, requests)
    waiting = {
        where: Clients(bench, work.template(where, work.one), count, shares, generate=work.generate)
        for where in ("local", REMOTE)
    }
    for each in waiting.values():
        each.gather()
    for where, each in waiting.items():
        remote.times()
        measured = each.run()
        run = _run(measured, remote.times() if where == REMOTE else None, (scaling, where, clients, count))
        say(f"  {scaling} {where} {clients}/{count}: {run.median * 1e3:.2f} ms, {run.rate:.0f} requests/s")
        yield run


def _run(measured: Sequence[dict[str, Any]], remote: dict[str, float] | None, setting: Setting) -> Run:
    """What came of it; `remote` are the endpoints' sums, where the engine's time is that of an HTTP request."""
    took = [each for client in measured for each in client["took"]]
    whole, served, inference = (fmean(each) for each in zip(*took, strict=True))
    communication, service = whole - served, served - inference
    if remote:
        theirs, model = remote["service"] / remote["requests"], remote["inference"] / remote["requests"]
        communication, service, inference = communication + inference - theirs - model, service + theirs, model
    totals = [each[0] for each in took]
    seconds = max(each["ended"] for each in measured) - min(each["began"] for each in measured)
    latency = remote["latency"] / remote["requests"] / 2 if remote else 0.0
    rate = len(took) / seconds
    return Run(
        *setting, len(took), median(totals), _p95(totals), whole, communication, service, inference, rate, latency
    )


def _p95(seconds: Sequence[float]) -> float:
    return quantiles(seconds, n=20, method="inclusive")[-1]


def _own_way(work: Workload, remote: Endpoints, clients: int, requests: int) -> Iterator[Run]:
    """Each client's records in one invocation job, with the engines' own options: seconds in its server, a record."""
    shares = work.shares(clients, requests)
    say(f"in jobs: {clients} of {requests} records on {OWN} local and {OWN} remote services")
    templates = {where: work.template(where, work.own) for where in ("local", REMOTE)}
    with services(OWN, OWN_LANES, remote.urls[:OWN]) as bench:
        first = [Clients(bench, each, OWN, [[]] * OWN * OWN_LANES) for each in templates.values()]
        for one in first:  # they ask nothing, but with them all services come up
            one.gather()
        for one in first:
            one.run()
        for where, template in templates.items():
            seconds, served = Carriers(bench, template, OWN, shares, generate=work.generate).run()
            each = [one / requests for one in served]
            rate = clients * requests / seconds
            say(f"  in jobs {where} {clients}/{OWN}: {median(each) * 1e3:.3f} ms a record, {rate:.0f} records/s")
            yield Run(
                IN_JOBS, where, clients, OWN, clients * requests, median(each), _p95(each), fmean(each), 0, 0, 0, rate
            )


# ---- what is left of it --------------------------------------------------------------------------


def account(experiment: Experiment, runs: Sequence[Run]) -> dict[Setting, list[Run]]:
    """Fill the experiment's table and data; the runs by setting."""
    experiment.columns = (
        "scaling", "services", "clients / services", "requests", "median", "95 %", *PARTS, "added each way",
        "requests/s",
    )  # fmt: skip
    found: dict[Setting, list[Run]] = {}
    for run in runs:
        found.setdefault((run.scaling, run.where, run.clients, run.services), []).append(run)
    for (scaling, where, clients, count), same in sorted(found.items(), key=lambda item: ORDER.index(item[0][0])):
        parts = [_milliseconds(same, part) for part in PARTS] if scaling != IN_JOBS else ["–"] * len(PARTS)
        added = _milliseconds(same, "latency") if same[0].latency else "–"
        experiment.rows.append((
            scaling, where, f"{clients} / {count}", same[0].requests, _milliseconds(same, "median"),
            _milliseconds(same, "p95"), *parts, added, Measured(tuple(run.rate for run in same)),
        ))  # fmt: skip
    experiment.data["runs"] = [asdict(run) for run in runs]
    experiment.notes += [
        "A request at a time: a client on a lane hands in a ticket with one record, and the next when it has the "
        "result. In jobs, as glide does by itself: a client is an invocation job with all its records, whose time in "
        "the server is divided by their number; requests/s are from the submission of all jobs to their end.",
        f"To what a remote service is asked and answers, its endpoint adds {LATENCY * 1e3:g} ms each way: it sleeps so"
        " long, and is woken later where many wait for the same cores. 'Added each way' is what came of it.",
        "Communication is what a request spends between client and server (files, a socket; for remote services HTTP"
        " and the added latency), service what it spends in the server, and in the endpoint, but not in the model;"
        " inference is the engine's call where the service is local, and the endpoint's where it is remote.",
        f"All services, their clients and the pool share {len(os.sched_getaffinity(0))} cores.",
        "The parts are means, and add up to the mean and not to the median.",
    ]
    return found


def _milliseconds(runs: Sequence[Run], name: str) -> Measured:
    return Measured(tuple(getattr(run, name) * 1e3 for run in runs), "ms")


def latencies(runs: Sequence[Run]) -> list[Comparison]:
    """The network's part, theirs and here: of the loopback device, and what the endpoints have added.

    The latter with the fewest clients: who waits on a busy machine is woken late.
    """
    fewest = min(run.clients for run in runs)
    added = tuple(run.latency * 1e3 for run in runs if run.latency and run.clients == fewest and run.scaling == "weak")
    return [
        Comparison("latency to a local service (here: a byte over loopback, one way)", 0.063, "ms",
                   Measured((loopback() / 2 * 1e3,), "ms")),
        Comparison(f"latency to a remote service (here: what was added one way, {fewest} client)", 0.47, "ms",
                   Measured(added, "ms")),
    ]  # fmt: skip


def share(runs: Sequence[Run], part: str) -> float:
    """A part of the response time, as a fraction of it: the median of these runs'."""
    return median(getattr(run, part) / run.mean for run in runs)


def loopback() -> float:
    """Seconds that a byte takes to another socket of this machine and back: the median of many."""
    ours, theirs = _connected()

    def echo() -> None:
        while byte := theirs.recv(1):
            theirs.sendall(byte)

    thread = threading.Thread(target=echo)
    thread.start()
    took = []
    with ours:
        for _ in range(2000):
            began = time.perf_counter()
            ours.sendall(b".")
            ours.recv(1)
            took.append(time.perf_counter() - began)
    thread.join()
    theirs.close()
    return median(took)


def _connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
    for each in (ours, theirs):
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs


def figure(found: Mapping[Setting, Sequence[Run]]) -> Figure:
    """Stacked bars by clients / services: strong scaling above weak scaling, local services beside remote ones."""
    with style():
        drawn = Figure(figsize=(7.2, 4.8))
        panels = drawn.subplots(2, 2, squeeze=False)
        for row, scaling in zip(panels, ("strong", "weak"), strict=True):
            for axes, where in zip(row, ("local", REMOTE), strict=True):
                runs = {key: same for key, same in found.items() if key[:2] == (scaling, where)}
                names = [f"{clients}/{count}" for _, _, clients, count in runs]
                base = [0.0] * len(names)
                for part, colour in PARTS.items():
                    heights = [_milliseconds(same, part).median for same in runs.values()]
                    axes.bar(names, heights, bottom=base, color=colour, label=part, width=0.65, edgecolor="white")
                    base = [one + more for one, more in zip(base, heights, strict=True)]
                axes.set(title=f"{scaling} scaling, {where} services", xlabel="clients / services")
                axes.set_ylabel("response time (ms)")
                axes.grid(True)
        drawn.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(PARTS))
        return drawn
