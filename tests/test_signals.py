"""Signals that come while the bindings are at work."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from glide.condor.signals import undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_wait_for_the_end_of_a_call(number):
    before = signal.signal(number, signal.default_int_handler)
    steps: list[str] = []

    @undisturbed()
    def call() -> None:
        with undisturbed():
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


def test_other_threads_leave_handlers_alone():
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def call() -> None:
        with undisturbed():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert seen == [before]
