"""Query the NVIDIA driver for the GPUs of this glidein. On a node without this driver, the list of GPUs is empty."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

QUERY_SECONDS = 30.0  # time limit of one query; the driver can take long while it is idle
# After this number of seconds, a program starts even if its GPU still has used memory.
FREE_SECONDS = 60.0
SETTLED_SECONDS = 5.0  # if the used memory has not changed for this time, in seconds, nothing is being freed
POWER_SECONDS = 15.0  # seconds between two measurements of the GPUs' power
IDLE_MEGABYTES = 1000.0  # memory that the driver itself may use on a GPU without programs


@dataclass(frozen=True)
class Gpu:
    """A GPU of this glidein.

    Attributes:
        identifier: its full UUID.
        name: its model.
        used, total: its used memory, and all its memory, in MB.
        capability: its CUDA compute capability; 0 if the driver does not report it.
        watts: the power that it draws now, in W; None if the driver does not report it.
    """

    identifier: str
    name: str
    used: float
    total: float
    capability: float
    watts: float | None = None


def gpus() -> list[Gpu]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names, in its order. Without this variable, return all GPUs."""
    if shutil.which("nvidia-smi") is None:
        return []
    fields = "index,uuid,name,memory.used,memory.total,compute_cap,power.draw"
    try:
        output = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace",
            timeout=QUERY_SECONDS, check=True,
        ).stdout  # fmt: skip
        found = {}
        for line in output.splitlines():
            index, identifier, name, used, total, *rest = (part.strip() for part in line.split(","))
            # If the driver does not know a number, its text is not a number, for example [N/A].
            capability, watts = (float(text) if re.fullmatch(r"\d+\.\d+", text) else None for text in rest)
            found[index] = Gpu(identifier, name, float(used), float(total), capability or 0.0, watts)
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return list(found.values())
    return [gpu for name in visible.split(",") if (gpu := _named(name.strip(), found))]


def _named(name: str, found: dict[str, Gpu]) -> Gpu | None:
    """Return the GPU with an index, a UUID, or the beginning of a UUID, which HTCondor uses."""
    if name in found:
        return found[name]
    return next((gpu for gpu in found.values() if name and gpu.identifier.startswith(name)), None)


def wait_until_free(seconds: float = FREE_SECONDS, query: Callable[[], list[Gpu]] = gpus) -> list[Gpu]:
    """Wait until the GPUs' memory is free, because the driver needs some time to free it after a program has ended.

    Args:
        seconds: maximum number of seconds to wait.

    Returns:
        The GPUs. Other programs of this glidein may use their memory. So the function also returns when the used memory
        has not changed for SETTLED_SECONDS.
    """
    until = time.monotonic() + seconds
    used, since = -1.0, time.monotonic()
    while True:
        found = query()
        now = time.monotonic()
        if (total := sum(gpu.used for gpu in found)) != used:
            used, since = total, now
        if all(gpu.used <= IDLE_MEGABYTES for gpu in found) or now > until or now - since > SETTLED_SECONDS:
            return found
        time.sleep(0.5)


async def measure_energy(report: Callable[[float], None]) -> None:
    """Every POWER_SECONDS, report the energy that the GPUs have used since this call, in J. This call never ends.

    If the driver does not report the power of a GPU, its energy does not count.
    """
    joules, before = 0.0, time.monotonic()
    while True:
        await asyncio.sleep(POWER_SECONDS)
        watts = [gpu.watts for gpu in await asyncio.to_thread(gpus)]
        seconds, before = time.monotonic() - before, time.monotonic()
        if known := [each for each in watts if each is not None]:
            joules += sum(known) * seconds
            report(joules)


def gpu_megabytes() -> float:
    """Return the used memory of this glidein's GPUs in MB; 0 without GPUs."""
    return sum(gpu.used for gpu in gpus())
