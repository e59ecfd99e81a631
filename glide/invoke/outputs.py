"""What the ad of a spooled job says of its outputs, and what of it counts.

A node that runs a job may change the job's ad, so nothing in it may name a place outside the folder of results.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from glide.vocabulary import Job

ATTRIBUTES = (
    "ClusterId", "ProcId", "QDate", "JobStatus", "StageInFinish", "SUBMIT_Iwd", "SUBMIT_TransferOutputRemaps",
    "SUBMIT_UserLog", "UserLog", "Out", "Err", "TransferOutput", "SpooledOutputFiles", Job.RUN, Job.FOLDER,
    Job.INITIAL_DIR,
)  # fmt: skip
_NOT_IN_REMAPS = "=;\\\t\n\r\0"  # they separate or escape; a remap with one of them in a name is left out


@dataclass(frozen=True)
class Outputs:
    """The outputs of one job.

    Attributes:
        job: its number, CLUSTER.PROC.
        submitted: Unix time, which tells it from a job of the same number in a queue that was emptied.
        initial_dir: the job's initialdir; empty if the ad does not say.
        folder: where its files belong, relative to the folder of results.
        remaps: new names by name, relative to the job's own folder.
        log: name of its event log, relative to the job's own folder; empty if it has none.
        declared: names of the files that the job file lists, after the remaps, relative to the folder of results.
        brought: names of what HTCondor brings, after the remaps, relative to the job's own folder.
        plain: whether the remaps are those of the ad: none of them was changed or left out.
        problem: why it must not be retrieved; usually empty.
    """

    job: str
    submitted: int
    initial_dir: str
    folder: PurePosixPath
    remaps: Mapping[str, str]
    log: str
    declared: frozenset[str]
    brought: tuple[str, ...]
    plain: bool
    problem: str = ""

    @property
    def remap_text(self) -> str:
        """The remaps as HTCondor reads them."""
        return ";".join(f"{name}={target}" for name, target in self.remaps.items())


def outputs(ad: Mapping[str, Any]) -> Outputs:
    """Return what a job's ad says of its outputs, made safe."""
    job = f"{int(ad['ClusterId'])}.{int(ad['ProcId'])}"
    initial_dir = _text(ad, Job.INITIAL_DIR) or _text(ad, "SUBMIT_Iwd")
    base = _text(ad, Job.FOLDER)
    folder = PurePosixPath(within(initial_dir, base) if base and initial_dir else "")
    remaps = safe_remaps(_text(ad, "SUBMIT_TransferOutputRemaps"), initial_dir)
    pairs = [pair for pair in _text(ad, "SUBMIT_TransferOutputRemaps").split(";") if pair.strip()]
    plain = all(
        remaps.get(name.strip(" ")) == target.strip(" ") for name, _, target in (p.partition("=") for p in pairs)
    )
    log = os.path.basename(_text(ad, "UserLog"))
    if log and (target := within(_text(ad, "SUBMIT_UserLog"), initial_dir)) not in ("", log):
        remaps.setdefault(log, target)
    declared = _remapped([*_names(ad, "TransferOutput"), *_streams(ad)], remaps)
    return Outputs(
        job, _number(ad, "QDate"), initial_dir, folder, remaps, remaps.get(log, log),
        frozenset(str(folder / name) for name in declared),
        tuple(_remapped([*_sent(ad), *_streams(ad), log], remaps)), plain, _problem(ad),
    )  # fmt: skip


def named_twice(jobs: Iterable[Outputs]) -> set[str]:
    """Return the names that several jobs list for their outputs."""
    return {name for name, count in Counter(name for job in jobs for name in job.declared).items() if count > 1}


def within(path: str, base: str) -> str:
    """Return a path relative to a folder; only its last name if it lies elsewhere. Empty if nothing is left of it."""
    if not path:
        return ""
    base = os.path.normpath(base or "/")
    whole = os.path.normpath(os.path.join(base, path))
    if whole.startswith(base.rstrip("/") + "/"):
        return os.path.relpath(whole, base)
    return "" if whole == base else os.path.basename(whole)


def safe_remaps(text: str, base: str) -> dict[str, str]:
    """Return HTCondor's remaps, with targets that cannot leave the job's own folder; unclear ones are left out.

    Args:
        text: as in transfer_output_remaps.
        base: the job's initialdir, which targets with a whole path may lie in.
    """
    found = {}
    for pair in text.split(";"):
        name, _, target = (part.strip(" ") for part in pair.partition("="))
        if not any(character in name + target for character in _NOT_IN_REMAPS) and (target := within(target, base)):
            found[name] = target
    return found


def _problem(ad: Mapping[str, Any]) -> str:
    """Return why a job's outputs must not be retrieved: what it would bring is not a file of the job's."""
    if not isinstance(ad.get("StageInFinish"), int):
        return "it was not spooled, so HTCondor has written its outputs to their places already: condor_rm ends it"
    for name in (*_sent(ad), *_streams(ad), _text(ad, "UserLog")):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            return f"its ad names {name!r} as an output, which is not in its spool: a node may have changed the ad"
    return ""


def _remapped(names: Iterable[str], remaps: Mapping[str, str]) -> list[str]:
    """Names as HTCondor writes them: of a path the last part, or what it is remapped to."""
    last = (os.path.basename(name.rstrip("/")) for name in names)
    return [remaps.get(name, name) for name in last if name]


def _sent(ad: Mapping[str, Any]) -> list[str]:
    """What a completed job has in its spool, but for its output, error and log."""
    return _names(ad, "SpooledOutputFiles") or _names(ad, "TransferOutput")


def _streams(ad: Mapping[str, Any]) -> list[str]:
    return [_text(ad, name) for name in ("Out", "Err") if _text(ad, name) not in ("", "/dev/null")]


def _names(ad: Mapping[str, Any], attribute: str) -> list[str]:
    return [name.strip() for name in _text(ad, attribute).split(",") if name.strip()]


def _text(ad: Mapping[str, Any], attribute: str) -> str:
    value = ad.get(attribute)
    return value if isinstance(value, str) and "\0" not in value else ""


def _number(ad: Mapping[str, Any], attribute: str) -> int:
    value = ad.get(attribute)
    return value if isinstance(value, int) else 0
