"""How long does a service take to answer when there is nothing to infer, and where does that time go?

Experiment 2 of RADICAL-Pilot's services (Figures 4 and 5): 1,024 requests of each client, one after the other, to a
noop engine that returns at once; 16 clients on 1 to 16 services (strong scaling) and as many clients as services
(weak scaling), local and remote ones.
"""

from __future__ import annotations

from scaling import PARTS, Workload, account, figure, latencies, measure, options, share

from glide.report.experiment import Experiment, number

WORK = Workload(lambda count: [f"request {each}" for each in range(count)])


def main() -> None:
    asked = options(__doc__.splitlines()[0], "rt", 1024)
    experiment = Experiment("rt", "Response time of services", "Where does a request's time go without inference?")
    runs = list(measure(WORK, asked.counts, asked.requests, asked.repeat))
    found = account(experiment, runs)
    experiment.compared += latencies(runs)
    for (scaling, where, clients, count), same in found.items():
        if clients == count == 1:
            told = ", ".join(f"{part} {number(100 * share(same, part), '%')}" for part in PARTS)
            experiment.notes.append(f"One client, one {where} service ({scaling}): {told} of the response time.")
    one, most = (found["strong", "remote", asked.counts[-1], count] for count in (asked.counts[0], asked.counts[-1]))
    experiment.notes.append(
        "Theirs: latency outweighs all else, and more services at once hide it. Here, with remote services: "
        f"{number(most[0].rate / one[0].rate, '×')} the requests/s with {asked.counts[-1]} services instead of 1, and "
        f"of the response time {number(100 * share(most, 'communication'), '%')} is communication."
    )
    experiment.leave(asked.out, figure(found))


if __name__ == "__main__":
    main()
