"""The models that `glide serve` offers. Each comes from a file: a sweep file, or one with `name` and `model` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glide.config import ModelFile, load
from glide.errors import InputError
from glide.live.model import LiveModel
from glide.serve.errors import ApiError, not_found
from glide.sweep.models import template_of


@dataclass(frozen=True)
class OfferedModel(LiveModel):
    """A model that `glide serve` offers. Its name is the name of the model in requests.

    Attributes:
        source: the file that describes the model.
        key: the model's name in the `models` of this file; empty if the file has `model`.
        folder: the model's folder on this machine, from which some limits are read; None if it is elsewhere.
        adapters: names of the model's LoRA adapters.
    """

    source: Path
    key: str
    folder: Path | None
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Catalogue:
    """The offered models, by name."""

    models: Mapping[str, OfferedModel]

    @property
    def names(self) -> list[str]:
        """The names that requests may use. MODEL:ADAPTER is a model with one of its adapters."""
        return [
            name for model in self.models.values()
            for name in (model.name, *(f"{model.name}:{adapter}" for adapter in model.adapters))
        ]  # fmt: skip

    def find(self, name: Any) -> tuple[OfferedModel, str]:
        """Return the model with a name, and the name of the adapter; empty without an adapter.

        Raises:
            ApiError: there is no such model.
        """
        if not isinstance(name, str):
            raise ApiError(400, "`model` is missing; name one of the models of GET /v1/models", "missing", "model")
        base, _, adapter = name.partition(":")
        model = self.models.get(base)
        if model is None or (adapter and adapter not in model.adapters):
            known = ", ".join(self.names)
            raise not_found(f"no model {name[:100]!r}; this server has: {known}", "model_not_found")
        return model, adapter


def read_catalogue(files: Sequence[Path]) -> Catalogue:
    """Read the files of models.

    Raises:
        InputError: a file is wrong, or two models have the same name.
    """
    problems: list[str] = []
    models: dict[str, OfferedModel] = {}
    for path in files:
        source = path.absolute()
        try:
            file = load(source, ModelFile)
            for key, spec in file.model_axis.items():
                template = template_of(source, file, key)
                folder = source.parent / spec.path if spec.path and "://" not in spec.path else None
                model = OfferedModel(
                    spec.name, template, file.glideins, file.idle_seconds, source, key, folder,
                    tuple(template.adapters),
                )  # fmt: skip
                if ":" in model.name:
                    problems.append(f"{source}: the model's name {model.name} has a colon; choose another name")
                elif spec.name in models:
                    problems.append(f"{source}: {models[spec.name].source} already has a model {spec.name}")
                models.setdefault(spec.name, model)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*problems)
    if not models:
        raise InputError("no model is named; name at least one: glide serve --model FILE")
    return Catalogue(models)
