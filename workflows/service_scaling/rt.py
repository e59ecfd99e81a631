"""How long does a service take to answer a request without inference, and which parts does this time have?

This is experiment 2 of the paper on RADICAL-Pilot's services (Figures 4 and 5). Each client sends 1,024 requests, one
after the other, to a noop engine that returns immediately. In strong scaling, 16 clients use 1 to 16 services. In weak
scaling, each client has its own service. Strong and weak scaling are measured with local, remote and live services.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from scaling import PARTS, WHERE, Run, Setting, Workload, conduct, options, share
from services import Claim

from glide.report.experiment import Experiment, number

# An inference of a nanosecond takes no time, but with it the noop engine serves one request at a time.
WORK = Workload(lambda count: [f"request {each}" for each in range(count)], one={"record_seconds": 1e-9})


def main() -> None:
    asked = options(__doc__.splitlines()[0], "rt", minutes=13, requests=1024)
    experiment = Experiment("rt", "Response time of services", "Which parts has a request's time without inference?")
    conduct(experiment, WORK, asked, compare)


def compare(found: Mapping[Setting, Sequence[Run]], counts: Sequence[int]) -> Iterator[Claim]:
    """Yield the paper's statements about its Figures 4 and 5, each with the result that was measured here."""
    for where in WHERE:
        alone = found["weak", where, counts[0], counts[0]]
        parts = {part: share(alone, part) for part in PARTS}
        yield Claim(
            "communication is the largest part of the response time",
            f"with {counts[0]} client and {counts[0]} {where} service, "
            + ", ".join(f"{part} {number(100 * each, '%')}" for part, each in parts.items()),
            parts["communication"] == max(parts.values()),
        )  # fmt: skip
    if len(counts) == 1:
        return
    gained = {
        where: [
            median(run.rate for run in found["strong", where, counts[-1], count])
            / median(run.rate for run in found["strong", where, counts[-1], counts[0]])
            for count in counts[1:]
        ]
        for where in ("remote", "local")
    }
    remote, local = (", ".join(number(each) for each in rates) for rates in gained.values())
    yield Claim(
        "several services at the same time hide the network's latency",
        f"for {counts[-1]} clients, {', '.join(map(str, counts[1:]))} remote services answer at {remote} times the rate"
        f" of {counts[0]}, and local services, which have no latency, at {local} times; all share the same cores",
        all(one > other for one, other in zip(*gained.values(), strict=True)),
    )


if __name__ == "__main__":
    main()
