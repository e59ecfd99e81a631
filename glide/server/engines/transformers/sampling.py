"""Choose the next token of each row: penalties, JSON schemas, sampling, and log probabilities.

The library's `generate` decodes greedily: in each step it chooses the token with the highest score. Most classes in
this module are logits processors. They change the scores before `generate` chooses the token. A sampled token is the
token with the highest sum of log probability and Gumbel noise, which is the same as a random draw. The noise depends
only on the row's seed, the step and the token. So a text is the same in every call and on every node.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

from glide.server.engines.transformers.options import TextOptions

# A logits processor: a function of the rows' tokens so far and the scores of the next token. It returns new scores.
Processor = Callable[[Any, Any], Any]


def processors(options: TextOptions, defaults: Any, seeds: Sequence[int], schema: Processor | None) -> list[Processor]:
    """Return the processors that the options ask for, in the order in which they run.

    Args:
        options: the options of the call's records.
        defaults: the model's generation configuration. If an option of sampling is not set, its value there is used.
        seeds: the seed of each row, as `row_seed` returns it.
        schema: processor that allows only texts that follow the JSON schema; None if there is no schema.
    """
    found: list[Processor] = []
    if options.frequency_penalty or options.presence_penalty:
        found.append(Penalties(options.frequency_penalty, options.presence_penalty))
    if schema is not None:
        found.append(schema)
    if options.sampling is not None:
        found += _warpers(options.sampling, defaults, options.usual_top_k)
        found.append(GumbelNoise(seeds))
    return found


def _warpers(given: dict[str, Any], defaults: Any, usual_top_k: int) -> list[Processor]:
    """Return the library's processors for sampling, in the library's order."""
    import transformers as library

    def value(name: str, off: Any) -> Any:
        own = getattr(defaults, name, None)
        # Use the value in `given`. If `given` has no value, use the model's own value.
        found = given.get(name) if given.get(name) is not None else own
        return off if found is None else found

    found: list[Processor] = []
    if value("temperature", 1.0) != 1.0:
        found.append(library.TemperatureLogitsWarper(float(value("temperature", 1.0))))
    if value("top_h", None) is not None:
        found.append(library.TopHLogitsWarper(value("top_h", None)))
    if value("top_k", usual_top_k) > 0:
        found.append(library.TopKLogitsWarper(value("top_k", usual_top_k)))
    if value("top_p", 1.0) < 1.0:
        found.append(library.TopPLogitsWarper(value("top_p", 1.0)))
    if value("min_p", 0.0) > 0.0:
        found.append(library.MinPLogitsWarper(value("min_p", 0.0)))
    if value("typical_p", 1.0) < 1.0:
        found.append(library.TypicalLogitsWarper(value("typical_p", 1.0)))
    if 0.0 < value("epsilon_cutoff", 0.0) < 1.0:
        found.append(library.EpsilonLogitsWarper(value("epsilon_cutoff", 0.0)))
    if 0.0 < value("eta_cutoff", 0.0) < 1.0:
        found.append(library.EtaLogitsWarper(value("eta_cutoff", 0.0)))
    return found


def row_seed(seed: int | None, prompt: Sequence[int], choice: int) -> int:
    """Return the seed of a row, a signed number of 64 bits.

    Args:
        seed: the seed in the record's options; None for a random seed.
        prompt: tokens of the prompt. If two prompts differ, their rows get different seeds, even if both records have
            the same seed in their options.
        choice: number of the text among the texts of the prompt, counted from 0. Each text gets a different seed.
    """
    content = os.urandom(8)
    if seed is not None:
        content = hashlib.sha256(f"{seed} {choice} {' '.join(map(str, prompt))}".encode()).digest()[:8]
    return int.from_bytes(content, "big", signed=True)


class Penalties:
    """Lowers the scores of tokens that the generated text already contains. The prompt's tokens do not count."""

    def __init__(self, frequency: float, presence: float):
        self.frequency = frequency
        self.presence = presence
        self.start: int | None = None  # number of columns of the prompts, padding included

    def __call__(self, ids: Any, scores: Any) -> Any:
        import torch

        if self.start is None:
            self.start = ids.shape[1]
        text = ids[:, self.start :]
        counts = torch.zeros_like(scores).scatter_add_(1, text, torch.ones_like(text, dtype=scores.dtype))
        return scores - self.frequency * counts - self.presence * (counts > 0)


