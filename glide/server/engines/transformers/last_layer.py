"""While a prompt is read, only its last position's logits are wanted, and nothing but these depends on what the last
layer's feed-forward block does: it is computed for that position alone, which spares a model of n layers about 0.7/n
of the reading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from glide.server.engines.transformers.sharing import alike


def spare(model: Any, first_logits: Callable[[], Any], tolerance: float) -> str:
    """Spare the block where the caller of `forward` said `logits_to_keep=1`; why this model can't, or nothing.

    Args:
        first_logits: logits of the first token after some prompts: the proof that it makes no difference.
        tolerance: by how much they may differ all the same.
    """
    layers = getattr(model.base_model, "layers", None) or getattr(model.base_model, "h", None) or [None]
    block = getattr(layers[-1], "mlp", None)
    if block is None:
        return "its last layer has no part of that name"
    wanted = first_logits()
    last_alone = False

    def see(module: Any, args: Any, options: dict[str, Any]) -> None:
        nonlocal last_alone
        keep = options.get("logits_to_keep")  # or, from continuous batching, a tensor of positions
        last_alone = isinstance(keep, int) and keep == 1

    def cut(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][:, -1:], *args[1:]) if last_alone else args  # the residual connection adds it to all positions

    hooks = [model.register_forward_pre_hook(see, with_kwargs=True), block.register_forward_pre_hook(cut)]
    try:
        why = "" if alike(wanted, first_logits(), tolerance) else "it says something else without"
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    if why:
        for hook in hooks:
            hook.remove()
    return why
