"""How long does a service with a real model take to answer, and how much of that is inference?

Experiment 3 of RADICAL-Pilot's services (Figure 6): as rt.py, with a small language model that verifies claims, in
services that serve one request at a time; endpoints of remote services have the same model and engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from endpoint import GENERATE
from endpoint import OPTIONS as ONE_AT_A_TIME
from scaling import PARTS, Run, Setting, Workload, conduct, options, share
from services import MODEL, Claim, claims

from glide.report.experiment import Experiment, number

OUTWEIGHS = 2
OWN = {"dtype": "float32", "device": "cpu"}
WORK = Workload(claims, "transformers", MODEL, ONE_AT_A_TIME, OWN, GENERATE)


def main() -> None:
    asked = options(__doc__.splitlines()[0], "it", minutes=6, requests=64)
    note = f"Each client makes {asked.requests} requests, theirs made 1,024 to a model of 8 B parameters."
    experiment = Experiment(
        "it", "Inference time of services", "How much of a request's time is inference?", notes=[note]
    )
    conduct(experiment, WORK, asked, compare)


def compare(found: Mapping[Setting, Sequence[Run]], counts: Sequence[int]) -> Iterator[Claim]:
    """What the paper says of its Figure 6."""
    for where in ("local", "remote"):
        runs = [found["weak", where, count, count] for count in counts]
        weak = [share(run, "inference") for run in runs]
        next_most = [max(share(run, part) for part in PARTS if part != "inference") for run in runs]
        yield Claim(
            f"inference outweighs each other part (weak scaling; here: is at least {OUTWEIGHS} times as long)",
            f"it is {', '.join(number(100 * each, '%') for each in weak)} of the response time with "
            f"{', '.join(map(str, counts))} clients and {where} services",
            all(inference >= OUTWEIGHS * other for inference, other in zip(weak, next_most, strict=True)),
        )
        strong = found["strong", where, counts[-1], counts[0]]
        queueing = share(strong, "service")
        yield Claim(
            "services queue what clients ask, as the model is too slow (strong scaling)",
            f"{counts[-1]} clients of {counts[0]} {where} service spend {number(100 * queueing, '%')} of it so",
            queueing > 0.5,
        )
    local, remote = (
        median(run.mean for run in found["weak", where, counts[0], counts[0]]) for where in ("local", "remote")
    )
    yield Claim(
        "where the model is does hardly matter when inference takes its time",
        f"{counts[0]} client's response time is {number(remote / local, '×')} as long with a remote service",
        remote / local <= 1.1,
    )


if __name__ == "__main__":
    main()
