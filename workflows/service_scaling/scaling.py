"""The common parts of rt.py and it.py: clients that send requests to services, in strong and weak scaling.

The time of a request has three parts, as in the paper. `communication` is the time between client and server: writing
and reading files, the socket, and for remote services also HTTP and the latency. For live services it is HTTP between
the client and `glide serve`. `inference` is the time in which the model computes. `service` is the remaining time in
the server, in the endpoint and in `glide serve`: waiting, reading, queueing, passing on, and writing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

from clients import Clients, InvocationJobs, LiveClients
from endpoint import NAME as REMOTE
from matplotlib.figure import Figure
from services import LIVE, Claim, Endpoints, endpoints, live_services, record, report_progress, services

from glide.bench.rig import Rig
from glide.report.experiment import Experiment, Measurement, arguments, positive
from glide.report.sweep.figures import GREEN, ORANGE, RED, style
from glide.template import Template

COUNTS = (1, 2, 4, 8, 16)
WHERE = ("local", REMOTE, LIVE)  # the kinds of services
LATENCY = 0.47e-3  # latency to a remote service in each direction, in seconds; the paper's value between two nodes
IN_JOBS = "in jobs"
ORDER = ("strong", "weak", IN_JOBS)
# For requests in invocation jobs: the number of services (one for each core), and of lanes of a service (the default).
OWN, OWN_LANES = 2, 2
# The parts of a request's time, with the colours of the paper's figures.
PARTS = {"communication": ORANGE, "service": GREEN, "inference": RED}


Setting = tuple[str, str, int, int]  # scaling, kind of the services, number of clients, number of services


@dataclass(frozen=True)
class Workload:
    """The requests of the clients, and the engine that serves them.

    Attributes:
        prompts: a function that returns a given number of different prompts.
        engine, path: engine and model folder of the local services. The path is None if the engine needs no folder.
        one: options of the engine for requests that are served one at a time.
        own: options of the engine for requests in invocation jobs.
        generate: options of `generate` for all requests.
        body: the same options as `glide serve` takes them.
    """

    prompts: Callable[[int], list[str]]
    engine: str = "noop"
    path: Path | None = None
    one: dict[str, Any] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=dict)
    generate: dict[str, Any] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)

    def template(self, where: str, options: dict[str, Any]) -> Template:
        if where == REMOTE:
            return Template(REMOTE, "noop")  # the engine plays no role, because the endpoint computes
        return Template.of_folder(where, self.engine, self.path, options)

    def shares(self, clients: int, requests: int) -> list[list[str]]:
        """Return the prompts of each client."""
        prompts = self.prompts(clients * requests)
        return [prompts[number::clients] for number in range(clients)]


@dataclass(frozen=True)
class Run:
    """The measurements of one setting.

    Attributes:
        scaling: "strong", "weak", or "in jobs" (requests in invocation jobs).
        where: "local", "remote" or "live", the kind of the services.
        clients, services, requests: numbers of clients, of services, and of the requests of all clients.
        median, p95, mean: median, 95th percentile and mean of the seconds of a request.
        communication, service, inference: mean seconds of each part of a request.
        rate: requests per second.
        latency: seconds that an endpoint has added in each direction.
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


# The type of a function that compares runs with the paper's statements.
Compare = Callable[[Mapping[Setting, Sequence[Run]], Sequence[int]], Iterator[Claim]]


def options(what: str, name: str, minutes: int, requests: int) -> argparse.Namespace:
    """Parse the command line of rt.py or it.py."""
    parser = arguments(what, name, f"About {minutes} minutes on two cores, on HTCondor pools of its own.", 1)
    parser.add_argument("--requests", type=positive, default=requests, help="number of requests of each client")
    parser.add_argument(
        "--counts", type=positive, nargs="+", default=COUNTS, help="numbers of services; the largest is that of clients"
    )
    asked = parser.parse_args()
    asked.counts = sorted(set(asked.counts))
    return asked


def conduct(experiment: Experiment, work: Workload, asked: argparse.Namespace, compare: Compare) -> None:
    """Measure what the command line asks for, and write the results. The first notes are the paper's statements."""
    runs = list(measure(work, asked.counts, asked.requests, asked.repeat))
    found = account(experiment, runs)
    record(list(compare(found, asked.counts)), experiment)
    experiment.write(asked.out, figure(found))


