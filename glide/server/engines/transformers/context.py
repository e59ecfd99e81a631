"""Compute from a model's configuration how long the model's prompts may be. This module imports no heavy packages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNLIMITED = 1 << 30  # number of tokens that stands for "no limit", for example for recurrent models
# With these kinds of RoPE scaling, the model's context is max_position_embeddings times the scaling factor. With other
# kinds, max_position_embeddings already includes the factor.
FACTOR_EXTENDS_POSITIONS = ("linear", "dynamic", "yarn")


@dataclass(frozen=True)
class DynamicRope:
    """A property of some models: a long row changes the rotary positions of all rows in the same call.

    A row is a prompt and the text that is generated for the prompt.

    Attributes:
        tokens: a number of tokens. A row is long if the row has more tokens than this number.
        switches: True if the positions change only once, as soon as the call has a long row (longrope). False if the
            positions change again with each further token of the longest row (dynamic NTK).
    """

    tokens: int
    switches: bool


def context(positions: int | None, rope: Mapping[str, Any] | None) -> int:
    """Return the maximum number of tokens of a prompt and the generated text together.

    Args:
        positions: the configuration's `max_position_embeddings`. None or a number below 1 means no limit.
        rope: the configuration's `rope_parameters` (formerly `rope_scaling`). The factor in these parameters may extend
            the limit.
    """
    if positions is None or positions < 1:
        return UNLIMITED
    longest = positions
    for scaling in _scalings(rope):
        factor = scaling.get("factor")
        if _kind(scaling) in FACTOR_EXTENDS_POSITIONS and isinstance(factor, (int, float)):
            original = scaling.get("original_max_position_embeddings") or positions
            longest = max(longest, int(original * factor))
    return longest


def context_of(folder: Path) -> int | None:
    """Read a model's context, in tokens, from config.json in a folder. Return None if the context is unknown."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        config = config.get("text_config", config)
        positions = config.get("max_position_embeddings", config.get("n_positions"))
        return (
            None
            if positions is None
            else context(positions, config.get("rope_parameters") or config.get("rope_scaling"))
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def dynamic_rope(positions: int | None, rope: Mapping[str, Any] | None) -> DynamicRope | None:
    """Return the DynamicRope of a model.

    In most models, the positions of a row's tokens never depend on the other rows of a call. For such a model, return
    None.
    """
    for scaling in _scalings(rope):
        if _kind(scaling) == "longrope":
            return DynamicRope(int(scaling.get("original_max_position_embeddings") or positions or 0), switches=True)
        if "dynamic" in _kind(scaling):
            return DynamicRope(int(positions or 0), switches=False)
    return None


def _kind(scaling: Mapping[str, Any]) -> str:
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def _scalings(rope: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yield the position scalings of a model. A model has one for all layers, or one for each kind of layer."""
    if rope:
        nested = [value for value in rope.values() if isinstance(value, Mapping)]
        yield from nested or [rope]
