"""Requests and answers in the format of OpenAI's Batch API.

Each line of an input file is a request with its own body. Each line of an output file is the answer to a request.
Source: https://platform.openai.com/docs/guides/batch, and the files of `vllm run-batch`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glide.protocol.request import prompt_problem
from glide.server.engines.base import choices_as_api

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
# The engine does not get these keys of a request's body. With or without these keys, glide computes the same texts and
# vectors.
IGNORED = frozenset(
    "model user metadata store service_tier safety_identifier prompt_cache_key stream_options encoding_format".split()
)
# Keys of a body that hold the prompt. All other keys are options.
PROMPTS = {CHAT: "messages", COMPLETIONS: "prompt", EMBEDDINGS: "input"}
TASKS = {CHAT: "", COMPLETIONS: "complete", EMBEDDINGS: "embed"}  # values of glide.protocol.request.TASKS
# Types of errors that the request itself has caused. For these types, the HTTP status of the answer is 400. For all
# other types, the HTTP status is 500.
REQUEST_FAULTS = {
    "WrongOption", "UnknownOption", "PromptTooLong", "EmptyPrompt", "UnknownToken", "NoChatTemplate",
    "ChatTemplateError", "Refused",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """The request of a line.

    Attributes:
        url: path of the API, one of PROMPTS.
        model: the model that the body names; empty if it names none.
        prompt: a text, messages, or a list of texts for embeddings.
        generate: the options in the body.
    """

    url: str
    model: str
    prompt: str | list[Any]
    generate: dict[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """The task of the request (glide.protocol.request.TASKS)."""
        return TASKS[self.url]


def is_request(row: Mapping[str, Any]) -> bool:
    """Return whether a row is a line of an input file of the Batch API."""
    return {"method", "url", "body"} <= row.keys() and isinstance(row["body"], dict)


def request_of(row: Mapping[str, Any]) -> BatchRequest:
    """Return the request of a row.

    Raises:
        ValueError: the row is not a request that glide can serve. The message is the reason.
    """
    if not is_request(row):
        raise ValueError("not a request of OpenAI's Batch API, which has custom_id, method, url and body")
    url, body = row["url"], row["body"]
    if row["method"] != "POST":
        raise ValueError(f"the method is {row['method']!r:.40}; only POST is possible")
    if url not in PROMPTS:
        raise ValueError(f"the url is {url!r:.80}; use {', '.join(PROMPTS)}")
    if body.get("stream"):
        raise ValueError("`stream` is not possible in a batch; remove it")
    name = PROMPTS[url]
    prompt = body.get(name)
    if isinstance(prompt, list) and url == COMPLETIONS and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, list) and url == COMPLETIONS:
        raise ValueError("the body has several prompts; write one line for each of them")
    problem = prompt_problem(prompt, TASKS[url])
    if url == CHAT and not isinstance(prompt, list):
        problem = "it is not a list of messages"
    if problem:
        raise ValueError(f"`{name}` in the body: {problem}")
    generate = {key: value for key, value in body.items() if key != name and key not in IGNORED and key != "stream"}
    return BatchRequest(url, str(body.get("model") or ""), prompt, generate)


def answer(
    custom_id: str, request: BatchRequest, result: Mapping[str, Any], model: str, created: int
) -> dict[str, Any]:
    """Return the line of an output file that answers a request.

    Args:
        custom_id: the request's id.
        request: the request.
        result: the record's result.
        model: name of the model, for requests that name none.
        created: Unix time of the answer.
    """
    number = hashlib.sha256(custom_id.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    line = {"id": f"batch_req_{number}", "custom_id": custom_id}
    error = result.get("error")
    if error is not None:
        status = 400 if error["type"] in REQUEST_FAULTS else 500
        body = {"error": {"message": error["message"], "type": error["type"], "param": None, "code": error["type"]}}
        return {**line, "response": {"status_code": status, "request_id": number, "body": body}, "error": None}
    body = _body(request, result, number, request.model or model, created)
    return {**line, "response": {"status_code": 200, "request_id": number, "body": body}, "error": None}


def _body(request: BatchRequest, result: Mapping[str, Any], number: str, model: str, created: int) -> dict[str, Any]:
    counts = result.get("usage") or {}
    prompt_tokens = counts.get("prompt_tokens", 0)
    completion_tokens = counts.get("completion_tokens", result.get("tokens") or 0)
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens + completion_tokens}
    if request.url == EMBEDDINGS:
        vectors = result.get("embeddings") or [result.get("embedding")]
        data = [{"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(vectors)]
        return {"object": "list", "data": data, "model": model, "usage": usage}
    usage["completion_tokens"] = completion_tokens
    is_chat = request.url == CHAT
    one = [(result.get("text") or "", result.get("finish_reason") or "stop", None)]
    choices = result.get("choices") or choices_as_api(is_chat, one)
    return {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{number}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": created, "model": model, "choices": choices, "usage": usage,
    }  # fmt: skip
