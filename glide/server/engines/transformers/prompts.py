"""Prompts as the model sees them: token ids, with or without the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from glide.server.engines import Record, RecordError


class PromptTooLong(RecordError):
    """Prompt and new tokens together exceed the model's context."""


class EmptyPrompt(RecordError):
    """The tokenizer makes no token of the prompt, and has none to begin a text with."""


@dataclass(frozen=True)
class Prompt:
    """A record's tokens; `prefix` are the first of them, where they are served from a shared cache."""

    record: Record
    ids: list[int]
    prefix: tuple[int, ...] = ()


class Encoder:
    """Turns records into prompts; with `chat`, the text is what the user says after `system`."""

    def __init__(self, tokenizer: Any, chat: bool, system: str):
        if chat and not tokenizer.chat_template:
            raise ValueError("chat: this model's tokenizer has no chat template; leave the option out")
        self.tokenizer = tokenizer
        self.chat = chat
        self.system = [{"role": "system", "content": system}] if system else []
        first_known = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, 0)
        self.padding = next(token for token in first_known if token is not None)

    def encode(self, records: Sequence[Record]) -> list[Prompt]:
        texts = [record.prompt for record in records]
        if self.chat:
            messages = [[*self.system, {"role": "user", "content": text}] for text in texts]
            texts = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        # A chat template writes the tokens that begin a text itself.
        rows = self.tokenizer(texts, add_special_tokens=not self.chat)["input_ids"]
        begin = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        return [Prompt(record, row or begin) for record, row in zip(records, rows, strict=True)]


def check(prompts: Iterable[Prompt], new: int, context: int) -> None:
    """Raise what is wrong with a call: a prompt without tokens, or one that leaves no room for `new` ones."""
    lengths = [len(prompt.ids) for prompt in prompts]
    if not all(lengths):
        raise EmptyPrompt("no token in the prompt, and this tokenizer has no beginning-of-text token")
    if max(lengths) + new > context:
        raise PromptTooLong(f"{max(lengths)} prompt tokens and {new} new ones exceed the model's {context}")


def cut(
    prompts: Iterable[Prompt], batch: int, batch_tokens: int, mixes: Callable[[Prompt, Prompt], bool] = lambda *_: True
) -> list[list[Prompt]]:
    """Divide prompts into calls, longest first: a batch pads little, and the largest allocation comes first."""
    calls: list[list[Prompt]] = []
    for prompt in sorted(prompts, key=lambda prompt: -len(prompt.ids)):
        first = calls[-1][0] if calls else prompt
        full = not calls or len(calls[-1]) == batch or len(first.ids) * (len(calls[-1]) + 1) > batch_tokens
        if full or not mixes(first, prompt):
            calls.append([prompt])
        else:
            calls[-1].append(prompt)
    return calls
