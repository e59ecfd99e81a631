"""LoRA adapters of a loaded model. They are loaded when a record first needs them. At most one is active at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glide.server.engines.base import RecordError

SHOWN = 3  # maximum number of matrices that a message names


class AdapterError(RecordError):
    """The record's adapter cannot be loaded into the model."""


class Adapters:
    """The adapters of a model. The package peft puts their matrices into the model's layers.

    Args:
        model: the loaded model.
        folders: folder of each adapter, by name, in the format of peft.

    Attributes:
        loaded: names of the adapters in memory.
        active: name of the adapter with which the model computes now; empty for the model itself.
    """

    def __init__(self, model: Any, folders: Mapping[str, str]):
        self.model = model
        self.folders = folders
        self.loaded: list[str] = []
        self.active = ""
        # The names of the adapters within peft. Its own rules forbid some names, such as those with a dot.
        self._inside = {name: f"adapter{number}" for number, name in enumerate(folders)}
        self._layers: Any = None  # peft's object for the model; None before the first adapter

    def activate(self, name: str) -> bool:
        """Let the model compute with an adapter, or without one if `name` is empty. Return whether this is a change.

        Raises:
            AdapterError: the adapter cannot be loaded. The model then computes with the adapter that was active.
        """
        if name == self.active:
            return False
        if name and name not in self.loaded:
            self._load(name)
        if name:
            self._layers.set_adapter(self._inside[name])
            self._layers.base_model.enable_adapter_layers()
        else:
            self._layers.base_model.disable_adapter_layers()
        self.active = name
        return True

    def _load(self, name: str) -> None:
        from peft import PeftConfig, PeftModel

        folder, inside = self.folders[name], self._inside[name]
        try:
            if self._layers is None:
                self._layers = PeftModel(self.model, PeftConfig.from_pretrained(folder), inside)
                self._layers.base_model.disable_adapter_layers()
            result = self._layers.load_adapter(folder, inside, torch_device="cpu")
            wrong = [*result.missing_keys, *result.unexpected_keys]
            if wrong:
                raise ValueError(f"its weights do not fit the model: {', '.join(wrong[:SHOWN])}")
        except Exception as error:
            if self._layers is not None and inside in self._layers.peft_config:
                self._layers.delete_adapter(inside)
            raise AdapterError(f"adapter {name}: {' '.join(str(error).split())[:400]}") from error
        self.loaded.append(name)
