"""Read a loaded model's limits, in tokens. Reset the position scaling that a model keeps from earlier calls."""

from __future__ import annotations

from typing import Any

from glide.server.engines.transformers import context
from glide.server.engines.transformers.context import UNLIMITED, DynamicRope


def context_tokens(model: Any) -> int:
    """Return the maximum number of tokens that a prompt and its generated text may have together."""
    config = model.config.get_text_config()
    longest = context.context(*_positions(config))
    for name, table in model.named_modules():
        # Some tables of position embeddings have a row for padding. The positions begin after this row. For example,
        # RoBERTa's table has 514 rows. Row 1 is for padding. So the rows 0 and 1 are not used for positions, and the
        # remaining 512 rows are used.
        if name.endswith("position_embeddings") and getattr(table, "padding_idx", None) is not None:
            longest = min(longest, table.num_embeddings - table.padding_idx - 1)
    return longest


def vocabulary_size(model: Any) -> int:
    """Return the number of tokens with an embedding. The tokenizer may have more tokens, such as a padding token."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (NotImplementedError, AttributeError):  # the model has no ordinary table of embeddings
        return getattr(model.config.get_text_config(), "vocab_size", None) or UNLIMITED


def dynamic_rope(model: Any) -> DynamicRope | None:
    """Return the DynamicRope of a model; None if the model has no DynamicRope.

    In some models, a long row changes the rotary positions of all rows in the same call. A DynamicRope describes this
    effect. It contains the number of tokens above which a row is long.
    """
    return context.dynamic_rope(*_positions(model.config.get_text_config()))


def _positions(config: Any) -> tuple[int | None, Any]:
    return getattr(config, "max_position_embeddings", None), getattr(config, "rope_parameters", None)


def reset_dynamic_rope(model: Any) -> None:
    """Reset the rotary frequencies that dynamic NTK scaling has computed for the longest prompt so far.

    Without this reset, the texts of a call would depend on earlier calls.
    """
    for module in model.modules():
        if not hasattr(module, "original_max_seq_len"):
            continue
        for name, original in list(module.named_buffers(recurse=False)):
            if name.endswith("original_inv_freq"):
                prefix = name.removesuffix("original_inv_freq")
                current = getattr(module, f"{prefix}inv_freq")
                setattr(module, f"{prefix}inv_freq", original.to(current.device, copy=True))
                setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
