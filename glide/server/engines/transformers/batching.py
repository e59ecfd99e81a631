"""What the two ways of batching have in common, and which options of `generate` each of them can honour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from glide.server.engines.transformers.prompts import Prompt
from glide.server.engines.transformers.sharing import Rows

# Options that look at the prompt's own tokens or their number, with the value that switches each off.
PROMPT_SENSITIVE = {
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0, "min_length": 0, "forced_bos_token_id": None, "watermarking_config": None,
}  # fmt: skip
ONE_BY_ONE = ("prompt_lookup_num_tokens", "assistant_early_exit")  # guessed tokens, which transformers does for one row
# A model's own defaults that greedy decoding with `max_new_tokens` never looks at.
IDLE_WHEN_GREEDY = {
    "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config", "do_sample",
    "temperature", "top_k", "top_p", "min_p", "typical_p", "max_length", "max_new_tokens", "use_cache",
    "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_logits", "output_scores",
}  # fmt: skip
DEFAULT_NEW = 20  # tokens that transformers generates where nothing says how many
# What continuous batching honours. It drops the others, or applies the manager's to all requests.
GREEDY = {"max_new_tokens", "eos_token_id", "do_sample"}
# Options that see nothing but the next token's logits, so that it does not matter where the keys came from.
NEXT_TOKEN = GREEDY | {"min_new_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p", "suppress_tokens"}


@dataclass(frozen=True)
class Answer:
    """What was generated, as many rows for each prompt as its options ask for; and how many tokens were reused."""

    rows: list[list[int]]
    reused: int


def until(row: list[int], ends: set[int]) -> list[int]:
    """A row up to and including the token that ends it; what follows is padding."""
    end = next((number for number, token in enumerate(row) if token in ends), len(row))
    return row[: end + 1]


class Batching(Protocol):
    """A way to generate for many prompts at once."""

    @property
    def name(self) -> str:
        """What the machine ad says."""

    def generate(self, prompts: Sequence[Prompt], generate: dict[str, Any]) -> Answer:
        """Serve one call, all with the same options and prefix."""


class Defaults:
    """A model's generation defaults: options have effect together with them."""

    def __init__(self, config: Any, context: int):
        self.config = config
        self.context = context
        # None and False are "not set", and 0 switches the penalties off.
        self.set = {name for name, value in config.to_diff_dict().items() if value} - IDLE_WHEN_GREEDY

    def value(self, name: str, generate: dict[str, Any]) -> Any:
        """Return what an option comes to: that of the record, which may be null, or else the model's own."""
        return generate[name] if name in generate else getattr(self.config, name, None)

    def ends(self, generate: dict[str, Any]) -> set[int]:
        """Return the tokens that end a text. The tokenizer's own is none of them, unless the model says so."""
        ends = self.value("eos_token_id", generate)
        return set(ends if isinstance(ends, list) else [ends]) - {None}

    def tokens(self, prompt: int, generate: dict[str, Any]) -> int:
        """Return how many tokens a prompt of so many may come to with its text."""
        if new := self.value("max_new_tokens", generate):
            return prompt + int(new)
        if longest := generate.get("max_length"):
            return max(prompt, int(longest))
        # What no option asks for is made to fit.
        return max(prompt + 1, min(self.config.max_length or prompt + DEFAULT_NEW, self.context))

    def new(self, generate: dict[str, Any]) -> int:
        """Return how many tokens a text has, about, where that depends on the prompt."""
        return int(self.value("max_new_tokens", generate) or DEFAULT_NEW)

    def rows(self, generate: dict[str, Any]) -> Rows:
        """Return which rows the options allow in one call."""
        if any(self.value(name, generate) for name in ONE_BY_ONE):
            return Rows.SINGLE
        for name, off in PROMPT_SENSITIVE.items():
            if self.value(name, generate) not in (None, off):
                return Rows.EQUAL
        # Without this, transformers limits the length of prompt and text together.
        return Rows.ANY if self.value("max_new_tokens", generate) else Rows.EQUAL

    def next_token_only(self, generate: dict[str, Any]) -> bool:
        """Return whether a prompt may go on from a prefix that was computed without it."""
        return self.rows(generate) == Rows.ANY and self.set | set(generate) <= NEXT_TOKEN

    def greedy(self, generate: dict[str, Any]) -> bool:
        """Return whether continuous batching means the same by these options."""
        return bool(
            generate.get("max_new_tokens")
            and not generate.get("do_sample")
            and not self.set
            and set(generate) <= GREEDY
        )
