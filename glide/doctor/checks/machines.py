"""Machines: disks that fill up, clocks that go wrong, nodes that have what entries ask for."""

from __future__ import annotations

from collections.abc import Iterator

from glide.config import Entry
from glide.doctor.checks.places import key
from glide.doctor.facts import Facts, Node
from glide.doctor.finding import Finding, Level, critical, warning

GIGABYTE = 1e9
LITTLE, NOTHING = 1e9, 1e8  # bytes free
SKEW, BROKEN = 5.0, 60.0  # seconds; ads' times are whole seconds, and an ad takes a moment
LATE = 15.0  # seconds that an ad may be on its way where machines are busy: it looks as if its clock were behind


def daemons(facts: Facts) -> Iterator[Finding]:
    """Without these nothing runs. A negotiator waits for an access point that hangs, so it is not to blame then."""
    daemons = (("schedd", "the access point"), ("negotiator", "the central manager"))
    for daemon, where in [each for each in daemons if each[0] in facts.unseen][:1]:
        yield critical(
            f"the {daemon} does not answer: {facts.unseen[daemon]}",
            f"condor_restart -{daemon} on {where}; its log is in the folder that condor_config_val LOG names",
        )


def disks(facts: Facts) -> Iterator[Finding]:
    """Room for what is written here."""
    for disk in facts.disks:
        if disk.free >= LITTLE:
            continue
        level = Level.CRITICAL if disk.free < NOTHING else Level.WARNING
        yield Finding(
            level,
            f"{disk.path} ({disk.what}): {disk.free / GIGABYTE:.2f} of {disk.total / GIGABYTE:.2f} GB are free; when"
            " it is full, jobs are held and results cannot be written",
            f"make room there: du -x -d2 {disk.path}",
        )


def room(facts: Facts) -> str:
    return "; ".join(f"{disk.free / GIGABYTE:.1f} GB under {disk.what}" for disk in facts.disks)


def clocks(facts: Facts) -> Iterator[Finding]:
    """Clocks that agree: tokens are valid between two times, and ages are differences of two clocks."""
    if abs(facts.clock) > SKEW:
        yield _skewed("the access point's clock", facts.clock, "this machine's")
    for ad in facts.ads:
        if "MyCurrentTime" not in ad or "LastHeardFrom" not in ad or ad["MyType"] == "Collector":
            continue
        ahead = ad["MyCurrentTime"] - ad["LastHeardFrom"]
        if ahead > SKEW or -ahead > SKEW + LATE:
            yield _skewed(f"the clock of {ad['Name']} ({ad['MyType']})", ahead, "the collector's")


def nodes(facts: Facts) -> Iterator[Finding]:
    """For each entry, a machine that is large enough."""
    for site in facts.files:
        for entry in site.entries:
            found = facts.nodes.get(entry.name)
            if found is None or entry.max_glideins == 0 or any(_suits(node, entry) for node in found):
                continue
            if not found:
                fix = f"condor_on -startd on its machines, or correct the `{key(entry.away)}` of {entry.name}"
                yield critical(f"the pool of {entry.name} has no machine", fix)
                continue
            what, better = _lacking(found, entry)
            yield critical(
                f"{entry.name} asks for {what}, and no machine of its pool advertises that: its glideins wait for ever",
                f"{better} in the `request` of {entry.name}, or machines that have it (use feature:GPUs)"
                if entry.request.gpus
                else f"{better} in the `request` of {entry.name}",
            )


def _skewed(whose: str, ahead: float, reference: str) -> Finding:
    finding = critical if abs(ahead) > BROKEN else warning
    way = "ahead of" if ahead > 0 else "behind"
    return finding(
        f"{whose} is {abs(ahead):.0f} s {way} {reference}: tokens are refused, and what is alive is taken for dead",
        "chronyc makestep there, and a time service that runs (systemctl enable --now chrony)",
    )


def _suits(node: Node, entry: Entry) -> bool:
    request = entry.request
    enough = node.cpus >= request.cpus and node.memory >= request.memory and node.gpus >= request.gpus
    return enough and not (request.gpu_memory and node.gpu_memory is not None and node.gpu_memory < request.gpu_memory)


def _lacking(found: tuple[Node, ...], entry: Entry) -> tuple[str, str]:
    """What no node has enough of, and what could be asked for; several things where no node has all of them."""
    request = entry.request
    for name, asked, unit in (
        ("cpus", request.cpus, ""),
        ("memory", request.memory, " MB"),
        ("gpus", request.gpus, ""),
    ):
        most = max((getattr(node, name) for node in found), default=0)
        if most < asked:
            return f"{name}: {asked}{unit}", f"{name}: {most:.0f}"
    gpus = f"{request.gpus} GPUs" + (f" of {request.gpu_memory} MB" if request.gpu_memory else "")
    return f"{request.cpus} CPUs, {request.memory} MB and {gpus} in one", "less"
