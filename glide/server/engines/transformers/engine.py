"""The engine: loads a model for its task, and hands the task its prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from glide.server.engines import Completion, Record
from glide.server.engines.transformers import loading
from glide.server.engines.transformers.device import choose, end_if_broken, facts, probe
from glide.server.engines.transformers.generation import Generation
from glide.server.engines.transformers.heads import Classification, Embedding
from glide.server.engines.transformers.options import check_generate
from glide.server.engines.transformers.prompts import Encoder, Prompt
from glide.template import Template
from glide.vocabulary import State


class Transformers:
    """A model of the transformers library; results equal those of each prompt alone."""

    @dataclass(frozen=True)
    class Options:
        """
        task: generate text, embed (`embedding`: mean-pooled, length 1), or classify (the text is the label; `scores`).
        dtype: float32, bfloat16, float16, or auto for the model's own.
        device: cuda, cuda:1, cpu, auto for CUDA where it is visible, or all for a model's layers on all GPUs of the job
            (which needs accelerate): for models that are too large for one.
        batch: most records in one call of generate.
        batch_tokens: most prompt tokens, padding included, in one call.
        batching: static (padded batches; with a model whose texts padding would change, prompts of one length or single
            ones), continuous, or auto for the faster of them here, tried while warming up.
        chat: the prompt is what the user says, in the tokenizer's chat template.
        system: what the template's system says, with `chat`.
        """

        task: Literal["generate", "embed", "classify"] = "generate"
        dtype: str = "auto"
        device: str = "auto"
        batch: int = 64
        batch_tokens: int = 16384
        batching: Literal["auto", "static", "continuous"] = "auto"
        chat: bool = False
        system: str = ""

    check_generate = staticmethod(check_generate)

    def __init__(self, template: Template, options: Options):
        self.options = options
        self.batch = options.batch
        self.window = 16 * options.batch  # enough to sort by length; more would only delay other clients
        self.planned: dict[int, Prompt] = {}

    def prepare(self) -> None:
        import torch  # noqa: F401
        import transformers

        # Each name of transformers is imported when it is first asked for; here that costs nobody a second.
        _ = transformers.AutoTokenizer, loading.model_class(self.options.task)

    def load(self, folder: str | None, phase: Callable[[str], None]) -> None:
        import torch
        import transformers

        options = self.options
        transformers.utils.logging.disable_progress_bar()
        phase(State.LOADING)
        self.device = choose(options.device)
        probe(self.device)
        tokenizer = loading.load_tokenizer(str(folder))
        self.encoder = Encoder(tokenizer, options.chat, options.system)
        dtype = options.dtype if options.dtype == "auto" else getattr(torch, options.dtype)
        model = loading.load_model(str(folder), options.task, dtype=dtype, **self._placement())
        if options.device != "all":
            model.to(self.device)
        probe(self.device)
        phase(State.WARMING)
        self.task: Generation | Embedding | Classification
        if options.task == "generate":
            self.task = Generation(model, self.encoder, options.batching, options.batch, options.batch_tokens)
        else:
            head = Embedding if options.task == "embed" else Classification
            self.task = head(model, self.encoder, options.batch, options.batch_tokens)
            self.task.warm_up()

    def _placement(self) -> dict[str, Any]:
        """Onto GPUs tensor by tensor from the mapped files, by several threads; else all of it by way of memory."""
        if self.options.device == "all":
            return {"device_map": "auto"}
        return {"device_map": {"": self.device}} if self.device != "cpu" and find_spec("accelerate") else {}

    def plan(self, records: Sequence[Record]) -> list[list[Record]]:
        calls = self.task.plan(self.encoder.encode(records))
        self.planned = {prompt.record.key: prompt for call in calls for prompt in call}
        return [[prompt.record for prompt in call] for call in calls]

    def call(self, records: Sequence[Record]) -> list[Completion]:
        try:
            if all(record.key in self.planned for record in records):
                return self.task.serve([self.planned[record.key] for record in records])
            return self.task.serve(self.encoder.encode(records))
        except Exception as error:
            end_if_broken(self.device, error)
            raise

    def describe(self) -> dict[str, Any]:
        return {**facts(self.device), **self.task.describe()}
