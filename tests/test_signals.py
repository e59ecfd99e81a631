"""Signals that come while the bindings are at work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from glide.condor.signals import defer_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_is_deferred_until_call_ends(number):
    before = signal.signal(number, signal.default_int_handler)
    steps: list[str] = []

    @defer_signals()
    def call() -> None:
        with defer_signals():
            os.kill(os.getpid(), number)
            steps.append("inner")
        steps.append("outer")

    try:
        with pytest.raises(KeyboardInterrupt):
            call()
        assert steps == ["inner", "outer"]
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_deferring_signals_in_thread_leaves_handlers_unchanged():
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def call() -> None:
        with defer_signals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert seen == [before]


# The signal arrives while Python calls the functions that modules have registered for forks. `logging` has such, too.
INTERRUPTED_FORK = """
import os, signal
from glide.condor.bounded import isolated

once = [signal.SIGINT]
os.register_at_fork(after_in_parent=lambda: once and signal.raise_signal(once.pop()))
try:
    isolated(lambda: 1, 10)
    print("lost")
except KeyboardInterrupt:
    print("interrupted")
"""


def test_signal_during_a_fork_is_not_lost():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_FORK], capture_output=True, text=True)
    assert done.stdout.strip() == "interrupted", done.stderr
