"""How long does a service take to answer when there is nothing to infer, and where does that time go?

Experiment 2 of RADICAL-Pilot's services (Figures 4 and 5): 1,024 requests of each client, one after the other, to a
noop engine that returns at once; 16 clients on 1 to 16 services (strong scaling) and as many clients as services
(weak scaling), local and remote ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from scaling import PARTS, Run, Setting, Workload, conduct, options, share
from services import Claim

from glide.report.experiment import Experiment, number

WORK = Workload(lambda count: [f"request {each}" for each in range(count)])


def main() -> None:
    asked = options(__doc__.splitlines()[0], "rt", minutes=11, requests=1024)
    experiment = Experiment("rt", "Response time of services", "Where does a request's time go without inference?")
    conduct(experiment, WORK, asked, compare)


def compare(found: Mapping[Setting, Sequence[Run]], counts: Sequence[int]) -> Iterator[Claim]:
    """What the paper says of its Figures 4 and 5."""
    for where in ("local", "remote"):
        alone = found["weak", where, counts[0], counts[0]]
        parts = {part: share(alone, part) for part in PARTS}
        yield Claim(
            "communication is the largest part of the response time",
            f"{counts[0]} client, {counts[0]} {where} service: "
            + ", ".join(f"{part} {number(100 * each, '%')}" for part, each in parts.items()),
            parts["communication"] == max(parts.values()),
        )  # fmt: skip
    gained = {
        where: median(run.rate for run in found["strong", where, counts[-1], counts[-1]])
        / median(run.rate for run in found["strong", where, counts[-1], counts[0]])
        for where in ("remote", "local")
    }
    yield Claim(
        "more services at once hide the network's latency",
        f"{counts[-1]} remote services answer {counts[-1]} clients' requests at {number(gained['remote'], '×')} the "
        f"rate of {counts[0]}, local ones, which have none, at {number(gained['local'], '×')}: there are no more cores",
        gained["remote"] > 1,
    )


if __name__ == "__main__":
    main()
