"""The checks: pure functions from what was seen to what hurts, in the order in which they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from glide.doctor.checks import access, glideins, jobs, knobs, machines, programs, sites
from glide.doctor.facts import Facts
from glide.doctor.finding import Finding, Verdict
from glide.errors import mistake


@dataclass(frozen=True)
class Check:
    """One check: what it looks at, in words; the facts without which it cannot; what it saw, where that is of use."""

    name: str
    looked: str
    needs: tuple[str, ...]
    find: Callable[[Facts], Iterator[Finding]]
    saw: Callable[[Facts], str] | None = None

    def __call__(self, facts: Facts) -> Verdict:
        missing = [facts.unseen[need] for need in self.needs if need in facts.unseen]
        if missing:
            return Verdict(self.name, self.looked, unseen=missing[0])
        try:
            looked = f"{self.looked}: {self.saw(facts)}" if self.saw else self.looked
            return Verdict(self.name, looked, tuple(self.find(facts)))
        except Exception as error:  # of one check, by what a stranger may have advertised, is no end of the others
            return Verdict(self.name, self.looked, unseen=mistake(error))


CHECKS = (
    Check("daemons", "whether access point and negotiator answer", (), machines.daemons),
    Check(
        "versions",
        "HTCondor's bindings and daemons, each new enough",
        ("programs", "ads"),
        programs.versions,
        programs.told,
    ),
    Check("series", "bindings and daemons of one series", ("programs", "ads"), programs.series),
    Check("secrets", "owners and modes of GLIDE_HOME and tokens", ("folders",), access.secrets),
    Check("tokens", "how long this account's and the glideins' are good for", ("tokens",), access.expiry),
    Check("rights", "what access point and collector let us and glideins do", ("rights",), access.rights),
    Check("matching", "the negotiator's intervals", ("negotiator",), knobs.matching, knobs.source),
    Check("queue", "the schedd's intervals and limits", ("schedd",), knobs.queue),
    Check("protection", "what nodes may change in their jobs", ("schedd",), knobs.protection),
    Check("losses", "the access point's event log", ("event_log",), knobs.losses),
    Check("glidein knobs", "HTCondor's settings in site files", (), knobs.glideins),
    Check("jobs", "how invocation jobs are written", ("jobs", "schedd"), jobs.habits),
    Check("held jobs", "invocation jobs that are held", ("jobs",), jobs.held),
    Check("ghosts", "lanes that are dead and advertised", ("ads", "snapshot"), glideins.ghosts),
    Check("glideins", "glideins that are held or failed", ("snapshot",), glideins.failures),
    Check("breakers", "entries that are not tried", ("snapshot",), glideins.breakers),
    Check("start", "on which condition lanes take jobs", ("ads",), glideins.starts),
    Check("GPUs", "models that were to be on one", ("ads",), glideins.without_gpu),
    Check("nodes", "machines large enough for each entry", ("nodes",), machines.nodes),
    Check("disks", "room on this machine", ("disks",), machines.disks, machines.room),
    Check("clocks", "this machine's, the access point's, and those of all daemons", ("ads",), machines.clocks),
    Check("site files", "keys, values, and the files that they name", (), sites.files),
    Check("factories", "whether they live, and see", ("snapshot",), sites.factories),
    Check("trial", "one record through the real path", ("trial",), sites.trial, sites.way),
)


def judge(facts: Facts) -> list[Verdict]:
    """All checks."""
    return [check(facts) for check in CHECKS]
