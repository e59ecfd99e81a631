"""How long does a service with a real model take to answer, and how much of this time is inference?

This is experiment 3 of the paper on RADICAL-Pilot's services (Figure 6). It does the same as rt.py, but with a small
language model that verifies claims. A service serves one request at a time. The endpoints of remote services have the
same model and engine as local services.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from endpoint import GENERATE
from endpoint import OPTIONS as ONE_AT_A_TIME
from scaling import WHERE, Run, Setting, Workload, conduct, options, over_others, share
from services import MODEL, Claim, claims

from glide.report.experiment import Comparison, Experiment, Measurement, number

OUTWEIGHS = 2
OWN = {"dtype": "float32", "device": "cpu"}
BODY = {"max_tokens": GENERATE["max_new_tokens"], "temperature": 0}
WORK = Workload(claims, "transformers", MODEL, ONE_AT_A_TIME, OWN, GENERATE, BODY)


def main() -> None:
    asked = options(__doc__.splitlines()[0], "it", minutes=9, requests=64)
    note = (
        f"Each client makes {asked.requests} requests, to a model of 0.8 M parameters, which generates"
        f" {GENERATE['max_new_tokens']} tokens at most; in the paper 1,024, to a model of 8 B parameters."
    )
    experiment = Experiment(
        "it", "Inference time of services", "How much of a request's time is inference?", notes=[note]
    )
    conduct(experiment, WORK, asked, compare)


def compare(found: Mapping[Setting, Sequence[Run]], counts: Sequence[int]) -> Iterator[Claim]:
    """Yield the paper's statements about its Figure 6, each with the result that was measured here."""
    for where in WHERE:
        runs = [found["weak", where, count, count] for count in counts]
        weak = [share(run, "inference") for run in runs]
        least = [min(over) for over in zip(*(over_others(run, "inference") for run in runs), strict=True)]
        yield Claim(
            f"inference takes the longest (weak scaling; we require at least {OUTWEIGHS} times each other part)",
            f"it takes {', '.join(number(100 * each, '%') for each in weak)} of the response time with "
            f"{', '.join(map(str, counts))} clients and {where} services",
            Comparison(
                f"inference over the longest other part of a request, smallest of {counts[0]} to {counts[-1]} clients"
                f" with a {where} service each (the paper: inference takes the longest)",
                None, "×", Measurement(tuple(least), "×"), better="more", goal=OUTWEIGHS,
            ),
        )  # fmt: skip
        strong = found["strong", where, counts[-1], counts[0]]
        queueing = Measurement(tuple(100 * run.service / run.mean for run in strong), "%")
        yield Claim(
            "requests wait in services, as the model is too slow (strong scaling)",
            f"with {counts[-1]} clients and {counts[0]} {where} service, {number(queueing.median, '%')} of the response"
            " time is service",
            Comparison(
                f"service's share of the response time, {counts[-1]} clients and {counts[0]} {where} service (the"
                " paper: requests wait in services)",
                None, "%", queueing, better="more", goal=50,
            ),
        )  # fmt: skip
    alone = {where: found["weak", where, counts[0], counts[0]] for where in WHERE}
    for where in WHERE[1:]:
        pairs = list(zip(alone[where], alone["local"], strict=True))
        more = [run.mean - local.mean for run, local in pairs]
        shares = [100 * added / local.inference for added, (_, local) in zip(more, pairs, strict=True)]
        over = Measurement(tuple(shares), "%")
        yield Claim(
            "with long inference, it hardly matters where the service is",
            f"for {counts[0]} client, a request takes {number(1e3 * median(more), 'ms')} longer with a {where} service"
            f" than with a local one, which is {number(over.median, '%')} of the local inference",
            Comparison(
                f"additional time of a request to a {where} service, over the inference of a local one, {counts[0]}"
                " client (the paper: it hardly matters where the service is)",
                None, "%", over, better="less", goal=10,
            ),
        )  # fmt: skip


if __name__ == "__main__":
    main()
