"""Choose static or continuous batching for this device.

Static batching is faster on some devices, and continuous batching is faster on others. The slower way may take twice as
long. So the engine measures both ways in trials while it is warming up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from glide.server.engines.transformers.batching import truncate_at_end
from glide.server.engines.transformers.continuous import Continuous
from glide.server.engines.transformers.padded import BatchSpeed, Padded
from glide.server.engines.transformers.prompts import Prompt

GENERATE: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
SMALLEST_BATCH = 8  # minimum number of prompts in a trial's smallest batch, if there are enough prompts
ROUNDS = 3
# Time limit for the trial of one batch, in seconds. If the trial of a batch would probably take longer, this batch is
# not tried. But the smallest batch is always tried.
BATCH_SECONDS = 0.5


@dataclass(frozen=True)
class BatchTrial:
    """The measurements of static batching.

    Attributes:
        speeds: the speed of each batch size, beginning with the smallest size.
        rows: for each prompt, the tokens that the largest batch generated.
    """

    speeds: list[BatchSpeed]
    rows: list[list[int]]


def try_static(padded: Padded, prompts: Sequence[Prompt]) -> BatchTrial:
    """Measure the speed of static batches.

    There are up to ROUNDS rounds. Each round begins with the smallest batch. Each further batch of the round is twice
    as large as the previous batch.
    """
    speeds: dict[int, BatchSpeed] = {}
    rows: list[list[int]] = []
    padded.generate(prompts[:1], GENERATE)
    trials_started = time.perf_counter()
    for _ in range(ROUNDS):
        if time.perf_counter() - trials_started > 2 * BATCH_SECONDS:  # stop, because the speeds are exact enough
            break
        size = len(prompts)
        while size // 2 >= SMALLEST_BATCH:
            size //= 2
        seconds = 0.0
        while size <= len(prompts) and 2 * seconds < BATCH_SECONDS:
            started = time.perf_counter()
            speed, answer = _timed(padded, prompts[:size])
            seconds = time.perf_counter() - started
            rows = answer if len(answer) > len(rows) else rows
            best = speeds.get(size, speed)  # keep the shortest times, because noise only adds time
            speeds[size] = BatchSpeed(
                size, min(speed.token_seconds, best.token_seconds), min(speed.step_seconds, best.step_seconds)
            )
            size *= 2
    return BatchTrial(list(speeds.values()), rows)


def _timed(padded: Padded, prompts: Sequence[Prompt]) -> tuple[BatchSpeed, list[list[int]]]:
    """Generate texts for one batch, and measure each step. Return the batch's speed and the tokens of the texts."""
    times = [time.perf_counter()]

    def record_time(ids: Any, scores: Any) -> Any:
        scores[0, 0].item()  # wait for the GPU, which computes asynchronously
        times.append(time.perf_counter())
        return scores

    rows = padded.generate(prompts, {**GENERATE, "logits_processor": [record_time]}).rows
    steps = [later - sooner for sooner, later in pairwise(times[1:])]
    tokens = sum(len(prompt.ids) for prompt in prompts)
    return BatchSpeed(len(prompts), (times[1] - times[0]) / tokens, min(steps, default=0.0) / len(prompts)), rows


def choose_batching(
    trial: BatchTrial,
    start: Callable[[], Continuous],
    prompts: Sequence[Prompt],
    fresh_prompts: Sequence[Prompt],
    end_tokens: set[int],
) -> tuple[Continuous | None, str]:
    """Choose continuous batching if it starts, generates the same tokens as static batching, and is faster.

    Args:
        trial: the measurements of static batching.
        start: function that starts continuous batching. If it raises an error, static batching is chosen.
        prompts: the prompts of the trial. Continuous batching must generate the same tokens for them.
        fresh_prompts: other prompts, with which the time is measured. The number of prompts and their lengths are the
            same as in `prompts`. But none of these prompts begins like a prompt in `prompts`. Such a beginning would
            already be in the cache, and this would shorten the time.
        end_tokens: tokens that end a text.

    Returns:
        A pair. The first value is the continuous batching that was started, or None for static batching. The second
        value is the reason for the choice.
    """
    count = len(trial.rows)
    tokens = sum(len(prompt.ids) for prompt in fresh_prompts[:count])
    static_seconds = min(speed.seconds(tokens / count, GENERATE["max_new_tokens"]) for speed in trial.speeds) * count
    if static_seconds > BATCH_SECONDS:
        return None, "trying continuous batching would take too long"
    try:
        continuous = start()
    except Exception as error:
        return None, f"continuous batching did not start: {type(error).__name__}: {error}"
    try:
        timeout = 4 * static_seconds + BATCH_SECONDS
        rows = continuous.generate(prompts[:count], GENERATE, timeout).rows
        started = time.perf_counter()
        continuous.generate(fresh_prompts[:count], GENERATE, timeout)
        ratio = (time.perf_counter() - started) / static_seconds
    except Exception as error:
        why = f"continuous batching gave no answer: {error}"
    else:
        if rows != [truncate_at_end(row, end_tokens) for row in trial.rows]:
            why = "continuous batching generates other tokens on this device"
        elif ratio >= 1:
            why = f"continuous batching takes {ratio:.1f} times as long as static batching"
        else:
            return continuous, f"it takes {ratio:.2f} times as long as static batching"
    continuous.close()
    return None, why
