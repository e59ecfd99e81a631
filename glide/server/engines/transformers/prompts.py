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


class UnknownToken(RecordError):
    """The tokenizer makes a token of the prompt that the model does not have."""


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

    def padding(self, known: int) -> int:
        """Return a token to pad with: the tokenizer's own, unless the model has no embedding for it.

        Args:
            known: how many different tokens the model has. A tokenizer's padding token was often added to it alone.
        """
        own = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, self.tokenizer.bos_token_id)
        return next((token for token in own if token is not None and token < known), 0)

    def encode(self, records: Sequence[Record]) -> list[Prompt]:
        texts = [record.prompt for record in records]
        if self.chat:
            messages = [[*self.system, {"role": "user", "content": text}] for text in texts]
            texts = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        # A chat template writes the tokens that begin a text itself.
        rows = self.tokenizer(texts, add_special_tokens=not self.chat)["input_ids"]
        begin = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        return [Prompt(record, row or begin) for record, row in zip(records, rows, strict=True)]


def check(prompts: Iterable[Prompt], tokens: Callable[[int], int], context: int, known: int) -> None:
    """Raise what is wrong with a call's prompts. On a GPU the last two would break the process for all later calls.

    Args:
        tokens: how many a prompt of so many tokens comes to with its text.
        context: how many the model takes.
        known: how many different tokens it has; the next number is none of them.

    Raises:
        EmptyPrompt: a prompt has no token.
        PromptTooLong: a prompt leaves no room for its text.
        UnknownToken: a token has no embedding.
    """
    for prompt in prompts:
        length = len(prompt.ids)
        if not length:
            raise EmptyPrompt("no token in the prompt, and this tokenizer has no beginning-of-text token")
        if (longest := tokens(length)) > context:
            raise PromptTooLong(f"{length} prompt tokens and {longest - length} new ones exceed the model's {context}")
        if (token := max(prompt.ids)) >= known:
            raise UnknownToken(
                f"the tokenizer makes token {token} of the prompt, and the model's embedding ends at {known - 1}: "
                "they do not belong together"
            )


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
