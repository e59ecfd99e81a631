"""The resources that a template needs on a node."""

from __future__ import annotations

import math
from dataclasses import dataclass

LARGEST = 1e9  # largest value of each field


@dataclass(frozen=True)
class Needs:
    """The resources that a template needs on a node. With 0, a resource is unknown or not needed.

    Attributes:
        gpus: number of GPUs.
        gpu_memory: memory of each GPU in MB.
        capability: minimum CUDA compute capability of the GPUs, such as 8.0.
        cpus: number of CPU cores.
        memory: main memory in MB.
    """

    gpus: int = 0
    gpu_memory: int = 0
    capability: float = 0.0
    cpus: int = 0
    memory: int = 0

    @classmethod
    def from_fields(cls, fields: object) -> Needs:
        """Make an object from a dict. Check the dict, because any user may have written it.

        Raises:
            ValueError: a field is unknown, or its value is not a number of 0 or more.
        """
        if not isinstance(fields, dict):
            raise ValueError("needs must be a JSON object")
        for name, value in fields.items():
            kind = (int, float) if name == "capability" else int
            if name not in cls.__dataclass_fields__:
                raise ValueError(f"needs: unknown field {name!r:.40}; use {', '.join(cls.__dataclass_fields__)}")
            is_number = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number or not 0 <= value <= LARGEST:
                raise ValueError(f"needs: {name} must be a number from 0 to {LARGEST:.0f}, not {value!r:.40}")
        return cls(**fields)
