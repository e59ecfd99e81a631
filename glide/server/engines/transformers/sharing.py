"""Which rows may share a call: those whose texts are then what they are alone. The loaded model itself is asked.

Most models mask padding out. Some recurrent ones, and some whose positions do not follow the mask, don't; others can't
even serve several rows of one length. And rotary positions may depend on the longest row of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from glide.server.engines.transformers.context import UNLIMITED, Stretch

SHORTEST = 2  # tokens of the shortest row that is tried: where padding is not masked out, that row is changed most
MIDDLE = 13
LONGEST = 70
# By how much outputs may differ from those of a row alone, as a part of their size. Rounding makes 1e-5 in float32
# and 0.05 in bfloat16, padding that counts about 1.
EXACT = 3e-4
CONVOLVED = 1e-2  # float32 on CUDA, where convolutions use TF32
REDUCED = 0.2

Outputs = Callable[[Sequence[list[int]]], Any]  # rows of tokens -> (row, step, output)


class Rows(IntEnum):
    """Which rows a call may have."""

    SINGLE = 0
    EQUAL = 1
    ANY = 2

    @property
    def batching(self) -> str:
        """The word for static batching with these rows, in the machine ad."""
        return {Rows.SINGLE: "single", Rows.EQUAL: "equal lengths", Rows.ANY: "static"}[self]

    @property
    def company(self) -> str:
        """The same, for the log."""
        return {Rows.SINGLE: "one prompt a call", Rows.EQUAL: "prompts of one length", Rows.ANY: "any prompts"}[self]


@dataclass(frozen=True)
class Sharing:
    """Which rows may share a call.

    Attributes:
        rows: of one length or of several, as long as positions do not depend on the longest row.
        stretch: from which length on they do.
    """

    rows: Rows = Rows.ANY
    stretch: Stretch | None = None

    def limited(self, rows: Rows) -> Sharing:
        """The same, with no more than these rows."""
        return replace(self, rows=min(self.rows, rows))

    def allows(self, longer: int, shorter: int, new: int) -> bool:
        """Whether prompts of these lengths, to each of which `new` tokens are added, may share a call."""
        if self.rows == Rows.SINGLE:
            return False
        if longer == shorter:
            return True
        if self.rows == Rows.EQUAL:
            return False
        return self.stretch is None or longer + new <= self.stretch.tokens or self._all_switched(shorter)

    def _all_switched(self, shortest: int) -> bool:
        return self.stretch is not None and self.stretch.switches and shortest > self.stretch.tokens

    @property
    def anywhere(self) -> int:
        """Tokens up to which a prompt with its text may be beside any other."""
        return UNLIMITED if self.stretch is None else self.stretch.tokens


def try_rows(outputs: Outputs, prompts: Sequence[list[int]], tolerance: float) -> tuple[Rows, str]:
    """Try rows together and alone; return which may share a call, and why not any.

    Args:
        prompts: at least three, as long as possible up to LONGEST tokens.
    """
    long, middle, short = prompts[0][:LONGEST], prompts[1][:MIDDLE], prompts[2][:SHORTEST]
    if not (why := _changes(outputs, [long, middle, short], tolerance)):
        return Rows.ANY, ""
    if not _changes(outputs, [prompt[: len(middle)] for prompt in prompts[:3]], tolerance):
        return Rows.EQUAL, f"padded {why}"
    return Rows.SINGLE, f"beside others {why}"


def _changes(outputs: Outputs, rows: Sequence[list[int]], tolerance: float) -> str:
    """What becomes of rows that share a call, where that is not what they are alone."""
    alone = [outputs([row])[0] for row in rows]
    try:
        together = outputs(rows)
    except Exception as error:
        return f"prompts raise {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if all(_same(one, other, tolerance) for one, other in zip(alone, together, strict=True)):
        return ""
    return "prompts are answered otherwise than alone"


def _same(alone: Any, together: Any, tolerance: float) -> bool:
    """Whether a row's steps agree; after a step where rounding has chosen another token they need not."""
    for one, other in zip(alone, together, strict=True):
        if not alike(one, other, tolerance):
            return False
        if one.argmax() != other.argmax():
            break
    return True


def tolerance(model: Any) -> float:
    """By how much a model's outputs may differ from one call to another, for no reason but rounding."""
    import torch

    if model.dtype not in (torch.float32, torch.float64) or getattr(model.config, "quantization_config", None):
        return REDUCED
    return CONVOLVED if model.device.type == "cuda" else EXACT


def alike(plain: Any, other: Any, tolerance: float) -> bool:
    """Whether outputs, in the last dimension, differ by rounding alone."""
    return bool(((plain - other).norm(dim=-1) <= tolerance * plain.norm(dim=-1)).all())
