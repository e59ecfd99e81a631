"""Where texts end at a stop string: `generate` says that a row has ended only by what it fills it up with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

NO_TOKEN = (1 << 31) - 1  # what the library's criterion takes for a token without text


class Stops:
    """Finds a row's end with the library's own criterion."""

    def __init__(self, tokenizer: Any):
        from transformers import StopStringCriteria

        self.criterion = lru_cache(maxsize=8)(lambda strings: StopStringCriteria(tokenizer, list(strings)))

    def until(self, prompt: Sequence[int], row: list[int], strings: str | Sequence[str]) -> list[int]:
        """Return a row up to and including the token with which one of the strings is complete."""
        import torch

        if not row:
            return row
        criterion = self.criterion((strings,) if isinstance(strings, str) else tuple(strings))
        width = criterion.maximum_token_len
        before = [NO_TOKEN] * width + list(prompt[-width:])
        whole = before + row
        # For each token of the row, the last so many up to it: what the criterion looks at while the row is generated.
        windows = torch.tensor(whole).unfold(0, width, 1)[len(before) - width + 1 :]
        ended = criterion(windows, None).nonzero()
        return row[: int(ended[0]) + 1] if len(ended) else row
