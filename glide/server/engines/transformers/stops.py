"""Find where a stop string ends a text. The library's `generate` does not return this place; it only pads the text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

# No token has this id. The class StopStringCriteria treats an unknown id like a token without text. So this id can fill
# the places before a prompt.
TOKEN_WITHOUT_TEXT = (1 << 31) - 1


class StopStrings:
    """Applies the library's criterion for stop strings to rows of generated tokens."""

    def __init__(self, tokenizer: Any):
        from transformers import StopStringCriteria

        self.criterion = lru_cache(maxsize=8)(lambda strings: StopStringCriteria(tokenizer, list(strings)))

    def end(self, prompt: Sequence[int], row: list[int], strings: str | Sequence[str]) -> int | None:
        """Return the number of generated tokens up to and including the token that completes a stop string.

        If no stop string occurs, return None.

        Args:
            prompt: tokens of the prompt. A stop string may begin in the prompt.
            row: the generated tokens, including any padding at the end.
            strings: one stop string, or several.
        """
        import torch

        if not row:
            return None
        criterion = self.criterion((strings,) if isinstance(strings, str) else tuple(strings))
        width = criterion.maximum_token_len
        before = [TOKEN_WITHOUT_TEXT] * width + list(prompt[-width:])
        tokens = before + row
        # Make one window for each generated token. A window has `width` tokens: the generated token, and the tokens
        # before the generated token. During generation, the criterion looks at the same windows.
        windows = torch.tensor(tokens).unfold(0, width, 1)[len(before) - width + 1 :]
        ended = criterion(windows, None).nonzero()
        return int(ended[0]) + 1 if len(ended) else None
