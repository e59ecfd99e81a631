"""The device that a model is loaded on, and whether it works."""

from __future__ import annotations

import os
import signal
from typing import Any

NO_GPU = "10000"  # what HTCondor calls none, so that jobs without a GPU do not take one
PROBE = 64  # rows and columns of the product that a device has to get right


class BrokenDevice(Exception):
    """A GPU that is not there, or computes what is wrong."""


def choose(wanted: str) -> str:
    """`wanted`, or for auto and all CUDA where it is visible: of all GPUs, the first has a model's first layers.

    Raises:
        BrokenDevice: this job was given a GPU and torch sees none. On a CPU the model would be there and be of no use.
    """
    import torch

    if wanted not in ("auto", "all"):
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")  # HTCondor sets it: to the GPUs that it assigns, or to NO_GPU
    if given not in ("", "-1", "none", NO_GPU):
        raise BrokenDevice(
            f"GPU {given} is assigned, and torch sees none: see the node's driver, and its torch's build"
        )
    return "cpu"


def probe(device: str) -> None:
    """Have the device compute something that is known; BrokenDevice, or torch's own error, where it does not."""
    import torch

    ones = torch.ones(PROBE, PROBE, device=device)
    if (ones @ ones).sum().item() != PROBE**3:
        raise BrokenDevice(f"{device} computes what is wrong: a product of ones is not {PROBE**3}")


def end_if_broken(device: str, error: Exception) -> None:
    """End this process where a failed call has left the GPU unusable: every later call would fail, for no fault of
    its own. The server starts another and calls with fewer records, until it has the one that did it."""
    if not device.startswith("cuda"):
        return
    try:
        probe(device)
    except Exception as broken:
        print(f"transformers engine: {device} is unusable after {error!r:.500}: {broken!r:.500}", flush=True)
        os.kill(os.getpid(), signal.SIGABRT)


def facts(device: str) -> dict[str, Any]:
    """The GPU's name, and the MB that are taken of its memory, and of that of others where a model is on several."""
    import torch

    if not device.startswith("cuda"):
        return {}
    taken = sum(torch.cuda.memory_reserved(number) for number in range(torch.cuda.device_count()))
    return {"gpu": str(torch.cuda.get_device_name(device)), "megabytes": taken / 1e6}
