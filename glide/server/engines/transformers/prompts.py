"""Turn records into prompts of tokens, check the prompts, and divide them into calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glide.server.engines.base import EngineRecord, RecordError


class PromptTooLong(RecordError):
    """The prompt and the tokens to generate together exceed the model's context."""


class EmptyPrompt(RecordError):
    """The tokenizer makes no token from the prompt, and has no beginning-of-text token to use instead."""


class UnknownToken(RecordError):
    """The prompt has a token for which the model has no embedding."""


class NoChatTemplate(RecordError):
    """The record has messages, but the model's tokenizer has no chat template."""


class ChatTemplateError(RecordError):
    """The chat template cannot turn the record's messages into a prompt."""


@dataclass(frozen=True)
class Prompt:
    """The prompt of a record, as tokens.

    Attributes:
        record: the record.
        ids: the token ids of the whole prompt.
        prefix: first tokens of the prompt, if their keys and values come from a shared cache; otherwise empty.
    """

    record: EngineRecord
    ids: list[int]
    prefix: tuple[int, ...] = ()


class Encoder:
    """An encoder turns records into prompts.

    Args:
        tokenizer: the model's tokenizer.
        chat: if true, use the tokenizer's chat template, with the record's text as the user's message.
        system: system message before the user's message; empty for no system message.
    """

    def __init__(self, tokenizer: Any, chat: bool, system: str):
        if chat and not tokenizer.chat_template:
            raise ValueError("chat: this model's tokenizer has no chat template; leave the option out")
        self.tokenizer = tokenizer
        self.chat = chat
        self.system = [{"role": "system", "content": system}] if system else []

    def padding_token(self, vocabulary_size: int) -> int:
        """Return the token that pads rows.

        This token is the first token in the following list for which the model has an embedding:

        - the tokenizer's padding token
        - the tokenizer's end token
        - the tokenizer's beginning token
        - token 0

        Args:
            vocabulary_size: number of tokens for which the model has an embedding.
        """
        own = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, self.tokenizer.bos_token_id)
        return next((token for token in own if token is not None and token < vocabulary_size), 0)

    def encode(self, records: Sequence[EngineRecord]) -> list[Prompt]:
        """Return the records' prompts as tokens.

        Raises:
            RecordError: a record has messages, and the tokenizer cannot turn them into a prompt.
        """
        texts = [self._text(record) for record in records]
        # A chat template contains the special tokens that begin a text, so the tokenizer must not add them again.
        plain = [not self._is_chat(record) for record in records]
        rows: list[list[int]] = [[]] * len(records)
        for special in {*plain}:
            chosen = [number for number, each in enumerate(plain) if each == special]
            ids = self.tokenizer([texts[number] for number in chosen], add_special_tokens=special)["input_ids"]
            for number, row in zip(chosen, ids, strict=True):
                rows[number] = row
        begin = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        return [Prompt(record, row or begin) for record, row in zip(records, rows, strict=True)]

    def _is_chat(self, record: EngineRecord) -> bool:
        return not record.task and (self.chat or isinstance(record.prompt, list))

    def _text(self, record: EngineRecord) -> str:
        if not self._is_chat(record):
            return str(record.prompt)
        if not self.tokenizer.chat_template:
            raise NoChatTemplate(
                "the record has messages, but the model's tokenizer has no chat template; use a prompt"
            )
        messages = record.prompt
        if isinstance(messages, str):
            messages = [*self.system, {"role": "user", "content": messages}]
        extra = record.generate.get("chat_template_kwargs") or {}
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [_with_text(message) for message in messages], add_generation_prompt=True, tokenize=False, **extra
                )
            )
        except Exception as error:  # templates raise errors of several classes, for example for an unknown role
            raise ChatTemplateError(f"the model's chat template refuses the messages: {error}") from None


def _with_text(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose content is one text. The API also allows a list of parts."""
    parts = message.get("content")
    if not isinstance(parts, list):
        return message
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        raise ChatTemplateError("a message has content that is not text, but the engine serves only text")
    return {**message, "content": "".join(str(part.get("text", "")) for part in parts)}


def truncated(prompt: Prompt, longest: int, side: str | None, beginning: int | None) -> Prompt:
    """Return the prompt with at most `longest` tokens.

    Args:
        prompt: the prompt.
        longest: maximum number of tokens; if it is below 1, the prompt stays as it is.
        side: `left` or `right`, the side from which tokens are removed; None if the prompt must stay as it is.
        beginning: number of the token with which texts begin; None if there is none. This token is never removed.
    """
    ids = prompt.ids
    if side is None or longest < 1 or len(ids) <= longest:
        return prompt
    keep = 1 if beginning is not None and ids[0] == beginning and longest > 1 else 0
    ids = ids[:longest] if side == "right" else [*ids[:keep], *ids[len(ids) - longest + keep :]]
    return replace(prompt, ids=ids)


def check_prompts(
    prompts: Iterable[Prompt], total_tokens: Callable[[int], int], context: int, vocabulary_size: int
) -> None:
    """Check that the model can serve a call's prompts.

    On a GPU, one prompt that is too long or has an unknown token would make all later calls of the process fail.

    Args:
        prompts: the prompts of the call.
        total_tokens: a function that returns a number of tokens: the tokens of a prompt plus the largest possible
            number of tokens that are generated for the prompt. The function's argument is the length of the prompt, in
            tokens.
        context: the model's limit, in tokens, for a prompt and its generated text together.
        vocabulary_size: number of tokens for which the model has an embedding.

    Raises:
        EmptyPrompt: a prompt has no token.
        PromptTooLong: a prompt leaves no room for generated text.
        UnknownToken: a token has no embedding.
    """
    for prompt in prompts:
        length = len(prompt.ids)
        if not length:
            raise EmptyPrompt("no token in the prompt, and the tokenizer has no beginning-of-text token to use instead")
        if (longest := total_tokens(length)) > context:
            raise PromptTooLong(
                f"{length} prompt tokens and {longest - length} new tokens exceed the model's context of {context}; "
                "shorten the prompt, or ask for fewer new tokens"
            )
        if (token := max(prompt.ids)) >= vocabulary_size:
            raise UnknownToken(
                f"the prompt contains token {token}, but the model has only the tokens 0 to {vocabulary_size - 1}; "
                "use the tokenizer that belongs to the model"
            )


def divide_into_calls(
    prompts: Iterable[Prompt],
    batch: int,
    batch_tokens: int,
    may_share: Callable[[Prompt, Prompt], bool] = lambda *_: True,
) -> list[list[Prompt]]:
    """Divide prompts into calls, the longest prompts first.

    The prompts of a call have similar lengths and therefore need little padding. The first call needs the most memory.

    Args:
        prompts: the prompts, in any order.
        batch: maximum number of prompts in a call.
        batch_tokens: maximum number of tokens in a call, padding included. A prompt with more tokens gets its own call.
        may_share: function that returns whether two prompts may share a call. The function's first argument is the
            first prompt of the call. The second argument is a prompt that is not longer than the first.
    """
    calls: list[list[Prompt]] = []
    for prompt in sorted(prompts, key=lambda prompt: -len(prompt.ids)):
        first = calls[-1][0] if calls else prompt
        full = not calls or len(calls[-1]) == batch or len(first.ids) * (len(calls[-1]) + 1) > batch_tokens
        if full or not may_share(first, prompt):
            calls.append([prompt])
        else:
            calls[-1].append(prompt)
    return calls
