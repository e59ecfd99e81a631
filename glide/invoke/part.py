"""A part: the records of one invocation job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from glide.protocol.request import needed_version

# Maximum size of the input file of a job. When the file has reached this size, the file gets no further record. The
# size is counted in characters, and not in bytes.
PART_BYTES = 32 << 20


@dataclass
class Part:
    """The records of a new job.

    Attributes:
        name: name of the part.
        ids: ids of the records, in the order of the job's input file.
        version: version of the protocol that a node needs to serve the records.
        size: number of characters in the job's input file.
    """

    name: str
    ids: list[str] = field(default_factory=list)
    version: int = 1
    size: int = 0

    def take(self, records: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """Yield records and note their ids. Stop when `size` has reached PART_BYTES."""
        for record in records:
            self.ids.append(record["custom_id"])
            self.version = max(self.version, needed_version(record))
            yield record
            if self.size >= PART_BYTES:
                break
