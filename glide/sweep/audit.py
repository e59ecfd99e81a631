"""Count invalid output lines for each glidein. For each record, count the jobs that ended without a valid result."""

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
    """Counts of invalid output lines, and of jobs that ended without a valid result for a record.

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
            lane: glidein and host where the job ran, as "GlideId (host)".
            job: the job's number, CLUSTER.PROC.
        """
        if answers.rejected:
            self.rejected[lane] += answers.rejected
            _log.warning(
                "job %s on %s: ignored %d lines of its output that are no valid results; problem of the first: %s",
                job, lane, answers.rejected, answers.reason,
            )  # fmt: skip

    def count_unanswered(self, missing: Iterable[str], lane: str, reason: str) -> list[dict[str, Any]]:
        """For each record in `missing`, count one more job that has ended without a valid result for the record.

        Args:
            missing: ids of the job's records that have no valid result.
            lane: glidein and host where the job ran, as "GlideId (host)".
            reason: what is wrong with the first invalid line of the job's output; empty if no line is invalid.

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
