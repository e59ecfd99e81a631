"""Static batching: `generate` on padded rows, which go on from a shared prefix where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glide.server.engines.transformers import positions
from glide.server.engines.transformers.batching import Answer
from glide.server.engines.transformers.prefix import PrefixCaches, with_prefixes
from glide.server.engines.transformers.prompts import Encoder, Prompt, cut
from glide.server.engines.transformers.sharing import Rows, Sharing, alike, tolerance

NEARLY = 1.05  # of two batches as fast as can be measured the smaller is taken: its results come sooner
Prefix = tuple[int, ...]


@dataclass(frozen=True)
class Pace:
    """How fast batches of so many rows are: seconds of prefill a prompt token, and of a decoding step a row."""

    rows: int
    token_seconds: float
    step_seconds: float

    def seconds(self, tokens: float, new: int) -> float:
        """What a prompt of so many tokens takes to which `new` are added."""
        return tokens * self.token_seconds + (new - 1) * self.step_seconds


class Padded:
    """Rows are [prefix][padding][rest]: positions come from the mask, so padding counts for nothing."""

    def __init__(self, model: Any, encoder: Encoder, batch: int, batch_tokens: int):
        self.model = model
        self.tokenizer = encoder.tokenizer
        self.padding = encoder.padding(positions.known_tokens(model))
        self.batch = batch
        self.batch_tokens = batch_tokens
        self.sharing = Sharing(stretch=positions.stretch(model))
        self.tolerance = tolerance(model)
        self.prefixes = PrefixCaches(model)
        self.paces: list[Pace] = []  # as measured; without, the largest batch is taken for the best

    @property
    def name(self) -> str:
        return self.sharing.rows.batching

    def plan(self, prompts: Sequence[Prompt], new: int, shares: bool, rows: Rows) -> list[list[Prompt]]:
        """Calls for prompts with equal options.

        Args:
            new: tokens to generate.
            shares: whether they may go on from a shared prefix.
            rows: which the options allow in one call.
        """
        sharing = self.sharing.limited(rows)
        families = [list(prompts)]
        if shares and self.prefixes.longest:
            families = with_prefixes(prompts, self.prefixes.kept, self.batch, self.prefixes.longest)

        def mixes(first: Prompt, prompt: Prompt) -> bool:
            return sharing.allows(len(first.ids), len(prompt.ids), new)

        calls: list[list[Prompt]] = []
        for family in families:
            tokens = sum(len(prompt.ids) - len(prompt.prefix) for prompt in family) / len(family)
            calls += cut(family, self._rows(tokens, new), self.batch_tokens, mixes)
        return calls

    def _rows(self, tokens: float, new: int) -> int:
        """The best batch for such prompts: large ones decode with less overhead, small ones stay in a CPU's cache."""
        best = min(self.paces, key=lambda pace: pace.seconds(tokens, new), default=None)
        if best is None or (best == self.paces[-1] and best.rows < self.batch):  # there was no time to try larger ones
            return self.batch
        enough = NEARLY * best.seconds(tokens, new)
        return next(pace.rows for pace in self.paces if pace.seconds(tokens, new) <= enough)

    def generate(self, prompts: Sequence[Prompt], generate: dict[str, Any]) -> Answer:
        prefix = prompts[0].prefix
        if any(prompt.prefix != prefix for prompt in prompts):  # halves of a plan that failed, put together
            prefix = ()
        output, fresh = self._generate([prompt.ids for prompt in prompts], prefix, generate)
        width = max(len(prompt.ids) for prompt in prompts)
        return Answer(output[:, width:].tolist(), reused=len(prefix) * (len(prompts) - fresh))

    def _generate(self, rows: Sequence[list[int]], prefix: Prefix, generate: dict[str, Any]) -> tuple[Any, bool]:
        """What `generate` returns, and whether the prefix had to be computed."""
        import torch

        width, shared = max(map(len, rows)), len(prefix)
        ids = [row[:shared] + [self.padding] * (width - len(row)) + row[shared:] for row in rows]
        mask = [[1] * shared + [0] * (width - len(row)) + [1] * (len(row) - shared) for row in rows]
        options: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": False, **generate}
        fresh = False
        if prefix:
            options["past_key_values"], fresh = self.prefixes.take(prefix, len(rows))
        if self.sharing.stretch is not None:
            positions.forget(self.model)
        device = self.model.device
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=torch.tensor(ids, device=device), attention_mask=torch.tensor(mask, device=device),
                pad_token_id=self.padding, tokenizer=self.tokenizer, **options,
            )  # fmt: skip
        return output, fresh

    def probe(self, rows: Sequence[list[int]]) -> str:
        """Try rows with a shared beginning both ways; why this model has to do without prefixes, or nothing."""
        shared = min(map(len, rows)) // 2
        prefix = tuple(rows[0][:shared])
        rows = [[*prefix, *row[shared:]] for row in rows]
        try:
            why = self.prefixes.probe(prefix)
            if not why and not alike(self.first_logits(rows), self.first_logits(rows, prefix), self.tolerance):
                why = "it goes on from a prefix otherwise than from the whole prompt"
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        self.prefixes.kept.clear()
        if why:
            self.prefixes.longest = 0
        return why

    def first_logits(self, rows: Sequence[list[int]], prefix: Prefix = ()) -> Any:
        """Logits of the token after each row, about their mean."""
        return self.logits(rows, 1, prefix)[:, 0]

    def logits(self, rows: Sequence[list[int]], steps: int, prefix: Prefix = ()) -> Any:
        """Logits of the next tokens, as (row, step, token), about their mean: what all have in common says nothing."""
        import torch

        options = {"max_new_tokens": steps, "output_logits": True, "return_dict_in_generate": True}
        logits = torch.stack(self._generate(rows, prefix, options)[0].logits, dim=1).float()
        logits = logits.nan_to_num().clamp(-1e3, 1e3)  # tokens that a model excludes have the lowest number there is
        return logits - logits.mean(dim=-1, keepdim=True)
