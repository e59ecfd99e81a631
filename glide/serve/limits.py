"""Limits for each user: how many calls may be unfinished, and how many bytes their requests may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from glide.serve.errors import ApiError

MOST_CALLS = 20_000  # default maximum number of unfinished calls of a user
RETRY_AFTER = 1  # seconds after which a client may try again


@dataclass
class UserLimits:
    """Counts the unfinished calls of each user.

    Attributes:
        most_calls: maximum number of unfinished calls of a user.
        most_bytes: maximum size of the requests of these calls together, in bytes.
    """

    most_calls: int = MOST_CALLS
    most_bytes: int = 512_000_000
    calls: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def count(self, user: str, size: int, calls: int = 1) -> Iterator[None]:
        """Count calls while the `with` block runs.

        Args:
            size: number of bytes of their requests together.

        Raises:
            ApiError: the user has too many calls.
        """
        if self.calls[user] + calls > self.most_calls or self.bytes[user] + size > self.most_bytes:
            what = f"you have {self.calls[user]} unfinished calls with {self.bytes[user]} bytes"
            most = f"the limits are {self.most_calls} calls and {self.most_bytes} bytes"
            raise ApiError(429, f"{what}; {most}", "rate_limit_exceeded", retry_after=RETRY_AFTER)
        self.calls[user] += calls
        self.bytes[user] += size
        try:
            yield
        finally:
            self.calls[user] -= calls
            self.bytes[user] -= size
            if not self.calls[user]:
                del self.calls[user], self.bytes[user]
