"""Glideins and their lanes: held, failed, dead and still advertised, or taking jobs that are not theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from glide.doctor.checks.places import command, places
from glide.doctor.facts import Facts
from glide.doctor.finding import Finding, critical, warning
from glide.factory.health import diagnosed, judge
from glide.report.times import duration
from glide.vocabulary import JobStatus, Machine, State

SILENT_SECONDS = 30.0  # a lane tells of itself every 15


def ghosts(facts: Facts) -> Iterator[Finding]:
    """Lanes that are no more and still match jobs."""
    alive = {glidein.glide_id for glidein in facts.snapshot.glideins if glidein.status == JobStatus.RUNNING}
    known = {entry.name for site in facts.files for entry in site.entries} - set(facts.snapshot.blind)
    silent: dict[str, float] = {}
    now = facts.now + facts.clock  # by the pool's clock, as the ads' times are
    for ad in _lanes(facts):
        age = now - ad.get("LastHeardFrom", now)
        gone = ad.get(Machine.ENTRY) in known and ad.get(Machine.ID) not in alive
        if age > 2 * SILENT_SECONDS or (gone and age > SILENT_SECONDS):
            silent[str(ad[Machine.ID])] = max(age, silent.get(str(ad[Machine.ID]), 0.0))
    for glide_id, age in sorted(silent.items()):
        yield critical(
            f"the lanes of {glide_id} have been silent for {duration(age)} and are still advertised: jobs are given to"
            " them again and again, for ever",
            "glide factory run: it takes the ads of dead glideins away",
        )


def failures(facts: Facts) -> Iterator[Finding]:
    """Glideins that do nothing."""
    for glidein in facts.snapshot.glideins:
        if glidein.status == JobStatus.HELD:
            place = places(facts).get(glidein.entry)
            release, remove = (command(name, glidein.job, place) for name in ("condor_release", "condor_rm"))
            yield warning(
                f"glidein {glidein.glide_id} is held: {glidein.hold_reason}",
                f"end the cause; then {release}, or {remove} for a new one",
            )
    failed = {lane.glide_id: lane for lane in facts.snapshot.lanes if lane.state == State.FAILED}
    for glide_id, lane in sorted(failed.items()):
        yield warning(
            f"{lane.model} could not be loaded on {glide_id}: {lane.failure}",
            f"glide factory logs {lane.entry}, and glide template check with the sweep's file",
        )


def breakers(facts: Facts) -> Iterator[Finding]:
    """Entries, and templates on them, that are not tried just now."""
    snapshot = diagnosed(facts.snapshot)
    for site in facts.files:
        for entry in site.entries:
            alive, ended = snapshot.of(entry.name)
            reasons = []
            for template in sorted({glidein.template for glidein in (*alive, *ended)}):
                verdict = judge(
                    [each for each in alive if each.template == template],
                    [each for each in ended if each.template == template],
                    entry.breaker,
                )
                reasons += [verdict.reason] if verdict.open else []
            if reasons:
                yield critical(f"{entry.name} gets no glideins: {reasons[0]}", f"glide factory logs {entry.name}")


def starts(facts: Facts) -> Iterator[Finding]:
    """The condition on which lanes take jobs."""
    careless = {
        str(ad[Machine.ID]): ad.get(Machine.ENTRY, "?")
        for ad in _lanes(facts)
        if not all(name in ad.get("Start", "") for name in (Machine.TEMPLATE, Machine.STATE))
    }
    for glide_id, entry in sorted(careless.items()):
        yield critical(
            f"START of {glide_id}'s lanes does not test {Machine.TEMPLATE} and {Machine.STATE}: a claim that is used"
            " again gives them jobs for another model",
            f"remove START from the `knobs` of {entry}; glide factory drain {entry} and, when it is empty, --undo",
        )


def without_gpu(facts: Facts) -> Iterator[Finding]:
    """Models that were loaded without the GPU that their glidein has asked for."""
    asking = {entry.name for site in facts.files for entry in site.entries if entry.request.gpus}
    slow = {
        str(ad[Machine.ID]): ad[Machine.ENTRY]
        for ad in _lanes(facts)
        if ad.get(Machine.ENTRY) in asking and ad.get(Machine.BATCHING) and not ad.get(Machine.GPU_NAME)
    }
    for glide_id, entry in sorted(slow.items()):
        yield critical(
            f"{glide_id} asked for a GPU, and its model runs on the CPU",
            f"glide factory logs {entry}; install a torch that has CUDA in the `python` or `environment` of {entry}",
        )


def _lanes(facts: Facts) -> list[Mapping[str, Any]]:
    """The slots' ads: a glidein's startd has one too, with some of the same attributes."""
    return [ad for ad in facts.ads if ad["MyType"] == "Machine" and Machine.ID in ad]
