"""The doctor's checks, in the order of the report. Each check is a pure function from facts to findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from glide.doctor.checks import access, glideins, jobs, knobs, machines, programs, sites
from glide.doctor.facts import Facts
from glide.doctor.finding import Diagnosis, Finding
from glide.errors import describe_bug


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: name of the check in the table and in the JSON document.
        subject: a phrase that describes what the check looks at.
        needs: names of the facts that the check needs. If one of these facts is unavailable, the check is skipped.
        find: the function that yields the findings.
        detail: a function that returns a text to show after the subject; None to show the subject alone.
    """

    name: str
    subject: str
    needs: tuple[str, ...]
    find: Callable[[Facts], Iterator[Finding]]
    detail: Callable[[Facts], str] | None = None

    def __call__(self, facts: Facts) -> Diagnosis:
        missing = [facts.unavailable[need] for need in self.needs if need in facts.unavailable]
        if missing:
            return Diagnosis(self.name, self.subject, unavailable=missing[0])
        try:
            subject = f"{self.subject}: {self.detail(facts)}" if self.detail else self.subject
            return Diagnosis(self.name, subject, tuple(self.find(facts)))
        except Exception as error:  # an unexpected value in an ad must not stop the other checks
            return Diagnosis(self.name, self.subject, unavailable=describe_bug(error))


CHECKS = (
    Check("daemons", "whether the access point and the negotiator answer", (), machines.daemons),
    Check(
        "versions",
        "versions of HTCondor's bindings and daemons",
        ("programs", "ads"),
        programs.versions,
        programs.found_versions,
    ),
    Check("series", "whether bindings and daemons fit together", ("programs", "ads"), programs.series),
    Check("secrets", "owner and mode of GLIDE_HOME and of tokens", ("folders",), access.secrets),
    Check("tokens", "expiry of the tokens of this account and of glideins", ("tokens",), access.expiry),
    Check("rights", "permissions at the access point and the collector", ("rights",), access.rights),
    Check("matching", "the negotiator's intervals", ("negotiator",), knobs.matching, knobs.source),
    Check("queue", "the schedd's intervals and limits", ("schedd",), knobs.queue),
    Check("protection", "which attributes of their jobs nodes can change", ("schedd",), knobs.protection),
    Check("losses", "the access point's event log", ("event_log",), knobs.losses),
    Check("glidein knobs", "HTCondor's settings in site files", (), knobs.glideins),
    Check("jobs", "submit settings of invocation jobs", ("jobs", "schedd"), jobs.habits),
    Check("held jobs", "held invocation jobs", ("jobs",), jobs.held),
    Check("ghosts", "lanes of dead glideins that are still advertised", ("ads", "snapshot"), glideins.ghosts),
    Check("glideins", "held and failed glideins", ("snapshot",), glideins.failures),
    Check("breakers", "open circuit breakers", ("snapshot",), glideins.breakers),
    Check("start", "START expressions of lanes", ("ads",), glideins.starts),
    Check("GPUs", "models that should be on a GPU", ("ads",), glideins.without_gpu),
    Check("nodes", "machines large enough for each entry", ("nodes",), machines.nodes),
    Check("disks", "free disk space of this machine", ("disks",), machines.disks, machines.free_space),
    Check("clocks", "clocks of this machine, the access point and all daemons", ("ads",), machines.clocks),
    Check("site files", "keys, values and the files that they name", (), sites.files),
    Check("factories", "whether factories run and complete their cycles", ("snapshot",), sites.factories),
    Check("serve", "whether the models of glide serve answer", ("serve",), sites.served),
    Check("trial", "a test record, sent like a real one", ("trial",), sites.trial, sites.trial_outcome),
)


def judge(facts: Facts) -> list[Diagnosis]:
    """Run all checks on the facts, and return one diagnosis for each check."""
    return [check(facts) for check in CHECKS]
