"""The status of `glide serve`, in a file that `glide status`, `glide web` and `glide doctor` read."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from glide.condor import home
from glide.system import publish

STALE_SECONDS = 30.0  # a file that is older belongs to a server that has ended


@dataclass(frozen=True)
class ModelStatus:
    """The status of a model.

    Attributes:
        state: `ready`, or what the model waits for.
        is_ready: whether a lane can compute calls now.
        not_ready_since: Unix time since when no lane can compute calls; 0 if one can, or if nobody needs the model.
        lanes: number of lanes that can compute calls.
        in_flight: number of calls on lanes.
        queued: number of calls that wait for a lane.
    """

    model: str
    state: str
    is_ready: bool
    not_ready_since: float
    lanes: int
    in_flight: int
    queued: int

    @property
    def text(self) -> str:
        """The status as one line."""
        calls = f"{self.in_flight} calls on {self.lanes} lanes, {self.queued} waiting"
        return f"glide serve: {self.model}: {self.state}; {calls}"


def _file() -> Path:
    return home() / "serve" / "status.json"


def write_status(models: Iterable[ModelStatus]) -> None:
    """Write the status of the server of this GLIDE_HOME."""
    publish(_file(), json.dumps([asdict(model) for model in models]), durable=False)


def remove_status() -> None:
    """Delete the file, because the server ends."""
    _file().unlink(missing_ok=True)


def read_status() -> tuple[ModelStatus, ...]:
    """Return the status of each model of the server of this GLIDE_HOME; none if no server runs."""
    with suppress(OSError, ValueError, TypeError):
        if time.time() - _file().stat().st_mtime < STALE_SECONDS:
            return tuple(ModelStatus(**fields) for fields in json.loads(_file().read_text("utf-8")))
    return ()
