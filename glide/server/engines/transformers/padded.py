"""Static batching. One call of the library's `generate` serves several prompts. Shorter prompts get padding.

If several prompts begin with the same prefix, this prefix is computed once and kept in a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from glide.server.engines.transformers import positions
from glide.server.engines.transformers.batching import Generated
from glide.server.engines.transformers.options import TextOptions
from glide.server.engines.transformers.prefix import PrefixCaches, group_by_prefix
from glide.server.engines.transformers.prompts import Encoder, Prompt, divide_into_calls
from glide.server.engines.transformers.sampling import Processor, StopTexts, TokenLogprobs, processors
from glide.server.engines.transformers.sharing import RowRule, RowSharing, nearly_equal, tolerance

# Two batch sizes count as equally fast if their times differ by at most this factor. Of such sizes, the smallest is
# used, because its results come sooner.
EQUAL_SPEED = 1.05
Prefix = tuple[int, ...]


@dataclass(frozen=True)
class BatchSpeed:
    """The measured speed of batches of a certain size.

    Attributes:
        rows: number of rows in a batch.
        token_seconds: seconds that the pass over the prompts takes, divided by the number of the prompts' tokens.
        step_seconds: seconds that a decoding step takes, divided by the number of rows.
    """

    rows: int
    token_seconds: float
    step_seconds: float

    def seconds(self, tokens: float, new_tokens: int) -> float:
        """Return the expected time for one row, in seconds: the time of a batch, divided by the number of its rows.

        Args:
            tokens: average number of tokens of a prompt.
            new_tokens: number of tokens to generate for each prompt.
        """
        return tokens * self.token_seconds + (new_tokens - 1) * self.step_seconds


class StepControl:
    """What glide does in each step of a call, beside the library's own options.

    Args:
        options: the options of the call's records.
        defaults: the model's generation configuration.
        seeds: the seed of each row.
        schema: processor that allows only texts that follow a JSON schema; None if there is no schema.
    """

    def __init__(self, options: TextOptions, defaults: Any, seeds: Sequence[int], schema: Processor | None):
        self.processors = processors(options, defaults, seeds, schema)
        self.logprobs = None if options.logprobs is None else TokenLogprobs(options.logprobs)
        self.stop = options.stop

    @contextmanager
    def arguments(self, model: Any, tokenizer: Any) -> Iterator[dict[str, Any]]:
        """Yield the arguments for the library's `generate`. Run `generate` in the `with` block."""
        found: dict[str, Any] = {}
        chain = [*([self.logprobs] if self.logprobs else []), *self.processors]
        if chain:
            found["logits_processor"] = chain
        if self.stop:
            found["stopping_criteria"] = [StopTexts(tokenizer, self.stop)]
        hook = model.register_forward_hook(self.logprobs.keep_logits) if self.logprobs else None
        try:
            yield found
        finally:
            if hook is not None:
                hook.remove()


