"""Load a template in a separate process, and then serve the records that the model server sends.

An engine can hang, exhaust the memory, or crash in native code. The connections of the jobs and the ads of the lanes
survive such a failure, because the engine has its own process. The model server reports how the engine ended, and
starts another engine.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from glide.errors import TemplateError
from glide.protocol import frames
from glide.server import engines
from glide.server.engines import Completion, Engine, EngineRecord, Loadable, RecordTimeout, error_fields
from glide.server.engines.base import INTERRUPT, ConcurrentEngine
from glide.server.result_channel import FLUSH_SECONDS, FLUSH_SIZE, ResultChannel
from glide.system import end_with_parent
from glide.template import Template

DUMP = signal.SIGUSR2  # signal that makes faulthandler write the stacks of all threads to the log
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode  # json.dumps makes a new encoder in each call
RESULT_BYTES = 64_000_000  # maximum length in bytes of a result, which becomes a line of a file on the access point


def main() -> None:
    """Load a template and serve records. The standard input of this process must be a socket to the model server."""
    server = socket.socket(fileno=os.dup(0))
    os.register_at_fork(after_in_child=server.close)  # a forked child must not write to the model server
    with open(os.devnull, encoding="utf-8") as nothing:
        os.dup2(nothing.fileno(), 0)  # user code may read standard input, where it must not find messages
    log = os.dup(2)  # a copy of descriptor 2, the log; the copy stays open if user code closes descriptor 2
    faulthandler.enable(log)
    faulthandler.register(DUMP, log, all_threads=True)
    signal.signal(INTERRUPT, signal.SIG_IGN)
    end_with_parent()
    try:
        engine = _load(server, frames.receive(server))
        if hasattr(engine, "on_text"):
            engine.on_text = lambda key, piece: server.sendall(frames.encode({"text": [key, piece]}))
        if hasattr(engine, "submit"):
            _serve_concurrently(server, engine)
        while True:
            message = frames.receive(server)
            if not _changed_sleep(server, engine, message):
                _serve(server, engine, _records(message), message["live"])
    except (EOFError, ConnectionError):  # the model server has ended; an engine's own errors do not get here
        return


def _records(message: dict[str, Any]) -> list[EngineRecord]:
    """Return the records in a message of the model server."""
    generate = message["generate"]
    return [
        EngineRecord(key, prompt, generate[kind], task, adapter, message["live"], stream)
        for key, prompt, kind, task, adapter, stream in message["serve"]
    ]


def _serve_concurrently(server: socket.socket, engine: ConcurrentEngine) -> NoReturn:
    """Pass records to an engine that serves many records at the same time."""

    def encode(completion: Completion, seconds: float) -> tuple[str, bool]:
        return encoded(_success(completion, seconds))

    reports = ResultChannel(server, encode, partial(_facts, engine))
    while True:
        message = frames.receive(server)
        if "serve" in message:
            records = _records(message)
            reports.received([record.key for record in records], message["live"])
            engine.submit(records, reports)
        elif not _changed_sleep(server, engine, message):
            engine.cancel(message["late"], message["unwanted"])


def _changed_sleep(server: socket.socket, engine: Any, message: dict[str, Any]) -> bool:
    """Let an engine sleep or wake up, if this is what a message asks for. Return whether it is."""
    wanted = message.get("sleep")
    if wanted is None:
        return False
    server.sendall(frames.encode({"slept": engine.sleep() if wanted else engine.wake()}))
    return True


def _load(server: socket.socket, message: dict[str, Any]) -> Any:
    """Build the engine and load its template. Report each phase, and any failure, to the model server.

    Args:
        message: the model server's first message, with the template and its environment.
    """

    def phase(state: str) -> None:
        server.sendall(frames.encode({"phase": state}))

    try:
        started = time.monotonic()
        with _in_this_process(), importing():
            engine: Any = engines.build(
                Template.from_json(message["template"]), message["prefix"], message["python"], message["compiled"]
            )
            engine.prepare()
        server.sendall(frames.encode({"imported": time.monotonic() - started}))
        files = frames.receive(server)
        with _in_this_process():
            if files["adapters"]:
                if not hasattr(engine, "use_adapters"):
                    raise TemplateError("the engine cannot use adapters")
                engine.use_adapters(files["adapters"])
            engine.load(files["folder"], phase)
        gc.freeze()
        server.sendall(
            frames.encode(
                {
                    "warm": {
                        "batch": engine.batch,
                        "window": engine.window,
                        "megabytes": _resident_megabytes(),
                        "concurrent": hasattr(engine, "submit"),
                        "can_sleep": getattr(engine, "can_sleep", False),
                        **engine.describe(),
                    }
                }
            )
        )
    except BaseException as error:  # report errors of all kinds, so that the user sees more than an exit code
        traceback.print_exc()
        server.sendall(frames.encode({"failed": last_line(error)}))
        sys.exit(1)
    return engine


@contextmanager
def _in_this_process() -> Iterator[None]:
    """User code in the `with` block may fork. End the forked child when it reaches the end of the block."""
    process = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != process:
            os._exit(0)


@contextmanager
def importing() -> Iterator[None]:
    """Import packages in the `with` block without garbage collections.

    A large package has a million objects that live until the process ends. Python's collector of reference cycles would
    look at them again and again. So leave them out of all later collections, too.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _resident_megabytes() -> float:
    """Return the memory that this process uses, in MB.

    If the engine's state is elsewhere, for example on a GPU, the engine's `describe` returns the size of the state. The
    model server then uses that size instead.
    """
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _serve(server: socket.socket, engine: Engine, records: list[EngineRecord], live: bool) -> None:
    """Serve records. Send results to the model server every FLUSH_SECONDS, or as soon as they exceed FLUSH_SIZE.

    Args:
        live: whether somebody waits for each single result. Then send the results of each call at once.
    """
    done: list[tuple[int, str, bool]] = []
    flushed = started = time.monotonic()
    size = 0
    for batch, results in _calls(server, engine, records):
        for record, result in zip(batch, results, strict=True):
            text, failed = encoded(result)
            done.append((record.key, text, failed))
            size += len(text)
            if size > FLUSH_SIZE or time.monotonic() - flushed > FLUSH_SECONDS:
                server.sendall(frames.encode({"done": done}))
                done, size, flushed = [], 0, time.monotonic()
        if live and done:
            server.sendall(frames.encode({"done": done}))
            done, size, flushed = [], 0, time.monotonic()
    server.sendall(frames.encode({"done": done, "idle": time.monotonic() - started, **_facts(engine)}))


