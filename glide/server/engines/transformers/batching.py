"""What the two ways of batching have in common, and which options of `generate` each of them can honour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from glide.server.engines.transformers.prompts import Prompt

# Options that look at the prompt's own tokens or their number, with the value that switches each off.
PROMPT_SENSITIVE = {
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0, "min_length": 0, "max_length": None,
}  # fmt: skip
# A model's own defaults that greedy decoding with `max_new_tokens` never looks at.
IDLE_WHEN_GREEDY = {
    "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config", "do_sample",
    "temperature", "top_k", "top_p", "min_p", "typical_p", "max_length", "max_new_tokens", "use_cache",
}  # fmt: skip
# What continuous batching honours. It drops the others, or applies the manager's to all requests.
GREEDY = {"max_new_tokens", "eos_token_id", "do_sample"}
# Options that see nothing but the next token's logits, so that it does not matter where the keys came from.
NEXT_TOKEN = GREEDY | {"min_new_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p", "suppress_tokens"}


@dataclass(frozen=True)
class Answer:
    """What was generated for each prompt, and how many prompt tokens came from a shared prefix."""

    rows: list[list[int]]
    reused: int


def until(row: list[int], ends: set[int]) -> list[int]:
    """A row up to and including the token that ends it; what follows is padding."""
    end = next((number for number, token in enumerate(row) if token in ends), len(row))
    return row[: end + 1]


def new_tokens(generate: dict[str, Any]) -> int:
    """How many tokens are asked for, at most; without a word transformers generates 20."""
    return int(generate.get("max_new_tokens") or 20)


class Batching(Protocol):
    """A way to generate for many prompts at once; `name` is what the machine ad says."""

    name: str

    def generate(self, prompts: Sequence[Prompt], generate: dict[str, Any]) -> Answer:
        """Serve one call, all with the same options and prefix."""


class Defaults:
    """A model's generation defaults: options are in force together with them."""

    def __init__(self, config: Any):
        self.config = config
        # None and False are "not set", and 0 switches the penalties off.
        self.set = {name for name, value in config.to_diff_dict().items() if value} - IDLE_WHEN_GREEDY

    def sees_padding(self, generate: dict[str, Any]) -> bool:
        """Whether an option is in force whose meaning padding would change."""
        for name, off in PROMPT_SENSITIVE.items():
            if generate.get(name, getattr(self.config, name, None)) not in (None, off):
                return True
        return "max_new_tokens" not in generate

    def next_token_only(self, generate: dict[str, Any]) -> bool:
        """Whether a prompt may go on from a prefix that was computed without it."""
        return not self.sees_padding(generate) and self.set | set(generate) <= NEXT_TOKEN

    def greedy(self, generate: dict[str, Any]) -> bool:
        """Whether continuous batching means the same by these options."""
        new = generate.get("max_new_tokens")
        counts = isinstance(new, int) and not isinstance(new, bool) and new > 0
        return counts and not generate.get("do_sample") and not self.set and set(generate) <= GREEDY
