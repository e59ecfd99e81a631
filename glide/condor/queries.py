"""Send all queries of this program from a child process, and replace the child from time to time.

The bindings of HTCondor 25.14 never free the names of the attributes that a query asks for (`py_str_to_std_string` in
py_util.cpp keeps a reference to each name). A query loses about 50 bytes per name. A factory that queries every two
seconds would grow by about 7 MB an hour, without end.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any

from glide.condor import bindings
from glide.condor.bounded import CALL_SECONDS, ForkedProcess, NoReply, answer
from glide.condor.signals import defer_signals
from glide.errors import CondorError
from glide.system import end_with_parent

MOST_QUERIES = 2000  # a process ends after this number of queries; until then, it loses about 5 MB
TIME_LIMIT = 2 * CALL_SECONDS  # the bindings give up earlier by themselves, in most cases
LONGEST_EXPRESSION = 200  # number of characters; in the ads that glide reads, most values are no expressions
_PLAIN = {str, int, float, bool}


def query_schedd(location: str, constraint: str, attributes: list[str], limit: int = -1) -> list[dict[str, Any]]:
    """Return attributes of the jobs that a constraint selects.

    Args:
        location: the schedd's location ad, as text.
        limit: maximum number of jobs; -1: no maximum.

    Raises:
        CondorError: the schedd does not answer, or refuses the query.
    """
    return _queries.send(_query_schedd, location, constraint, attributes, limit)


def query_collector(
    address: str | None, kind: str, constraint: str, attributes: list[str], expressions: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return attributes of the ads that a constraint selects.

    Args:
        address: the collector's address; None: the collector of the configured pool.
        kind: name of an AdType of the bindings.
        attributes: names of the attributes to return as values.
        expressions: names of the attributes to return as texts, without evaluating their expressions.

    Raises:
        CondorError: the collector does not answer, or refuses the query.
    """
    return _queries.send(_query_collector, address, kind, constraint, attributes, expressions)


