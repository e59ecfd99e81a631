"""Signals that come while the bindings are at work."""

from __future__ import annotations

import os
import signal
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
