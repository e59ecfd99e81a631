"""The engine's own process: load the template, then serve what the front sends.

Apart from the front, so that an engine that hangs, exhausts memory or crashes in native code takes down
neither the clients' connections nor the lane's ad: the front says what happened and starts another.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glide.server import engines, frames
from glide.server.engines import Completion, Engine, Record, described
from glide.system import end_with_parent
from glide.template import Template

INTERRUPT = signal.SIGUSR1  # ends a call
DUMP = signal.SIGUSR2  # has the stacks of all threads written to the log
FLUSH_SECONDS = 0.05  # results wait at most this long for company on their way to the front
FLUSH_BYTES = 8_000_000  # or until they are so long together
RESULT_BYTES = 64_000_000  # that a result may have: it becomes a line of a file on the access point


def main() -> None:
    """Run on the socket that is its standard input."""
    front = socket.socket(fileno=os.dup(0))
    os.register_at_fork(after_in_child=front.close)  # only this process speaks to the front
    with open(os.devnull, encoding="utf-8") as nothing:
        os.dup2(nothing.fileno(), 0)  # what a call reads is not what the front sends
    log = os.dup(2)  # whatever a call does with its error output
    faulthandler.enable(log)
    faulthandler.register(DUMP, log, all_threads=True)
    signal.signal(INTERRUPT, signal.SIG_IGN)
    end_with_parent()
    try:
        engine = _load(front, Template.from_json(frames.receive(front)["template"]))
        while True:
            message = frames.receive(front)
            generate = message["generate"]
            _serve(front, engine, [Record(key, prompt, generate[kind]) for key, prompt, kind in message["serve"]])
    except (EOFError, ConnectionError):  # the front has gone; what a call raises does not come here
        return


def _load(front: socket.socket, template: Template) -> Engine:
    def phase(state: str) -> None:
        front.sendall(frames.encode({"phase": state}))

    try:
        started = time.monotonic()
        with _in_this_process():
            engine = engines.build(template)
            engine.prepare()
        front.sendall(frames.encode({"imported": time.monotonic() - started}))
        folder = frames.receive(front)["folder"]
        with _in_this_process():
            engine.load(folder, phase)
        front.sendall(
            frames.encode(
                {
                    "warm": {
                        "batch": engine.batch,
                        "window": engine.window,
                        "megabytes": _resident(),
                        **engine.describe(),
                    }
                }
            )
        )
    except BaseException as error:  # whatever it is, the user must see it and not a bare exit code
        traceback.print_exc()
        front.sendall(frames.encode({"failed": last_line(error)}))
        sys.exit(1)
    return engine


@contextmanager
def _in_this_process() -> Iterator[None]:
    """End a copy of this process in which a user's code returns that has forked: only the original goes on."""
    process = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != process:
            os._exit(0)


def _resident() -> float:
    """MB of memory that this process takes; an engine that knows better, on a GPU say, says so in `describe`."""
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _serve(front: socket.socket, engine: Engine, records: list[Record]) -> None:
    done: list[tuple[int, dict[str, Any]]] = []
    flushed = started = time.monotonic()
    size = 0
    for batch, results in _calls(front, engine, records):
        for record, result in zip(batch, results, strict=True):
            checked, length = _checked(result)
            done.append((record.key, checked))
            size += length
            if size > FLUSH_BYTES or time.monotonic() - flushed > FLUSH_SECONDS:
                front.sendall(frames.encode({"done": done}))
                done, size, flushed = [], 0, time.monotonic()
    hits = engine.describe().get("prefix_hits", 0.0)
    front.sendall(frames.encode({"done": done, "idle": time.monotonic() - started, "prefix_hits": hits}))


def _checked(result: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return a result and its length in bytes; instead of one that cannot be written, this record's error."""
    try:
        length = len(json.dumps(result, ensure_ascii=False, allow_nan=False).encode())
        if length <= RESULT_BYTES:
            return result, length
        raise InvalidResult(f"the result has {length} bytes, and may have {RESULT_BYTES}; write it to a file instead")
    except InvalidResult as error:
        wrong = error
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        wrong = InvalidResult(f"the result is no text in UTF-8, or no JSON: {error}")
    return _failure(wrong, result["seconds"]), 0


def _calls(front: socket.socket, engine: Engine, records: list[Record]) -> Iterator[tuple[Sequence[Record], list]]:
    try:
        planned = engine.plan(records)
    except BaseException:  # one record spoils the plan: call each alone, and it alone will fail
        planned = [[record] for record in records]
    for batch in planned:
        yield batch, _isolated(front, engine, batch)


def _isolated(front: socket.socket, engine: Engine, batch: Sequence[Record]) -> list[dict[str, Any]]:
    """Serve a batch; when it raises, halve it until the culprit is alone with its error."""
    # Named before the call: if it takes the process down, these are the suspects.
    front.sendall(frames.encode({"begin": [record.key for record in batch]}))
    started = time.monotonic()
    try:
        with _in_this_process(), _interruptible():
            completions = engine.call(batch)
        if len(completions) != len(batch):
            raise WrongCount(f"{len(completions)} texts for {len(batch)} records")
    except BaseException as error:  # asyncio.CancelledError, say: the state is as it was
        if len(batch) == 1:
            return [_failure(error, time.monotonic() - started)]
        middle = len(batch) // 2
        return _isolated(front, engine, batch[:middle]) + _isolated(front, engine, batch[middle:])
    seconds = (time.monotonic() - started) / len(batch)
    return [_success(completion, seconds) for completion in completions]


class InvalidResult(Exception):
    """A result that cannot be written as a line of JSON in UTF-8, or is too long."""


class WrongCount(Exception):
    """The engine's answer does not have one text for each record."""


class RecordTimeout(Exception):
    """The call took longer than the record's timeout."""


@contextmanager
def _interruptible() -> Iterator[None]:
    """While this lasts, the front's signal ends the call with an exception, and the state survives.

    Native code does not notice it; the front then has no choice but to kill.
    """

    def interrupt(*_: object) -> None:
        faulthandler.dump_traceback(all_threads=True)
        raise RecordTimeout("no result within the record's timeout")

    signal.signal(INTERRUPT, interrupt)
    try:
        yield
    finally:
        signal.signal(INTERRUPT, signal.SIG_IGN)


def _success(completion: Completion, seconds: float) -> dict[str, Any]:
    result = {"text": completion.text, "tokens": completion.tokens, "error": completion.error}
    return {**completion.extra, **result, "seconds": round(seconds, 6)}


def _failure(error: BaseException, seconds: float) -> dict[str, Any]:
    return {"text": None, "tokens": 0, "error": described(error), "seconds": round(seconds, 6)}


def last_line(error: BaseException) -> str:
    """What a traceback's last line says, in one line that fits an ad."""
    return " ".join(traceback.format_exception_only(error)[-1].split())[:1000]


if __name__ == "__main__":
    main()
