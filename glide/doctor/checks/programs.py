"""Versions: what the bindings and the daemons are, and which of them do not go together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from glide.condor.install import OLDEST
from glide.doctor.facts import Facts
from glide.doctor.finding import Finding, critical, warning

BINDINGS = (25, 8, 2)  # the first whose retrieve() releases spooled jobs
# Versions in between, both included, of a kind of daemon (MyType), and what is wrong with them.
KNOWN = (
    ("Scheduler", (24, 5, 1), (24, 7, 99), "it loses claims that are to be used again, so each job waits for a match"),
    ("Machine", (24, 0, 18), (24, 0, 20), "what lanes advertise by startd cron gets lost"),
)

Version = tuple[int, ...]


def versions(facts: Facts) -> Iterator[Finding]:
    """Each program by itself: new enough, and without a mistake that is known to hurt."""
    if facts.programs.classad:
        yield warning(
            f"the registry's project `classad` {facts.programs.classad} is installed, which is not HTCondor's",
            "pip uninstall classad",
        )
    if number(facts.programs.bindings) < BINDINGS:
        yield critical(
            f"the bindings are {text(number(facts.programs.bindings))}, and jobs whose results were fetched stay in"
            f" the queue before {text(BINDINGS)}",
            f"pip install --upgrade 'htcondor>={text(BINDINGS)}'",
        )
    counted = Counter(
        (str(ad["MyType"]), number(str(ad["CondorVersion"]))) for ad in facts.ads if "CondorVersion" in ad
    )
    for (kind, version), count in sorted(counted.items()):
        who = f"{count} × {kind}" if count > 1 else kind
        if version[0] < OLDEST:
            yield critical(
                f"{who} of the pool runs HTCondor {text(version)}, and glide needs {OLDEST} or newer",
                f"upgrade HTCondor there to {OLDEST}.0 or newer",
            )
        for known, first, last, what in KNOWN:
            if kind == known and first <= version <= last:
                yield warning(f"{who} runs HTCondor {text(version)}: {what}", "upgrade HTCondor there to 25.0 or newer")


def told(facts: Facts) -> str:
    daemons = Counter(text(number(str(ad["CondorVersion"]))) for ad in facts.ads if "CondorVersion" in ad)
    said = ", ".join(f"{count} × {version}" for version, count in sorted(daemons.items()))
    return f"{text(number(facts.programs.bindings))} here; {said}"


def series(facts: Facts) -> Iterator[Finding]:
    """Together: HTCondor's clients may be one series newer than its daemons, and not older."""
    mine = number(facts.programs.bindings)
    for kind, name in (("Scheduler", "access point"), ("Negotiator", "central manager")):
        for version in sorted({number(str(ad.get("CondorVersion", ""))) for ad in facts.ads if ad["MyType"] == kind}):
            told = f"the bindings are {text(mine)}, and the {name} is {text(version)}"
            if version[0] > mine[0]:
                yield warning(f"{told}: a newer series, of which they may not know", "pip install --upgrade htcondor")
            elif OLDEST <= version[0] < mine[0] - 1:
                yield warning(f"{told}: several series older", f"upgrade the {name} to {mine[0] - 1}.0 or newer")


def number(version: str) -> Version:
    """The numbers in `$CondorVersion: 25.14.1 … $`."""
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else (0, 0, 0)


def text(version: Version) -> str:
    return ".".join(map(str, version))
