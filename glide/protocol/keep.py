"""Send a number to a running job: how many of its records it keeps. It gives back later records that have not begun.

The driver sets the job's attribute GlideKeep to a number N. This means: keep the first N records of the input file, and
give back all later records that were not sent to the engine. Only lines with a `custom_id` count as records.

A node cannot read the attributes of a running job, because jobs have WantRemoteUpdates = false. Without this setting,
the node could also change the attributes. But the node can ask the access point which path a file has there (chirp's
command `lookup`). The access point computes the answer from the job's attribute FileRemaps, each time. FileRemaps maps
the file `glide-keep`, which does not exist, to the text `keep:N`. N is the value of GlideKeep.

The driver must edit GlideKeep with HTCondor's flag SetDirty. Otherwise, the job's shadow does not get the new value.
"""

from __future__ import annotations

from glide.protocol.result import LARGEST_COUNT
from glide.vocabulary import Job

FILE = "glide-keep"  # the file does not exist; only its name is looked up
PREFIX = "keep:"  # HTCondor does not change a name that contains a colon
# The value of FileRemaps, as a ClassAd expression. While GlideKeep is undefined, no file has another name.
FILE_REMAPS = f'strcat("{FILE}={PREFIX}", {Job.KEEP})'


def number(text: str) -> int | None:
    """Return the number of records that a job keeps, or None if the text is not such a number.

    Args:
        text: the value of GlideKeep, as ClassAd text.
    """
    return int(text) if text.isascii() and text.isdigit() and len(text) < len(str(LARGEST_COUNT)) else None


def number_in_name(name: str) -> int | None:
    """Return the number of records that a job keeps, from the name that a lookup of FILE has returned."""
    return number(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
