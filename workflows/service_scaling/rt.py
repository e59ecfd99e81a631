"""How long does a service take to answer a request without inference, and which parts does this time have?

This is experiment 2 of the paper on RADICAL-Pilot's services (Figures 4 and 5). Each client sends 1,024 requests, one
after the other, to a noop engine that returns immediately. In strong scaling, 16 clients use 1 to 16 services. In weak
scaling, each client has its own service. Strong and weak scaling are measured with local, remote and live services.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scaling import PARTS, WHERE, Run, Setting, Workload, conduct, options, over_others, share
from services import Claim

from glide.report.experiment import Comparison, Experiment, Measurement, number

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
            Comparison(
                f"communication over the longest other part of a request, {counts[0]} client and {counts[0]} {where}"
                " service (the paper: communication is the largest part)",
                None, "×", Measurement(tuple(over_others(alone, "communication")), "×"), better="more", goal=1,
            ),
        )  # fmt: skip
    if len(counts) == 1:
        return
    remote, local = _speed_ups(found, "remote", counts), _speed_ups(found, "local", counts)
    over = (remote / local).min(axis=0)
    yield Claim(
        "several services at the same time reduce the effect of the network's latency",
        f"for {counts[-1]} clients, {', '.join(map(str, counts[1:]))} remote services answer at"
        f" {_medians(remote)} times the rate of {counts[0]}, and local services, which have no latency, at"
        f" {_medians(local)} times; all share the same cores",
        Comparison(
            f"requests/s of remote services over those of local ones, smallest of {counts[1]} to {counts[-1]} services,"
            f" over the same with {counts[0]} (the paper: several services reduce the effect of latency)",
            None, "×", Measurement(tuple(over.tolist()), "×"), better="more", goal=1,
        ),
    )  # fmt: skip


def _speed_ups(found: Mapping[Setting, Sequence[Run]], where: str, counts: Sequence[int]) -> np.ndarray:
    """Return the rates over the rate with the smallest number of services. A row is a number, a column is a run."""
    rates = np.array([[run.rate for run in found["strong", where, counts[-1], count]] for count in counts])
    return rates[1:] / rates[0]


def _medians(speed_ups: np.ndarray) -> str:
    return ", ".join(number(each) for each in np.median(speed_ups, axis=1))


if __name__ == "__main__":
    main()
