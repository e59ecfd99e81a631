"""LoRA adapters of a loaded model. They are loaded when a record first needs them. At most one is active at a time."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glide.server.engines import lora
from glide.server.engines.base import INTERRUPT, RecordError, RecordTimeout
from glide.template import FileSet

SHOWN = 3  # maximum number of matrices that a message names


class AdapterError(RecordError):
    """The record's adapter cannot be loaded into the model."""


class Adapters:
    """The adapters of a model. The package peft puts their matrices into the model's layers.

    Args:
        model: the loaded model.
        sets: the file set of each adapter, by name.
        folders: the folder of each adapter on this node, by name.
        on_change: function that is called before another adapter becomes active.

    Attributes:
        loaded: names of the adapters in memory.
        failed: reason for each adapter that cannot be loaded, by name.
        active: name of the adapter with which the model computes; empty for the model itself; None during a change.
    """

    def __init__(
        self, model: Any, sets: Mapping[str, FileSet], folders: Mapping[str, str], on_change: Callable[[], None]
    ):
        self.model = model
        self.sets = sets
        self.folders = folders
        self.on_change = on_change
        self.loaded: list[str] = []
        self.failed: dict[str, str] = {}
        self.active: str | None = ""
        # The names within peft. Its own rules forbid some names, such as those with a dot, and no name may contain
        # another one.
        self._inside = {name: f"adapter{number:06}" for number, name in enumerate(folders)}
        self._layers: Any = None  # peft's object for the model; None before the first adapter

    def activate(self, name: str) -> None:
        """Let the model compute with an adapter, or without one if `name` is empty.

        Raises:
            AdapterError: the adapter cannot be loaded. The model then computes without an adapter.
        """
        if name == self.active:
            return
        with _uninterrupted():
            self.on_change()
            self._disable()
            self.active = ""
            if name:
                self._load_once(name)
                self.active = None
                self._layers.set_adapter(self._inside[name])
                self._layers.base_model.enable_adapter_layers()
                self.active = name

    def _disable(self) -> None:
        """Let the model compute without adapters, even if an adapter was loaded only in part."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer):
                module.enable_adapters(False)

    def _remove(self, inside: str) -> None:
        """Remove an adapter that was loaded only in part."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        if self._layers is not None:
            self._layers.peft_config.pop(inside, None)
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer):
                module.delete_adapter(inside)
        self._disable()

    def _load_once(self, name: str) -> None:
        if name not in self.loaded and name not in self.failed:
            try:
                self._load(name)
                self.loaded.append(name)
            except Exception as error:
                self._remove(self._inside[name])
                if _is_fault_of_device(error):
                    raise
                self.failed[name] = " ".join(str(error).split())[:400]
        if name in self.failed:
            raise AdapterError(f"adapter {name}: {self.failed[name]}")

    def _load(self, name: str) -> None:
        from peft import LoraConfig, PeftModel, set_peft_model_state_dict
        from safetensors.torch import load

        inside = self._inside[name]
        fields = lora.lora_fields(self._content(name, lora.CONFIG))
        weights = load(self._content(name, lora.WEIGHTS))
        lora.check_matrices(list(weights))
        config = LoraConfig(**fields, inference_mode=True)
        if self._layers is None:
            self._layers = PeftModel(self.model, config, inside)
        else:
            self._layers.add_adapter(inside, config)
        result: Any = set_peft_model_state_dict(self._layers, weights, adapter_name=inside)
        missing = [key for key in result.missing_keys if inside in key]
        if wrong := [*missing, *result.unexpected_keys]:
            raise ValueError(f"its weights do not fit the model: {', '.join(wrong[:SHOWN])}")
        self.model.eval()

    def _content(self, name: str, file: str) -> bytes:
        """Return the content of an adapter's file, which may have changed since it was fetched."""
        content = (Path(self.folders[name]) / file).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sets[name].files.get(file, ("", 0))[0]:
            raise ValueError(f"{file} is not the file that the template describes")
        return content


def _is_fault_of_device(error: Exception) -> bool:
    """Return whether the next try may succeed, because the memory or the GPU is the cause."""
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "CUDA" in str(error)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay RecordTimeout until the end of the `with` block. Otherwise, the layers could be left in a mixed state.

    The signal is not blocked, because another thread could then get it, and Python would still run its handler.
    """
    late = False

    def note(*_: object) -> None:
        nonlocal late
        late = True

    before = signal.signal(INTERRUPT, note)
    try:
        yield
    finally:
        signal.signal(INTERRUPT, before)
    if late:
        raise RecordTimeout("no result within the record's timeout")
