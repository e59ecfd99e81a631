"""What the doctor says: a finding, how bad it is, and the checks' verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from glide.condor.names import printable


class Level(IntEnum):
    """How bad it is: the exit codes of programs that Nagios and its like run."""

    OK = 0
    WARNING = 1  # it costs something, or what is there was not to be seen
    CRITICAL = 2  # work does not get done
    UNKNOWN = 3  # there is no pool to look at


@dataclass(frozen=True)
class Finding:
    """What hurts, with what that costs; and the line to write, or the command to run, that ends it.

    What is found may have words in it that a node or another user has written.
    """

    level: Level
    found: str
    fix: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "found", printable(self.found))


def warning(found: str, fix: str) -> Finding:
    return Finding(Level.WARNING, found, fix)


def critical(found: str, fix: str) -> Finding:
    return Finding(Level.CRITICAL, found, fix)


@dataclass(frozen=True)
class Verdict:
    """A check, what it looked at, and what it found; `unseen` says why it could not look."""

    check: str
    looked: str
    findings: tuple[Finding, ...] = ()
    unseen: str = ""

    @property
    def level(self) -> Level:
        least = Level.WARNING if self.unseen else Level.OK
        return max([least, *(finding.level for finding in self.findings)])


def worst(verdicts: Sequence[Verdict]) -> Level:
    return max((verdict.level for verdict in verdicts), default=Level.OK)
