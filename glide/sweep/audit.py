"""Count the invalid output lines of each glidein, and the jobs that ended without a valid result for a record."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

from glide.invoke.answers import OutputContent

# A record gets an error when this number of jobs have ended without a valid result for the record.
MOST_UNANSWERED = 3
_log = logging.getLogger("glide")


class Audit:
    """Count invalid output lines and unanswered records.

    Attributes:
        rejected: number of invalid output lines of each glidein. A key has the form "GlideId (host)".
        unanswered: for each record id, the number of jobs that have ended without a valid result for the record.
    """

    def __init__(self) -> None:
        self.rejected: Counter[str] = Counter()
        self.unanswered: Counter[str] = Counter()

    def log_rejected(self, lane: str, job: str, answers: OutputContent) -> None:
        """Count and log the invalid lines in the output of a job that has ended.

        Args:
            lane: the job's glidein and host, as text.
            job: the job's number, CLUSTER.PROC.
        """
        if answers.rejected:
            self.rejected[lane] += answers.rejected
            _log.warning(
                "job %s on %s: ignored %d lines of its output that are no valid results; problem of the first: %s",
                job, lane, answers.rejected, answers.reason,
            )  # fmt: skip

    def count_unanswered(self, missing: Iterable[str], lane: str, reason: str) -> list[dict[str, Any]]:
        """Count a job that has ended without a valid result for the records `missing`.

        Args:
            missing: ids of the records without a valid result.
            lane: the job's glidein and host, as text.
            reason: problem of the job's first invalid line; empty if no line was invalid.

        Returns:
            Results with the error NoAnswer, one for each record whose count has reached MOST_UNANSWERED.
        """
        missing = list(missing)
        self.unanswered.update(missing)
        why = f"{MOST_UNANSWERED} jobs ended without a valid result for it; the last one on {lane}: {reason or 'none'}"
        error = {"type": "NoAnswer", "message": why}
        nothing = {"text": None, "tokens": 0, "error": error, "glidein": "", "attempts": 0, "seconds": 0.0}
        gone = [record for record in missing if self.unanswered[record] >= MOST_UNANSWERED]
        return [{"custom_id": record, **nothing} for record in gone]

    @property
    def summary(self) -> dict[str, Any]:
        """The entries of summary.json that hold the number of invalid output lines, in total and for each glidein."""
        return {"rejected": sum(self.rejected.values()), "rejected_by": dict(sorted(self.rejected.items()))}
