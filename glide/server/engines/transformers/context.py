"""How long a model's prompts may be, from its configuration; nothing heavy is imported."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNLIMITED = 1 << 30  # tokens; recurrent models and those with relative positions have no limit
FACTOR_COMES_ON_TOP = ("linear", "dynamic", "yarn")  # other scalings have it in max_position_embeddings already


@dataclass(frozen=True)
class Stretch:
    """Rotary positions that depend on the longest row of a call, once that has more than `tokens` tokens.

    Attributes:
        tokens: up to this length positions are those of each row alone.
        switches: beyond it, positions change once (longrope), and not with each further token (dynamic NTK).
    """

    tokens: int
    switches: bool


def context(positions: int | None, rope: Mapping[str, Any] | None) -> int:
    """Return how many tokens a model takes.

    Args:
        positions: the configuration's `max_position_embeddings`; None or less than 1 for no limit.
        rope: its `rope_parameters` (formerly `rope_scaling`), whose factor may extend that.
    """
    if positions is None or positions < 1:
        return UNLIMITED
    longest = positions
    for scaling in _scalings(rope):
        factor = scaling.get("factor")
        if _kind(scaling) in FACTOR_COMES_ON_TOP and isinstance(factor, (int, float)):
            original = scaling.get("original_max_position_embeddings") or positions
            longest = max(longest, int(original * factor))
    return longest


def context_of(folder: Path) -> int | None:
    """Return how many tokens the model in a folder takes, read from its config.json; None where that is not known."""
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


def stretch(positions: int | None, rope: Mapping[str, Any] | None) -> Stretch | None:
    """Return from which length on positions depend on a call's longest row; None for most models, where never."""
    for scaling in _scalings(rope):
        if _kind(scaling) == "longrope":
            return Stretch(int(scaling.get("original_max_position_embeddings") or positions or 0), switches=True)
        if "dynamic" in _kind(scaling):
            return Stretch(int(positions or 0), switches=False)
    return None


def _kind(scaling: Mapping[str, Any]) -> str:
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def _scalings(rope: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The scalings of a model: one for all layers, or one for each kind of layer."""
    if rope:
        nested = [value for value in rope.values() if isinstance(value, Mapping)]
        yield from nested or [rope]