class GumbelNoise:
    """Adds Gumbel noise to the scores. The token with the highest sum is then a random draw of the distribution."""

    # The multipliers of the hash function splitmix64, and the step between its inputs, as signed numbers of 64 bits.
    FIRST, SECOND, STEP = -4658895280553007687, -7723592293110705685, -7046029254386353131

    def __init__(self, seeds: Sequence[int]):
        self.seeds = seeds
        self.step = 0

    def __call__(self, ids: Any, scores: Any) -> Any:
        import torch

        self.step += 1
        rows = torch.tensor(self.seeds, dtype=torch.int64, device=scores.device)[:, None]
        steps = torch.full_like(rows, self.step) * self.STEP  # in tensors, products wrap around at 64 bits
        tokens = torch.arange(1, scores.shape[1] + 1, dtype=torch.int64, device=scores.device)[None, :] * self.STEP
        bits = self._hash(self._hash(rows + steps) + tokens)
        # Each value in `uniform` is (r + 0.5) / 2^23. Here, r is a random whole number from 0 to 2^23 - 1. A float32
        # can hold the exact value. So the value is never rounded to 0 or 1.
        uniform = (((bits >> 41) & ((1 << 23) - 1)).float() + 0.5) / (1 << 23)
        return scores.float() - (-uniform.log()).log()

    def _hash(self, x: Any) -> Any:
        x = (x ^ self._shifted(x, 30)) * self.FIRST
        x = (x ^ self._shifted(x, 27)) * self.SECOND
        return x ^ self._shifted(x, 31)

    @staticmethod
    def _shifted(x: Any, bits: int) -> Any:
        """Shift a number to the right. The new bits on the left are 0, as in numbers without a sign."""
        return (x >> bits) & ((1 << (64 - bits)) - 1)


class StopTexts:
    """A stopping criterion: a row ends as soon as its generated text contains one of the texts of `stop`.

    Attributes:
        ended: a dict from the index of a row to the number of generated tokens in the row, without padding. The dict
            has only rows that have ended.
    """

    # In each step, the last tokens of each row are decoded: one token for each character of the longest text of `stop`,
    # and this number of further tokens. The reason is that some tokens have no text, or only a part of a character.
    SPARE_TOKENS = 8

    def __init__(self, tokenizer: Any, texts: Sequence[str]):
        self.tokenizer = tokenizer
        self.texts = texts
        self.window = max(map(len, texts)) + self.SPARE_TOKENS
        self.start: int | None = None
        self.ended: dict[int, int] = {}

    def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        if self.start is None:
            self.start = ids.shape[1] - 1
        tail = ids[:, max(self.start, ids.shape[1] - self.window) :]
        for row, text in enumerate(self.tokenizer.batch_decode(tail, skip_special_tokens=True)):
            if row not in self.ended and any(stop in text for stop in self.texts):
                self.ended[row] = ids.shape[1] - self.start
        return torch.tensor([row in self.ended for row in range(len(ids))], device=ids.device)


class TokenLogprobs:
    """Collects the log probabilities of the chosen tokens and of the most probable tokens, in each step.

    The log probabilities are the log-softmax of the model's logits, before penalties and sampling. Use the object as a
    processor of a call, and make `keep_logits` a forward hook of the model during the call.

    Attributes:
        steps: for each step, a pair of tensors: token numbers and log probabilities, each with the dimensions (row,
            alternative). The first alternative is the chosen token.
    """

    def __init__(self, alternatives: int):
        self.alternatives = alternatives
        self.steps: list[tuple[Any, Any]] = []
        self.logits: Any = None  # logits of the model's last forward pass
        self.before: Any = None  # log probabilities of the previous step

    def __call__(self, ids: Any, scores: Any) -> Any:
        self._record(ids[:, -1:])
        self.before = self.logits.float().log_softmax(-1)
        return scores

    def finished(self, last: Any) -> list[tuple[Any, Any]]:
        """Record the last step, and return all steps.

        Args:
            last: the last token of each row, with the dimensions (row, 1).
        """
        self._record(last)
        return self.steps

    def _record(self, chosen: Any) -> None:
        if self.before is None:
            return
        import torch

        values, tokens = self.before.topk(min(self.alternatives, self.before.shape[-1]), dim=-1)
        own = self.before.gather(1, chosen)
        self.steps.append((torch.cat([chosen, tokens], 1).cpu(), torch.cat([own, values], 1).cpu()))

    def keep_logits(self, module: Any, arguments: Any, output: Any) -> None:
        """Keep the logits of the last position. The model calls this function after each forward pass (a hook)."""
        self.logits = output.logits[:, -1]
