"""The task `generate`, in which a causal language model continues each prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from glide.server.engines.base import Completion, EngineRecord, WrongOption
from glide.server.engines.transformers import choice, last_layer, positions
from glide.server.engines.transformers.batching import Batching, Defaults, Generated
from glide.server.engines.transformers.choices import Text, completion, token_logprobs
from glide.server.engines.transformers.continuous import Continuous, NotServed
from glide.server.engines.transformers.heads import Embedding
from glide.server.engines.transformers.options import TOKENS, TextOptions, translated
from glide.server.engines.transformers.padded import Padded, StepControl
from glide.server.engines.transformers.prompts import Encoder, Prompt, check_prompts, truncated
from glide.server.engines.transformers.sampling import row_seed
from glide.server.engines.transformers.schema import SchemaMasks
from glide.server.engines.transformers.sharing import LONGEST, RowRule, try_rows
from glide.server.engines.transformers.stops import StopStrings

# A call of continuous batching has at most `CONTINUOUS_BATCHES * batch` prompts. `batch` is an option of the engine. At
# the end of a call, some places in the batch stay empty. So one long call is more efficient than several short calls.
CONTINUOUS_BATCHES = 4
WORDS = "the claim is that rivers flow north and nobody has seen any evidence for it since then".split()


class Generation:
    """Text generation with a loaded model.

    The text that is generated for a prompt does not depend on the other prompts in the call. So greedy decoding gives
    the same texts as plain transformers.

    Args:
        model: the loaded model.
        encoder: encoder that turns records into prompts.
        batching, batch, batch_tokens: options of the engine.
    """

    def __init__(self, model: Any, encoder: Encoder, batching: str, batch: int, batch_tokens: int):
        self.encoder = encoder
        self.batch = batch
        self.context = positions.context_tokens(model)
        self.vocabulary_size = positions.vocabulary_size(model)
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self.defaults = Defaults(model.generation_config, self.context, self.is_encoder_decoder)
        self.stops = StopStrings(encoder.tokenizer)
        self.schemas = SchemaMasks(encoder.tokenizer, self.vocabulary_size)
        self.embedding = Embedding(
            model.get_encoder() if self.is_encoder_decoder else model.base_model, encoder, batch, batch_tokens
        )
        self.embedding_is_warm = False
        self.padded = Padded(model, encoder, batch, batch_tokens)
        self.continuous: Continuous | None = None
        self.prompt_tokens = self.reused_tokens = 0
        with _without_defaults(model):
            self._warm_up(model, batching, 2 * batch_tokens)

    def _warm_up(self, model: Any, batching: str, tokens: int) -> None:
        """Find out with trials what this model supports, and choose static or continuous batching.

        Args:
            model: the loaded model.
            batching: the engine's option `batching`.
            tokens: number of tokens that the cache of continuous batching may hold.
        """
        steps = choice.GENERATE["max_new_tokens"]
        max_prompt = max(1, min(self.context, self.padded.sharing.unrestricted_tokens) - steps)
        rows_tried = [prompt.ids[: min(max_prompt, LONGEST)] for prompt in self._numbered_prompts(range(3))]
        rows, why = try_rows(lambda rows: self.padded.logits(rows, steps), rows_tried, self.padded.tolerance)
        self.padded.sharing = self.padded.sharing.limited_to(rows)
        if why:
            print(f"transformers engine: static batches have {rows.description}: {why}", flush=True)
        prompts, fresh_prompts = self._warm_prompts(0, max_prompt), self._warm_prompts(self.batch, max_prompt)
        prompt_ids = [prompt.ids for prompt in prompts[:4]]
        first = prompt_ids if rows != RowRule.SINGLE else prompt_ids[:1]
        if why := last_layer.skip_last_mlp(model, lambda: self.padded.first_logits(first), self.padded.tolerance):
            print(f"transformers engine: the last layer of this model is computed for all positions: {why}", flush=True)
        trial = choice.try_static(self.padded, prompts if rows != RowRule.SINGLE else prompts[:1])
        self.padded.speeds = trial.speeds
        if why := self.padded.probe_prefixes(prompt_ids) if rows == RowRule.ANY else "its prompts cannot be padded":
            print(f"transformers engine: no shared prefixes with this model: {why}", flush=True)
        end_tokens = self.defaults.end_tokens({})

        def start() -> Continuous:
            if self.defaults.effective:
                raise ValueError(f"the model has generation defaults for {', '.join(sorted(self.defaults.effective))}")
            return Continuous(model, end_tokens, tokens)

        if batching == "continuous":
            self.continuous = start()
        elif batching == "auto":
            self.continuous, reason = choice.choose_batching(trial, start, prompts, fresh_prompts, end_tokens)
            print(f"transformers engine: {self.default_batching.name} batching: {reason}", flush=True)

    def _numbered_prompts(self, numbers: range) -> list[Prompt]:
        texts = [" ".join(WORDS[(n + i * (1 + n // len(WORDS))) % len(WORDS)] for i in range(40)) for n in numbers]
        return self.encoder.encode([EngineRecord(-1, f"{n} {text}") for n, text in zip(numbers, texts, strict=True)])

    def _warm_prompts(self, first: int, max_prompt: int) -> list[Prompt]:
        """Return a batch of prompts whose beginnings differ from each other.

        The prompts have nearly the same length, as in a real call, because `plan` sorts prompts by length.

        Args:
            first: a number. The text of the first prompt begins with this number. The text of each further prompt
                begins with the next higher number.
            max_prompt: maximum number of tokens of a prompt.
        """
        spread = 4 if self.padded.sharing.rows == RowRule.ANY else 1
        prompts = self._numbered_prompts(range(first, first + self.batch))
        return [
            Prompt(prompt.record, prompt.ids[: min(max_prompt, 40 + n % spread)]) for n, prompt in enumerate(prompts)
        ]

    @property
    def default_batching(self) -> Batching:
        """The batching for calls that static batching and continuous batching can both serve.

        If continuous batching runs, return continuous batching. Otherwise, return static batching.
        """
        return self.continuous or self.padded

    def plan(self, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
        """Divide prompts into calls. A call's prompts have equal options and, in static batching, the same prefix."""
        groups: dict[str, list[Prompt]] = {}
        for prompt in prompts:
            groups.setdefault(_group(prompt), []).append(prompt)
        calls: list[list[Prompt]] = []
        for group in groups.values():
            try:
                options = translated(group[0].record.generate)
            except WrongOption:
                # The error is not lost: `serve` raises the error again for each of these prompts.
                calls += [[prompt] for prompt in group]
                continue
            group = [self._truncated_prompt(prompt, options) for prompt in group]
            if group[0].record.task == "embed":
                calls += self._embedding().plan(group)
            else:
                calls += self._plan_texts(group, options)
        return calls

    def _plan_texts(self, group: Sequence[Prompt], options: TextOptions) -> list[list[Prompt]]:
        continuous_prompts: list[Prompt] = []
        static_prompts: list[Prompt] = []
        for prompt in group:
            (continuous_prompts if self._uses_continuous([prompt], options) else static_prompts).append(prompt)
        # Sort the prompts, so that prompts with equal beginnings follow each other and share pages in the cache.
        continuous_prompts.sort(key=lambda prompt: prompt.ids)
        size = CONTINUOUS_BATCHES * self.batch
        calls = [continuous_prompts[start : start + size] for start in range(0, len(continuous_prompts), size)]
        if static_prompts:
            generate = options.library
            calls += self.padded.plan(
                static_prompts, self.defaults.new_tokens(generate), self.defaults.allows_prefix(generate),
                self.defaults.row_rule(generate), options.copies,
            )  # fmt: skip
        return calls

    def serve(self, prompts: Sequence[Prompt]) -> list[Completion]:
        options = translated(prompts[0].record.generate)
        prompts = [self._truncated_prompt(prompt, options) for prompt in prompts]
        if prompts[0].record.task == "embed":
            return self._embedding().serve(prompts)
        generate = options.library
        self._check_tokens(generate)
        check_prompts(
            prompts, lambda length: self.defaults.total_tokens(length, generate), self.context, self.vocabulary_size
        )
        generated = self._serve_continuous(prompts, options) or self._serve_static(prompts, options)
        self.prompt_tokens += sum(len(prompt.ids) for prompt in prompts)
        self.reused_tokens += generated.reused_tokens
        each = len(generated.rows) // len(prompts)
        texts = [self._text(prompts[n // each], n, generated, options) for n in range(len(generated.rows))]
        return [completion(prompt, texts[n * each : (n + 1) * each]) for n, prompt in enumerate(prompts)]

    def _embedding(self) -> Embedding:
        if not self.embedding_is_warm:
            self.embedding.warm_up()
            self.embedding_is_warm = True
        return self.embedding

    def _serve_static(self, prompts: Sequence[Prompt], options: TextOptions) -> Generated:
        rows = [prompt for prompt in prompts for _ in range(options.copies)]
        seeds = [
            row_seed(prompt.record.generate.get("seed"), prompt.ids, choice)
            for prompt in prompts
            for choice in range(options.copies)
        ]
        ends = self.defaults.end_tokens(options.library)
        schema = self.schemas.processor(options.schema, len(rows), ends) if options.schema is not None else None
        return self.padded.generate(rows, options.library, StepControl(options, self.defaults.config, seeds, schema))

    def _truncated_prompt(self, prompt: Prompt, options: TextOptions) -> Prompt:
        alone = prompt.record.task == "embed" or self.is_encoder_decoder
        new_tokens = 0 if alone else self.defaults.total_tokens(0, options.library)
        return truncated(prompt, self.context - new_tokens, options.truncate, self.encoder.tokenizer.bos_token_id)

    def _text(self, prompt: Prompt, number: int, generated: Generated, options: TextOptions) -> Text:
        """Return one of the texts that a call generated."""
        row, ended = self._without_padding(prompt, generated.rows[number], generated.ended.get(number), options.library)
        text = self.encoder.tokenizer.decode(row, skip_special_tokens=True)
        ends = [place for place in map(text.find, options.stop) if place >= 0]
        logprobs = token_logprobs(self.encoder.tokenizer, generated.logprobs, number, len(row))
        return Text(text[: min(ends, default=len(text))], len(row), "stop" if ended else "length", logprobs)

    def _check_tokens(self, generate: dict[str, Any]) -> None:
        for name in TOKENS & generate.keys():
            value = generate[name]
            tokens = value if isinstance(value, list) else [value]
            if any(token is not None and token >= self.vocabulary_size for token in tokens):
                raise WrongOption(name, f"no token {value} in the model; it has tokens 0 to {self.vocabulary_size - 1}")

    def _without_padding(
        self, prompt: Prompt, row: list[int], end: int | None, generate: dict[str, Any]
    ) -> tuple[list[int], bool]:
        """Return a row up to its end, and whether the row ended before the token limit.

        Args:
            prompt: the prompt of the row.
            row: the generated tokens, including the padding.
            end: number of tokens after which a text of `stop` ended the row; None if no such text occurred.
            generate: options of the library.
        """
        strings = self.defaults.value("stop_strings", generate)
        before = [] if self.is_encoder_decoder else prompt.ids
        ends = [end, self.stops.end(before, row, strings) if strings else None]
        end_tokens = self.defaults.end_tokens(generate)
        ends.append(next((number for number, token in enumerate(row, 1) if token in end_tokens), None))
        first = min((each for each in ends if each is not None), default=None)
        return row[:first], first is not None

    def _serve_continuous(self, prompts: Sequence[Prompt], options: TextOptions) -> Generated | None:
        """Return the texts of continuous batching; None if continuous batching fails or cannot serve the call."""
        if not self._uses_continuous(prompts, options) or self.continuous is None:
            return None
        try:
            return self.continuous.generate(prompts, options.library)
        except NotServed as error:
            print(
                f"transformers engine: continuous batching failed, static batching serves the call: {error}", flush=True
            )
            return None

    def _uses_continuous(self, prompts: Sequence[Prompt], options: TextOptions) -> bool:
        """Return whether continuous batching can serve these prompts.

        If the thread of continuous batching has ended, disable continuous batching.
        """
        if self.continuous and (why := self.continuous.end_reason()):
            print(f"transformers engine: continuous batching ended, static batching from now on: {why}", flush=True)
            self.continuous = None
        if (
            self.continuous is None
            or not options.is_plain
            or not self.defaults.allows_continuous(options.library)
            or not all(prompt.ids for prompt in prompts)
        ):
            return False
        longest = max(len(prompt.ids) for prompt in prompts) + int(options.library["max_new_tokens"])
        return longest <= min(self.continuous.max_tokens, self.padded.sharing.unrestricted_tokens)

    def forget_prefixes(self) -> None:
        """Forget the keys and values of prefixes, because they fit only the adapter that was active before."""
        self.padded.prefixes.cached.clear()

    def describe(self) -> dict[str, Any]:
        hits = self.reused_tokens / self.prompt_tokens if self.prompt_tokens else 0.0
        return {"batching": self.default_batching.name, "prefix_hits": hits}


def _group(prompt: Prompt) -> str:
    """Return a key. Prompts with the same key may share a call.

    The key contains the task and all options of the record, with two exceptions:

    - `seed`: in a call, each row has its own seed.
    - `chat_template_kwargs`: this option was already used when the record's messages were turned into a prompt.
    """
    record = prompt.record
    shared = {name: value for name, value in record.generate.items() if name not in ("seed", "chat_template_kwargs")}
    return json.dumps([record.task, shared], sort_keys=True)


@contextmanager
def _without_defaults(model: Any) -> Iterator[None]:
    """Remove the model's generation defaults at the start of the `with` block. Restore the defaults after the block.

    A default such as beam search would disturb the trials in the block.
    """
    from transformers import GenerationConfig

    defaults = model.generation_config
    model.generation_config = GenerationConfig()
    model.generation_config.update(
        use_cache=defaults.use_cache, cache_implementation=defaults.cache_implementation,
        decoder_start_token_id=defaults.decoder_start_token_id, bos_token_id=defaults.bos_token_id,
    )  # fmt: skip
    try:
        yield
    finally:
        model.generation_config = defaults
