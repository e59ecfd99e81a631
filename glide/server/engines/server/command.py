"""Compose the command and the environment variables of a program. Only the functions for GGUF files read the disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from glide.errors import TemplateError
from glide.programs import Command, Program, flags, gguf

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the largest ranks that programs can be prepared for
LARGEST_LIMIT = 4096  # the engine never keeps more prompts in flight than this, whatever the program says
# Variables for all programs. The model's files are on the node, so no program needs a model hub.
VARIABLES = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "{cpus}", "OPENAI_API_KEY": "{key}", "TRITON_CACHE_DIR": "{cache}/triton",
    "TORCHINDUCTOR_CACHE_DIR": "{cache}/inductor", "FLASHINFER_WORKSPACE_BASE": "{cache}/flashinfer",
    "CUDA_CACHE_PATH": "{cache}/cuda",
}  # fmt: skip


def command_line(
    program: Program,
    args: Sequence[str],
    values: Mapping[str, str],
    uses_socket: bool,
    exists: Callable[[Command], bool],
    adapters: Mapping[str, str],
) -> list[str]:
    """Return the command that starts a program.

    Args:
        args: further arguments, from the user.
        values: the values of the placeholders.
        uses_socket: whether the program must listen at a Unix socket.
        exists: function that returns whether the environment has what a command needs.
        adapters: path of each LoRA adapter, by name.

    Raises:
        TemplateError: the environment has nothing that starts the program.
    """
    found = next((command for command in program.commands if exists(command)), None)
    if found is None:
        needed = " or ".join(command.needs for command in program.commands)
        raise TemplateError(f"{program.name} not found: the environment and its PATH lack {needed}")
    for name, value in values.items():
        if value.startswith("-"):  # the program would take it for a flag
            raise TemplateError(f"the value of {{{name}}} begins with a hyphen: {value}; use another name")
    chosen = [word.format_map(values) for word in found.words]
    if program.splits_values:
        args = [word for each in args for word in (each.split("=", 1) if each.startswith("-") else [each])]
    given = set(flags(args))
    described = program.arguments + (program.adapters.arguments if program.adapters and adapters else ())
    defaults = [word.format_map(values) for words in described if not given & {words[0]} for word in words]
    listening = program.socket_arguments if uses_socket else program.port_arguments
    ours = [*defaults, *(word.format_map(values) for word in listening or ())]
    return [*chosen, *ours, *_adapter_arguments(program, adapters), *args]


def _adapter_arguments(program: Program, adapters: Mapping[str, str]) -> list[str]:
    """Return the arguments that name the LoRA adapters."""
    form = program.adapters
    if form is None or not adapters:
        return []
    words = [form.each.format_map({"name": name, "path": path}) for name, path in adapters.items()]
    return [form.flag, form.separator.join(words)] if form.separator else [form.flag, *words]


def link_adapters(folders: Mapping[str, str], needs_file: bool, links: Path) -> dict[str, str]:
    """Return a path for each LoRA adapter: that of a link in the folder `links`.

    Programs find separators in the paths, such as commas. The names of the links contain none.

    Args:
        folders: folder of each adapter, by name.
        needs_file: whether the program needs the adapter's GGUF file in place of its folder.
        links: folder for the links. If it exists, its links are replaced.

    Raises:
        TemplateError: an adapter does not have exactly one GGUF file, but the program needs one.
        OSError: the links cannot be made.
    """
    shutil.rmtree(links, ignore_errors=True)
    links.mkdir(mode=0o700)
    found = {}
    for number, (name, folder) in enumerate(folders.items()):
        target = Path(folder)
        if needs_file:
            files = [path for path in target.iterdir() if path.suffix == gguf.SUFFIX]
            if len(files) != 1:
                raise TemplateError(f"adapter {name} has {len(files)} GGUF files, but it must have one")
            target = files[0]
        link = links / f"{number}{gguf.SUFFIX if needs_file else ''}"
        link.symlink_to(target.absolute())
        found[name] = str(link)
    return found


def largest_rank(adapters: Mapping[str, str]) -> int:
    """Return the lowest of RANKS that is at least the rank of each LoRA adapter; the highest one if a rank is unknown.

    Args:
        adapters: folder of each adapter, in the format of peft.
    """
    ranks = [0]
    for folder in adapters.values():
        try:
            config = json.loads((Path(folder) / "adapter_config.json").read_bytes())
            ranks += [int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            ranks.append(RANKS[-1])
    return next((rank for rank in RANKS if rank >= max(ranks)), RANKS[-1])


def variables(
    program: Program, args: Sequence[str], values: Mapping[str, str], outer: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment variables of a program.

    Args:
        args: further arguments, from the user.
        values: the values of the placeholders.
        outer: the variables of the environment in which the program runs.
    """
    own = {name: value.format_map(values) for name, value in {**VARIABLES, **program.variables}.items()}
    sleeps = program.sleep_mode is not None and program.sleep_mode.flag in flags(args)
    return {**outer, **own, **(program.sleep_mode.variables if program.sleep_mode and sleeps else {})}


def limit(program: Program, args: Sequence[str]) -> int:
    """Return the number of prompts that arguments allow a program to compute at the same time; 0 if none sets it."""
    for name, following in zip_longest(args, args[1:], fillvalue=""):
        flag, _, attached = name.partition("=")
        number = attached or following
        if flag in program.limit_flags and number.isdecimal() and int(number) > 0:
            return int(number)
    return 0


def fewer_prompts(in_flight: int, waiting: int, prompts: int) -> int:
    """Return how many prompts may be in flight, if some wait in the program for long.

    The program's memory may suffice for fewer prompts than its limit. The timeouts of waiting prompts pass in vain.

    Args:
        in_flight: number of prompts in flight.
        waiting: number of those that wait in the program.
        prompts: maximum number of prompts in one request. At most this number of prompts may wait in the program, so
            that it is never idle.
    """
    return max(1, in_flight - waiting) + prompts


def model_file(folder: str | None) -> str:
    """Return the path of a folder's GGUF file. If the model is split into several files, return the first one.

    If the folder does not contain exactly one model, return an empty text.
    """
    models = _gguf_models(folder)
    return models[0] if len(models) == 1 else ""


def check_model_file(folder: str | None) -> None:
    """Raise TemplateError if a folder does not have exactly one GGUF model."""
    models = _gguf_models(folder)
    if not models:
        raise TemplateError("the model's folder has no GGUF file; use a path with one")
    if len(models) > 1:
        names = ", ".join(Path(each).name for each in models[:8])
        raise TemplateError(f"the model's folder has {len(models)} GGUF models: {names}; choose one with `files`")


def _gguf_models(folder: str | None) -> list[str]:
    return gguf.models(map(str, Path(folder).rglob(f"*{gguf.SUFFIX}"))) if folder else []


def spare_gib(memory: float, weights: float) -> int:
    """Return how much main memory a program may use beside the weights, in GiB, but at least 1.

    Args:
        memory: main memory of the glidein in MB.
        weights: size of the model's files in MB. While the program loads them, they may be in memory twice.
    """
    return max(1, int((0.9 * memory - 2 * weights - 1500) / 1024))


def core_numbers(cores: Collection[int], cpus: int) -> str:
    """Return the cores to which vLLM's CPU build may bind its threads, or `nobind`.

    If this process may use more cores than the glidein has, other jobs use some of these cores, and it is unknown which
    ones. Then no thread must be bound.

    Args:
        cores: numbers of the cores that this process may use.
        cpus: number of cores of the glidein.
    """
    return ",".join(map(str, sorted(cores))) if len(cores) <= cpus else "nobind"
