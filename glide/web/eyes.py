"""The process that looks at the pool, so that pages are served while HTCondor keeps one waiting.

htcondor2 holds the interpreter's lock during a query, and one to a daemon that hangs takes its whole timeout.
"""

from __future__ import annotations

import signal
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection

from glide.condor import connect
from glide.errors import GlideError
from glide.report.status import document, look
from glide.system import end_with_parent


def look_on(pipe: Connection) -> None:
    """Answer each message with a snapshot and the status document of it, or with why there is none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's goes to both of us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    connected = False
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        try:
            if not connected:
                connect()
            snapshot, views = look()
            connected = not snapshot.failed  # a pool that does not answer may come back with another configuration
            described = document(snapshot, views)
            snapshot = replace(snapshot, demands=tuple(replace(each, spec=None) for each in snapshot.demands))
            pipe.send((snapshot, described))
        except GlideError as error:
            connected = False
            pipe.send(str(error))
        except Exception as error:
            traceback.print_exc()
            pipe.send(mistaken(error))


def mistaken(error: Exception) -> str:
    """Why there is no view, where that is our own mistake."""
    return f"an error in glide, its traceback is in the log of glide web: {type(error).__name__}"
