"""The class of the transformers engine. It loads a model for a task, and passes prompts to the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from glide.errors import TemplateError
from glide.server.engines.base import Completion, EngineRecord, RecordError, usage
from glide.server.engines.transformers import loading
from glide.server.engines.transformers.adapters import AdapterError, Adapters
from glide.server.engines.transformers.device import choose_device, end_if_broken, facts, probe
from glide.server.engines.transformers.generation import Generation
from glide.server.engines.transformers.heads import Classification, Embedding
from glide.server.engines.transformers.options import check_generate
from glide.server.engines.transformers.prompts import Encoder, Prompt
from glide.server.engines.transformers.schema import check_schema
from glide.template import Template
from glide.vocabulary import State


def _has_texts(record: EngineRecord) -> bool:
    """Return whether a record asks for the embeddings of a list of texts."""
    return record.task == "embed" and isinstance(record.prompt, list)


class Transformers:
    """The transformers engine. The result of a prompt does not depend on the other prompts in its call."""

    @dataclass(frozen=True)
    class Options:
        """
        task: `generate`, `embed` or `classify`. `generate` continues the prompt. `embed` writes the mean of the last
            hidden states, scaled to length 1, to the result's `embedding`. `classify` returns the best label as the
            text, and writes the scores of all labels to the result's `scores`.
        dtype: type of the weights in memory: `float32`, `bfloat16`, `float16` or `auto`. `auto` stands for the model's
            own type.
        device: `cpu`, `cuda`, `cuda:N` (the GPU with the number N), `auto` or `all`. If a GPU is visible, `auto` stands
            for `cuda`. Otherwise, `auto` stands for `cpu`. With `all`, the model's layers are spread over all GPUs of
            the job. Use `all` for a model that is too large for one GPU. `all` needs the package accelerate.
        batch: maximum number of records in one call of the library's generate.
        batch_tokens: maximum number of prompt tokens in one call, padding included.
        batching: `static` (padded batches), `continuous` or `auto`. With `auto`, the engine measures both while it
            warms up, and uses the faster one. If padding would change a model's texts, static batches are not padded.
            They then have only prompts of equal length, or only one prompt.
        chat: if true, use the tokenizer's chat template, with the prompt as the user's message.
        system: the system message in the chat template. Without `chat`, this option has no effect.
        """

        task: Literal["generate", "embed", "classify"] = "generate"
        dtype: str = "auto"
        device: str = "auto"
        batch: int = 64
        batch_tokens: int = 16384
        batching: Literal["auto", "static", "continuous"] = "auto"
        chat: bool = False
        system: str = ""

    @staticmethod
    def check_generate(generate: Mapping[str, Any], folder: Path | None = None) -> None:
        """Check options of `generate`, as described in `Engine`."""
        check_generate(generate, folder)
        check_schema(generate)

    def __init__(self, template: Template, options: Options):
        self.options = options
        self.batch = options.batch
        # `plan` gets at most this number of records, and sorts them by length. A larger number would delay the records
        # of new jobs.
        self.window = 16 * options.batch
        # A dict from a record's number (`record.key`) to the record's prompt. Each call of `plan` makes a new dict.
        self.planned: dict[int, Prompt] = {}
        self.sets = template.adapters
        self.folders: Mapping[str, str] = {}  # folders of the adapters

    def use_adapters(self, folders: Mapping[str, str]) -> None:
        self.folders = folders

    def prepare(self) -> None:
        import torch  # noqa: F401
        import transformers

        if self.sets:
            _import_peft()

        # The library imports a class only when a program first names the class. So name the classes now, while the
        # template's files are being fetched. This saves time in `load`.
        _ = transformers.AutoTokenizer, transformers.PreTrainedModel, loading.model_class(self.options.task)

    def load(self, folder: str | None, phase: Callable[[str], None]) -> None:
        import torch
        import transformers

        options = self.options
        transformers.utils.logging.disable_progress_bar()
        phase(State.LOADING)
        self.device = choose_device(options.device)
        probe(self.device)
        tokenizer = loading.load_tokenizer(str(folder))
        self.encoder = Encoder(tokenizer, options.chat, options.system)
        dtype = options.dtype if options.dtype == "auto" else getattr(torch, options.dtype)
        model = loading.load_model(str(folder), options.task, dtype=dtype, **self._placement())
        if options.device != "all":
            model.to(self.device)
        probe(self.device)
        self.adapters = Adapters(model, self.sets, self.folders, self._forget_prefixes)
        phase(State.WARMING)
        self.task: Generation | Embedding | Classification
        if options.task == "generate":
            # The cache of continuous batching cannot tell the adapters apart.
            batching = "static" if self.folders else options.batching
            self.task = Generation(model, self.encoder, batching, options.batch, options.batch_tokens)
        else:
            head = Embedding if options.task == "embed" else Classification
            self.task = head(model, self.encoder, options.batch, options.batch_tokens)
            self.task.warm_up()

    def _placement(self) -> dict[str, Any]:
        """Return the options of `from_pretrained` that choose the devices for the model.

        If the package accelerate is installed, `from_pretrained` copies each tensor directly from a file to the GPU.
        Without accelerate, `from_pretrained` loads the whole model into the node's memory. `load` then moves the model
        to the GPU.
        """
        if self.options.device == "all":
            return {"device_map": "auto"}
        return {"device_map": {"": self.device}} if self.device != "cpu" and find_spec("accelerate") else {}

    def plan(self, records: Sequence[EngineRecord]) -> list[list[EngineRecord]]:
        lists = [[record] for record in records if _has_texts(record)]
        records = [record for record in records if not _has_texts(record)]
        failing: list[list[EngineRecord]] = []
        try:
            prompts = self.encoder.encode(records)
        except RecordError:
            prompts, failing = self._encode_each(records)
        by_adapter: dict[str, list[Prompt]] = {}
        for prompt in prompts:
            by_adapter.setdefault(prompt.record.adapter, []).append(prompt)
        calls = [call for each in by_adapter.values() for call in self.task.plan(each)]
        self.planned = {prompt.record.key: prompt for call in calls for prompt in call}
        return [[prompt.record for prompt in call] for call in calls] + lists + failing

    def _encode_each(self, records: Sequence[EngineRecord]) -> tuple[list[Prompt], list[list[EngineRecord]]]:
        """Encode each record alone. Return the prompts, and a separate call for each record that cannot be encoded.

        Such a call raises the record's error again.
        """
        prompts: list[Prompt] = []
        failing: list[list[EngineRecord]] = []
        for record in records:
            try:
                prompts += self.encoder.encode([record])
            except RecordError:
                failing.append([record])
        return prompts, failing

    def call(self, records: Sequence[EngineRecord]) -> list[Completion]:
        try:
            self.adapters.activate(records[0].adapter)
            if _has_texts(records[0]):
                return [self._embed_texts(records[0])]
            if all(record.key in self.planned for record in records):
                return self.task.serve([self.planned[record.key] for record in records])
            return self.task.serve(self.encoder.encode(records))
        except AdapterError as error:  # each of these records has this adapter
            return [Completion.failed(error)] * len(records)
        except Exception as error:
            end_if_broken(self.device, error)
            raise

    def _forget_prefixes(self) -> None:
        if isinstance(self.task, Generation):
            self.task.forget_prefixes()

    def _embed_texts(self, record: EngineRecord) -> Completion:
        """Return the embeddings of a record that has a list of texts."""
        records = [replace(record, key=number, prompt=text) for number, text in enumerate(record.prompt)]
        prompts = self.encoder.encode(records)
        served = {
            prompt.record.key: each
            for call in self.task.plan(prompts)
            for prompt, each in zip(call, self.task.serve(call), strict=True)
        }
        tokens = sum(each.extra["usage"]["prompt_tokens"] for each in served.values())
        vectors = [served[number].extra["embedding"] for number in range(len(records))]
        return Completion("", 0, {"embeddings": vectors, "usage": usage(tokens, 0)})

    def describe(self) -> dict[str, Any]:
        return {**facts(self.device), **self.task.describe(), "adapters": self.adapters.loaded}


def _import_peft() -> None:
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise TemplateError(f"adapters need the package peft in the template's environment: {error}") from None
