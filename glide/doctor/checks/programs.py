"""Check versions: find bindings and daemons that are too old, have known bugs, or do not fit together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from glide.condor.install import OLDEST
from glide.doctor.facts import Facts
from glide.doctor.finding import Finding, critical, warning

BINDINGS = (25, 8, 2)  # with older bindings, spooled jobs stay in the queue after retrieve()
# For each known bug: the kind of daemon (MyType), the first and the last version with the bug, and the bug's effect.
KNOWN = (
    ("Scheduler", (24, 5, 1), (24, 7, 99), "it loses claims that it should reuse, so each job waits for a match"),
    ("Machine", (24, 0, 18), (24, 0, 20), "attributes that lanes advertise by startd cron get lost"),
)

Version = tuple[int, ...]


def versions(facts: Facts) -> Iterator[Finding]:
    """Find bindings and daemons that are too old or have a known bug."""
    if facts.programs.classad:
        yield warning(
            f"the PyPI project `classad` {facts.programs.classad} is installed, which is unrelated to HTCondor",
            "pip uninstall classad",
        )
    if number(facts.programs.bindings) < BINDINGS:
        yield critical(
            f"the bindings are {text(number(facts.programs.bindings))}: with versions before {text(BINDINGS)}, jobs"
            " stay in the queue after their results were fetched",
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


def found_versions(facts: Facts) -> str:
    """Return the versions of the bindings and of the daemons, as text."""
    counts = Counter(text(number(str(ad["CondorVersion"]))) for ad in facts.ads if "CondorVersion" in ad)
    daemons = ", ".join(f"{count} × {version}" for version, count in sorted(counts.items()))
    return f"bindings {text(number(facts.programs.bindings))}; daemons {daemons}"


def series(facts: Facts) -> Iterator[Finding]:
    """Find daemons whose release series does not fit the bindings.

    A release series is the first part of a version, such as 25. The bindings must have the daemon's series or the next
    newer series. For example, bindings of series 25 fit daemons of series 24 and 25.
    """
    mine = number(facts.programs.bindings)
    for kind, name in (("Scheduler", "access point"), ("Negotiator", "central manager")):
        for version in sorted({number(str(ad.get("CondorVersion", ""))) for ad in facts.ads if ad["MyType"] == kind}):
            both = f"the bindings are {text(mine)}, and the {name} is {text(version)}"
            if version[0] > mine[0]:
                yield warning(f"{both}: a newer series than the bindings support", "pip install --upgrade htcondor")
            elif OLDEST <= version[0] < mine[0] - 1:
                yield warning(f"{both}: several series older", f"upgrade the {name} to {mine[0] - 1}.0 or newer")


def number(version: str) -> Version:
    """Return the version numbers in a text such as `$CondorVersion: 25.14.1 … $`; zeros if the text has none."""
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else (0, 0, 0)


def text(version: Version) -> str:
    return ".".join(map(str, version))
