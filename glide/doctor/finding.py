"""The results of checks: findings with their levels, and one diagnosis per check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from glide.protocol.names import printable


class Level(IntEnum):
    """How bad a problem is. The numbers are the exit codes that Nagios and similar programs expect."""

    OK = 0
    WARNING = 1  # the problem costs time or results, or a check could not be made
    CRITICAL = 2  # the problem prevents the completion of jobs, or is a security risk
    UNKNOWN = 3  # no pool was found


@dataclass(frozen=True)
class Finding:
    """A problem with its fix.

    Attributes:
        problem: what is wrong, and its effect. Unprintable characters are replaced, because a node or another user may
            have written a part of this text.
        fix: the line to write or the command to run.
    """

    level: Level
    problem: str
    fix: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "problem", printable(self.problem))


def warning(problem: str, fix: str) -> Finding:
    return Finding(Level.WARNING, problem, fix)


def critical(problem: str, fix: str) -> Finding:
    return Finding(Level.CRITICAL, problem, fix)


@dataclass(frozen=True)
class Diagnosis:
    """The result of one check.

    Attributes:
        check: name of the check.
        subject: a phrase that describes what the check looked at.
        unavailable: why the check could not be made; empty if it was made.
    """

    check: str
    subject: str
    findings: tuple[Finding, ...] = ()
    unavailable: str = ""

    @property
    def level(self) -> Level:
        """The worst level of the findings; at least WARNING if the check could not be made."""
        least = Level.WARNING if self.unavailable else Level.OK
        return max([least, *(finding.level for finding in self.findings)])


def worst(diagnoses: Sequence[Diagnosis]) -> Level:
    """Return the worst level of some diagnoses."""
    return max((diagnosis.level for diagnosis in diagnoses), default=Level.OK)
