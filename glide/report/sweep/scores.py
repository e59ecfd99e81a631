"""Compute scores from a sweep's results.

The scores are:

- the accuracy of each prompt, with a confidence interval
- groups of similar errors
- the number of results of each glidein
- the computing time of each glidein's engine
"""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy

from glide.sweep.work import tokens_of

Z = 1.959963984540054  # 95 % of a normal distribution is within this number of standard deviations from the mean
LONGEST = 300  # maximum length of a message in the report, in characters
# Pairs of a pattern and a placeholder. Messages of the same error may differ in ids, addresses and numbers. These parts
# are replaced by placeholders. The pattern for numbers comes last, because ids and addresses contain numbers.
PLACEHOLDERS = tuple(
    (re.compile(pattern, re.IGNORECASE), sign)
    for pattern, sign in (
        (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "‹id›"),
        (r"\b0x[0-9a-f]+\b", "‹address›"),
        (r"\b\d{1,3}(\.\d{1,3}){3}(:\d+)?\b", "‹address›"),
        (r"\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{8,}\b", "‹id›"),
        (r"\d+([.,]\d+)*(e[+-]?\d+)?", "‹n›"),
    )
)


@dataclass
class PromptScore:
    """The score of one prompt.

    Attributes:
        records: number of records of the sweep.
        done: number of records that have a result with this prompt.
        errors: number of results that are errors.
        right: number of correct results; None if the sweep file has no `expect`.
    """

    records: int
    done: int = 0
    errors: int = 0
    right: int | None = None

    @property
    def accuracy(self) -> float | None:
        return None if self.right is None or not self.done else self.right / self.done


@dataclass
class ErrorGroup:
    """Errors of one type whose messages differ only in numbers, ids and addresses."""

    type: str
    message: str
    example: str  # custom_id of the first record with such an error
    count: int = 0
    prompts: Counter[str] = field(default_factory=Counter)


@dataclass
class Scores:
    """The scores of all results that were passed to `add`.

    Attributes:
        prompts: for each prompt, its score. The key is the name of the prompt.
        causes: groups of errors. The key is the type of an error and its normalized message.
        by_glidein: for each glidein, the number of results that it computed.
        engine: for each glidein, the computing time of its engine in seconds.
        seconds: for each result, the seconds that the engine needed.
    """

    prompts: dict[str, PromptScore] = field(default_factory=dict)
    causes: dict[tuple[str, str], ErrorGroup] = field(default_factory=dict)
    by_glidein: Counter[str] = field(default_factory=Counter)
    engine: dict[str, float] = field(default_factory=dict)
    seconds: array[float] = field(default_factory=lambda: array("d"))
    tokens: int = 0

    def add(self, prompt: str, result: Mapping[str, Any], right: bool | None) -> None:
        """Add a record's result.

        Args:
            right: whether the result is correct; None if the sweep file has no `expect`.
        """
        score = self.prompts[prompt]
        score.done += 1
        if right is not None:
            score.right = (score.right or 0) + right
        glidein, seconds = str(result.get("glidein") or ""), float(result.get("seconds") or 0.0)
        self.by_glidein[glidein] += 1
        self.engine[glidein] = self.engine.get(glidein, 0.0) + seconds
        self.seconds.append(seconds)
        self.tokens += tokens_of(result)
        if error := result.get("error"):
            score.errors += 1
            kind, message = str(error.get("type")), normalize(str(error.get("message")), result["custom_id"])
            cause = self.causes.setdefault((kind, message), ErrorGroup(kind, message, result["custom_id"]))
            cause.count += 1
            cause.prompts[prompt] += 1

    @property
    def errors(self) -> list[ErrorGroup]:
        """The groups of errors, the most frequent first."""
        return sorted(self.causes.values(), key=lambda cause: (-cause.count, cause.type, cause.message))


def normalize(message: str, custom_id: str = "") -> str:
    """Return an error's message on one line. Placeholders replace the parts that differ between records."""
    text = " ".join(message.split())
    if len(custom_id) > 2:
        text = re.sub(rf"(?<!\w){re.escape(custom_id)}(?!\w)", "‹record›", text)
    for pattern, sign in PLACEHOLDERS:
        text = pattern.sub(sign, text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of an accuracy, as a pair of the lower end and the upper end.

    The accuracy is `right` divided by `count`. The method of Wilson (1927) also works for few results, and for an
    accuracy near 0 or 1.

    Args:
        right: number of correct results.
        count: number of all results.
    """
    if not count:
        return 0.0, 1.0
    share, square = right / count, Z * Z / count
    middle = (share + square / 2) / (1 + square)
    half = Z * math.sqrt(share * (1 - share) / count + square / 4 / count) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def quantile(values: Iterable[float], share: float) -> float:
    """Return a quantile of some values; 0 if no values are given.

    Args:
        share: share of the values that are below the quantile, from 0 to 1; 0.5 for the median.
    """
    ordered = numpy.sort(numpy.frombuffer(values)) if isinstance(values, array) and values else sorted(values)
    return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))]) if len(ordered) else 0.0
