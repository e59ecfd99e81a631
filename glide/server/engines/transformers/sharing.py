"""Decide which rows may share a call. The texts of rows in one call must be the same as if each row were alone.

A row has the tokens of one prompt. In a call, shorter rows get padding. Most models ignore padding, because a mask
excludes it. But padding changes the texts of some recurrent models, and of some models that compute positions without
the mask. Some models need a separate call for each row, even for rows of equal length. In some models with rotary
positions, the positions depend on the longest row of a call. Trials with the loaded model show which rows may share a
call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from glide.server.engines.transformers.context import UNLIMITED, DynamicRope

# Numbers of tokens of the three rows in a trial. The shortest row has the most padding. So if the model does not ignore
# padding, the outputs of this row change most.
SHORTEST = 2
MIDDLE = 13
LONGEST = 70
# When a row shares a call, its outputs may change slightly. These numbers limit the relative change: the norm of the
# change, divided by the norm of the outputs. Rounding causes relative changes of about 1e-5 in float32 and 0.05 in
# bfloat16. Padding that the model does not ignore causes relative changes of about 1.
EXACT = 3e-4  # maximum relative change for float32 and float64 on devices other than CUDA
# Maximum relative change for float32 and float64 on CUDA. On CUDA, float32 convolutions are less exact (TF32).
CONVOLVED = 1e-2
REDUCED = 0.2  # maximum relative change for types of lower precision than float32, and for quantized models

# The type of a function that computes a model's outputs for some rows. The outputs are a tensor with three dimensions:
# row, step and output number.
Outputs = Callable[[Sequence[list[int]]], Any]


class RowRule(IntEnum):
    """Which rows a call may have: only one row, several rows of equal length, or any rows."""

    SINGLE = 0
    EQUAL = 1
    ANY = 2

    @property
    def batching(self) -> str:
        """The name of this rule. The machine ad's attribute GlideBatching contains this name."""
        return {RowRule.SINGLE: "single", RowRule.EQUAL: "equal lengths", RowRule.ANY: "static"}[self]

    @property
    def description(self) -> str:
        """A description of the rule for the log."""
        return {
            RowRule.SINGLE: "one prompt per call",
            RowRule.EQUAL: "prompts of equal length",
            RowRule.ANY: "any prompts",
        }[self]


@dataclass(frozen=True)
class RowSharing:
    """Describes, for a loaded model, which rows may share a call.

    Attributes:
        rows: rule that says which rows may share a call. `dynamic_rope` may set a further limit.
        dynamic_rope: a limit for the number of tokens in a row. If a row exceeds this limit, all positions in the call
            depend on the longest row. None if the model has no such limit.
    """

    rows: RowRule = RowRule.ANY
    dynamic_rope: DynamicRope | None = None

    def limited_to(self, rows: RowRule) -> RowSharing:
        """Return a copy with the stricter of two rules: the present rule and the rule `rows`."""
        return replace(self, rows=min(self.rows, rows))

    def allows(self, longer: int, shorter: int, new_tokens: int) -> bool:
        """Return whether two prompts may share a call.

        Args:
            longer: number of tokens of the longer prompt. It must be the longest prompt of the call.
            shorter: number of tokens of the shorter prompt.
            new_tokens: number of tokens to generate for each prompt.
        """
        if self.rows == RowRule.SINGLE:
            return False
        if longer == shorter:
            return True
        if self.rows == RowRule.EQUAL:
            return False
        return (
            self.dynamic_rope is None or longer + new_tokens <= self.dynamic_rope.tokens or self._all_switched(shorter)
        )

    def _all_switched(self, shortest: int) -> bool:
        return self.dynamic_rope is not None and self.dynamic_rope.switches and shortest > self.dynamic_rope.tokens

    @property
    def unrestricted_tokens(self) -> int:
        """The limit in `dynamic_rope`, as a number of tokens; UNLIMITED if there is no limit."""
        return UNLIMITED if self.dynamic_rope is None else self.dynamic_rope.tokens


def try_rows(outputs: Outputs, prompts: Sequence[list[int]], tolerance: float) -> tuple[RowRule, str]:
    """Find out which rows may share a call.

    For this, compare the outputs of three rows in one call with the outputs of each row alone.

    Args:
        outputs: function that computes the outputs of rows of tokens in one call.
        prompts: three or more rows of tokens. The first three are used. Longer rows, up to LONGEST tokens, are better.
        tolerance: outputs count as equal if their relative difference is at most this number.

    Returns:
        A pair: the rule that says which rows may share a call, and the reason why the rule excludes some rows. If the
        rule excludes no rows, the reason is empty.
    """
    long, middle, short = prompts[0][:LONGEST], prompts[1][:MIDDLE], prompts[2][:SHORTEST]
    if not (why := _difference(outputs, [long, middle, short], tolerance)):
        return RowRule.ANY, ""
    if not _difference(outputs, [prompt[: len(middle)] for prompt in prompts[:3]], tolerance):
        return RowRule.EQUAL, f"with padding, {why}"
    return RowRule.SINGLE, f"in a call with others, {why}"


def _difference(outputs: Outputs, rows: Sequence[list[int]], tolerance: float) -> str:
    """Describe how outputs change when rows share a call. Return an empty text if all outputs are nearly equal."""
    alone = [outputs([row])[0] for row in rows]
    try:
        together = outputs(rows)
    except Exception as error:
        return f"prompts raise {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if all(_rows_agree(one, other, tolerance) for one, other in zip(alone, together, strict=True)):
        return ""
    return "prompts get other answers than alone"


def _rows_agree(alone: Any, together: Any, tolerance: float) -> bool:
    """Return whether a row has nearly the same outputs in two calls: alone, and together with other rows.

    The outputs are compared step by step. Because of rounding, a step may give different tokens in the two calls. Then
    the texts differ from this step on, so later steps are not compared.
    """
    for one, other in zip(alone, together, strict=True):
        if not nearly_equal(one, other, tolerance):
            return False
        if one.argmax() != other.argmax():
            break
    return True


def tolerance(model: Any) -> float:
    """Return the relative difference that rounding may cause between two outputs of a model for the same input."""
    import torch

    if model.dtype not in (torch.float32, torch.float64) or getattr(model.config, "quantization_config", None):
        return REDUCED
    return CONVOLVED if model.device.type == "cuda" else EXACT


def nearly_equal(plain: Any, other: Any, tolerance: float) -> bool:
    """Return whether two outputs are nearly equal.

    The norm of their difference must be at most `tolerance` times the norm of the first output. Norms are computed
    along the last dimension.
    """
    return bool(((plain - other).norm(dim=-1) <= tolerance * plain.norm(dim=-1)).all())
