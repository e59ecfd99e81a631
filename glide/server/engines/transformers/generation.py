"""The task `generate`: a causal language model goes on from each prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from glide.server.engines import Completion, Record, WrongOption
from glide.server.engines.transformers import choice, last_layer, positions
from glide.server.engines.transformers.batching import Answer, Batching, Defaults, until
from glide.server.engines.transformers.continuous import Continuous, NotServed
from glide.server.engines.transformers.options import TOKENS, as_called
from glide.server.engines.transformers.padded import Padded
from glide.server.engines.transformers.prompts import Encoder, Prompt, check
from glide.server.engines.transformers.sharing import LONGEST, Rows, try_rows
from glide.server.engines.transformers.stops import Stops

CALLS = 4  # batches that make a call of continuous batching, which runs dry only at a call's end
WORDS = "the claim is that rivers flow north and nobody has seen any evidence for it since then".split()


class Generation:
    """Greedy text equals plain transformers': a call has only rows that do not change each other's texts."""

    def __init__(self, model: Any, encoder: Encoder, batching: str, batch: int, batch_tokens: int):
        self.encoder = encoder
        self.batch = batch
        self.context = positions.context_tokens(model)
        self.known = positions.known_tokens(model)
        self.defaults = Defaults(model.generation_config, self.context)
        self.stops = Stops(encoder.tokenizer)
        self.padded = Padded(model, encoder, batch, batch_tokens)
        self.continuous: Continuous | None = None
        self.prompt_tokens = self.reused = 0
        with _without_defaults(model):
            self._warm_up(model, batching, 2 * batch_tokens)

    def _warm_up(self, model: Any, batching: str, tokens: int) -> None:
        """Choose: by trying, if that is left to us. `tokens` are how many continuous batching may hold."""
        steps = choice.GENERATE["max_new_tokens"]
        room = max(1, min(self.context, self.padded.sharing.anywhere) - steps)
        tried = [prompt.ids[: min(room, LONGEST)] for prompt in self._encoded(range(3))]
        rows, why = try_rows(lambda rows: self.padded.logits(rows, steps), tried, self.padded.tolerance)
        self.padded.sharing = self.padded.sharing.limited(rows)
        if why:
            print(f"transformers engine: static batching with {rows.company}: {why}", flush=True)
        prompts, others = self._warm_prompts(0, room), self._warm_prompts(self.batch, room)
        some = [prompt.ids for prompt in prompts[:4]]
        first = some if rows != Rows.SINGLE else some[:1]
        if why := last_layer.spare(model, lambda: self.padded.first_logits(first), self.padded.tolerance):
            print(f"transformers engine: the last layer of this model is computed in full: {why}", flush=True)
        trial = choice.try_static(self.padded, prompts if rows != Rows.SINGLE else prompts[:1])
        self.padded.paces = trial.paces
        if why := self.padded.probe(some) if rows == Rows.ANY else "its prompts can't be padded":
            print(f"transformers engine: no shared prefixes with this model: {why}", flush=True)
        ends = self.defaults.ends({})

        def start() -> Continuous:
            if self.defaults.set:
                raise ValueError(f"the model's own defaults set {', '.join(sorted(self.defaults.set))}")
            return Continuous(model, ends, tokens)

        if batching == "continuous":
            self.continuous = start()
        elif batching == "auto":
            self.continuous, reason = choice.choose(trial, start, prompts, others, ends)
            print(f"transformers engine: {self.usual.name} batching, as {reason}", flush=True)

    def _encoded(self, numbers: range) -> list[Prompt]:
        texts = [" ".join(WORDS[(n + i * (1 + n // len(WORDS))) % len(WORDS)] for i in range(40)) for n in numbers]
        return self.encoder.encode([Record(-1, f"{n} {text}") for n, text in zip(numbers, texts, strict=True)])

    def _warm_prompts(self, first: int, room: int) -> list[Prompt]:
        """A batch of prompts that differ from their first token on, of about one length, as calls are sorted by it."""
        spread = 4 if self.padded.sharing.rows == Rows.ANY else 1
        prompts = self._encoded(range(first, first + self.batch))
        return [Prompt(prompt.record, prompt.ids[: min(room, 40 + n % spread)]) for n, prompt in enumerate(prompts)]

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
            generate = as_called(group[0].record.generate)
            continued: list[Prompt] = []
            rest: list[Prompt] = []
            for prompt in group:
                (continued if self._continues([prompt], generate) else rest).append(prompt)
            continued.sort(key=lambda prompt: prompt.ids)  # a page is shared before it is given up
            size = CALLS * self.batch
            calls += [continued[start : start + size] for start in range(0, len(continued), size)]
            if rest:
                shares = self.defaults.next_token_only(generate)
                calls += self.padded.plan(rest, self.defaults.new(generate), shares, self.defaults.rows(generate))
        return calls

    def serve(self, prompts: Sequence[Prompt]) -> list[Completion]:
        generate = as_called(prompts[0].record.generate)
        self._check_tokens(generate)
        check(prompts, lambda length: self.defaults.tokens(length, generate), self.context, self.known)
        answer = self._continued(prompts, generate) or self.padded.generate(prompts, generate)
        self.prompt_tokens += sum(len(prompt.ids) for prompt in prompts)
        self.reused += answer.reused
        each = len(answer.rows) // len(prompts)
        rows = [self._ended(prompts[n // each], row, generate) for n, row in enumerate(answer.rows)]
        texts = self.encoder.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [
            Completion(texts[n], len(rows[n]), _choices(texts[n : n + each]) if each > 1 else {})
            for n in range(0, len(rows), each)
        ]

    def _check_tokens(self, generate: dict[str, Any]) -> None:
        for name in TOKENS & generate.keys():
            value = generate[name]
            tokens = value if isinstance(value, list) else [value]
            if any(token is not None and token >= self.known for token in tokens):
                raise WrongOption(name, f"the model has no token {value}, but {self.known} from 0 on")

    def _ended(self, prompt: Prompt, row: list[int], generate: dict[str, Any]) -> list[int]:
        """Return a row up to where it ended, without what it was filled up with."""
        strings = self.defaults.value("stop_strings", generate)
        stopped = self.stops.until(prompt.ids, row, strings) if strings else row
        return until(stopped, self.defaults.ends(generate))

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
        longest = max(len(prompt.ids) for prompt in prompts) + int(generate["max_new_tokens"])
        return longest <= min(self.continuous.tokens, self.padded.sharing.anywhere)

    def describe(self) -> dict[str, Any]:
        hits = self.reused / self.prompt_tokens if self.prompt_tokens else 0.0
        return {"batching": self.usual.name, "prefix_hits": hits}


def _choices(texts: Sequence[str]) -> dict[str, Any]:
    return {"choices": [{"index": index, "text": text} for index, text in enumerate(texts)]}


@contextmanager
def _without_defaults(model: Any) -> Iterator[None]:
    """Warm up without a model's own generation defaults: stop strings, beams or guesses have nothing to do with it."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    model.generation_config.update(use_cache=own.use_cache, cache_implementation=own.cache_implementation)
    try:
        yield
    finally:
        model.generation_config = own
