"""The description of a program that serves a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

CONTEXT = 4096  # number of tokens of a request and its answer, if a program needs such a limit and the user gives none
LARGE_GPU = 70_000  # memory of a GPU in MB above which programs compute more prompts at the same time


@dataclass(frozen=True)
class Command:
    """A way to start a program.

    Attributes:
        words: the command's words. Texts may contain placeholders (see Program).
        module: the Python package that the command needs; empty if it needs none. Then the first word is the
            executable.
    """

    words: tuple[str, ...]
    module: str = ""

    @property
    def needs(self) -> str:
        """Return what the environment must contain, for messages."""
        return f"the Python package {self.module}" if self.module else f"the program {self.words[0]}"


@dataclass(frozen=True)
class AdapterArguments:
    """How a program gets LoRA adapters, and how a request names one. Texts may contain {rank} and {adapters}.

    Attributes:
        arguments: arguments that allow adapters. Like `Program.arguments`, the user's values replace them.
        flag: flag that is followed by the adapters.
        each: word for one adapter, with the placeholders {name} and {path}. For GGUF files, {path} is the file.
        separator: text between the words of two adapters; empty if each word is an argument of its own.
        fields: function that returns the fields of a request with an adapter. Its arguments are the adapter's name, and
            its place in the list of adapters.
        embeds: whether the program can compute embeddings with an adapter.
        always: fields of all requests to a program that has adapters.
    """

    arguments: tuple[tuple[str, ...], ...]
    flag: str
    each: str
    fields: Callable[[str, int], dict[str, Any]]
    separator: str = ""
    embeds: bool = False
    always: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SleepMode:
    """How a running program gives up its GPU memory, and later gets it back.

    Attributes:
        flag: flag of the program that enables sleep. Sleep is used only if the user gives this flag.
        sleep, wake: paths to which an empty POST request is sent.
        variables: environment variables that sleep needs.
    """

    flag: str
    sleep: str
    wake: str
    variables: dict[str, str]


@dataclass(frozen=True)
class Program:
    """A program that serves a model through OpenAI's API, and how glide uses it.

    Texts may contain the placeholders of glide.programs.PLACEHOLDERS, and also these:

    - {address}: address at which the program must listen: a socket's path, or 127.0.0.1
    - {key}: the API key
    - {config}: path of a file with the text `config`
    - {here}: folder of glide.programs
    - {cache}: folder for compiled code
    - {kv_gib}: main memory that the program may use for its KV cache, in GiB
    - {connections}: maximum number of connections that glide opens
    - {sequences}: number of prompts that the program must compute at the same time
    - {context}: number of tokens for all requests together; CONTEXT for each request
    - {cores}: numbers of the CPU cores that the program may use

    Attributes:
        name: name of the program in sweep files.
        commands: the commands that start the program. glide uses the first one whose program or package exists.
        arguments: arguments that follow each command, as flags with their values. If the user gives the same flag, the
            user's value replaces this one.
        port_arguments: further arguments if the program must listen at a port.
        socket_arguments: further arguments if the program listens at a Unix socket; None if it cannot do this.
        config: text of a file that only this account can read; empty if the program needs no such file.
        variables: environment variables.
        listed_flags: flags that only set numbers or choose from names. They cannot make the program run other code or
            read other files.
        own_flags: flags that glide sets. A user must not set them.
        gpu_flags: flags with a number of GPUs. The program needs the product of these numbers.
        switches: those of the listed flags that take no value.
        splits_values: whether the program accepts only `--flag value`, and not `--flag=value`.
        model: the name of the model in requests.
        ready: path that answers with status 200 when the program is ready.
        lists_models: whether /v1/models lists the model.
        prompts: maximum number of prompts that one request to /v1/completions may contain.
        token_ids: field of a request that adds the token IDs of prompt and text to the answer; empty if there is none.
        limit: number of prompts that the program computes at the same time, if nothing else is known.
        large_limit: like `limit`, for GPUs with at least LARGE_GPU MB of memory; 0: use `limit`.
        limit_flags: flags that set the number of prompts that the program computes at the same time.
        limit_path, limit_keys: path of a JSON answer that contains this number, and the keys that lead to it; empty if
            there is none.
        progress_metrics: names of counters in /metrics that change with each step of the program, even while no request
            ends; empty if there are none.
        waiting_metric: name of the metric for the number of requests that wait in the program; empty if there is none.
        hits_metric: name of the counter of prompt tokens that came from a cache; empty if there is none.
        queries_metrics: names of the counters whose sum is the number of all prompt tokens.
        adapters: how the program gets LoRA adapters; None if it has none.
        sleep_mode: how the program sleeps; None if it cannot.
        loading: regular expression. The line of output that matches it shows that the program has begun to load the
            model. Empty: loading begins with the program.
        warming: the same for trial runs and compilation after loading.
    """

    name: str
    commands: tuple[Command, ...]
    arguments: tuple[tuple[str, ...], ...] = ()
    port_arguments: tuple[str, ...] = ()
    socket_arguments: tuple[str, ...] | None = None
    config: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    listed_flags: tuple[str, ...] = ()
    own_flags: tuple[str, ...] = ()
    gpu_flags: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()
    splits_values: bool = False
    model: str = "{model}"
    ready: str = "/health"
    lists_models: bool = True
    prompts: int = 1
    token_ids: str = ""
    limit: int = 8
    large_limit: int = 0
    limit_flags: tuple[str, ...] = ()
    limit_path: str = ""
    limit_keys: tuple[str | int, ...] = ()
    progress_metrics: tuple[str, ...] = ()
    waiting_metric: str = ""
    hits_metric: str = ""
    queries_metrics: tuple[str, ...] = ()
    adapters: AdapterArguments | None = None
    sleep_mode: SleepMode | None = None
    loading: str = ""
    warming: str = ""

    @property
    def needs_file(self) -> bool:
        """Return whether the program needs the model's GGUF file."""
        return any("{file}" in word for command in self.commands for word in command.words)
