"""The axes of a sweep, and the request that a record makes in each combination of their values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from glide.config import SweepFile
from glide.config.sweep import NO_ADAPTER, Messages, Prompt
from glide.server.engines.options import with_inside_names
from glide.sweep.out import cell_name
from glide.sweep.prompts import render
from glide.sweep.records import Record


@dataclass(frozen=True)
class Cell:
    """One combination of the values of a sweep's axes. Each record gets one result in each cell.

    Attributes:
        name: the names of the values, with a slash between two names. It is empty if the sweep has no axes. The
            results of the cell are in the subfolder of `out` with this name.
        prompt: the prompt; None if each record brings its own request.
        generate: the options of `generate`.
        adapter: name of the LoRA adapter; empty for the model itself.
    """

    name: str
    prompt: Prompt | None
    generate: Mapping[str, Any]
    adapter: str = ""

    def request(self, record: Record) -> dict[str, Any]:
        """Return a record's request, without its id and timeout. A missing `task` or `adapter` is empty."""
        request = self._request(record)
        return {**request, "adapter": self.adapter} if self.adapter else request

    def _request(self, record: Record) -> dict[str, Any]:
        """Return the `prompt`, `generate` and `task` of a record's request."""
        if record.request is not None:
            own = record.request
            return {"prompt": own.prompt, "generate": _merged(self.generate, own.generate)} | (
                {"task": own.task} if own.task else {}
            )
        assert self.prompt is not None  # if a sweep has no prompts, `prepare` refuses records without a request
        own_options = record.fields.get("generate")
        generate = _merged(self.generate, own_options) if isinstance(own_options, dict) else self.generate
        return {"prompt": render(self.prompt, record.fields), "generate": generate}

    def content(self, record: Record) -> bytes:
        """Return a record's request as bytes, for the request's fingerprint.

        The fingerprint also depends on the template, on the adapter and on the options of the cell. The caller adds
        these.
        """
        request = self._request(record)
        if isinstance(request["prompt"], str) and request["generate"] is self.generate:
            return request["prompt"].encode()
        return json.dumps(request, sort_keys=True).encode()


def prompts_of(file: SweepFile) -> dict[str, Prompt]:
    """Return the prompts of a sweep, by name; empty if each record brings its own request."""
    if file.messages is not None:
        return {"": Messages(file.messages)}
    return dict(file.prompts or {})


def cells(file: SweepFile) -> dict[str, Cell]:
    """Return the cells of a sweep, by name."""
    prompts: Mapping[str, Prompt | None] = prompts_of(file) or {"": None}
    variants: Mapping[str, Mapping[str, Any]] = file.variants or {"": {}}
    adapters = {"": ""} if file.adapters is None else {NO_ADAPTER: "", **{name: name for name in file.adapters}}
    found = {}
    for folder, (prompt_name, prompt), (variant, options) in product(adapters, prompts.items(), variants.items()):
        name = cell_name(folder, prompt_name, variant)
        generate = _merged(file.generate, options) if options else file.generate
        found[name] = Cell(name, prompt, generate, adapters[folder])
    return found


def _merged(generate: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return options, in which `own` wins over `generate`. An option may have different names in the two."""
    if not own:
        return generate
    if not generate:
        return own
    return {**with_inside_names(generate), **with_inside_names(own)}
