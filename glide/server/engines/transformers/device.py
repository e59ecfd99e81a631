"""Choose the device on which a model is loaded, and test whether the device works."""

from __future__ import annotations

import os
import signal
from typing import Any

NO_GPU = "10000"  # the value of CUDA_VISIBLE_DEVICES that HTCondor sets for jobs without a GPU
PROBE_SIZE = 64  # number of rows and number of columns of the matrices that a test multiplies


class BrokenDevice(Exception):
    """The job's GPU is not visible, or the device computes wrong results."""


def choose_device(wanted: str) -> str:
    """Return the torch device for a value of the option `device`.

    For `auto` and `all`, return the job's first GPU, or the CPU if the job has no GPU. Return every other value
    unchanged.

    With `all`, the model is later divided among all GPUs of the job. The first GPU is returned even then, because the
    model's first layers are on the first GPU.

    Args:
        wanted: the value of the option.

    Raises:
        BrokenDevice: HTCondor has assigned a GPU to this job, but torch sees no GPU. A CPU is not used instead, because
            it would be too slow.
    """
    import torch

    if wanted not in ("auto", "all"):
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")  # the GPUs that HTCondor has assigned, or NO_GPU
    if given not in ("", "-1", "none", NO_GPU):
        raise BrokenDevice(
            f"GPU {given} is assigned, but torch sees none; check the node's driver and the CUDA version of its torch"
        )
    return "cpu"


def probe(device: str) -> None:
    """Check that the device computes a known result.

    Raises:
        BrokenDevice: the result is wrong.
        Exception: torch cannot use the device, and raises an error of its own.
    """
    import torch

    ones = torch.ones(PROBE_SIZE, PROBE_SIZE, device=device)
    if (ones @ ones).sum().item() != PROBE_SIZE**3:
        raise BrokenDevice(f"{device} computes wrong results: a matrix product does not add up to {PROBE_SIZE**3}")


def end_if_broken(device: str, error: Exception) -> None:
    """If a failed call has left the GPU unusable, end this process, because every later call would fail, too.

    The model server then starts another process. The new process serves the call's records in smaller and smaller
    calls, until the record that made the GPU unusable is alone in a call.
    """
    if not device.startswith("cuda"):
        return
    try:
        probe(device)
    except Exception as broken:
        print(f"transformers engine: {device} is unusable after {error!r:.500}: {broken!r:.500}", flush=True)
        os.kill(os.getpid(), signal.SIGABRT)


def facts(device: str) -> dict[str, Any]:
    """Return the GPU's name and the MB that torch reserves on all GPUs of the job; for a CPU, return an empty dict."""
    import torch

    if not device.startswith("cuda"):
        return {}
    reserved = sum(torch.cuda.memory_reserved(number) for number in range(torch.cuda.device_count()))
    return {"gpu": str(torch.cuda.get_device_name(device)), "megabytes": reserved / 1e6}
