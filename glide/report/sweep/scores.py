"""What a sweep's results amount to: accuracy with its uncertainty, errors by cause, seconds and records by glidein."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Z = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations
LONGEST = 300  # characters of a message that are shown
# What differs from one error to the next of the same cause. In this order: an address contains numbers.
FOLDED = tuple(
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
class Prompt:
    """A prompt's results so far; `right` is None where nothing says what would be."""

    records: int
    done: int = 0
    errors: int = 0
    right: int | None = None

    @property
    def accuracy(self) -> float | None:
        return None if self.right is None or not self.done else self.right / self.done


@dataclass
class Cause:
    """Errors of one type whose messages differ in no more than numbers, ids and addresses."""

    type: str
    message: str
    example: str  # the first record's custom_id
    count: int = 0
    prompts: Counter[str] = field(default_factory=Counter)


@dataclass
class Scores:
    """All results, read once; `seconds` are the engine's for each record, and `engine` their sums by glidein."""

    prompts: dict[str, Prompt] = field(default_factory=dict)
    causes: dict[tuple[str, str], Cause] = field(default_factory=dict)
    by_glidein: Counter[str] = field(default_factory=Counter)
    engine: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    tokens: int = 0

    def add(self, prompt: str, result: Mapping[str, Any], right: bool | None) -> None:
        """A record's result; `right` is None where nothing says what would be."""
        score = self.prompts[prompt]
        score.done += 1
        if right is not None:
            score.right = (score.right or 0) + right
        glidein, seconds = str(result.get("glidein") or ""), float(result.get("seconds") or 0.0)
        self.by_glidein[glidein] += 1
        self.engine[glidein] = self.engine.get(glidein, 0.0) + seconds
        self.seconds.append(seconds)
        self.tokens += result.get("tokens") or 0
        if error := result.get("error"):
            score.errors += 1
            kind, message = str(error.get("type")), folded(str(error.get("message")), result["custom_id"])
            cause = self.causes.setdefault((kind, message), Cause(kind, message, result["custom_id"]))
            cause.count += 1
            cause.prompts[prompt] += 1

    @property
    def errors(self) -> list[Cause]:
        """Those that happened most often first."""
        return sorted(self.causes.values(), key=lambda cause: (-cause.count, cause.type, cause.message))


def folded(message: str, custom_id: str = "") -> str:
    """An error's message without what differs from record to record, on one line."""
    text = " ".join(message.split())
    if len(custom_id) > 2:
        text = re.sub(rf"(?<!\w){re.escape(custom_id)}(?!\w)", "‹record›", text)
    for pattern, sign in FOLDED:
        text = pattern.sub(sign, text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share (Wilson, 1927), which is none the worse for few or extreme cases."""
    if not count:
        return 0.0, 1.0
    share, square = right / count, Z * Z / count
    middle = (share + square / 2) / (1 + square)
    half = Z * math.sqrt(share * (1 - share) / count + square / 4 / count) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def quantile(values: Iterable[float], share: float) -> float:
    """The value that so large a share of them does not exceed; 0 where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
