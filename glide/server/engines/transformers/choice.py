"""How to batch here: what suits one device costs twice the time on another, so it is tried while warming up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from glide.server.engines.transformers.batching import until
from glide.server.engines.transformers.continuous import Continuous
from glide.server.engines.transformers.padded import Pace, Padded
from glide.server.engines.transformers.prompts import Prompt

GENERATE: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
FEWEST = 8  # rows of a batch that is tried
ROUNDS = 3
SECONDS = 0.5  # no batch but the smallest is tried that would take longer; all together take some four times that


@dataclass(frozen=True)
class Trial:
    """Static batching as measured: how fast at which sizes, and what the largest batch was answered."""

    paces: list[Pace]
    rows: list[list[int]]


def try_static(padded: Padded, prompts: Sequence[Prompt]) -> Trial:
    """Run batches of the prompts, each twice as large as the last."""
    paces: dict[int, Pace] = {}
    rows: list[list[int]] = []
    padded.generate(prompts[:1], GENERATE)
    begun = time.perf_counter()
    for _ in range(ROUNDS):
        if time.perf_counter() - begun > 2 * SECONDS:  # what takes so long is measured well enough
            break
        size = len(prompts)
        while size // 2 >= FEWEST:
            size //= 2
        seconds = 0.0
        while size <= len(prompts) and 2 * seconds < SECONDS:
            started = time.perf_counter()
            pace, answer = _clocked(padded, prompts[:size])
            seconds = time.perf_counter() - started
            rows = answer if len(answer) > len(rows) else rows
            best = paces.get(size, pace)  # each part's best: noise only ever adds
            paces[size] = Pace(
                size, min(pace.token_seconds, best.token_seconds), min(pace.step_seconds, best.step_seconds)
            )
            size *= 2
    return Trial(list(paces.values()), rows)


def _clocked(padded: Padded, prompts: Sequence[Prompt]) -> tuple[Pace, list[list[int]]]:
    """One batch, with the time at which the logits of each step were there."""
    times = [time.perf_counter()]

    def clock(ids: Any, scores: Any) -> Any:
        scores[0, 0].item()  # a GPU works behind our back
        times.append(time.perf_counter())
        return scores

    rows = padded.generate(prompts, {**GENERATE, "logits_processor": [clock]}).rows
    steps = [later - sooner for sooner, later in pairwise(times[1:])]
    tokens = sum(len(prompt.ids) for prompt in prompts)
    return Pace(len(prompts), (times[1] - times[0]) / tokens, min(steps, default=0.0) / len(prompts)), rows


def choose(
    trial: Trial, start: Callable[[], Continuous], prompts: Sequence[Prompt], others: Sequence[Prompt], ends: set[int]
) -> tuple[Continuous | None, str]:
    """Continuous batching, where it starts, says what static batching said, and is faster; and why, or why not.

    Args:
        prompts: those of the trial.
        others: as many as long, which share nothing with them: what is known by now would be found again.
    """
    count = len(trial.rows)
    tokens = sum(len(prompt.ids) for prompt in others[:count])
    static_seconds = min(pace.seconds(tokens / count, GENERATE["max_new_tokens"]) for pace in trial.paces) * count
    if static_seconds > SECONDS:
        return None, "trying continuous batching would take too long"
    try:
        continuous = start()
    except Exception as error:
        return None, f"continuous batching does not start here: {type(error).__name__}: {error}"
    try:
        within = 4 * static_seconds + SECONDS
        said = continuous.generate(prompts[:count], GENERATE, within).rows
        started = time.perf_counter()
        continuous.generate(others[:count], GENERATE, within)
        ratio = (time.perf_counter() - started) / static_seconds
    except Exception as error:
        why = f"continuous batching gave no answer: {error}"
    else:
        if said != [until(row, ends) for row in trial.rows]:
            why = "continuous batching says something else on this device"
        elif ratio >= 1:
            why = f"continuous batching takes {ratio:.1f} times as long"
        else:
            return continuous, f"it takes {ratio:.2f} of static batching's time"
    continuous.close()
    return None, why
