"""Names and texts that come from ads and logs: which are safe to use, and how to make a text safe to show.

Anybody may write into a job's ad, and whatever runs on a node may write into its own job's and slots' ads. What does
not match its pattern reaches no expression, no job file, no shell and no path. None of the patterns allows a quote, a
line break, a space, a `$` or a backslash; none but a model's matches a `/` or `..`.
"""

from __future__ import annotations

import re

SLOT = re.compile(r"\w[\w.@:+-]{0,254}", re.ASCII)  # slot1_2@host, or what a glidein calls it; of it the host
GLIDE_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,63}-\d{1,10}\.\d{1,10}(?:r\d{1,10})?", re.ASCII)
ENTRY = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)  # as glide.config.reading.Name
DIGEST = re.compile(r"[A-Za-z0-9][\w-]{0,127}", re.ASCII)  # of a template; by hand, people may call it anything
MODEL = re.compile(r"[\w./:+-]{1,200}")

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, most: int = 2000) -> str:
    """Return a text that a node or a user wrote, shortened, with `?` for what would command a terminal.

    Args:
        most: characters that are kept.
    """
    return _CONTROL.sub("?", text[:most])
