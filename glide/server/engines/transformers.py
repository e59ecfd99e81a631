"""The transformers engine: a causal language model, batched with left padding, on CUDA where there is one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from glide.server.engines import Completion, Record, RecordError
from glide.template import Template
from glide.vocabulary import State

# Options that look at the prompt's own tokens or their number, with the value that switches each off.
PROMPT_SENSITIVE = {
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0, "min_length": 0, "max_length": None,
}  # fmt: skip


class PromptTooLong(RecordError):
    """Prompt and new tokens together exceed the model's context."""


class EmptyPrompt(RecordError):
    """The tokenizer makes no token of the prompt, and has none to begin a text with."""


class Transformers:
    """Greedy text equals plain transformers': padding is masked out, and positions do not count it."""

    @dataclass(frozen=True)
    class Options:
        """
        dtype: float32, bfloat16, float16, or auto for the model's own.
        device: cuda, cuda:1, cpu, or auto for CUDA where it is visible.
        batch: most records in one call of generate.
        batch_tokens: most prompt tokens, padding included, in one call.
        """

        dtype: str = "auto"
        device: str = "auto"
        batch: int = 64
        batch_tokens: int = 16384

    def __init__(self, template: Template, options: Options):
        self.path = template.path or ""
        self.options = options
        self.batch = options.batch
        self.window = 16 * options.batch  # enough to sort by length; more would only delay other clients
        self.encoded: dict[int, list[int]] = {}

    def load(self, phase: Callable[[str], None]) -> None:
        phase(State.LOADING)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.torch = torch
        device = self.options.device
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.tokenizer = AutoTokenizer.from_pretrained(self.path)
        dtype = self.options.dtype if self.options.dtype == "auto" else getattr(torch, self.options.dtype)
        model: Any = AutoModelForCausalLM.from_pretrained(self.path, dtype=dtype)
        self.model = model.to(self.device).eval()
        self.context = getattr(self.model.config, "max_position_embeddings", None) or 1 << 30
        config = self.model.generation_config
        ends = config.eos_token_id if config.eos_token_id is not None else self.tokenizer.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])
        first_known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, self.tokenizer.bos_token_id, 0)
        self.padding = next(token for token in first_known if token is not None)
        phase(State.WARMING)
        self.call([Record(-1, "Hello.", {"max_new_tokens": 2, "do_sample": False})])

    def _sees_padding(self, generate: dict[str, Any]) -> bool:
        """Whether an option is in force whose meaning padding would change."""
        config = self.model.generation_config
        for name, off in PROMPT_SENSITIVE.items():
            if generate.get(name, getattr(config, name, None)) not in (None, off):
                return True
        return "max_new_tokens" not in generate

    def plan(self, records: Sequence[Record]) -> list[list[Record]]:
        """Longest first, so that a batch pads little and the largest allocation comes before the others."""
        self.encoded = {record.key: self._encode(record.prompt) for record in records}

        def order(record: Record) -> tuple[str, int]:
            return json.dumps(record.generate, sort_keys=True), -len(self.encoded[record.key])

        calls: list[list[Record]] = []
        for record in sorted(records, key=order):
            if calls and self._fits(record, calls[-1]):
                calls[-1].append(record)
            else:
                calls.append([record])
        return calls

    def _fits(self, record: Record, call: list[Record]) -> bool:
        longest = len(self.encoded[call[0].key])
        if record.generate != call[0].generate or len(call) == self.options.batch:
            return False
        if len(self.encoded[record.key]) != longest and self._sees_padding(record.generate):
            return False
        return longest * (len(call) + 1) <= self.options.batch_tokens

    def call(self, records: Sequence[Record]) -> list[Completion]:
        torch = self.torch
        generate = records[0].generate
        ids = [self.encoded.get(record.key) or self._encode(record.prompt) for record in records]
        width = max(len(row) for row in ids)
        self._check(ids, width, generate)
        padded = torch.tensor([[self.padding] * (width - len(row)) + row for row in ids], device=self.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=self.device)
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=padded, attention_mask=mask, pad_token_id=self.padding, **{"do_sample": False, **generate}
            )
        ends = generate.get("eos_token_id", self.ends)
        ends = {ends} if isinstance(ends, int) else set(ends)
        return [self._completion(row, ends) for row in output[:, width:].tolist()]

    def describe(self) -> dict[str, Any]:
        if not self.device.startswith("cuda"):
            return {}
        return {"gpu": self.torch.cuda.get_device_name(self.device)}

    def _encode(self, prompt: str) -> list[int]:
        ids = self.tokenizer(prompt)["input_ids"]
        if not ids and self.tokenizer.bos_token_id is not None:
            ids = [self.tokenizer.bos_token_id]
        return ids

    def _check(self, ids: list[list[int]], width: int, generate: dict[str, Any]) -> None:
        if not all(ids):
            raise EmptyPrompt("no token in the prompt, and this tokenizer has no beginning-of-text token")
        new = int(generate.get("max_new_tokens") or 20)  # transformers' own default
        if width + new > self.context:
            raise PromptTooLong(f"{width} prompt tokens and {new} new ones exceed the model's {self.context}")

    def _completion(self, row: list[int], ends: set[int]) -> Completion:
        end = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
        return Completion(str(self.tokenizer.decode(row[: end + 1], skip_special_tokens=True)), end + 1)
