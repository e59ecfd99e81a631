"""Keep signal handlers from running inside HTCondor's bindings."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Defer SIGINT and SIGTERM to the end of the `with` block or to the end of the decorated function.

    The bindings of HTCondor 25.14 create Python objects while they read an answer. At that point, Python may run a
    signal handler. If the handler raises KeyboardInterrupt, the bindings continue without the object, and crash with a
    segmentation fault.
    """
    if threading.current_thread() is not threading.main_thread():  # other threads never run signal handlers
        yield
        return
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in INTERRUPTS}
    # A signal without a Python handler is not deferred, because the kernel handles it.
    handled = [number for number, handler in before.items() if callable(handler)]
    for number in handled:
        signal.signal(number, lambda number, _: received.append(number))
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
        if received:
            signal.raise_signal(received[0])
