"""What of this pool hurts glide's jobs, and the fix: gather the facts, judge them, say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glide.condor.bounded import Unseen
from glide.doctor.checks import access, judge
from glide.doctor.facts import Facts
from glide.doctor.finding import Level, Verdict, worst
from glide.doctor.look import TIMEOUT, gather
from glide.doctor.trial import attempt
from glide.errors import CondorError

__all__ = ["TIMEOUT", "Level", "Verdict", "document", "examine", "worst"]


def examine(files: Sequence[Path] = (), budget: float = 0.0, timeout: float = TIMEOUT) -> list[Verdict]:
    """Look at everything, and judge it.

    Args:
        files: of sites; by default those whose factories have run from this GLIDE_HOME.
        budget: seconds for a record that goes the whole way; 0 for none.
        timeout: seconds for all other questions.

    Raises:
        CondorError: there is no pool to look at; with what may be the cause here, a token that HTCondor refuses say.
    """
    facts = gather(files, timeout)
    if "ads" in facts.unseen:
        reasons = [f"{each.found}; {each.fix}" for each in (*access.secrets(facts), *access.expiry(facts))]
        raise CondorError(f"no pool to look at: {'; '.join([facts.unseen['ads'], *reasons])}")
    return judge(_with_trial(facts, budget) if budget else facts)


def _with_trial(facts: Facts, budget: float) -> Facts:
    """Where no factory runs, a record would only wait; and that is found anyway."""
    if facts.unseen.get("snapshot") or not any(view.running for view in facts.views):
        return facts
    told = attempt(facts.files, budget)
    if isinstance(told, Unseen):
        return replace(facts, unseen={**facts.unseen, "trial": told.reason})
    return replace(facts, trial=told)


def document(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The verdicts as one JSON document."""
    return {
        "level": worst(verdicts).name.lower(),
        "checks": [
            {
                "check": verdict.check, "looked_at": verdict.looked, "level": verdict.level.name.lower(),
                "not_seen": verdict.unseen or None,
                "findings": [
                    {"level": found.level.name.lower(), "found": found.found, "fix": found.fix}
                    for found in verdict.findings
                ],
            }
            for verdict in verdicts
        ],
    }  # fmt: skip
