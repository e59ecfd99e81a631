"""The interface of static and continuous batching, and the options of `generate` that each of them can serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from glide.server.engines.transformers.prompts import Prompt
from glide.server.engines.transformers.sharing import RowRule

# The effect of these options depends on the prompt's tokens or on their number, so padding would change the text. The
# dict has, for each option, the value that switches the option off.
PROMPT_SENSITIVE = {
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0, "min_length": 0, "forced_bos_token_id": None, "watermarking_config": None,
}  # fmt: skip
# These options are for speculative decoding. transformers supports them only in calls with a single row.
SINGLE_ROW_OPTIONS = ("prompt_lookup_num_tokens", "assistant_early_exit")
# If decoding is greedy and `max_new_tokens` is set, a model's default values for these options have no effect.
IGNORED_WHEN_GREEDY = {
    "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config", "do_sample",
    "temperature", "top_k", "top_p", "min_p", "typical_p", "max_length", "max_new_tokens", "use_cache",
    "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_logits", "output_scores",
}  # fmt: skip
DEFAULT_NEW_TOKENS = 20  # number of tokens that transformers generates if no option sets a limit
# With continuous batching, each record may have its own values of these options. Continuous batching ignores all other
# options, or uses the same value for all records.
CONTINUOUS_OPTIONS = {"max_new_tokens", "eos_token_id", "do_sample"}
# The effect of these options depends only on the logits of the next token. If a record has other options, the engine
# computes the record's whole prompt. If a record has only these options, the engine may reuse an earlier result for the
# beginning of the prompt.
NEXT_TOKEN_OPTIONS = CONTINUOUS_OPTIONS | {
    "min_new_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p", "suppress_tokens",
}  # fmt: skip


@dataclass(frozen=True)
class Generated:
    """The texts that a call generated.

    Attributes:
        rows: the tokens of each text, in the order of the prompts. A prompt may have several texts.
        reused_tokens: number of prompt tokens that came from a cache.
        ended: a dict from the index of a row to the number of tokens in the row, without the padding. The dict has
            only rows that a text of `stop` has ended.
        logprobs: for each step, token numbers and their log probabilities (TokenLogprobs.steps); empty if the records
            do not ask for log probabilities.
    """

    rows: list[list[int]]
    reused_tokens: int
    ended: dict[int, int] = field(default_factory=dict)
    logprobs: list[tuple[Any, Any]] = field(default_factory=list)


def truncate_at_end(row: list[int], ends: set[int]) -> list[int]:
    """Return a row of tokens up to and including its first token that is in `ends`. The tokens after it are padding."""
    end = next((number for number, token in enumerate(row) if token in ends), len(row))
    return row[: end + 1]


class Batching(Protocol):
    """A way to generate texts for many prompts together."""

    @property
    def name(self) -> str:
        """The value of GlideBatching in the machine ad."""

    def generate(self, prompts: Sequence[Prompt], generate: dict[str, Any]) -> Generated:
        """Generate texts for prompts that have equal options and the same prefix."""


class Defaults:
    """A model's default values for options of `generate`. A default applies if the record does not set the option.

    In the methods, `generate` has the options of a record.

    Args:
        config: the model's generation configuration.
        context: maximum number of tokens that a prompt and its generated text may have together.
        is_encoder_decoder: whether the model reads the prompt with an encoder. Then prompt and text are counted
            separately.

    Attributes:
        effective: names of the options whose default values affect the texts of simple records. A simple record sets
            only `max_new_tokens`.
    """

    def __init__(self, config: Any, context: int, is_encoder_decoder: bool = False):
        self.is_encoder_decoder = is_encoder_decoder
        self.config = config
        self.context = context
        # Leave out the values None, False and 0, which mean that an option is not set or is switched off.
        self.effective = {name for name, value in config.to_diff_dict().items() if value} - IGNORED_WHEN_GREEDY

    def value(self, name: str, generate: dict[str, Any]) -> Any:
        """Return the value of an option.

        A record's value is returned even if it is None. If the record does not set the option, the model's default is
        returned.
        """
        return generate[name] if name in generate else getattr(self.config, name, None)

    def end_tokens(self, generate: dict[str, Any]) -> set[int]:
        """Return the tokens that end a text.

        If the record does not set `eos_token_id`, the model's default is returned. The tokenizer's own end token is not
        added.
        """
        ends = self.value("eos_token_id", generate)
        return set(ends if isinstance(ends, list) else [ends]) - {None}

    def total_tokens(self, prompt: int, generate: dict[str, Any]) -> int:
        """Return the maximum number of tokens of a prompt and its generated text together.

        Args:
            prompt: number of tokens in the prompt.
        """
        if self.is_encoder_decoder:
            return max(prompt, self.new_tokens(generate))
        if new := self.value("max_new_tokens", generate):
            return prompt + int(new)
        if longest := generate.get("max_length"):
            return max(prompt, int(longest))
        # Neither max_new_tokens nor the record's max_length is set. So one of these limits applies:
        # - If the model has a max_length, prompt and text together have at most this number of tokens.
        # - If the model has no max_length, the text has at most 20 tokens (DEFAULT_NEW_TOKENS).
        # In both cases, prompt and text together must also fit into the model's context.
        return max(prompt + 1, min(self.config.max_length or prompt + DEFAULT_NEW_TOKENS, self.context))

    def new_tokens(self, generate: dict[str, Any]) -> int:
        """Return the maximum number of tokens of a text. It is an estimate if the options do not set the number."""
        return int(self.value("max_new_tokens", generate) or DEFAULT_NEW_TOKENS)

    def row_rule(self, generate: dict[str, Any]) -> RowRule:
        """Return the rule for the rows of a call: only one row, only rows of equal length, or rows of any length."""
        if any(self.value(name, generate) for name in SINGLE_ROW_OPTIONS):
            return RowRule.SINGLE
        for name, off in PROMPT_SENSITIVE.items():
            if self.value(name, generate) not in (None, off):
                return RowRule.EQUAL
        # Without max_new_tokens, transformers limits prompt, text and padding together, so padding shortens the text.
        return RowRule.ANY if self.value("max_new_tokens", generate) else RowRule.EQUAL

    def allows_prefix(self, generate: dict[str, Any]) -> bool:
        """Return whether prompts with these options may use a cached prefix."""
        return self.row_rule(generate) == RowRule.ANY and self.effective | set(generate) <= NEXT_TOKEN_OPTIONS

    def allows_continuous(self, generate: dict[str, Any]) -> bool:
        """Return whether, with these options, continuous batching generates the same texts as static batching."""
        return bool(
            generate.get("max_new_tokens")
            and not generate.get("do_sample")
            and not self.effective
            and set(generate) <= CONTINUOUS_OPTIONS
        )
