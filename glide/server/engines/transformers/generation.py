"""The task `generate`: a causal language model goes on from each prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from glide.server.engines import Completion, Record
from glide.server.engines.transformers import choice, last_layer
from glide.server.engines.transformers.batching import Answer, Batching, Defaults, new_tokens, until
from glide.server.engines.transformers.continuous import Continuous, NotServed
from glide.server.engines.transformers.padded import Padded
from glide.server.engines.transformers.prompts import Encoder, Prompt, check

CALLS = 4  # batches that make a call of continuous batching, which runs dry only at a call's end
WORDS = "the claim is that rivers flow north and nobody has seen any evidence for it since then".split()


class Generation:
    """Greedy text equals plain transformers': padding is masked out, and positions do not count it."""

    def __init__(self, model: Any, encoder: Encoder, batching: str, batch: int, batch_tokens: int):
        self.encoder = encoder
        self.batch = batch
        self.context = getattr(model.config, "max_position_embeddings", None) or 1 << 30
        config = model.generation_config
        ends = config.eos_token_id if config.eos_token_id is not None else encoder.tokenizer.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends]) - {None}
        self.defaults = Defaults(config)
        self.padded = Padded(model, encoder.padding, batch, batch_tokens)
        self.continuous: Continuous | None = None
        self.prompt_tokens = self.reused = 0
        self._warm_up(model, batching, 2 * batch_tokens)

    def _warm_up(self, model: Any, batching: str, tokens: int) -> None:
        """Choose: by trying, if that is left to us. `tokens` are how many continuous batching may hold."""
        prompts, others = self._warm_prompts(0), self._warm_prompts(self.batch)
        some = [prompt.ids for prompt in prompts[:4]]
        if why := last_layer.spare(model, lambda: self.padded.first_logits(some)):
            print(f"transformers engine: the last layer of this model is computed in full: {why}", flush=True)
        trial = choice.try_static(self.padded, prompts)
        self.padded.paces = trial.paces
        if why := self.padded.probe(some):
            print(f"transformers engine: no shared prefixes with this model: {why}", flush=True)

        def start() -> Continuous:
            if self.defaults.set:
                raise ValueError(f"the model's own defaults set {', '.join(sorted(self.defaults.set))}")
            return Continuous(model, self.ends, tokens)

        if batching == "continuous":
            self.continuous = start()
        elif batching == "auto":
            self.continuous, reason = choice.choose(trial, start, prompts, others, self.ends)
            print(f"transformers engine: {self.usual.name} batching, as {reason}", flush=True)

    def _warm_prompts(self, first: int) -> list[Prompt]:
        """A batch of prompts that differ from their first token on, of about one length, as calls are sorted by it."""
        numbers = range(first, first + self.batch)
        texts = [" ".join(WORDS[(n + i * (1 + n // len(WORDS))) % len(WORDS)] for i in range(40)) for n in numbers]
        prompts = self.encoder.encode([Record(-1, f"{n} {text}") for n, text in zip(numbers, texts, strict=True)])
        room = max(1, self.context - choice.GENERATE["max_new_tokens"])
        return [Prompt(prompt.record, prompt.ids[: min(room, 40 + n % 4)]) for n, prompt in enumerate(prompts)]

    @property
    def usual(self) -> Batching:
        """How calls are batched whose options leave the choice."""
        return self.continuous or self.padded

    def plan(self, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
        """Calls of equal options; those of static batching also of one prefix."""
        groups: dict[str, list[Prompt]] = {}
        for prompt in prompts:
            groups.setdefault(json.dumps(prompt.record.generate, sort_keys=True), []).append(prompt)
        calls: list[list[Prompt]] = []
        for group in groups.values():
            generate = group[0].record.generate
            continued: list[Prompt] = []
            rest: list[Prompt] = []
            for prompt in group:
                (continued if self._continues([prompt], generate) else rest).append(prompt)
            continued.sort(key=lambda prompt: prompt.ids)  # a page is shared before it is given up
            size = CALLS * self.batch
            calls += [continued[start : start + size] for start in range(0, len(continued), size)]
            if rest:
                shares, pads = self.defaults.next_token_only(generate), not self.defaults.sees_padding(generate)
                calls += self.padded.plan(rest, new_tokens(generate), shares, pads)
        return calls

    def serve(self, prompts: Sequence[Prompt]) -> list[Completion]:
        generate = prompts[0].record.generate
        check(prompts, new_tokens(generate), self.context)
        answer = self._continued(prompts, generate) or self.padded.generate(prompts, generate)
        self.prompt_tokens += sum(len(prompt.ids) for prompt in prompts)
        self.reused += answer.reused
        ends = generate.get("eos_token_id", self.ends)
        ends = {ends} if isinstance(ends, int) else set(ends)
        rows = [until(row, ends) for row in answer.rows]
        texts = self.encoder.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [Completion(text, len(row)) for text, row in zip(texts, rows, strict=True)]

    def _continued(self, prompts: Sequence[Prompt], generate: dict[str, Any]) -> Answer | None:
        """Continuous batching's answer, where it has one."""
        if not self._continues(prompts, generate) or self.continuous is None:
            return None
        try:
            return self.continuous.generate(prompts, generate)
        except NotServed as error:
            print(f"transformers engine: static batching for a call that continuous failed: {error}", flush=True)
            return None

    def _continues(self, prompts: Sequence[Prompt], generate: dict[str, Any]) -> bool:
        if self.continuous and (why := self.continuous.ended()):
            print(f"transformers engine: static batching from now on, as continuous batching ended: {why}", flush=True)
            self.continuous = None
        if self.continuous is None or not self.defaults.greedy(generate) or not all(prompt.ids for prompt in prompts):
            return False
        return self.continuous.holds(prompts, generate["max_new_tokens"])

    def describe(self) -> dict[str, Any]:
        hits = self.reused / self.prompt_tokens if self.prompt_tokens else 0.0
        return {"batching": self.usual.name, "prefix_hits": hits}
