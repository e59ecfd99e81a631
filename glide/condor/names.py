"""Patterns that names from ads and logs must match, and functions that read them or make texts safe to print.

Any user can write into the ad of a job, and any program on a node can write into the ads of its own job and slots. If a
name does not match its pattern, glide does not use this name in an expression, a job file, a shell or a path. No
pattern allows a quote, a line break, a space, a `$` or a backslash. Only MODEL allows a `/` or the name `..`.
"""

from __future__ import annotations

import re

SLOT = re.compile(r"\w[\w.@:+-]{0,254}", re.ASCII)  # a slot such as slot1_2@host, a lane, or a host
GLIDE_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,63}-(?P<job>\d{1,10}\.\d{1,10})(?:r\d{1,10})?", re.ASCII)
ENTRY = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)  # the same pattern as glide.config.reading.Name
DIGEST = re.compile(r"[A-Za-z0-9][\w-]{0,127}", re.ASCII)  # a template's digest, or any name in a user's own job file
MODEL = re.compile(r"[\w./:+-]{1,200}")

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def outer_job(glide_id: str) -> str:
    """Return the outer job in a GlideId, CLUSTER.PROC, or an empty text if this is no GlideId."""
    found = GLIDE_ID.fullmatch(glide_id)
    return found["job"] if found else ""


def printable(text: str, most: int = 2000) -> str:
    """Shorten a text from a node or a user. Write `?` in place of each character that a terminal would interpret.

    Args:
        most: maximum number of characters of the result.
    """
    return _CONTROL.sub("?", text[:most])
