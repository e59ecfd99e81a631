"""Programs that serve a model through OpenAI's API. Each program has a module that describes it as data.

The engine `server` (glide.server.engines.server) starts such a program on a node. To add a program, write a module with
a `Program`, and add it to PROGRAMS.

For each program, there is a list of flags that can only set numbers or choose from names: its *listed flags*. If a
user's arguments contain only listed flags, they are data. Any other flag could make the program run code or read files,
for example --trust-remote-code. So glide treats it as a user's code. The same is true for a command that a user writes.

This package uses only the standard library, because access points and nodes use it.
"""

from __future__ import annotations

import itertools
import math
import re
import shlex
import string
from collections.abc import Mapping, Sequence
from typing import Any

from glide.programs.base import CONTEXT, LARGE_GPU, Command, Program
from glide.programs.llamacpp import LLAMACPP
from glide.programs.sglang import SGLANG
from glide.programs.transformers import TRANSFORMERS
from glide.programs.vllm import VLLM

__all__ = [
    "COMMAND",
    "CONTEXT",
    "LARGE_GPU",
    "PLACEHOLDERS",
    "PROGRAMS",
    "Command",
    "Program",
    "check_command",
    "flags",
    "gpus_of",
    "unlisted",
]

PROGRAMS = {program.name: program for program in (VLLM, SGLANG, LLAMACPP, TRANSFORMERS)}
# A command that a user writes. The command may start one of the programs above, so the engine also reads the counters
# of these programs.
COMMAND = Program(
    "command",
    (),
    ready="",
    progress_metrics=tuple(name for program in PROGRAMS.values() for name in program.progress_metrics),
)
# Placeholders in a command, and what they stand for.
PLACEHOLDERS = {
    "path": "folder of the model",
    "file": "the model's GGUF file",
    "model": "name of the model",
    "port": "port at which the program must listen, on 127.0.0.1",
    "socket": "path of the Unix socket at which the program must listen",
    "cpus": "number of CPU cores of the glidein",
    "python": "the Python interpreter of the environment",
}
_FLAG = re.compile(r"(--?[A-Za-z][^=]*)(=.*)?", re.DOTALL)


def flags(args: Sequence[str]) -> list[str]:
    """Return the names of the flags in a program's arguments. A value after `=` is left out."""
    return [found[1] for each in args if (found := _FLAG.fullmatch(each))]


def unlisted(options: Mapping[str, Any], lists: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return the first part of the options that counts as a user's code, such as `vllm with --trust-remote-code`.

    If no part does, return an empty text.

    Args:
        options: options of the engine `server`. Any user may have written them.
        lists: for each program that is allowed, its listed flags; None for glide's own programs and lists.
    """
    if options.get("command"):
        return "a command"
    program, args = options.get("program"), options.get("args") or []
    if not isinstance(program, str) or program not in PROGRAMS or (lists is not None and program not in lists):
        return f"the program {program!r:.40}"
    if not isinstance(args, (list, tuple)) or not all(isinstance(each, str) for each in args):
        return "arguments that are not texts"
    listed = PROGRAMS[program].listed_flags if lists is None else lists[program]
    before = ""  # the flag before this word, if it takes a value; otherwise empty
    for each in args:
        found = _FLAG.fullmatch(each)
        if found is None and not before:  # the program would read this word as a model's path, or as a subcommand
            return f"{program} with {each!r:.60}"
        if found is not None and found[1] not in listed:
            return f"{program} with {found[1]:.60}"
        takes_value = found is not None and found[2] is None and found[1] not in PROGRAMS[program].switches
        before = each if takes_value else ""
    return ""


def gpus_of(options: Mapping[str, Any]) -> int:
    """Return how many GPUs a program's arguments ask for; 0 if they do not say it.

    Args:
        options: options of the engine `server`.
    """
    program, args = PROGRAMS.get(str(options.get("program"))), options.get("args") or []
    if program is None or not isinstance(args, (list, tuple)):
        return 0
    words = [word for each in args for word in str(each).split("=", 1)]
    numbers = [
        int(value)
        for flag, value in itertools.pairwise(words)
        if flag in program.gpu_flags and value.isdecimal() and len(value) < 6
    ]
    return math.prod(numbers) if numbers else 0


def check_command(command: str) -> list[str]:
    """Return the words of a command that a user wrote. The command is not run by a shell.

    Raises:
        ValueError: quotes do not match, a placeholder is unknown, or the program cannot be reached.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"the command cannot be read: {error}; close the quotation marks") from None
    try:
        names = {name for word in words for _, name, _, _ in string.Formatter().parse(word) if name is not None}
    except ValueError as error:
        raise ValueError(f"the command cannot be read: {error}; to write a brace, double it") from None
    if unknown := sorted(names - PLACEHOLDERS.keys()):
        raise ValueError(f"the command has the unknown placeholder {{{unknown[0]}}}; use {', '.join(PLACEHOLDERS)}")
    if not {"port", "socket"} & names:
        raise ValueError("the command needs {port} or {socket}, so that glide can reach the program")
    return words
