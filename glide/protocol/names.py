"""Check names that come from ads and logs, and make texts safe to print.

Any user can write into the ad of a job, and any program on a node can write into the ads of its own job and slots.
glide uses a name in an expression, a job file, a shell or a path only if the name matches a pattern of this module. No
pattern allows a quote, a line break, a space, a `$` or a backslash. Only the pattern MODEL allows a `/` and the name
`..`.
"""

from __future__ import annotations

import re

SLOT = re.compile(r"\w[\w.@:+-]{0,254}", re.ASCII)  # the name of a slot (slot1_2@host), a lane or a host
GLIDE_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,63}-(?P<job>\d{1,10}\.\d{1,10})(?:r\d{1,10})?", re.ASCII)
ENTRY = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)  # an entry's name; same as glide.config.reading.Name
# The digest of a template. In a job file, a user may write any name instead of the digest.
DIGEST = re.compile(r"[A-Za-z0-9][\w-]{0,127}", re.ASCII)
MODEL = re.compile(r"[\w./:+-]{1,200}")

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def outer_job(glide_id: str) -> str:
    """Read the outer job's cluster.proc from a glidein's name. If the name is not valid, return an empty text."""
    found = GLIDE_ID.fullmatch(glide_id)
    return found["job"] if found else ""


def printable(text: str, most: int = 2000) -> str:
    """Return a text that is safe to print. Each character that a terminal would interpret is replaced by `?`.

    Args:
        text: a text from a node or a user.
        most: maximum number of characters of the result. The rest is cut off.
    """
    return _CONTROL.sub("?", text[:most])
