"""What clients of `glide serve` must not do: odd requests, slow and idle connections, and too many calls."""

from __future__ import annotations

import socket

import openai
import pytest

from tests.serve_rig import BOB, HEAD, ask, at_once, offered, raw, with_body


@pytest.mark.parametrize(
    "request_bytes, status",
    [
        (HEAD + b"Content-Length: 5\r\n\r\n{nope", b"400"),
        (HEAD + b"Content-Length: 2\r\n\r\n[]", b"400"),
        (HEAD + b"Content-Length: 200000\r\n\r\n" + b"[" * 200_000, b"400"),
        (HEAD + b"Content-Length: 1000000000\r\n\r\n", b"413"),
        (with_body({"model": "echo", "messages": [], "stream_options": "x", "stream": True}), b"400"),
        (with_body({"model": ["echo"], "messages": []}), b"400"),
        (with_body({"model": "echo", "messages": {"\ud800": 1}}), b"400"),
        (with_body({"model": "\ud800", "messages": []}), b"404"),
        (HEAD.replace(b"POST /v1/chat/completions", b"GET /v1/files?limit=%C2%B2") + b"\r\n", b"400"),
        (HEAD.replace(b"POST /v1/chat/completions", b"GET /v1/batches?limit=" + b"9" * 5000) + b"\r\n", b"400"),
        (HEAD + b"".join(b"X-%d: y\r\n" % number for number in range(10_000)) + b"\r\n", b"400"),
        (HEAD.replace(b"POST /v1/chat/completions", b"GET /v1/files/..%2f..%2fidentity.json") + b"\r\n", b"404"),
        (b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"401"),
    ],
)  # fmt: skip
def test_hostile_request_is_refused(serving, request_bytes, status):
    assert raw(serving(), request_bytes).split(b" ", 2)[1] == status


def test_idle_connections_are_limited(serving, monkeypatch):
    monkeypatch.setattr("glide.serve.connections.MOST_IDLE", 20)
    monkeypatch.setattr("glide.serve.connections.IDLE_SECONDS", 0.0)
    running = serving()
    open_ones = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(40)]
    try:
        assert ask(running.client(), "x") == "x"
        for closed in open_ones[:15]:
            closed.settimeout(10)
            assert closed.recv(1) == b""
    finally:
        for each in open_ones:
            each.close()


def test_slow_head_is_disconnected(serving, monkeypatch):
    monkeypatch.setattr("glide.serve.connections.HEAD_SECONDS", 0.5)
    assert raw(serving(), b"POST /v1/chat") == b""


def test_too_many_calls_get_429(serving):
    running = serving(offered(record_seconds=0.5, parallel=8), most_calls=2)
    answers = at_once(lambda number: ask(running.client(), f"call {number}"), 6)
    refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
    assert refused and all(each.response.headers["Retry-After"] == "1" for each in refused)
    assert len(refused) + sum(isinstance(answer, str) for answer in answers) == 6


def test_files_and_batches_belong_to_their_user(serving):
    running = serving()
    ada, bob = running.client(), running.client(BOB)
    window, url = "24h", "/v1/completions"
    file = ada.files.create(file=("in.jsonl", b"{}\n"), purpose="batch")
    batch = ada.batches.create(input_file_id=file.id, endpoint=url, completion_window=window)  # type: ignore[arg-type]
    assert ada.files.retrieve(file.id).bytes == 3 and ada.batches.retrieve(batch.id).id == batch.id
    assert list(bob.files.list()) == [] and list(bob.batches.list()) == []
    for refused in (
        lambda: bob.files.retrieve(file.id),
        lambda: bob.files.content(file.id),
        lambda: bob.files.delete(file.id),
        lambda: bob.batches.create(input_file_id=file.id, endpoint=url, completion_window=window),  # type: ignore[arg-type]
        lambda: bob.batches.retrieve(batch.id),
        lambda: bob.batches.cancel(batch.id),
    ):
        with pytest.raises(openai.NotFoundError):
            refused()
    assert ada.files.content(file.id).content == b"{}\n"
