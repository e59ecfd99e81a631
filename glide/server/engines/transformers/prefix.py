"""Shared prefixes. Find the prefix that prompts share, compute its keys and values once, and cache them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from glide.server.engines.transformers.positions import dynamic_rope
from glide.server.engines.transformers.prompts import Prompt

GROUP_TOKENS = 8  # number of first tokens that are equal in all prompts of a group; each group may get a prefix
SHORTEST_PREFIX = 12  # minimum number of tokens of a prefix; the use of a shorter prefix costs more than it saves
# A cached prefix is used instead of a new prefix if it covers at least this share of the prompts' common beginning.
REUSED_SHARE = 0.75
# A few prompts, here called strays, may begin differently from the other prompts. `common_prefix` sorts the prompts by
# their tokens. After sorting, strays are usually at the two ends of the list. If there are N prompts, `common_prefix`
# ignores N // PROMPTS_PER_STRAY prompts at each end.
PROMPTS_PER_STRAY = 8
MAX_PREFIXES = 8  # maximum number of prefixes in the cache
MAX_PREFIX_BYTES = 1 << 30  # maximum size of all prefixes in the cache together, in bytes


def group_by_prefix(
    prompts: Sequence[Prompt], cached: Collection[tuple[int, ...]], batch: int, max_tokens: int
) -> list[list[Prompt]]:
    """Divide prompts into families, and set the attribute `prefix` of each prompt.

    1. If prompts have the same first tokens, they form a group. GROUP_TOKENS is the number of these tokens.
    2. If a group is large enough, `common_prefix` looks for one prefix for the group.
    3. The prompts that begin with the prefix of their group form a family.
    4. One last family contains the remaining prompts of all groups. These prompts have an empty prefix.

    Args:
        prompts: the prompts, in any order.
        cached: prefixes that are in the cache.
        batch: number of prompts in a full call. A group is large enough in two cases: the group has at least
            `batch / 2` prompts, or the group contains all prompts. The call of a smaller group would be too small.
        max_tokens: maximum number of tokens of a cached prefix.
    """
    groups: dict[tuple[int, ...], list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(tuple(prompt.ids[:GROUP_TOKENS]), []).append(prompt)
    families: dict[tuple[int, ...], list[Prompt]] = {}
    for family in groups.values():
        large_enough = 2 * len(family) >= batch or len(family) == len(prompts)
        prefix = common_prefix([prompt.ids for prompt in family], cached, max_tokens) if large_enough else ()
        for prompt in family:
            given = prefix if len(prompt.ids) > len(prefix) and tuple(prompt.ids[: len(prefix)]) == prefix else ()
            families.setdefault(given, []).append(replace(prompt, prefix=given))
    return list(families.values())


def common_prefix(rows: Sequence[list[int]], cached: Collection[tuple[int, ...]], max_tokens: int) -> tuple[int, ...]:
    """Return the prefix with which all or nearly all rows begin; empty if the prefix would be too short.

    Each row that begins with the prefix has at least one token after the prefix.

    Args:
        rows: tokens of the prompts.
        cached: prefixes that are in the cache. They are preferred to new prefixes.
        max_tokens: maximum number of tokens of a cached prefix.
    """
    ordered = sorted(rows)
    strays = len(rows) // PROMPTS_PER_STRAY
    low, high = ordered[strays], ordered[-1 - strays]
    most = min(len(low) - 1, len(high) - 1, max_tokens)
    common = next((n for n in range(most) if low[n] != high[n]), max(most, 0))
    fitting = [prefix for prefix in cached if len(prefix) <= common and prefix == tuple(low[: len(prefix)])]
    best = max(fitting, key=len, default=())
    # Prefer the cached prefix, even if the prompts' common beginning is a little longer than this prefix.
    if len(rows) == 1 or len(best) >= REUSED_SHARE * common:
        return best
    return tuple(low[:common]) if common >= SHORTEST_PREFIX else ()


class PrefixCaches:
    """A cache of the keys and values of prefixes.

    If the cache exceeds MAX_PREFIXES or MAX_PREFIX_BYTES, the least recently used prefixes are removed.

    Attributes:
        cached: for each prefix, the keys and values of each layer. The least recently used prefix is first.
        token_bytes: bytes that one token of a prefix takes in the cache.
        max_tokens: maximum number of tokens of a cached prefix; 0 if the model cannot use prefixes.
    """

    def __init__(self, model: Any):
        self.model = model
        self.cached: OrderedDict[tuple[int, ...], list[tuple[Any, Any]]] = OrderedDict()
        self.token_bytes = 0
        self.max_tokens = 0

    def probe(self, ids: Sequence[int]) -> str:
        """Find out whether several rows can continue one cached prefix with this model. If so, set `max_tokens`.

        Args:
            ids: tokens of a short prefix for the trial.

        Returns:
            The reason why rows cannot share a prefix; empty if rows can share a prefix.
        """
        from transformers.cache_utils import DynamicCache, DynamicLayer

        if not ids:
            return "its context is too short"
        cache = self._computed(ids)
        # Refuse caches with sliding windows, recurrent states or compressed keys. Such a cache does not keep the keys
        # and values of each token.
        if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return "its cache does not keep the keys and values of each token"
        if dynamic_rope(self.model) is not None:
            return "its positions depend on the length of the prompt"
        layers: list[Any] = cache.layers
        tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        self.token_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors) // len(ids)
        self.max_tokens = MAX_PREFIX_BYTES // 2 // max(1, self.token_bytes)
        return ""

    def cache_for(self, prefix: tuple[int, ...], rows: int) -> tuple[Any, bool]:
        """Return a cache with the keys and values of a prefix, and whether the prefix had to be computed now.

        Args:
            prefix: the tokens of the prefix.
            rows: number of rows in the call.
        """
        from transformers.cache_utils import DynamicCache, DynamicLayer

        computed = prefix not in self.cached
        if computed:
            self.cached[prefix] = [(layer.keys, layer.values) for layer in self._computed(prefix).layers]
        self.cached.move_to_end(prefix)
        while len(self.cached) > MAX_PREFIXES or sum(map(len, self.cached)) * self.token_bytes > MAX_PREFIX_BYTES:
            self.cached.popitem(last=False)
        cache = DynamicCache()
        for keys, values in self.cached[prefix]:
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            # All rows share one copy of the keys and values. This is safe, because a layer never changes these tensors.
            # At each step, the layer makes new tensors of all keys and values.
            layer.keys, layer.values = (tensor.expand(rows, -1, -1, -1) for tensor in (keys, values))
            cache.layers.append(layer)
        return cache, computed

    def _computed(self, ids: Sequence[int]) -> Any:
        import torch

        with torch.inference_mode():
            row = torch.tensor([list(ids)], device=self.model.device)
            # Call the model without its head. The head computes logits, which take more memory than the prefix.
            return self.model.base_model(input_ids=row, use_cache=True).past_key_values
