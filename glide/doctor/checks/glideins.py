"""Check glideins and their lanes: find held and failed glideins, ads of dead lanes, and lanes with wrong settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from glide.doctor.checks.places import command, places
from glide.doctor.facts import Facts
from glide.doctor.finding import Finding, critical, warning
from glide.factory.health import breaker_state, mark_failing_glideins
from glide.report.times import duration
from glide.vocabulary import JobStatus, Machine, State

SILENT_SECONDS = 30.0  # a lane whose ad is older than this (in seconds) may be dead: lanes send ads every 15 s


def ghosts(facts: Facts) -> Iterator[Finding]:
    """Find dead glideins whose lanes are still advertised. HTCondor still sends jobs to these lanes."""
    alive = {glidein.glide_id for glidein in facts.snapshot.glideins if glidein.status == JobStatus.RUNNING}
    known = {entry.name for site in facts.files for entry in site.entries} - set(facts.snapshot.unavailable_entries)
    silent: dict[str, float] = {}
    now = facts.now + facts.clock  # Unix time by the access point's clock; this machine's clock can be wrong
    for ad in _lanes(facts):
        age = now - ad.get("LastHeardFrom", now)
        gone = ad.get(Machine.ENTRY) in known and ad.get(Machine.ID) not in alive
        if age > 2 * SILENT_SECONDS or (gone and age > SILENT_SECONDS):
            silent[str(ad[Machine.ID])] = max(age, silent.get(str(ad[Machine.ID]), 0.0))
    for glide_id, age in sorted(silent.items()):
        yield critical(
            f"the lanes of {glide_id} have been silent for {duration(age)} and are still advertised: HTCondor sends"
            " them jobs again and again",
            "run `glide factory run`: the factory removes the ads of dead glideins",
        )


def failures(facts: Facts) -> Iterator[Finding]:
    """Find glideins that are held, and glideins that could not load their template."""
    for glidein in facts.snapshot.glideins:
        if glidein.status == JobStatus.HELD:
            place = places(facts).get(glidein.entry)
            release, remove = (command(name, glidein.job, place) for name in ("condor_release", "condor_rm"))
            yield warning(
                f"glidein {glidein.glide_id} is held: {glidein.hold_reason}",
                f"remove the cause; then {release}, or {remove} to get a new one",
            )
    failed = {lane.glide_id: lane for lane in facts.snapshot.lanes if lane.state == State.FAILED}
    for glide_id, lane in sorted(failed.items()):
        yield warning(
            f"{lane.model} could not be loaded on {glide_id}: {lane.failure}",
            f"see `glide factory logs {lane.entry}`, and run `glide template check` on the sweep's file",
        )


def breakers(facts: Facts) -> Iterator[Finding]:
    """Find entries that get no glideins for a template, because a circuit breaker is open."""
    snapshot = mark_failing_glideins(facts.snapshot)
    for site in facts.files:
        for entry in site.entries:
            alive, ended = snapshot.glideins_of(entry.name)
            reasons = []
            for template in sorted({glidein.template for glidein in (*alive, *ended)}):
                breaker = breaker_state(
                    [each for each in alive if each.template == template],
                    [each for each in ended if each.template == template],
                    entry.breaker,
                )
                reasons += [breaker.reason] if breaker.open else []
            if reasons:
                yield critical(f"{entry.name} gets no glideins: {reasons[0]}", f"see `glide factory logs {entry.name}`")


def starts(facts: Facts) -> Iterator[Finding]:
    """Find lanes with a wrong START expression. Such a lane accepts jobs for models that the lane does not offer."""
    unsafe = {
        str(ad[Machine.ID]): ad.get(Machine.ENTRY, "?")
        for ad in _lanes(facts)
        if not all(name in ad.get("Start", "") for name in (Machine.TEMPLATE, Machine.STATE))
    }
    for glide_id, entry in sorted(unsafe.items()):
        yield critical(
            f"START of {glide_id}'s lanes does not test {Machine.TEMPLATE} and {Machine.STATE}: a reused claim brings"
            " them jobs for another model",
            f"remove START from the `knobs` of {entry}; glide factory drain {entry} and, when it is empty, --undo",
        )


def without_gpu(facts: Facts) -> Iterator[Finding]:
    """Find models that were loaded without the GPU that their glidein requested."""
    asking = {entry.name for site in facts.files for entry in site.entries if entry.request.gpus}
    slow = {
        str(ad[Machine.ID]): ad[Machine.ENTRY]
        for ad in _lanes(facts)
        if ad.get(Machine.ENTRY) in asking and ad.get(Machine.BATCHING) and not ad.get(Machine.GPU_NAME)
    }
    for glide_id, entry in sorted(slow.items()):
        yield critical(
            f"{glide_id} asked for a GPU, and its model runs on the CPU",
            f"see `glide factory logs {entry}`; install a torch with CUDA in the `python` or `environment` of {entry}",
        )


def _lanes(facts: Facts) -> list[Mapping[str, Any]]:
    """Return the ads of lanes.

    A glidein's startd sends an ad for each lane. The startd also sends an ad of its own, which has a GlideId, too.
    Leave out the startd's own ad.
    """
    return [ad for ad in facts.ads if ad["MyType"] == "Machine" and Machine.ID in ad]
