"""Decide which rows may share a call. The texts of rows in one call must be the same as if each row were alone.

A row has the tokens of one prompt. Trials with the loaded model show which rows may share a call. Most models ignore
padding, because a mask excludes it. But padding changes the texts of some recurrent models, and of some models whose
positions do not follow the mask. Some models cannot even serve several rows of equal length in a call. In addition,
rotary positions may depend on the longest row of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from glide.server.engines.transformers.context import UNLIMITED, DynamicRope

# The three rows of a trial have these numbers of tokens. If padding is not masked out, the outputs of the shortest row
# change most, because it has the most padding.
SHORTEST = 2
MIDDLE = 13
LONGEST = 70
# A row may have slightly different outputs alone and in a call with other rows. These numbers limit the difference,
# divided by the norm of the outputs. Rounding causes differences of about 1e-5 in float32 and 0.05 in bfloat16. Padding
# that is not masked out causes differences of about 1.
EXACT = 3e-4  # limit for float32 and float64 on devices other than CUDA
CONVOLVED = 1e-2  # limit for float32 and float64 on CUDA, where convolutions use TF32
REDUCED = 0.2  # limit for types of lower precision than float32, and for quantized models

Outputs = Callable[[Sequence[list[int]]], Any]  # function from rows of tokens to a tensor (row, step, output)


class RowRule(IntEnum):
    """A rule for the rows of a call. The rule allows one row, several rows of equal length, or any rows."""

    SINGLE = 0
    EQUAL = 1
    ANY = 2

    @property
    def batching(self) -> str:
        """The value of GlideBatching in the machine ad when static batching uses this rule."""
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
    """The rows that may share a call with a loaded model.

    Attributes:
        rows: rule for the rows of a call, if positions do not depend on the longest row.
        dynamic_rope: number of tokens above which positions depend on the longest row; None if positions never depend
            on other rows.
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
        """Number of tokens of a prompt and its text up to which positions do not depend on other rows."""
        return UNLIMITED if self.dynamic_rope is None else self.dynamic_rope.tokens


def try_rows(outputs: Outputs, prompts: Sequence[list[int]], tolerance: float) -> tuple[RowRule, str]:
    """Find out which rows may share a call: compare the outputs of rows in one call with those of each row alone.

    Args:
        outputs: function that computes the outputs of rows of tokens in one call.
        prompts: three or more rows of tokens. The first three are used. Longer rows, up to LONGEST tokens, are better.
        tolerance: maximum relative difference between outputs that count as equal.

    Returns:
        A pair: the rule for the rows that may share a call, and the reason why the rule is not RowRule.ANY. The reason
        is empty if any rows may share a call.
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
    """Return whether a row has the same outputs alone and together with other rows, in each step.

    If rounding leads to different tokens in a step, the later steps are ignored, because they continue different texts.
    """
    for one, other in zip(alone, together, strict=True):
        if not nearly_equal(one, other, tolerance):
            return False
        if one.argmax() != other.argmax():
            break
    return True


def tolerance(model: Any) -> float:
    """Return the maximum relative difference that rounding alone may cause between outputs of a model in two calls."""
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
