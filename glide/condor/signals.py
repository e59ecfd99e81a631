"""Keep signals out of the bindings."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Handle an interrupt that comes meanwhile at the end; also a decorator.

    The bindings of 25.14 make Python objects while they read an answer. Python runs a signal's handler there, and when
    that raises KeyboardInterrupt, they go on with no object, which is a segmentation fault.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers run in the main thread alone
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in INTERRUPTS}
    handled = [number for number, handler in before.items() if callable(handler)]  # else the kernel acts by itself
    for number in handled:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
        if came:
            signal.raise_signal(came[0])
