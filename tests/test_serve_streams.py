"""Streamed answers of `glide serve`, also when a lane, an engine or a client is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.conftest import eventually
from tests.serve_rig import HEAD, Serving, ask, at_once, metrics, offered


def test_streamed_chat_has_role_text_reason_and_usage(serving):
    stream = serving().client().chat.completions.create(
        model="echo", messages=[{"role": "user", "content": "one two"}], stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    *chunks, last = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == [] and last.usage is not None


def test_stream_that_leaves_early_ends_on_the_node(serving):
    running = serving(offered(hang_on="hang", record_seconds=0.1, parallel=4))
    body = json.dumps({"model": "echo", "prompt": "", "stream": True, "n": 1}).encode()
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        head = HEAD.replace(b"chat/completions", b"completions")
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    eventually(lambda: 'glide_serve_in_flight{model="echo"} 0.0' in metrics(running), "no call is in flight")
    assert ask(running.client(), "next") == "next"


def stream_of(running: Serving, text: str, **options: Any) -> Iterator[str]:
    """The pieces of a streamed text."""
    stream = running.client().chat.completions.create(
        model="echo", messages=[{"role": "user", "content": text}], stream=True, **options
    )  # fmt: skip
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


def test_text_arrives_while_it_is_generated(serving):
    running = serving(offered(record_seconds=1.0))
    times = [time.monotonic() for _ in stream_of(running, "one two three four five")]
    assert len(times) == 5 and times[-1] - times[0] > 0.5


@pytest.mark.parametrize("on_loss", ["continue", "error"])
def test_stream_of_a_killed_lane(serving, on_loss):
    running = serving(offered(record_seconds=2.0), servers=2)
    (lane,) = [call for call in running.worker.calls if call.process.poll() is None]
    server = next(each for each in running.worker.servers if running.worker.glidein(each) == lane.glidein)
    stream = stream_of(running, "one two three four five six", extra_body={"glide_on_loss": on_loss})
    pieces = [next(stream), next(stream)]
    server.process.kill()
    if on_loss == "continue":
        assert "".join([*pieces, *stream]) == "one two three four five six"
    else:
        with pytest.raises(openai.APIError, match="lanes were lost"):
            list(stream)


def test_stream_survives_a_dead_engine(serving):
    running = serving(offered(record_seconds=2.0))
    engine = running.worker.servers[0].engine
    stream = stream_of(running, "one two three four five six")
    pieces = [next(stream), next(stream)]
    os.kill(engine, signal.SIGKILL)
    assert "".join([*pieces, *stream]) == "one two three four five six"


def test_error_of_a_stream_is_raised_by_the_client(serving):
    running = serving(offered(raise_on="poison"))
    with pytest.raises(openai.BadRequestError, match="a message is not an object with a role"):
        running.client().chat.completions.create(model="echo", messages=[7], stream=True)  # type: ignore[list-item]
    with pytest.raises(openai.APIError, match="the prompt contains 'poison'"):
        list(stream_of(running, "poison"))


@pytest.mark.parametrize("streams", [False, True])
def test_failed_prompt_ends_the_others(serving, streams):
    running = serving(offered(hang_on="hang", raise_on="poison", record_seconds=0.1), servers=2)
    at_once(lambda number: ask(running.client(), f"call {number}"), 32)
    eventually(lambda: 'glide_serve_lanes{model="echo"} 2.0' in metrics(running), "both lanes are connected")
    with pytest.raises(openai.APIError, match="the prompt contains 'poison'"):
        list(running.client().completions.create(model="echo", prompt=["poison", "hang"], stream=streams))
    eventually(lambda: 'glide_serve_in_flight{model="echo"} 0.0' in metrics(running), "no call is in flight")
