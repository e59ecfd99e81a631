"""The prompts' shared beginning: found in a window of prompts, computed once, and kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from glide.server.engines.transformers.positions import stretch
from glide.server.engines.transformers.prompts import Prompt

HEAD = 8  # prompts are compared when so many of their first tokens are equal
SHORTEST = 12  # tokens: less is not worth a mask
COVERS = 0.75  # of what prompts have in common, for a known prefix to be taken instead of a new one
STRAYS = 8  # one in so many prompts, at either end of their order, may begin otherwise
PREFIXES = 8
PREFIX_BYTES = 1 << 30


def with_prefixes(
    prompts: Sequence[Prompt], known: Collection[tuple[int, ...]], batch: int, longest: int
) -> list[list[Prompt]]:
    """Prompts by the prefix they are given; those without one are together.

    Args:
        known: prefixes whose cache is at hand.
        batch: a family of prompts smaller than half of that has none, as it would fill a call badly, unless there
            are no others.
        longest: tokens of the longest prefix that may be kept.
    """
    heads: dict[tuple[int, ...], list[Prompt]] = {}
    for prompt in prompts:
        heads.setdefault(tuple(prompt.ids[:HEAD]), []).append(prompt)
    families: dict[tuple[int, ...], list[Prompt]] = {}
    for family in heads.values():
        worth = 2 * len(family) >= batch or len(family) == len(prompts)
        prefix = common_prefix([prompt.ids for prompt in family], known, longest) if worth else ()
        for prompt in family:
            own = prefix if len(prompt.ids) > len(prefix) and tuple(prompt.ids[: len(prefix)]) == prefix else ()
            families.setdefault(own, []).append(replace(prompt, prefix=own))
    return list(families.values())


def common_prefix(rows: Sequence[list[int]], known: Collection[tuple[int, ...]], longest: int) -> tuple[int, ...]:
    """What (nearly) all rows begin with, of which at least a token of each is left; empty when not worth it."""
    ordered = sorted(rows)
    strays = len(rows) // STRAYS
    low, high = ordered[strays], ordered[-1 - strays]
    most = min(len(low) - 1, len(high) - 1, longest)
    common = next((n for n in range(most) if low[n] != high[n]), max(most, 0))
    fitting = [prefix for prefix in known if len(prefix) <= common and prefix == tuple(low[: len(prefix)])]
    best = max(fitting, key=len, default=())
    # One that is known stays what it is when a window's prompts have some more in common by chance.
    if len(rows) == 1 or len(best) >= COVERS * common:
        return best
    return tuple(low[:common]) if common >= SHORTEST else ()


class PrefixCaches:
    """Keys and values of prefixes; the ones used last stay, up to PREFIXES and PREFIX_BYTES."""

    def __init__(self, model: Any):
        self.model = model
        self.kept: OrderedDict[tuple[int, ...], list[tuple[Any, Any]]] = OrderedDict()
        self.token_bytes = 0
        self.longest = 0  # 0: prefixes are of no use with this model

    def probe(self, ids: Sequence[int]) -> str:
        """Learn from a short prompt whether this model's cache can be shared; why not, or nothing."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        if not ids:
            return "its context is too short"
        cache = self._computed(ids)
        # Windows, recurrent states and compressed keys lose or mix what a prefix needs.
        if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return "its cache is not of full attention alone"
        if stretch(self.model) is not None:
            return "its positions depend on the prompt's length"
        layers: list[Any] = cache.layers
        tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        self.token_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors) // len(ids)
        self.longest = PREFIX_BYTES // 2 // max(1, self.token_bytes)
        return ""

    def take(self, prefix: tuple[int, ...], rows: int) -> tuple[Any, bool]:
        """A cache that so many rows may go on from, and whether the prefix had to be computed for it."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        fresh = prefix not in self.kept
        if fresh:
            self.kept[prefix] = [(layer.keys, layer.values) for layer in self._computed(prefix).layers]
        self.kept.move_to_end(prefix)
        while len(self.kept) > PREFIXES or sum(map(len, self.kept)) * self.token_bytes > PREFIX_BYTES:
            self.kept.popitem(last=False)
        cache = DynamicCache()
        for keys, values in self.kept[prefix]:
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            # Views: a layer never writes in place, it makes a new tensor of old and new keys at each step.
            layer.keys, layer.values = (tensor.expand(rows, -1, -1, -1) for tensor in (keys, values))
            cache.layers.append(layer)
        return cache, fresh

    def _computed(self, ids: Sequence[int]) -> Any:
        import torch

        with torch.inference_mode():
            row = torch.tensor([list(ids)], device=self.model.device)
            # Not the head: logits of a whole prefix would take more memory than the prefix.
            return self.model.base_model(input_ids=row, use_cache=True).past_key_values
