"""The batches of the API, as they are kept on disk. Each batch belongs to one user, and runs as a sweep."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glide.protocol.json_lines import read_lines
from glide.serve.errors import not_found
from glide.system import publish

BATCH_ID = re.compile(r"batch_[0-9a-f]{24}")
ACTIVE = ("validating", "in_progress", "cancelling")  # statuses that change by themselves
WINDOW_SECONDS = 86400  # the completion window, which the API requires; glide does not end a batch after it


@dataclass(frozen=True)
class Batch:
    """A batch. The attributes have the names and meanings of OpenAI's API, except `user` and `model`.

    Attributes:
        user: the user to whom the batch belongs.
        model: name of the model that all its requests name; empty before the check.
        counts: numbers of requests: total, completed and failed.
        times: Unix times at which the batch got its statuses: `created_at`, `in_progress_at`, and so on.
        problems: what is wrong with the input: a message, and the number of the line or None.
    """

    id: str
    user: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: str = "validating"
    model: str = ""
    metadata: dict[str, str] | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    counts: dict[str, int] = field(default_factory=lambda: {"total": 0, "completed": 0, "failed": 0})
    times: dict[str, int] = field(default_factory=dict)
    problems: list[tuple[str, int | None]] = field(default_factory=list)

    @property
    def document(self) -> dict[str, Any]:
        """The batch as an object of the API."""
        errors = [
            {"code": "invalid_request", "message": message, "line": line, "param": None}
            for message, line in self.problems
        ]
        names = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        return {
            "id": self.id, "object": "batch", "endpoint": self.endpoint, "input_file_id": self.input_file_id,
            "completion_window": self.completion_window, "status": self.status, "model": self.model or None,
            "output_file_id": self.output_file_id, "error_file_id": self.error_file_id,
            "errors": {"object": "list", "data": errors} if errors else None,
            "created_at": self.times["created_at"], "expires_at": self.times["created_at"] + WINDOW_SECONDS,
            **{f"{name}_at": self.times.get(f"{name}_at") for name in names},
            "request_counts": self.counts, "metadata": self.metadata,
        }  # fmt: skip


class BatchStore:
    """The batches in a folder. ID/batch.json describes the batch ID. The folder ID also has its sweep and results."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def create(self, user: str, endpoint: str, file: str, window: str, metadata: dict[str, str] | None) -> Batch:
        batch = Batch(
            f"batch_{secrets.token_hex(12)}", user, endpoint, file, window, metadata=metadata,
            times={"created_at": int(time.time())},
        )  # fmt: skip
        self.place(batch).mkdir(mode=0o700)
        self.save(batch)
        return batch

    def save(self, batch: Batch) -> Batch:
        publish(self.place(batch) / "batch.json", json.dumps(asdict(batch)) + "\n")
        return batch

    def place(self, batch: Batch) -> Path:
        """Return the folder of a batch."""
        return self.folder / batch.id

    def all(self) -> list[Batch]:
        """Return all batches; the newest one is first."""
        found = [each for path in self.folder.glob("batch_*/batch.json") for each in _read(path)]
        return sorted(found, key=lambda each: (each.times["created_at"], each.id), reverse=True)

    def find(self, user: str, batch: str) -> Batch:
        """Return a batch of a user.

        Raises:
            ApiError: the user has no such batch.
        """
        if BATCH_ID.fullmatch(batch):
            for each in _read(self.folder / batch / "batch.json"):
                if each.user == user:
                    return each
        raise not_found(f"no batch {batch[:80]!r}")


def _read(path: Path) -> Iterator[Batch]:
    with suppress(TypeError, KeyError, OSError):
        for fields in read_lines(path):
            fields["problems"] = [(message, line) for message, line in fields["problems"]]
            yield Batch(**fields)
