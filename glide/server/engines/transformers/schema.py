"""Allow only texts that follow a JSON schema. The library llguidance computes which tokens may come next."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from glide.server.engines.base import WrongOption
from glide.server.engines.options import json_schema

# Without this option, a text may have any number of spaces and line breaks between its parts. Small models then
# generate nothing else until the token limit.
COMPACT: Any = {"whitespace_flexible": False}
MISSING = "needs the package llguidance on the node; add it to the model's environment"


def _grammar(schema: Mapping[str, Any]) -> str:
    from llguidance import LLMatcher

    try:
        return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=COMPACT))
    except ValueError as error:
        raise WrongOption("response_format", str(error)[:300]) from None


def check_schema(options: Mapping[str, Any]) -> None:
    """Raise WrongOption if llguidance cannot follow the JSON schema in options of `generate`.

    If llguidance is not installed on this machine, check nothing. Then a node reports the error for each record.
    """
    schema = json_schema(options)
    with suppress(ImportError):
        from llguidance import LLMatcher

        if schema is not None and (problem := LLMatcher.validate_grammar(_grammar(schema))):
            raise WrongOption("response_format", " ".join(problem.split())[:300])


class SchemaMasks:
    """Makes a processor for each call that has a JSON schema.

    Args:
        tokenizer: the model's tokenizer.
        vocabulary_size: number of tokens for which the model has scores.
    """

    def __init__(self, tokenizer: Any, vocabulary_size: int):
        self.tokenizer = tokenizer
        self.vocabulary_size = vocabulary_size
        self.prepared = lru_cache(maxsize=4)(self._prepared)

    def _prepared(self, end_tokens: tuple[int, ...]) -> Any:
        import llguidance.hf

        size = max(self.vocabulary_size, len(self.tokenizer))
        return llguidance.hf.from_tokenizer(self.tokenizer, size, list(end_tokens) or None)

    def processor(self, schema: Mapping[str, Any], rows: int, end_tokens: set[int]) -> Callable[[Any, Any], Any]:
        """Return the processor of a call.

        Args:
            schema: the JSON schema.
            rows: number of rows in the call.
            end_tokens: tokens that end a text.

        Raises:
            WrongOption: llguidance is missing, or cannot follow the schema or work with the tokenizer.
        """
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise WrongOption("response_format", MISSING) from None
        grammar = _grammar(schema)
        try:
            tokenizer = self.prepared(tuple(sorted(end_tokens)))
        except Exception as error:  # llguidance raises errors of several classes for tokenizers that it does not know
            raise WrongOption("response_format", f"does not work with this model's tokenizer: {error}"[:300]) from None
        matchers = [LLMatcher(tokenizer, grammar) for _ in range(rows)]
        if matchers[0].is_error():
            raise WrongOption("response_format", matchers[0].get_error()[:300])
        return SchemaMask(matchers)


class SchemaMask:
    """A processor that excludes each token with which the text could no longer follow the schema."""

    def __init__(self, matchers: list[Any]):
        self.matchers = matchers
        self.begun = False

    def __call__(self, ids: Any, scores: Any) -> Any:
        import torch

        if self.begun:
            for matcher, token in zip(self.matchers, ids[:, -1].tolist(), strict=True):
                if not matcher.is_stopped():
                    matcher.consume_token(token)
        self.begun = True
        width = scores.shape[1]
        words = [torch.frombuffer(bytearray(matcher.compute_bitmask()), dtype=torch.uint8) for matcher in self.matchers]
        bits = torch.stack(words)[:, :, None] >> torch.arange(8, dtype=torch.uint8) & 1
        allowed = bits.flatten(1)[:, :width].bool().to(scores.device)
        # A finished row may have no allowed token. Its tokens are not used, so its scores stay as they are.
        allowed |= ~allowed.any(1, keepdim=True)
        return scores.masked_fill(~allowed, float("-inf"))
