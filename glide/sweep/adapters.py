"""Turn the LoRA adapters of a sweep file into file sets, and check those that are in local folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from glide.config import ModelSpec, SweepFile, position
from glide.errors import InputError, os_reason
from glide.files.listing import chosen, listing
from glide.programs import PROGRAMS, gguf
from glide.server.engines import lora
from glide.server.engines.lora import CONFIG, WEIGHTS
from glide.system import open_regular
from glide.template import FileSet, Template
from glide.template.private import is_private
from glide.template.spec import files_of

PICKLE = "adapter_model.bin"  # the file with the weights that older versions of peft wrote


def with_adapters(source: Path, file: SweepFile, spec: ModelSpec, template: Template) -> Template:
    """Return a model's template with the adapters of its sweep file.

    Args:
        source: path of the sweep file.
        template: the template without adapters.

    Raises:
        InputError: an adapter is wrong, or the engine cannot use adapters. The error lists the problems, each as
            `file:line: problem`.
    """
    problems, found, private = [], {}, template.private
    if file.adapters and (problem := _engine_problem(spec)):
        raise InputError(f"{position(source, 'adapters')}: {problem}")
    for name, path in (file.adapters or {}).items():
        try:
            found[name] = _file_set(source.parent, path, spec, template)
            private = private or ("://" not in path and is_private(Path(found[name].path)))
        except (OSError, ValueError) as error:
            reason = os_reason(error) if isinstance(error, OSError) else error
            problems.append(f"{position(source, 'adapters', name)}: {reason}")
    if problems:
        raise InputError(*problems)
    return replace(template, adapters=found, private=private)


def _engine_problem(spec: ModelSpec) -> str:
    """Return why a model's engine cannot use adapters; an empty text if it can."""
    if spec.engine == "server":
        program = PROGRAMS.get(str(spec.options.get("program")))
        if program is not None and program.adapters is not None:
            return ""
        known = ", ".join(name for name, each in PROGRAMS.items() if each.adapters is not None)
        return f"{program.name if program else 'a command'} cannot use adapters; set `program` to one of {known}"
    if spec.engine not in ("noop", "transformers"):
        return f"the {spec.engine} engine cannot use adapters; set `engine` to server or transformers"
    if spec.options.get("batching") == "continuous":
        return "continuous batching cannot use adapters; remove the option `batching`"
    return ""


def _file_set(parent: Path, path: str, spec: ModelSpec, template: Template) -> FileSet:
    """Return the files of an adapter. Raise ValueError or OSError if a file is wrong or missing.

    Args:
        parent: folder to which the path is relative.
    """
    program = PROGRAMS.get(str(spec.options.get("program")))
    is_gguf = program is not None and program.needs_file
    patterns = [f"*{gguf.SUFFIX}"] if is_gguf else [CONFIG, WEIGHTS]
    if "://" in path:
        address, files = listing(path, patterns)
        files = {name: each for name, each in files.items() if "/" not in name}
        if missing := [name for name in patterns if not is_gguf and name not in files]:
            raise ValueError(f"{path} has no {missing[0]}; name the folder or repository that has it")
    else:
        folder = (parent / path).resolve()
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
        address = str(folder)
        names = {each.name: each for each in folder.iterdir() if each.is_file() and not each.name.startswith(".")}
        if not is_gguf and PICKLE in names and WEIGHTS not in names:
            raise ValueError(f"{PICKLE} is a pickle, which glide never loads; save the adapter as {WEIGHTS}")
        if missing := [name for name in patterns if not is_gguf and name not in names]:
            raise ValueError(f"{folder} has no {missing[0]}; name the folder in which peft saved an adapter")
        files = {}
        for name in chosen(names, patterns, str(folder)):
            files |= files_of(names[name], folder)
        if not is_gguf:
            _check_peft(folder, template)
    if is_gguf and len(files) != 1:
        raise ValueError(f"{address} has {len(files)} files that end with {gguf.SUFFIX}; an adapter is one such file")
    return FileSet(address, files)


def _check_peft(folder: Path, template: Template) -> None:
    """Raise ValueError if a folder has no LoRA adapter, or if the adapter does not fit the model.

    The shapes are compared only if the model's files are on this host.
    """
    try:
        fields = lora.lora_fields((folder / CONFIG).read_bytes())
        matrices = _shapes(folder / WEIGHTS)
        lora.check_matrices(list(matrices))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    model = Path(template.path or "")
    config = model / "config.json"
    if not model.is_absolute() or not config.is_file() or b"quantization_config" in config.read_bytes():
        return  # another host has the model's files, or their shapes differ from those of the layers
    sides = {"A.weight": 0, "B.weight": 1} if fields.get("fan_in_fan_out") else {"A.weight": 1, "B.weight": 0}
    shapes: dict[str, list[int]] = {}
    for name in template.files:
        if name.endswith(".safetensors"):
            shapes |= _shapes(model / name)
    for name, shape in matrices.items():
        module, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        base = shapes.get(f"{module}.weight")
        side = {"A.weight": 1, "B.weight": 0}.get(part)
        if base is None or side is None or len(base) != 2 or len(shape) != 2:
            continue
        if shape[side] != base[sides[part]]:
            raise ValueError(
                f"{folder} does not fit the model: {module} has the shape {base}, but {name} has the shape {shape}; use"
                " an adapter that was trained with this model"
            )


def _shapes(path: Path) -> dict[str, list[int]]:
    """Return the shapes of the tensors in a safetensors file, by name. Raise ValueError if the file is damaged."""
    with open_regular(path) as file:
        start = file.read(8)
        header = start + file.read(min(lora.header_size(start), lora.LARGEST_HEADER))
    try:
        return lora.shapes(header)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
