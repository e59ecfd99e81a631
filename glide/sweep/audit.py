"""An account of answers that were no answers: by whom, and what becomes of records that nobody answers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

from glide.invoke.answers import Answers

# Jobs that end without a valid answer to a record, after which it gets an error instead.
MOST_UNANSWERED = 3
_log = logging.getLogger("glide")


class Audit:
    """Counts what was rejected, by the glidein whose lane wrote it, and jobs that left a record unanswered."""

    def __init__(self) -> None:
        self.rejected: Counter[str] = Counter()
        self.unanswered: Counter[str] = Counter()

    def note(self, lane: str, job: str, answers: Answers) -> None:
        """A job has ended; what was wrong with its output is logged."""
        if answers.rejected:
            self.rejected[lane] += answers.rejected
            _log.warning(
                "job %s on %s: %d lines of its output are no valid results and are ignored; the first: %s",
                job, lane, answers.rejected, answers.reason,
            )  # fmt: skip

    def given_up(self, missing: Iterable[str], lane: str, reason: str) -> list[dict[str, Any]]:
        """Results for those of the records, which a job has just left unanswered, that are not to be sent again."""
        missing = list(missing)
        self.unanswered.update(missing)
        why = f"{MOST_UNANSWERED} jobs ended without a valid result for it; the last one on {lane}: {reason or 'none'}"
        error = {"type": "NoAnswer", "message": why}
        nothing = {"text": None, "tokens": 0, "error": error, "glidein": "", "attempts": 0, "seconds": 0.0}
        gone = [record for record in missing if self.unanswered[record] >= MOST_UNANSWERED]
        return [{"custom_id": record, **nothing} for record in gone]

    @property
    def account(self) -> dict[str, Any]:
        """For the summary: lines of jobs' outputs that were no valid results, and how many of which glidein."""
        return {"rejected": sum(self.rejected.values()), "rejected_by": dict(sorted(self.rejected.items()))}
