"""How long does a service with a real model take to answer, and how much of that is inference?

Experiment 3 of RADICAL-Pilot's services (Figure 6): as rt.py, with a small language model that verifies claims, in
services that serve one request at a time; endpoints of remote services have the same model and engine.
"""

from __future__ import annotations

from endpoint import GENERATE
from endpoint import OPTIONS as ONE_AT_A_TIME
from scaling import Workload, account, figure, latencies, measure, options, share
from services import MODEL, claims

from glide.report.experiment import Experiment, number

OWN = {"dtype": "float32", "device": "cpu"}
WORK = Workload(claims, "transformers", MODEL, ONE_AT_A_TIME, OWN, GENERATE)


def main() -> None:
    asked = options(__doc__.splitlines()[0], "it", 64)
    experiment = Experiment("it", "Inference time of services", "How much of a request's time is inference?")
    runs = list(measure(WORK, asked.counts, asked.requests, asked.repeat))
    found = account(experiment, runs)
    experiment.compared += latencies(runs)
    experiment.notes.append(f"Each client makes {asked.requests} requests, theirs made 1,024.")
    for where in ("local", "remote"):
        weak = [
            number(100 * share(same, "inference"), "%") for key, same in found.items() if key[:2] == ("weak", where)
        ]
        strong = found["strong", where, asked.counts[-1], asked.counts[0]]
        experiment.notes.append(
            f"Theirs: inference outweighs all else (weak scaling), and services queue what clients ask (strong). Here, "
            f"{where}: inference is {', '.join(weak)} of the response time with {', '.join(map(str, asked.counts))} "
            f"clients and services; with {asked.counts[-1]} clients of {asked.counts[0]} service, queueing is "
            f"{number(100 * share(strong, 'service'), '%')}."
        )
    experiment.leave(asked.out, figure(found))


if __name__ == "__main__":
    main()
