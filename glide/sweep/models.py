"""Turn the model of a sweep file into a template, and check the model's files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from glide.condor.install import cache_dir
from glide.config import PHASES, ModelSpec, SweepFile, load, position
from glide.errors import InputError, os_reason
from glide.files.environment import environment
from glide.files.listing import chosen, download, listing
from glide.programs import PROGRAMS, gguf
from glide.sweep.adapters import with_adapters
from glide.template import Template
from glide.template.needs import Needs
from glide.template.private import is_private

WEIGHTS = (".safetensors", ".bin")  # suffixes of the files from which transformers loads weights


def prepare_model(source: Path, model: str = "") -> Template:
    """Return the template of a model in a sweep file. The records are not read.

    Args:
        model: name of the model in the `models` of the sweep file. It may be empty if there is only one model.

    Raises:
        InputError: the sweep file or its model is wrong. The error lists the problems, each as `file:line: problem`.
    """
    file = load(source, SweepFile)
    known = file.model_axis
    if not model and len(known) == 1:
        (model,) = known
    if model not in known:
        choices = " or ".join(f"{source}:{name}" if name else str(source) for name in known)
        raise InputError(f"{position(source, 'models')}: choose one of its models: {choices}")
    return template_of(source, file, model)


def template_of(source: Path, file: SweepFile, model: str) -> Template:
    """Return the template of a model in a sweep file that was read.

    Args:
        model: name of the model in the `models` of the sweep file; empty if the file has `model`.

    Raises:
        InputError: the model is wrong. The error lists the problems, each as `file:line: problem`.
    """
    spec = file.model_axis[model]
    place = ["models", model] if model else ["model"]
    key = "environment"
    try:
        file_set = environment(spec.environment, source.parent) if spec.environment else None
        key = "token"
        token = _token(source.parent / spec.token) if spec.token else ""
        key = "files" if spec.files else "path"
        template = _template(source.parent, spec, token)
        _check_files(spec, template)
    except ValueError as error:
        raise InputError(f"{position(source, *place, key)}: {error}") from None
    needs = Needs(**spec.needs.model_dump())
    return with_adapters(source, file, spec, replace(template, environment=file_set, needs=needs))


def _template(parent: Path, spec: ModelSpec, token: str) -> Template:
    """Return the template of a model. Raise ValueError if a file is wrong.

    Args:
        parent: folder to which the model's path is relative.
        token: access token for the model hub; empty if the model needs none.
    """
    budgets = {PHASES[phase]: seconds for phase, seconds in spec.budgets.items()}
    if spec.path is None:
        return Template(spec.name, spec.engine, options=spec.options, budgets=budgets, keep=spec.keep)
    try:
        if "://" in spec.path and not token:
            path, files = listing(spec.path, spec.patterns)
            return Template(spec.name, spec.engine, path, files, spec.options, budgets=budgets, keep=spec.keep)
        folder, known = (parent / spec.path).absolute(), dict[str, str]()
        if token:
            folder, known = download(spec.path, token, cache_dir() / "models", spec.patterns)
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
        template = Template.of_folder(spec.name, spec.engine, folder.resolve(), spec.options)
        template = replace(template, files=chosen(template.files, spec.patterns, str(folder)))
        private = is_private(folder)
        for name, (digest, _) in template.files.items():
            if known.get(name, digest) != digest:
                raise ValueError(f"{folder / name} is damaged; delete it, and run the command again")
            if private and not is_private((folder / name).resolve().parent):
                raise ValueError(f"{folder / name} is a link to a file that is not private; copy the file")
        return replace(template, budgets=budgets, keep=spec.keep, private=private)
    except OSError as error:
        raise ValueError(os_reason(error)) from None


def _token(path: Path) -> str:
    """Return the access token in a file. Raise ValueError if the file is wrong, or if other accounts can read it."""
    try:
        if path.stat().st_mode & 0o077:
            raise ValueError(f"other accounts can read {path}; run: chmod 600 {path}")
        token = path.read_text("utf-8", "replace").strip()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if not re.fullmatch(r"[\x21-\x7e]{1,1000}", token):
        raise ValueError(f"{path} must contain one line with the access token")
    return token


def _check_files(spec: ModelSpec, template: Template) -> None:
    """Raise ValueError if the engine cannot load a model from a template's files."""
    program = PROGRAMS.get(str(spec.options.get("program")))
    if template.path is None or (spec.engine != "transformers" and program is None):
        return
    if program is not None and program.needs_file:
        _check_gguf(template)
        return
    what = f"a model for {program.name}" if program else "a transformers model"
    if "config.json" not in template.files:
        raise ValueError(f"{template.path} has no config.json; {what} needs one")
    config = Path(template.path) / "config.json"
    if config.is_file():
        try:
            json.loads(config.read_bytes())
        except ValueError as error:
            raise ValueError(f"{config} is not JSON: {error}") from None
    if not any(name.endswith(WEIGHTS) for name in template.files):
        raise ValueError(f"{template.path} has no weights: no file ends with {' or '.join(WEIGHTS)}")


def _check_gguf(template: Template) -> None:
    """Raise ValueError if a template does not have exactly one model in GGUF files."""
    models = gguf.models(template.files)
    if not models:
        raise ValueError(f"{template.path} has no weights: no file ends with {gguf.SUFFIX}")
    if len(models) > 1:
        shown = ", ".join(models[:8]) + (f" and {len(models) - 8} more" if len(models) > 8 else "")
        raise ValueError(f"{template.path} has {len(models)} models: {shown}; choose one, as in files: '{models[0]}'")
