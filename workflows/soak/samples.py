"""Samples of long-lived processes and of their files, and whether they grow."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean, median

WARM_UP_SECONDS = 600.0  # growth in this time from the beginning does not count
GROUP_SECONDS = 60.0  # the median of the samples of this time is one point of a trend
LIMIT = 1.0  # largest accepted growth, in percent of the mean per hour
# Logs and files grow until old ones are deleted, so not their growth, but their amount is limited: two journals of
# 10 MB, and 14 files of each of the 500 ended glideins whose output the factory keeps.
MOST = {"logs": 60.0, "files": 8000.0}
KINDS = {"memory": "MB", "descriptors": "", "threads": "", "logs": "MB", "files": ""}


@dataclass(frozen=True)
class Sample:
    """A measured value.

    Attributes:
        second: seconds since the beginning.
        subject: name of the process, or of the folder.
        kind: one of KINDS.
    """

    second: float
    subject: str
    kind: str
    value: float


def of_processes(second: float, pids: Mapping[str, int]) -> Iterator[Sample]:
    """Yield the memory (resident, in MB), the descriptors and the threads of processes that still run."""
    for name, pid in pids.items():
        with suppress(OSError):  # it has ended
            pages = int(Path(f"/proc/{pid}/statm").read_text("utf-8").split()[1])
            yield Sample(second, name, "memory", pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
            yield Sample(second, name, "descriptors", len(os.listdir(f"/proc/{pid}/fd")))
            yield Sample(second, name, "threads", len(os.listdir(f"/proc/{pid}/task")))


def of_folder(second: float, name: str, folder: Path, without: Sequence[Path] = ()) -> Iterator[Sample]:
    """Yield the number of files in a folder, and the MB of those that are logs.

    Args:
        without: folders in it that are left out.
    """
    files, size = 0, 0
    for place, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if Path(place, each) not in without]
        files += len(names)
        for each in names:
            if each.endswith(("Log", ".log", ".old", ".jsonl", ".out")):
                with suppress(OSError):
                    size += os.lstat(os.path.join(place, each)).st_size
    yield Sample(second, name, "files", files)
    yield Sample(second, name, "logs", size / 1e6)


def problem_of(subject: str, kind: str, samples: Sequence[Sample]) -> str:
    """Return what is wrong with the values of one subject and kind; empty if nothing is.

    HTCondor's own daemons and files are not judged.
    """
    if subject == "pool" or subject.startswith("condor_"):
        return ""
    if kind in MOST:
        largest = max(sample.value for sample in samples)
        return f"{kind} of {subject}: {largest:.0f} {KINDS[kind]}, which is too much" if largest > MOST[kind] else ""
    grows = growth(samples)
    if grows is None or grows <= LIMIT:
        return ""
    late = growth(samples, samples[-1].second / 2)
    more = "" if late is None else f" ({late:+.1f} % in the last half of the time)"
    return f"{kind} of {subject} grows by {grows:.1f} % an hour{more}"


def growth(samples: Sequence[Sample], since: float = WARM_UP_SECONDS) -> float | None:
    """Return the growth of a value after the warm-up, in percent of its mean per hour.

    It is the median slope between all pairs of points (Theil and Sen), so that single high points have no effect.

    Args:
        samples: the samples of one subject and kind.
        since: earlier samples do not count, in seconds.

    Returns:
        None if there are too few samples after the warm-up.
    """
    groups: dict[int, list[float]] = {}
    for sample in samples:
        if sample.second >= since:
            groups.setdefault(int(sample.second // GROUP_SECONDS), []).append(sample.value)
    points = [(group * GROUP_SECONDS / 3600, median(values)) for group, values in sorted(groups.items())]
    if len(points) < 3:
        return None
    slope = median((later[1] - earlier[1]) / (later[0] - earlier[0]) for earlier, later in combinations(points, 2))
    return 100 * slope / (fmean(value for _, value in points) or 1.0)
