"""Check site files, their factories, and the outcome of the test record."""

from __future__ import annotations

from collections.abc import Iterator

from glide.doctor.checks.places import key, places
from glide.doctor.facts import Facts
from glide.doctor.finding import Finding, Level, critical, warning
from glide.report.times import duration

READY_SECONDS = 300.0  # a model of `glide serve` should be ready within this number of seconds


def files(facts: Facts) -> Iterator[Finding]:
    """Find mistakes in site files, missing files that site files mention, and entries with equal names."""
    for site in facts.sites:
        for problem in site.problems:
            yield critical(problem, f"correct {site.file}; a running factory keeps what it read before")
        for missing in site.missing:
            yield critical(
                f"{missing} does not exist, so nothing can be submitted", f"create it, or correct {site.file}"
            )
    names = [entry.name for site in facts.files for entry in site.entries]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield warning(f"{names.count(name)} site files have an entry {name}: one factory cannot run both", "rename one")


def factories(facts: Facts) -> Iterator[Finding]:
    """Find problems of factories:

    - A factory is not running.
    - A factory has not completed a cycle for a long time.
    - A queue or the collector could not be read.
    - HTCondor has refused an action of a factory.
    """
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
                f"the factory of {name} has not completed a cycle for {duration(site.cycle_age)}; one is due every"
                f" {interval:g} s",
                "see its log for the cause; then stop it and run `glide factory run` again: its glideins stay",
            )
        else:
            for trouble in site.troubles:
                yield warning(f"the factory of {name} did not act: {trouble}", "see `glide factory status`")
    for entry, reason in facts.snapshot.unavailable_entries.items():
        name = key(places(facts).get(entry))
        fix = f"correct the `{name}` of {entry}, or make its access point answer"
        yield critical(f"the queue of {entry}'s glideins cannot be read: {reason}", fix)


def served(facts: Facts) -> Iterator[Finding]:
    """Find models of `glide serve` that have not been ready for a long time."""
    for model in facts.serve:
        waits = facts.now - model.not_ready_since
        if model.not_ready_since and waits > READY_SECONDS:
            yield warning(
                f"glide serve: {model.model} has not been ready for {duration(waits)}: {model.state}",
                "see why its job waits: glide status",
            )


def trial(facts: Facts) -> Iterator[Finding]:
    """Report a test record whose result did not come back."""
    if facts.trial and facts.trial.stuck:
        yield Finding(
            Level.WARNING if facts.trial.in_progress else Level.CRITICAL,
            f"a test record did not come back in {facts.trial.seconds:.0f} s: {facts.trial.stuck}",
            "see `glide status`, and `glide factory logs ENTRY` for the output of its glideins",
        )


def trial_outcome(facts: Facts) -> str:
    """Return a text that describes the outcome of the test record."""
    if facts.trial is None:
        return "not sent"
    return (
        f"not back after {facts.trial.seconds:.0f} s" if facts.trial.stuck else f"back in {facts.trial.seconds:.1f} s"
    )