def measure(work: Workload, counts: Sequence[int], requests: int, repeat: int) -> Iterator[Run]:
    """Measure all settings, and yield the measurements of each setting.

    In strong scaling, the largest number of clients uses each number of services. In weak scaling, each client has its
    own service.
    """
    most = counts[-1]
    with endpoints(most, LATENCY, work.path) as remote:
        for number in range(repeat):
            for count in counts:
                settings = f"{count} local and {count} remote services, {most} clients"
                report_progress(f"run {number + 1} of {repeat}: {settings}")
                with services(count, most // count, remote.urls[:count], parallel=1) as bench:
                    strong = list(_ask(bench, work, remote, "strong", most, count, requests))
                    yield from strong
                    if count == most:  # each service has one lane here, so each client gets its own service
                        for few in counts[:-1]:
                            yield from _ask(bench, work, remote, "weak", few, few, requests)
                        yield from (replace(run, scaling="weak") for run in strong)
                yield from _live(work, most, count, requests)
            if OWN in counts:
                yield from _in_jobs(work, remote, most, requests)


def _ask(
    bench: Rig, work: Workload, remote: Endpoints, scaling: str, clients: int, count: int, requests: int
) -> Iterator[Run]:
    """Measure local services, then remote services. All services are ready before the first request."""
    shares = work.shares(clients, requests)
    waiting = {
        where: Clients(bench, work.template(where, work.one), count, shares, generate=work.generate)
        for where in ("local", REMOTE)
    }
    for each in waiting.values():
        each.wait_for_lanes()
    for where, each in waiting.items():
        remote.times()
        measured = each.run()
        yield _run(measured, remote.times() if where == REMOTE else None, (scaling, where, clients, count))


def _live(work: Workload, most: int, count: int, requests: int) -> Iterator[Run]:
    """Measure `count` services behind `glide serve`, with the largest number of clients, and with a client for each."""
    with live_services(count, work.template("local", work.one)) as (bench, server):
        for scaling, clients in (("strong", most), ("weak", count)):
            waiting = LiveClients(bench, server, count, work.shares(clients, requests), **work.body)
            waiting.wait_for_lanes()
            yield _run(waiting.run(), None, (scaling, LIVE, clients, count))


def _run(measured: Sequence[dict[str, Any]], remote: dict[str, float] | None, setting: Setting) -> Run:
    """Return the measurements of a setting, and report them.

    Args:
        measured: measurements of each client.
        remote: sums that the endpoints have returned; None for local services. With these sums, the time of the HTTP
            request to an endpoint is divided into communication, service and inference.
    """
    took = [each for client in measured for each in client["took"]]
    whole, served, inference = (fmean(each) for each in zip(*took, strict=True))
    communication, service = whole - served, served - inference
    if remote:
        endpoint, model = remote["service"] / remote["requests"], remote["inference"] / remote["requests"]
        communication, service, inference = communication + inference - endpoint - model, service + endpoint, model
    totals = [each[0] for each in took]
    seconds = max(each["ended"] for each in measured) - min(each["began"] for each in measured)
    latency = remote["latency"] / remote["requests"] / 2 if remote else 0.0
    rate = len(took) / seconds
    scaling, where, clients, count = setting
    report_progress(f"  {scaling} {where} {clients}/{count}: {median(totals) * 1e3:.2f} ms, {rate:.0f} requests/s")
    return Run(
        *setting, len(took), median(totals), _p95(totals), whole, communication, service, inference, rate, latency
    )


def _p95(seconds: Sequence[float]) -> float:
    return quantiles(seconds, n=20, method="inclusive")[-1]


def _in_jobs(work: Workload, remote: Endpoints, clients: int, requests: int) -> Iterator[Run]:
    """Measure the same requests in invocation jobs. Each client has one job, and the engines have default options.

    The seconds of a request are the seconds of its job in the server, divided by the number of the job's records.
    """
    shares = work.shares(clients, requests)
    report_progress(f"in jobs: {clients} jobs of {requests} records on {OWN} local and {OWN} remote services")
    templates = {where: work.template(where, work.own) for where in ("local", REMOTE)}
    with services(OWN, OWN_LANES, remote.urls[:OWN]) as bench:
        first = [Clients(bench, each, OWN, [[]] * OWN * OWN_LANES) for each in templates.values()]
        for one in first:  # these clients send no requests, but all services start for them
            one.wait_for_lanes()
        for one in first:
            one.run()
        for where, template in templates.items():
            seconds, served = InvocationJobs(bench, template, OWN, shares, generate=work.generate).run()
            each = [one / requests for one in served]
            rate = clients * requests / seconds
            speed = f"{median(each) * 1e3:.3f} ms per record, {rate:.0f} records/s"
            report_progress(f"  in jobs {where} {clients}/{OWN}: {speed}")
            yield Run(
                IN_JOBS, where, clients, OWN, clients * requests, median(each), _p95(each), fmean(each), 0, 0, 0, rate
            )


# ---- evaluation ----------------------------------------------------------------------------------


def account(experiment: Experiment, runs: Sequence[Run]) -> dict[Setting, list[Run]]:
    """Fill the table, the data and the notes of the experiment. Return the runs of each setting."""
    experiment.columns = (
        "scaling", "services", "clients / services", "requests", "median", "95 %", *PARTS, "added each way",
        "requests/s",
    )  # fmt: skip
    found: dict[Setting, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (ORDER.index(run.scaling), run.services, WHERE.index(run.where))):
        found.setdefault((run.scaling, run.where, run.clients, run.services), []).append(run)
    for (scaling, where, clients, count), same in found.items():
        parts = [_milliseconds(same, part) for part in PARTS] if scaling != IN_JOBS else ["–"] * len(PARTS)
        added = _milliseconds(same, "latency") if same[0].latency else "–"
        experiment.rows.append((
            scaling, where, f"{clients} / {count}", same[0].requests, _milliseconds(same, "median"),
            _milliseconds(same, "p95"), *parts, added, Measurement(tuple(run.rate for run in same)),
        ))  # fmt: skip
    experiment.data["runs"] = [asdict(run) for run in runs]
    experiment.notes += [
        "In strong and weak scaling, a client sends one record, and the next one when it has the result. The clients of"
        " local and remote services are on their lanes. The services in the rows `live` are local services, and their"
        " clients are processes that use the API of `glide serve`. In the rows `in jobs`, as glide works by default, a"
        " client is an invocation job with all its records. There, `median` is not a response time, but a job's time in"
        " the server divided by the number of its records. The requests/s are counted from the submission of all jobs"
        " to their end.",
        f"The endpoint of a remote service adds {LATENCY * 1e3:g} ms to each request and to each answer. It sleeps for"
        " this time, and wakes up later if many processes wait for the same cores. 'Added each way' is the measured"
        " delay.",
        "Communication is the time between client and server: files, a socket, and for remote services HTTP and the"
        " added latency; for live services, HTTP. Service is the time in the server, in the endpoint and in `glide"
        " serve` without the model. Inference is the engine's call, and the endpoint's with remote services.",
        f"All services, their clients and the pool share {len(os.sched_getaffinity(0))} cores.",
        "The parts are means. They add up to the mean of the total, not to its median.",
    ]
    return found


def _milliseconds(runs: Sequence[Run], name: str) -> Measurement:
    return Measurement(tuple(getattr(run, name) * 1e3 for run in runs), "ms")


def share(runs: Sequence[Run], part: str) -> float:
    """Return the share of a part in the response time: the median over these runs."""
    return median(getattr(run, part) / run.mean for run in runs)


def over_others(runs: Sequence[Run], part: str) -> list[float]:
    """Return for each run how many times as long as the longest other part a part takes."""
    return [getattr(run, part) / max(getattr(run, other) for other in PARTS if other != part) for run in runs]


def figure(found: Mapping[Setting, Sequence[Run]]) -> Figure:
    """Draw a stacked bar for each setting, in a row for each scaling and a column for each kind of services."""
    with style():
        drawn = Figure(figsize=(10.0, 4.8))
        panels = drawn.subplots(2, len(WHERE), squeeze=False)
        for row, scaling in zip(panels, ("strong", "weak"), strict=True):
            for axes, where in zip(row, WHERE, strict=True):
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
