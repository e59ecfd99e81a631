"""Site files, their factories, and whether a record gets through."""

from __future__ import annotations

from collections.abc import Iterator

from glide.doctor.checks.places import key, places
from glide.doctor.facts import Facts
from glide.doctor.finding import Finding, Level, critical, warning
from glide.report.times import duration


def files(facts: Facts) -> Iterator[Finding]:
    """What admins have written."""
    for site in facts.sites:
        for problem in site.problems:
            yield critical(problem, f"correct {site.file}; a factory that runs goes on with what it read before")
        for missing in site.missing:
            yield critical(
                f"{missing} is not there, so that nothing can be submitted", f"put it there, or correct {site.file}"
            )
    names = [entry.name for site in facts.files for entry in site.entries]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield warning(f"{names.count(name)} site files have an entry {name}: one factory cannot run both", "rename one")


def factories(facts: Facts) -> Iterator[Finding]:
    """Whether they live, see, and get done what they decide."""
    waiting = sum(demand.idle for demand in facts.snapshot.demands)
    for site in facts.sites:
        if site.view is None:
            continue
        name, interval = site.view.site.site, site.view.site.interval
        if not site.view.running:
            finding = critical if waiting else warning
            jobs = f", and {waiting} jobs wait" if waiting else ""
            yield finding(
                f"no factory runs for {name}: lost nodes are not replaced{jobs}", f"glide factory run -c {site.file}"
            )
        elif site.cycle_age is not None and site.cycle_age > max(30.0, 10 * interval):
            yield critical(
                f"the factory of {name} has not got through a cycle for {duration(site.cycle_age)}; one is due every"
                f" {interval:g} s",
                "its log says why; then end it and glide factory run again: its glideins stay",
            )
        else:
            for trouble in site.troubles:
                yield warning(f"the factory of {name} did not act: {trouble}", "glide factory status")
    for entry, reason in facts.snapshot.blind.items():
        name = key(places(facts).get(entry))
        yield critical(f"{entry}'s queue is not seen: {reason}", f"correct the `{name}` of {entry}, or have it answer")


def trial(facts: Facts) -> Iterator[Finding]:
    """What became of a record that went the whole way."""
    if facts.trial and facts.trial.stuck:
        yield Finding(
            Level.WARNING if facts.trial.coming else Level.CRITICAL,
            f"a test record did not come back in {facts.trial.seconds:.0f} s: {facts.trial.stuck}",
            "glide status, and glide factory logs ENTRY for what its glideins say",
        )


def way(facts: Facts) -> str:
    if facts.trial is None:
        return "left out"
    return (
        f"not back after {facts.trial.seconds:.0f} s" if facts.trial.stuck else f"back in {facts.trial.seconds:.1f} s"
    )
