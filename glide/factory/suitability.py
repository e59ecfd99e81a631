"""Decide whether the glideins of an entry have the resources that a template needs."""

from __future__ import annotations

from collections.abc import Collection

from glide.config import Entry
from glide.factory.snapshot import Lane
from glide.programs import gpus_of
from glide.template import Template
from glide.vocabulary import State

# A serving program needs memory for the weights, and also for the tokens of its requests (KV cache). The weights must
# leave at least this share of the memory free.
SPARE_SHARE = 0.1


def gpus_needed(template: Template) -> int:
    """Return the number of GPUs that a template requests; 0 if this number is unknown.

    It is `needs.gpus`, or else the number in the program's arguments (such as --tensor-parallel-size).
    """
    return template.needs.gpus or gpus_of(template.options if template.engine == "server" else {})


def lack(template: Template, entry: Entry) -> str:
    """Return a message about the first resource that the entry's glideins lack for a template.

    If they lack none, return an empty text. An entry does not state the capability of its GPUs, so this function cannot
    check it. HTCondor checks it: the submitted glidein requires it (`gpu_macros`).
    """
    needs, request = template.needs, entry.request
    pairs = [
        ("GPUs", gpus_needed(template), request.gpus),
        ("MB of memory on each GPU", needs.gpu_memory, request.gpu_memory),
        ("CPU cores", needs.cpus, request.cpus),
        ("MB of main memory", needs.memory, request.memory),
    ]
    if needs.gpu_memory or needs.capability:
        pairs.append(("GPUs", 1, request.gpus))
    for what, needed, has in pairs:
        if has is not None and needed > has:
            return f"{template.model} needs {needed} {what}, but the entry's glideins have {has}"
    memory = request.model_memory
    size = template.megabytes / (1 - SPARE_SHARE) if template.engine == "server" else template.megabytes
    if memory is not None and size > memory:
        return f"{template.model} needs {size:.0f} MB of memory, but the entry's glideins have {memory} MB for a model"
    return ""


def gpu_macros(template: Template | None, entry: Entry) -> dict[str, str]:
    """Return the submit commands with which HTCondor chooses GPUs for a glidein (RequireGPUs in its ad)."""
    capability = template.needs.capability if template else 0.0
    memory = max(entry.request.gpu_memory or 0, template.needs.gpu_memory if template else 0)
    macros = {"gpus_minimum_memory": str(memory)} if entry.request.gpus and memory else {}
    return {**macros, "gpus_minimum_capability": f"{capability:g}"} if entry.request.gpus and capability else macros


def is_idle(lanes: Collection[Lane], now: float, template: Template | None = None) -> bool:
    """Return whether a glidein is idle, and its GPUs have the capability that a template needs.

    An idle glidein has at least one lane. Each of its lanes is warm or blank, has no job and has not retired.

    Args:
        lanes: the lanes of the glidein.
        now: Unix time.
        template: the template; None if no template is to be loaded.
    """
    capability = template.needs.capability if template else 0.0
    return bool(lanes) and all(
        lane.state in (State.WARM, State.BLANK)
        and not lane.claimed
        and lane.retires > now
        and lane.gpu_capability >= capability
        for lane in lanes
    )
