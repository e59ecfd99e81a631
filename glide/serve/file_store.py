"""The files of the API: inputs of batches that users upload, and outputs of batches. Each belongs to one user."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glide.protocol.json_lines import read_lines
from glide.serve.errors import ApiError, not_found
from glide.system import publish, sync_folder

FILE_ID = re.compile(r"file-[0-9a-f]{24}")
LARGEST_FILE = 1_000_000_000  # maximum size of an uploaded file in bytes
MOST_BYTES = 50_000_000_000  # maximum size of all files of a user together, in bytes


@dataclass(frozen=True)
class StoredFile:
    """A file of a user.

    Attributes:
        id: the file's name in the API.
        user: the user to whom it belongs.
        filename: the name that the user has given it.
        purpose: what the file is for: `batch`, or `batch_output`.
        bytes: size of the content.
        created_at: Unix time.
    """

    id: str
    user: str
    filename: str
    purpose: str
    bytes: int
    created_at: int

    @property
    def document(self) -> dict[str, Any]:
        """The file as an object of the API."""
        fields = {name: value for name, value in asdict(self).items() if name != "user"}
        return {**fields, "object": "file", "status": "processed", "status_details": None, "expires_at": None}


class FileStore:
    """The files in a folder. ID.json describes the file ID, and ID.data is its content."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def of_user(self, user: str) -> list[StoredFile]:
        """Return the files of a user; the newest one is first."""
        found = [each for path in self.folder.glob("file-*.json") for each in self._read(path) if each.user == user]
        return sorted(found, key=lambda each: (each.created_at, each.id), reverse=True)

    def find(self, user: str, file: Any) -> StoredFile:
        """Return a file of a user.

        Raises:
            ApiError: the user has no such file.
        """
        if isinstance(file, str) and FILE_ID.fullmatch(file):
            for each in self._read(self.folder / f"{file}.json"):
                if each.user == user:
                    return each
        raise not_found(f"no file {str(file)[:80]!r}")

    def content(self, file: StoredFile) -> Path:
        """Return the path of a file's content."""
        return self.folder / f"{file.id}.data"

    def left(self, user: str) -> int:
        """Return the number of bytes that a user's next file may have."""
        return min(LARGEST_FILE, MOST_BYTES - sum(each.bytes for each in self.of_user(user)))

    async def store(self, user: str, filename: str, content: AsyncIterator[bytes], left: int) -> StoredFile:
        """Store an uploaded file.

        Args:
            left: number of bytes that it may have, as the method `left` returns it.

        Raises:
            ApiError: the user's files are too large.
        """
        name, size = new_file_id(), 0
        path = self.folder / f"{name}.data"
        try:
            with path.open("xb") as file:
                async for part in content:
                    size += len(part)
                    if size > left:
                        raise ApiError(413, f"the file is too large: {left} bytes are left for it", "file_too_large")
                    file.write(part)
            return self._describe(StoredFile(name, user, filename, "batch", size, int(time.time())))
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def adopt(self, user: str, filename: str, content: Path, name: str) -> StoredFile:
        """Store a file that a batch has written, under a given id. It shares its content with the batch's file."""
        path = self.folder / f"{name}.data"
        path.unlink(missing_ok=True)
        path.hardlink_to(content)
        size = path.stat().st_size
        return self._describe(StoredFile(name, user, filename, "batch_output", size, int(time.time())))

    def delete(self, file: StoredFile) -> None:
        (self.folder / f"{file.id}.json").unlink(missing_ok=True)
        self.content(file).unlink(missing_ok=True)

    def _describe(self, file: StoredFile) -> StoredFile:
        publish(self.folder / f"{file.id}.json", json.dumps(asdict(file)) + "\n")
        sync_folder(self.folder)
        return file

    @staticmethod
    def _read(path: Path) -> Iterator[StoredFile]:
        with suppress(TypeError, OSError):
            for fields in read_lines(path):
                yield StoredFile(**fields)


def new_file_id() -> str:
    return f"file-{secrets.token_hex(12)}"