class Padded:
    """Static batching with a loaded model.

    A row consists of the prefix, then the padding, then the rest of the prompt. The library computes positions from
    the attention mask, so padding takes no position.
    """

    def __init__(self, model: Any, encoder: Encoder, batch: int, batch_tokens: int):
        self.model = model
        self.tokenizer = encoder.tokenizer
        self.padding_token = encoder.padding_token(positions.vocabulary_size(model))
        self.batch = batch
        self.batch_tokens = batch_tokens
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self.sharing = RowSharing(dynamic_rope=positions.dynamic_rope(model))
        self.tolerance = tolerance(model)
        self.prefixes = PrefixCaches(model)
        # The measured speed of each batch size, beginning with the smallest size. Empty before the trial.
        self.speeds: list[BatchSpeed] = []

    @property
    def name(self) -> str:
        return self.sharing.rows.batching

    def plan(
        self, prompts: Sequence[Prompt], new_tokens: int, share_prefixes: bool, rows: RowRule, copies: int = 1
    ) -> list[list[Prompt]]:
        """Divide prompts with equal options into calls.

        Args:
            prompts: the prompts, in any order.
            new_tokens: number of tokens to generate for each prompt.
            share_prefixes: whether the options allow prompts to continue a cached prefix.
            rows: rule for the prompts of one call. It follows from the options, and allows only one prompt, prompts of
                equal length, or any prompts.
            copies: number of rows for each prompt.
        """
        sharing = self.sharing.limited_to(rows)
        families = [list(prompts)]
        if share_prefixes and self.prefixes.max_tokens:
            families = group_by_prefix(prompts, self.prefixes.cached, self.batch, self.prefixes.max_tokens)

        def may_share(first: Prompt, prompt: Prompt) -> bool:
            return sharing.allows(len(first.ids), len(prompt.ids), new_tokens)

        calls: list[list[Prompt]] = []
        for family in families:
            tokens = sum(len(prompt.ids) - len(prompt.prefix) for prompt in family) / len(family)
            batch = max(1, self._best_batch(tokens, new_tokens) // copies)
            calls += divide_into_calls(family, batch, self.batch_tokens // copies, may_share)
        return calls

    def _best_batch(self, tokens: float, new_tokens: int) -> int:
        """Return the number of rows with which a call serves prompts fastest.

        Large batches have less overhead in decoding. Small batches fit into a CPU's cache.

        Args:
            tokens: average number of tokens of a prompt, without its prefix.
            new_tokens: number of tokens to generate for each prompt.
        """
        best = min(self.speeds, key=lambda speed: speed.seconds(tokens, new_tokens), default=None)
        # If the trial's largest batch was fastest, larger batches may be even faster. So use the largest allowed batch.
        if best is None or (best == self.speeds[-1] and best.rows < self.batch):
            return self.batch
        enough = EQUAL_SPEED * best.seconds(tokens, new_tokens)
        return next(speed.rows for speed in self.speeds if speed.seconds(tokens, new_tokens) <= enough)

    def generate(
        self, prompts: Sequence[Prompt], generate: dict[str, Any], control: StepControl | None = None
    ) -> Generated:
        """Generate one text for each prompt.

        Args:
            prompts: the prompts, with equal options. A prompt may occur several times.
            generate: options of the library.
            control: further options, which the library does not know; None if there are none.
        """
        prefix = prompts[0].prefix
        # If `plan` made this call, all its prompts have the same prefix. Otherwise, use no cached prefix.
        if any(prompt.prefix != prefix for prompt in prompts):
            prefix = ()
        rows = [prompt.ids for prompt in prompts]
        # In the output of an encoder-decoder model, the text begins after one token, which starts the decoder.
        width = 1 if self.is_encoder_decoder else max(map(len, rows))
        if control is None:
            output, computed = self._generate(rows, prefix, generate)
            return Generated(output[:, width:].tolist(), reused_tokens=len(prefix) * (len(prompts) - computed))
        with control.arguments(self.model, self.tokenizer) as arguments:
            output, computed = self._generate(rows, prefix, {**generate, **arguments})
        ended = {row: end for stop in arguments.get("stopping_criteria", ()) for row, end in stop.ended.items()}
        steps = control.logprobs.finished(output[:, -1:]) if control.logprobs else []
        return Generated(output[:, width:].tolist(), len(prefix) * (len(prompts) - computed), ended, steps)

    def _generate(self, rows: Sequence[list[int]], prefix: Prefix, generate: dict[str, Any]) -> tuple[Any, bool]:
        """Return the output of the library's `generate`, and whether the prefix had to be computed for this call."""
        import torch

        width, prefix_length = max(map(len, rows)), len(prefix)
        # The padding comes after the prefix. An encoder has no prefix, and needs the padding at the end.
        padded = [(row[:prefix_length], [self.padding_token] * (width - len(row)), row[prefix_length:]) for row in rows]
        if self.is_encoder_decoder:
            padded = [(rest, padding, []) for _, padding, rest in padded]
        ids = [before + padding + after for before, padding, after in padded]
        mask = [[1] * len(before) + [0] * len(padding) + [1] * len(after) for before, padding, after in padded]
        options: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": False, **generate}
        computed = False
        if prefix:
            options["past_key_values"], computed = self.prefixes.cache_for(prefix, len(rows))
        if self.sharing.dynamic_rope is not None:
            positions.reset_dynamic_rope(self.model)
        device = self.model.device
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=torch.tensor(ids, device=device), attention_mask=torch.tensor(mask, device=device),
                pad_token_id=self.padding_token, tokenizer=self.tokenizer, **options,
            )  # fmt: skip
        return output, computed

    def probe_prefixes(self, rows: Sequence[list[int]]) -> str:
        """Compare the model's logits with and without a cached prefix, and disable prefixes if the logits differ.

        Args:
            rows: tokens of some prompts, one row for each prompt. The trial changes the first tokens of the rows, so
                that all rows have the same prefix.

        Returns:
            The reason why the model cannot use prefixes; empty if the model can use them.
        """
        prefix_length = min(map(len, rows)) // 2
        prefix = tuple(rows[0][:prefix_length])
        rows = [[*prefix, *row[prefix_length:]] for row in rows]
        try:
            why = self.prefixes.probe(prefix)
            if not why and not nearly_equal(self.first_logits(rows), self.first_logits(rows, prefix), self.tolerance):
                why = "its logits with a cached prefix differ from those without"
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        self.prefixes.cached.clear()
        if why:
            self.prefixes.max_tokens = 0
        return why

    def first_logits(self, rows: Sequence[list[int]], prefix: Prefix = ()) -> Any:
        """Return the logits of each row's first new token. In each row, the mean of the row's logits is subtracted."""
        return self.logits(rows, 1, prefix)[:, 0]

    def logits(self, rows: Sequence[list[int]], steps: int, prefix: Prefix = ()) -> Any:
        """Return the logits of the next tokens, minus their mean, as a tensor with the dimensions (row, step, token).

        The mean of the logits has no effect on a text, so the mean is subtracted.

        Args:
            rows: tokens of the prompts.
            steps: number of tokens to generate.
            prefix: first tokens that all rows take from the key-value cache. Empty: the full rows are computed.
        """
        import torch

        options = {"max_new_tokens": steps, "output_logits": True, "return_dict_in_generate": True}
        logits = torch.stack(self._generate(rows, prefix, options)[0].logits, dim=1).float()
        # Some models give extremely low logits to tokens that must not be chosen. Such logits would determine the mean
        # of the row's logits. So replace logits below -1000 by -1000.
        logits = logits.nan_to_num().clamp(-1e3, 1e3)
        return logits - logits.mean(dim=-1, keepdim=True)
