"""Continuous batching: a prompt takes another's place as soon as that has ended, and equal pages are shared."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from glide.server.engines.transformers.batching import Answer
from glide.server.engines.transformers.prompts import Prompt

PAGE = 32  # tokens; only whole pages are shared, and the library's 256 is longer than most templates
# Tokens of a forward pass. Without a flash kernel each attends over the whole pack: on one core 2048 take
# 20 ms a prompt where 512 take 9.
PASS_TOKENS = 512


class NotServed(Exception):
    """Continuous batching gave no answer; the library itself only logs that."""


class Continuous:
    """The library's manager and its thread, which live as long as the model.

    Raises whatever keeps the manager from starting, such as an old transformers or too little memory.
    """

    name = "continuous"

    def __init__(self, model: Any, ends: set[int], tokens: int):
        from transformers import GenerationConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        if model.config._attn_implementation == "eager":
            raise ValueError("eager attention would have to be replaced in the model, which static batching uses too")
        config = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=-(-tokens // PAGE),  # both numbers, or it takes 60 % of a machine's memory
            max_batch_tokens=PASS_TOKENS,
            auto_switch_to_flash=False,  # would ask the model hub for a kernel
        )
        greedy = GenerationConfig(do_sample=False, eos_token_id=sorted(ends) or -1)
        self.ends = sorted(ends)
        self.tokens = tokens  # of a prompt and its text; one with more would end the thread
        self.calls = 0
        self.reused = 0
        library = logging.getLogger("ContinuousBatchingLogger")
        library.setLevel(logging.CRITICAL)  # without psutil it complains that it cannot compute what it was told
        self.manager = model.init_continuous_batching(generation_config=greedy, continuous_batching_config=config)
        self.manager.warmup()  # allocates: in the manager's thread an error would only be logged
        library.setLevel(logging.ERROR)
        self._count_shared_pages(self.manager.batch_processor.cache)
        # Its thread must not keep the process alive, and a thread is a daemon when its starter is one.
        starter = threading.Thread(target=self.manager.start, daemon=True)
        starter.start()
        starter.join()

    def _count_shared_pages(self, cache: Any) -> None:
        search = cache.search_prefix_match

        def counted(request_id: str, ids: list[int]) -> int:
            found = search(request_id, ids)
            self.reused += found
            return found

        cache.search_prefix_match = counted  # nothing else says how many tokens were found

    def ended(self) -> str:
        """Why the thread has ended, which it does at the first error; empty while it runs."""
        return "" if self.manager.is_running() else repr(self.manager.background_thread_status.fatal_error)

    def generate(self, prompts: Sequence[Prompt], generate: dict[str, Any], within: float | None = None) -> Answer:
        """Serve a call; NotServed when that fails, or takes longer than `within` seconds."""
        self.calls += 1
        before = self.reused
        waiting = {f"{self.calls}-{number}": prompt for number, prompt in enumerate(prompts)}
        rows: dict[str, list[int]] = {name: [] for name in waiting}
        deadline = None if within is None else time.monotonic() + within
        try:
            # Equal beginnings one after the other, so that a page is still there when it is wanted again.
            for name, prompt in sorted(waiting.items(), key=lambda item: item[1].ids):
                self._ask(name, prompt, generate)
            while waiting:
                name, row = self._next(deadline)
                if waiting.pop(name, None):  # else it belongs to a call that was interrupted
                    rows[name] = row
        finally:
            for name in waiting:
                self.manager.cancel_request(name)
        return Answer(list(rows.values()), self.reused - before)

    def _ask(self, name: str, prompt: Prompt, generate: dict[str, Any]) -> None:
        ends = generate.get("eos_token_id", self.ends)
        ends = [] if ends is None else ends  # with None the manager would take its own
        accepted = self.manager.add_request(
            prompt.ids, request_id=name, max_new_tokens=generate["max_new_tokens"], eos_token_id=ends
        )
        if accepted is None:
            raise NotServed("the manager takes no requests any more")

    def _next(self, deadline: float | None) -> tuple[str, list[int]]:
        """The next request that is done: its name and tokens."""
        while True:
            if deadline is not None and time.monotonic() > deadline:
                raise NotServed("it takes too long")
            output = self.manager.get_result(timeout=0.1)
            if output is None and (why := self.ended()):
                raise NotServed(why)
            if output is not None and output.is_finished():
                if output.error is not None:
                    raise NotServed(output.error)
                return output.request_id, output.generated_tokens

    def close(self) -> None:
        """Give its memory back."""
        self.manager.stop(block=True, timeout=5.0)
        self.manager.destroy()
