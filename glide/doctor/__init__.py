"""glide doctor: gather facts about the pool, run checks on them, and report problems with their fixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glide.condor.bounded import NoReply
from glide.doctor.checks import access, judge
from glide.doctor.facts import Facts
from glide.doctor.finding import Diagnosis, Level, worst
from glide.doctor.observe import TIMEOUT, gather_facts
from glide.doctor.trial import send_test_record
from glide.errors import CondorError

__all__ = ["TIMEOUT", "Diagnosis", "Level", "document", "examine", "worst"]


def examine(files: Sequence[Path] = (), budget: float = 0.0, timeout: float = TIMEOUT) -> list[Diagnosis]:
    """Gather facts about the pool and run all checks on them.

    Args:
        files: paths of site files; if empty, all site files whose factories have run with this GLIDE_HOME.
        budget: maximum number of seconds to wait for the result of a test record; 0 to send no test record.
        timeout: time limit of all queries together, in seconds. The test record has its own limit.

    Raises:
        CondorError: no pool was found. The message also names possible causes on this machine, such as an expired
            token.
    """
    facts = gather_facts(files, timeout)
    if "ads" in facts.unavailable:
        reasons = [f"{each.problem}; {each.fix}" for each in (*access.secrets(facts), *access.expiry(facts))]
        raise CondorError(f"no pool can be examined: {'; '.join([facts.unavailable['ads'], *reasons])}")
    return judge(_with_trial(facts, budget) if budget else facts)


def _with_trial(facts: Facts, budget: float) -> Facts:
    """Send a test record, and return the facts with its outcome.

    If no factory runs, send no test record, because nothing would serve it. The check `factories` reports that no
    factory runs.
    """
    if facts.unavailable.get("snapshot") or not any(view.running for view in facts.views):
        return facts
    outcome = send_test_record(facts.files, budget)
    if isinstance(outcome, NoReply):
        return replace(facts, unavailable={**facts.unavailable, "trial": outcome.reason})
    return replace(facts, trial=outcome)


def document(diagnoses: Sequence[Diagnosis]) -> dict[str, Any]:
    """Return the diagnoses as one JSON document."""
    return {
        "level": worst(diagnoses).name.lower(),
        "checks": [
            {
                "check": diagnosis.check, "looked_at": diagnosis.subject, "level": diagnosis.level.name.lower(),
                "not_seen": diagnosis.unavailable or None,
                "findings": [
                    {"level": finding.level.name.lower(), "found": finding.problem, "fix": finding.fix}
                    for finding in diagnosis.findings
                ],
            }
            for diagnosis in diagnoses
        ],
    }  # fmt: skip