def _facts(engine: Loadable) -> dict[str, Any]:
    """Return the facts about the loaded state that change while the engine serves records."""
    facts = engine.describe()
    return {"prefix_hits": facts.get("prefix_hits", 0.0), "adapters": facts.get("adapters", [])}


def encoded(result: dict[str, Any]) -> tuple[str, bool]:
    """Return a result as JSON text in one line, and whether the result is an error.

    If the result cannot become a line of the job's output, return an error for the record instead.
    """
    try:
        text = _encode(result)
        length = len(text.encode())
        if length <= RESULT_BYTES:
            return text, result["error"] is not None
        raise InvalidResult(f"the result has {length} bytes, the limit is {RESULT_BYTES}; write it to a file instead")
    except InvalidResult as error:
        wrong = error
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        wrong = InvalidResult(f"the result cannot be written as JSON in UTF-8: {error}")
    return _encode(_failure(wrong, result["seconds"])), True


def _calls(
    server: socket.socket, engine: Engine, records: list[EngineRecord]
) -> Iterator[tuple[Sequence[EngineRecord], list]]:
    """Divide records into the batches that the engine plans, and yield each batch with its results."""
    try:
        planned = engine.plan(records)
    except BaseException:  # one record may have made `plan` fail, so serve each record in a separate call
        planned = [[record] for record in records]
    for batch in planned:
        yield batch, _isolated(server, engine, batch)


def _isolated(server: socket.socket, engine: Engine, batch: Sequence[EngineRecord]) -> list[dict[str, Any]]:
    """Serve a batch and return its results.

    If the engine's call raises an exception, serve each half of the batch separately. The halves are divided further
    until the failing record is alone in a call. The exception then becomes the result of the failing record.
    """
    # Send the records' keys before the call. If the call ends this process, the model server knows from these keys
    # which records may be the cause.
    server.sendall(frames.encode({"begin": [record.key for record in batch]}))
    started = time.monotonic()
    try:
        with _in_this_process(), _interruptible():
            completions = engine.call(batch)
        if len(completions) != len(batch):
            raise WrongCount(f"the engine returned {len(completions)} texts for {len(batch)} records")
    except BaseException as error:  # continue even after SystemExit, because the loaded state is unchanged
        if len(batch) == 1:
            return [_failure(error, time.monotonic() - started)]
        middle = len(batch) // 2
        return _isolated(server, engine, batch[:middle]) + _isolated(server, engine, batch[middle:])
    seconds = (time.monotonic() - started) / len(batch)
    return [_success(completion, seconds) for completion in completions]


class InvalidResult(Exception):
    """A result is too long, or cannot be written as a line of JSON in UTF-8."""


class WrongCount(Exception):
    """The engine did not return exactly one text for each record."""


@contextmanager
def _interruptible() -> Iterator[None]:
    """In a `with` block, raise RecordTimeout when the signal INTERRUPT arrives.

    The loaded state survives this exception. While native code runs, the exception is delayed. If the delay is too
    long, the model server kills the engine.
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
    return {"text": None, "tokens": 0, "error": error_fields(error), "seconds": round(seconds, 6)}


def last_line(error: BaseException) -> str:
    """Return the last line of an exception's traceback.

    The line becomes an attribute of an ad, so it is limited to 1000 characters.
    """
    return " ".join(traceback.format_exception_only(error)[-1].split())[:1000]


if __name__ == "__main__":
    main()
