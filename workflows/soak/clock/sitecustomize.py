"""Step the clock of all Python processes with this folder in PYTHONPATH: add the seconds in the file SOAK_CLOCK.

libfaketime does this for HTCondor's daemons. It cannot for Python, because with it `time.sleep` fails, or the monotonic
clock steps, too.
"""

import os
import time

_real, _monotonic, _file = time.time, time.monotonic, os.environ["SOAK_CLOCK"]
_offset, _read_at = 0.0, float("-inf")


def _stepped() -> float:
    global _offset, _read_at
    if _monotonic() - _read_at > 1.0:
        _read_at = _monotonic()
        try:
            with open(_file, encoding="utf-8") as file:
                _offset = float(file.read().strip().rstrip("s") or 0)
        except (OSError, ValueError):
            pass  # the file is being written
    return _real() + _offset


time.time = _stepped
time.time_ns = lambda: int(_stepped() * 1e9)
