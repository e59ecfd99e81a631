"""How many tokens and positions a loaded model has, and which positions it has changed for earlier calls."""

from __future__ import annotations

from typing import Any

from glide.server.engines.transformers import context
from glide.server.engines.transformers.context import UNLIMITED, Stretch


def context_tokens(model: Any) -> int:
    """Return how many tokens a prompt and its text may have together."""
    config = model.config.get_text_config()
    longest = context.context(*_positions(config))
    for name, table in model.named_modules():
        # Such a table, as RoBERTa's, counts from the padding's position on: 514 rows are 512 positions.
        if name.endswith("position_embeddings") and getattr(table, "padding_idx", None) is not None:
            longest = min(longest, table.num_embeddings - table.padding_idx - 1)
    return longest


def known_tokens(model: Any) -> int:
    """Return how many different tokens have an embedding."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (NotImplementedError, AttributeError):  # a model that embeds in a way of its own
        return getattr(model.config.get_text_config(), "vocab_size", None) or UNLIMITED


def stretch(model: Any) -> Stretch | None:
    """Return from which length on a model's positions depend on a call's longest row."""
    return context.stretch(*_positions(model.config.get_text_config()))


def _positions(config: Any) -> tuple[int | None, Any]:
    return getattr(config, "max_position_embeddings", None), getattr(config, "rope_parameters", None)


def forget(model: Any) -> None:
    """Undo what dynamic NTK scaling has kept of the longest prompt so far: texts would depend on the calls before."""
    for module in model.modules():
        if not hasattr(module, "original_max_seq_len"):
            continue
        for name, original in list(module.named_buffers(recurse=False)):
            if name.endswith("original_inv_freq"):
                prefix = name.removesuffix("original_inv_freq")
                current = getattr(module, f"{prefix}inv_freq")
                setattr(module, f"{prefix}inv_freq", original.to(current.device, copy=True))
                setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
