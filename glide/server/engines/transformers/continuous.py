"""Continuous batching. When the generated text for a prompt is complete, another prompt takes its place in the batch.

The class Continuous uses an object of the library transformers: the manager. The manager generates the texts in its own
thread. The key-value cache consists of pages. Prompts that begin with the same tokens share the pages of these tokens.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from glide.server.engines.transformers.batching import Generated
from glide.server.engines.transformers.prompts import Prompt

# A page of the cache has this number of tokens. Prompts share only whole pages. The library's default of 256 tokens is
# too large, because most shared prefixes are shorter.
PAGE_TOKENS = 32
# A forward pass has at most this number of tokens. Without a flash-attention kernel, each token attends to the whole
# pass, so a large pass is slow. On one core, a prompt takes 20 ms with passes of 2048 tokens, and 9 ms with 512 tokens.
PASS_TOKENS = 512


class NotServed(Exception):
    """Continuous batching gave no answer. The library logs the cause, but does not raise it as an error."""


class Continuous:
    """Continuous batching with a loaded model. The thread of the library's manager runs until `close`.

    Args:
        model: the loaded model.
        end_tokens: tokens that end a text if the record names no end tokens.
        max_tokens: number of tokens that the cache holds. A prompt and its text together cannot have more tokens.

    Raises:
        Exception: the manager cannot start, for example because transformers is too old or memory is too small.
    """

    name = "continuous"

    def __init__(self, model: Any, end_tokens: set[int], max_tokens: int):
        from transformers import GenerationConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        if model.config._attn_implementation == "eager":
            raise ValueError(
                "continuous batching would replace the model's eager attention, but static batching needs it"
            )
        config = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            # Set num_blocks and max_batch_tokens, because the library would otherwise take 60 % of the memory.
            num_blocks=-(-max_tokens // PAGE_TOKENS),
            max_batch_tokens=PASS_TOKENS,
            auto_switch_to_flash=False,  # flash attention would download a kernel from the model hub
        )
        greedy = GenerationConfig(do_sample=False, eos_token_id=sorted(end_tokens) or -1)
        self.end_tokens = sorted(end_tokens)
        # The cache holds this number of tokens. If a request needed more tokens, the manager's thread would end.
        self.max_tokens = max_tokens
        self.calls = 0
        self.reused_tokens = 0
        library_log = logging.getLogger("ContinuousBatchingLogger")
        library_log.setLevel(logging.CRITICAL)  # hide a useless warning on nodes without psutil
        self.manager = model.init_continuous_batching(generation_config=greedy, continuous_batching_config=config)
        self.manager.warmup()  # allocate memory now, so that a failure raises an error and is not only logged
        library_log.setLevel(logging.ERROR)
        self._count_shared_pages(self.manager.batch_processor.cache)
        # The manager starts a thread. This thread must be a daemon thread, so that it does not keep the process alive.
        # A new thread becomes a daemon thread if a daemon thread starts it. So start the manager in a daemon thread.
        starter = threading.Thread(target=self.manager.start, daemon=True)
        starter.start()
        starter.join()

    def _count_shared_pages(self, cache: Any) -> None:
        search = cache.search_prefix_match

        def search_and_count(request_id: str, ids: list[int]) -> int:
            found_tokens = search(request_id, ids)
            self.reused_tokens += found_tokens
            return found_tokens

        cache.search_prefix_match = search_and_count  # count reused tokens, because the library does not

    def end_reason(self) -> str:
        """Return the error that has ended the manager's thread; empty while the thread runs.

        Every error in the thread ends the thread.
        """
        return "" if self.manager.is_running() else repr(self.manager.background_thread_status.fatal_error)

    def generate(self, prompts: Sequence[Prompt], generate: dict[str, Any], timeout: float | None = None) -> Generated:
        """Generate texts for prompts with equal options.

        Args:
            prompts: the prompts of the call.
            generate: the options of these prompts. Only CONTINUOUS_OPTIONS are allowed.
            timeout: time limit in seconds; None for no limit.

        Raises:
            NotServed: the manager failed, or the time limit has passed.
        """
        self.calls += 1
        before = self.reused_tokens
        waiting = {f"{self.calls}-{number}": prompt for number, prompt in enumerate(prompts)}
        rows: dict[str, list[int]] = {name: [] for name in waiting}
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            # Sort the prompts, so that prompts with equal beginnings follow each other and share pages in the cache.
            for name, prompt in sorted(waiting.items(), key=lambda item: item[1].ids):
                self._submit(name, prompt, generate)
            while waiting:
                name, row = self._next_finished(deadline)
                if waiting.pop(name, None):  # ignore requests of an interrupted call
                    rows[name] = row
        finally:
            for name in waiting:
                self.manager.cancel_request(name)
        return Generated(list(rows.values()), self.reused_tokens - before)

    def _submit(self, name: str, prompt: Prompt, generate: dict[str, Any]) -> None:
        end_tokens = generate.get("eos_token_id", self.end_tokens)
        # If the manager gets None, the manager uses its default end tokens. With an empty list, no token ends a text.
        end_tokens = [] if end_tokens is None else end_tokens
        accepted = self.manager.add_request(
            prompt.ids, request_id=name, max_new_tokens=generate["max_new_tokens"], eos_token_id=end_tokens
        )
        if accepted is None:
            raise NotServed("the manager accepts no more requests")

    def _next_finished(self, deadline: float | None) -> tuple[str, list[int]]:
        """Return the name and the generated tokens of the next finished request."""
        while True:
            if deadline is not None and time.monotonic() > deadline:
                raise NotServed("no answer within the time limit")
            output = self.manager.get_result(timeout=0.1)
            if output is None and (why := self.end_reason()):
                raise NotServed(why)
            if output is not None and output.is_finished():
                if output.error is not None:
                    raise NotServed(output.error)
                return output.request_id, output.generated_tokens

    def close(self) -> None:
        """Stop the manager and free its memory."""
        self.manager.stop(block=True, timeout=5.0)
        self.manager.destroy()