class QueryProcess:
    """A child process that sends queries, one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: Any = None
        self._pipe: Connection | None = None
        self._left = 0  # queries that the process may still send
        self._pool = 0  # the value of bindings.reloads when the process started

    def send(self, query: Callable[..., Any], *arguments: Any) -> Any:
        """Let the process call a function of this module, and return the result.

        A daemonic process of multiprocessing, such as those of `glide.condor.bounded.ask`, must not start children. So
        it calls the function itself.

        Raises:
            CondorError: the function raised an error or did not return within TIME_LIMIT, or the child crashed twice,
                or it cannot be started.
        """
        if multiprocessing.current_process().daemon:
            with defer_signals():
                return query(*arguments)
        with self._lock:
            result = self._ask(query, arguments)
            if result is None:  # Linux ends the child when the thread that started it ends (see end_with_parent)
                result = self._ask(query, arguments)
        if result is None:
            raise CondorError("the process that sends queries crashed")
        if isinstance(result, NoReply):
            raise result.kind(result.reason)
        return result

    def _ask(self, query: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Return the process's answer; None if the process has ended."""
        pipe = self._pipe
        if pipe is None or self._left <= 0 or self._pool != bindings.reloads:
            self._stop()
            pipe = self._start()
        self._left -= 1
        try:
            pipe.send((query, arguments))
            if pipe.poll(TIME_LIMIT):
                return pipe.recv()
            self._stop()
            return NoReply(f"no answer within {TIME_LIMIT:.0f} s")
        except (EOFError, OSError):
            self._stop()
            return None
        except BaseException:  # for example KeyboardInterrupt: the answer is still to come, so give up this process
            self._stop()
            raise

    @defer_signals()  # Python ignores exceptions of signal handlers in the functions that it calls at a fork
    def _start(self) -> Connection:
        bindings.version()  # import the bindings before the fork, so that each new process has them at once
        try:
            here, there = multiprocessing.Pipe()
        except OSError as error:
            raise CondorError(f"cannot start a process: {error.strerror}") from None
        self._process = ForkedProcess(target=_serve, args=(there,), daemon=True)
        try:
            self._process.start()
        except OSError as error:
            here.close()
            raise CondorError(f"cannot start a process: {error.strerror}") from None
        finally:
            there.close()
        self._pipe, self._left, self._pool = here, MOST_QUERIES, bindings.reloads
        return here

    def leave(self) -> None:
        """Close this process's copy of the pipe after a fork."""
        if self._pipe is not None:
            self._pipe.close()

    def _stop(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
        self._pipe = None


def _serve(pipe: Connection) -> None:
    """Answer the queries that arrive at a pipe until the pipe is closed."""
    end_with_parent()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # Close all files that the parent had open, so that it alone decides how long its pipes, connections and locks last.
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number != pipe.fileno():
            with suppress(OSError):
                os.close(number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches all processes; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        try:
            query, arguments = pipe.recv()
        except EOFError:
            os._exit(0)
        answer(pipe, lambda: query(*arguments))  # noqa: B023  it is called at once


def _query_schedd(location: str, constraint: str, attributes: list[str], limit: int) -> list[dict[str, Any]]:
    try:
        return [_plain_values(ad) for ad in _schedd(location).query(constraint, attributes, limit=limit)]
    except (RuntimeError, bindings.htcondor2.HTCondorException) as error:
        raise CondorError(f"access point: query failed: {error}") from None


def _query_collector(
    address: str | None, kind: str, constraint: str, attributes: list[str], expressions: Sequence[str]
) -> list[dict[str, Any]]:
    try:
        ads = _collector(address).query(
            getattr(bindings.htcondor2.AdType, kind), constraint, [*attributes, *expressions]
        )  # fmt: skip
        return [_plain_values(ad) | _texts(ad, expressions) for ad in ads]
    except (RuntimeError, bindings.htcondor2.HTCondorException) as error:
        _collector.cache_clear()  # look up the collector's address again
        raise CondorError(f"collector: query failed: {error}") from None


@lru_cache(8)
def _schedd(location: str) -> Any:
    return bindings.htcondor2.Schedd(bindings.classad2.ClassAd(location))


@lru_cache(8)
def _collector(address: str | None) -> Any:
    return bindings.htcondor2.Collector(address) if address else bindings.htcondor2.Collector()


def _plain_values(ad: Any) -> dict[str, Any]:
    """Return a ClassAd as a dict of texts, numbers, and lists of these.

    Nested ClassAds are left out, and values that are undefined or an error. Any user can write anything into the ad of
    a job. So values that cannot be read are left out, too, and expressions that may take long to evaluate.
    """
    found: dict[str, Any] = {}
    with suppress(Exception):  # a name that is not UTF-8: leave out the rest of the ad
        for name in ad:
            with suppress(Exception):  # a value that is not UTF-8, or an expression that is nested too deeply
                value = ad[name]
                if isinstance(value, bindings.classad2.ExprTree):
                    value = _evaluated(value)
                # All ads have the same names. A pickle contains each object only once, and so each name.
                if type(value) in _PLAIN or _is_plain_list(value):
                    found[sys.intern(name)] = value
    return found


def _texts(ad: Any, names: Sequence[str]) -> dict[str, str]:
    """Return the texts of expressions, without those that cannot be read."""
    found: dict[str, str] = {}
    for name in names:
        with suppress(Exception):  # not UTF-8
            if name in ad:
                found[name] = str(ad.lookup(name))
    return found


def _evaluated(expression: Any) -> Any:
    """Return the value of an expression. If it is long or has nested ClassAds, return None.

    References to other attributes are undefined. With them or with nested ClassAds, a short text can take years.
    """
    text = str(expression)
    return expression.eval() if len(text) <= LONGEST_EXPRESSION and "[" not in text else None


def _is_plain_list(value: Any) -> bool:
    return isinstance(value, list) and {type(each) for each in value} <= _PLAIN


_queries = QueryProcess()


def _after_fork() -> None:
    """Let a forked process start its own process for queries, because two processes must not read one pipe."""
    global _queries
    _queries.leave()
    _queries = QueryProcess()


os.register_at_fork(after_in_child=_after_fork)
