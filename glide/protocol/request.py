"""Read and check the records of a job's input. The checks are needed because any user may have written the input.

Each line is a JSON object. A line with a `custom_id` is a record. A line without a `custom_id` gives default values for
the records after this line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glide.protocol.json_lines import decoded
from glide.system import open_regular

# Version of the requests that this code writes and serves. Older requests are served, too. Lanes advertise the number,
# and a job matches only lanes that can serve its requests.
VERSION = 4
# Standing jobs (glide.protocol.live) are new in version 4. The field `adapter` is new in version 3.
ADAPTERS_VERSION = 3
# These options are new in version 2. A node of version 1 refuses these options, or gives them another meaning.
NEW_OPTIONS = frozenset(
    "max_tokens max_completion_tokens temperature top_p top_k min_p frequency_penalty presence_penalty stop seed n"
    " logprobs top_logprobs response_format truncate chat_template_kwargs".split()
)
# The tasks of a request:
# - empty: the engine's options decide.
# - `embed`: the engine computes embeddings.
# - `complete`: the engine continues the prompt as plain text. The prompt does not become a chat message.
TASKS = ("", "embed", "complete")
COMMON = ("generate", "timeout")  # fields that usually have the same value in all requests of a job
RECORD_TIMEOUT = 600.0  # default timeout of a record, in seconds
LINE_BYTES = 32_000_000  # maximum number of bytes in a line
DEPTH = 50  # maximum number of levels of nested lists and objects in `generate`
LONGEST_TIMEOUT = 1e7  # maximum timeout that a record may set, in seconds
MOST_ATTEMPTS = 1_000_000  # maximum value of a record's `attempts`, its number of attempts in earlier jobs


@dataclass(frozen=True)
class Request:
    """The checked content of a record.

    Attributes:
        prompt: the record's text, or the messages of a chat, or for the task `embed` a list of texts.
        generate: the record's options.
        timeout: time limit for an engine call with this record, in seconds.
        attempts: number of times that the record was started in earlier jobs.
        task: one of TASKS.
        adapter: name of the LoRA adapter with which the record is computed; empty for the model itself.
        stream: whether the text is wanted in pieces, while it is generated.
    """

    custom_id: str
    prompt: str | list[Any]
    generate: dict[str, Any]
    timeout: float
    attempts: int
    task: str = ""
    adapter: str = ""
    stream: bool = False


class WrongInput(Exception):
    """A line of the input is not valid. The message contains the line's number and the reason."""


def requests(path: Path) -> Iterator[tuple[Request | None, int]]:
    """For each line of a file, yield the request and the line's length in bytes.

    If a line has no `custom_id`, the request is None. Such a line is empty, or sets default values for later records.

    Raises:
        WrongInput: a line is not valid.
        OSError: the file cannot be read.
    """
    defaults: dict[str, Any] = {}
    with open_regular(path) as file:
        number = 0
        while line := file.readline(LINE_BYTES + 1):
            number += 1
            try:
                message = _parsed(line)
                if "custom_id" not in message:
                    defaults = message or defaults
                    yield None, len(line)
                else:
                    yield parsed_request({**defaults, **message}), len(line)
            except ValueError as error:
                excerpt = line[:200].decode(errors="replace").strip()
                raise WrongInput(f"wrong input: line {number}: {error}: {excerpt}") from None


def _parsed(line: bytes) -> dict[str, Any]:
    if len(line) > LINE_BYTES:
        raise ValueError(f"it is longer than {LINE_BYTES} bytes")
    if not line.strip():
        return {}
    try:
        message = decoded(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(message, dict):
        raise ValueError("it is not a JSON object")
    return message


def parsed_request(fields: dict[str, Any]) -> Request:
    """Return the request in the fields of a record.

    Raises:
        ValueError: a field is not valid.
    """
    name, prompt, task = fields["custom_id"], fields.get("prompt"), fields.get("task", "")
    adapter = fields.get("adapter", "")
    generate, timeout = fields.get("generate", {}), fields.get("timeout", RECORD_TIMEOUT)
    attempts = fields.get("attempts", 0)
    if not isinstance(name, str):
        raise ValueError("custom_id is not a string")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError("custom_id cannot be encoded in UTF-8") from None
    if task not in TASKS:
        raise ValueError(f"task {task!r:.40} is not one of {', '.join(map(repr, TASKS))}")
    if not isinstance(adapter, str):
        raise ValueError("adapter is not a string")
    if problem := prompt_problem(prompt, task):
        raise ValueError(problem)
    if not isinstance(generate, dict):
        raise ValueError("generate is not an object")
    if is_deeper(generate, DEPTH):
        raise ValueError(f"generate is nested more than {DEPTH} levels deep")
    if not _is_number(timeout, (int, float)) or not 0 < timeout <= LONGEST_TIMEOUT:
        raise ValueError(f"timeout is not a number of seconds up to {LONGEST_TIMEOUT:g}")
    if not _is_number(attempts, int) or not 0 <= attempts <= MOST_ATTEMPTS:
        raise ValueError(f"attempts is not a number up to {MOST_ATTEMPTS}")
    return Request(name, prompt or "", generate, float(timeout), attempts, task, adapter, fields.get("stream") is True)


def prompt_problem(prompt: Any, task: str = "") -> str:
    """Return what is wrong with the prompt of a request, or an empty text if the prompt is valid."""
    if isinstance(prompt, str):
        return ""
    if not isinstance(prompt, list) or not prompt:
        return "prompt is not a string"
    if task == "embed":
        return "" if all(isinstance(text, str) for text in prompt) else "a text to embed is not a string"
    if task:
        return "prompt is not a string"
    for message in prompt:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return "a message is not an object with a role"
        if not isinstance(message.get("content"), (str, list, type(None))):
            return "the content of a message is neither a string nor a list of parts"
    return f"messages are nested more than {DEPTH} levels deep" if is_deeper(prompt, DEPTH) else ""


def input_lines(requests: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the lines of a job's input.

    Successive requests usually have the same `generate` and `timeout`. So a separate line contains these two values.
    The values apply to all requests below, until the next such line. Each request has a line with its other fields.
    """
    common: dict[str, Any] = {}
    for request in requests:
        if common != (own := {name: request[name] for name in COMMON}):
            common = own
            yield common
        yield {name: value for name, value in request.items() if name not in COMMON}


def needed_version(request: Mapping[str, Any]) -> int:
    """Return the version of the protocol that a node needs to serve a request.

    Nodes of version 1 accept only prompts that are texts. They know neither tasks nor the options in NEW_OPTIONS. Nodes
    of version 2 know no adapters.
    """
    if request.get("adapter"):
        return ADAPTERS_VERSION
    is_first = isinstance(request["prompt"], str) and not request.get("task")
    return 1 if is_first and not NEW_OPTIONS & request["generate"].keys() else 2


def _is_number(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def is_deeper(value: Any, levels: int) -> bool:
    """Return whether a value has more than `levels` levels of nested lists and objects."""
    if not isinstance(value, (dict, list)):
        return False
    within = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(is_deeper(each, levels - 1) for each in within)
