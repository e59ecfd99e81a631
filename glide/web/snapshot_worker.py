"""The worker process of glide web, which queries the pool.

htcondor2 holds Python's global interpreter lock during a query. If a daemon hangs, htcondor2 holds the lock until the
query's time limit. Another process serves the pages, and does not need this lock.
"""

from __future__ import annotations

import signal
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection

from glide.condor import connect
from glide.errors import GlideError
from glide.report.status import document, observe_pool
from glide.system import end_with_parent


def serve_snapshots(pipe: Connection) -> None:
    """Answer each message on a pipe with a snapshot and its status document, or with the cause of a failure."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process gets Ctrl-C, too, and ends this process
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
            snapshot, views = observe_pool()
            # Connect again after an outage, because the pool's configuration may have changed.
            connected = not snapshot.unavailable_sources
            described = document(snapshot, views)
            snapshot = replace(snapshot, demands=tuple(replace(each, spec=None) for each in snapshot.demands))
            pipe.send((snapshot, described))
        except GlideError as error:
            connected = False
            pipe.send(str(error))
        except Exception as error:
            traceback.print_exc()
            pipe.send(unexpected_error(error))


def unexpected_error(error: Exception) -> str:
    """Return the message for a bug in glide."""
    return f"an error in glide: {type(error).__name__}; its traceback is in the log of glide web"
