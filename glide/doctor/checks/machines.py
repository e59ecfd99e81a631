"""Check machines: find daemons that do not answer, full disks, wrong clocks, and nodes that are too small."""

from __future__ import annotations

from collections.abc import Iterator

from glide.config import Entry
from glide.doctor.checks.places import key
from glide.doctor.facts import Facts, SlotOffer
from glide.doctor.finding import Finding, Level, critical, warning

GIGABYTE = 1e9
# Limits for the free bytes of a disk. Less than LITTLE is a warning, and less than NOTHING is critical.
LITTLE, NOTHING = 1e9, 1e8
# Limits for differences of clocks, in seconds. More than SKEW is a warning, more than BROKEN is critical. They cannot
# be much smaller, because times in ads are whole seconds.
SKEW, BROKEN = 5.0, 60.0
LATE = 15.0  # maximum delay of ads from a busy machine, in seconds; such a delay looks like a clock that is behind


def daemons(facts: Facts) -> Iterator[Finding]:
    """Find a schedd or negotiator that does not answer.

    If neither answers, only the schedd is reported, because a healthy negotiator can be waiting for the schedd.
    """
    daemons = (("schedd", "the access point"), ("negotiator", "the central manager"))
    for daemon, where in [each for each in daemons if each[0] in facts.unavailable][:1]:
        yield critical(
            f"the {daemon} does not answer: {facts.unavailable[daemon]}",
            f"condor_restart -{daemon} on {where}; its log is in the folder that condor_config_val LOG names",
        )


def disks(facts: Facts) -> Iterator[Finding]:
    """Find disks of this machine that are almost full."""
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


def free_space(facts: Facts) -> str:
    """Return the free space of each disk, as text."""
    return "; ".join(f"{disk.free / GIGABYTE:.1f} GB under {disk.what}" for disk in facts.disks)


def clocks(facts: Facts) -> Iterator[Finding]:
    """Find clocks that differ.

    With a wrong clock, valid tokens look expired, and comparisons of times from different machines are wrong.
    """
    if abs(facts.clock) > SKEW:
        yield _skewed("the access point's clock", facts.clock, "this machine's")
    for ad in facts.ads:
        if "MyCurrentTime" not in ad or "LastHeardFrom" not in ad or ad["MyType"] == "Collector":
            continue
        ahead = ad["MyCurrentTime"] - ad["LastHeardFrom"]
        if ahead > SKEW or -ahead > SKEW + LATE:
            yield _skewed(f"the clock of {ad['Name']} ({ad['MyType']})", ahead, "the collector's")


def nodes(facts: Facts) -> Iterator[Finding]:
    """Find entries whose glideins are too large for every machine of their pool."""
    for site in facts.files:
        for entry in site.entries:
            found = facts.nodes.get(entry.name)
            if found is None or entry.max_glideins == 0 or any(_suits(node, entry) for node in found):
                continue
            if not found:
                fix = f"condor_on -startd on its machines, or correct the `{key(entry.outer_pool)}` of {entry.name}"
                yield critical(f"the pool of {entry.name} has no machine", fix)
                continue
            what, better = _lacking(found, entry)
            yield critical(
                f"{entry.name} asks for {what}, and no machine of its pool advertises that: its glideins wait forever",
                f"set {better} in the `request` of {entry.name}, or add machines that have it (use feature:GPUs)"
                if entry.request.gpus
                else f"set {better} in the `request` of {entry.name}",
            )


def _skewed(whose: str, ahead: float, reference: str) -> Finding:
    finding = critical if abs(ahead) > BROKEN else warning
    way = "ahead of" if ahead > 0 else "behind"
    return finding(
        f"{whose} is {abs(ahead):.0f} s {way} {reference}: tokens are refused, and live daemons are taken for dead",
        "run chronyc makestep there, and keep a time service running (systemctl enable --now chrony)",
    )


def _suits(node: SlotOffer, entry: Entry) -> bool:
    request = entry.request
    enough = node.cpus >= request.cpus and node.memory >= request.memory and node.gpus >= request.gpus
    return enough and not (request.gpu_memory and node.gpu_memory is not None and node.gpu_memory < request.gpu_memory)


def _lacking(found: tuple[SlotOffer, ...], entry: Entry) -> tuple[str, str]:
    """Return two texts for the message about an entry whose `request` is too large for every node.

    The first text names requested resources that no node has. The second text suggests smaller values.

    - If the amount of one resource is too large for every node, both texts name only this resource. An example is
      "cpus: 8" for the first text and "cpus: 4" for the second text.
    - Otherwise, the first text names all requested resources, and the second text is "smaller values".
    """
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
    return f"{request.cpus} CPUs, {request.memory} MB and {gpus} on one machine", "smaller values"
