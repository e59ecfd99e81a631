"""Read the names and places of a spooled job's outputs from the job's ad. Make these names and places safe.

While a job runs, its node may change the job's ad. So no name from the ad may lead outside the folder of results, which
is the folder into which `glide gather` retrieves outputs.
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
# Separators and escape characters. A remap is ignored if its name or target contains one of them.
_NOT_IN_REMAPS = "=;\\\t\n\r\0"


@dataclass(frozen=True)
class Outputs:
    """The outputs of one job.

    Attributes:
        id: the job's number, CLUSTER.PROC.
        submitted: Unix time at which the job was submitted. Two jobs can have the same number if the access point has
            lost its queue between the two submissions.
        initial_dir: the job's initialdir; empty if the ad has no initialdir.
        folder: folder for the job's files. The path is relative to the folder of results.
        remaps: a dict from the name of a remapped file to the file's new path. These paths are relative to `folder`.
        log: path of the job's event log, relative to `folder`; empty if the job has no log.
        declared: paths of the output files that the submit file lists, after remapping. The paths are relative to the
            folder of results.
        retrieved: paths of all files that HTCondor retrieves, after remapping. The paths are relative to `folder`.
        remaps_unchanged: whether `remaps` equals the remaps in the ad. It is False if a remap was changed or left out
            for safety.
        problem: why the outputs must not be retrieved; empty if they may be retrieved.
    """

    id: str
    submitted: int
    initial_dir: str
    folder: PurePosixPath
    remaps: Mapping[str, str]
    log: str
    declared: frozenset[str]
    retrieved: tuple[str, ...]
    remaps_unchanged: bool
    problem: str = ""

    @property
    def remap_text(self) -> str:
        """The remaps in the syntax of transfer_output_remaps."""
        return ";".join(f"{name}={target}" for name, target in self.remaps.items())


def outputs(ad: Mapping[str, Any]) -> Outputs:
    """Return the outputs that a job's ad describes. All paths stay inside the folder of results."""
    number = f"{int(ad['ClusterId'])}.{int(ad['ProcId'])}"
    initial_dir = _text(ad, Job.INITIAL_DIR) or _text(ad, "SUBMIT_Iwd")
    base = _text(ad, Job.FOLDER)
    folder = PurePosixPath(within(initial_dir, base) if base and initial_dir else "")
    remaps = safe_remaps(_text(ad, "SUBMIT_TransferOutputRemaps"), initial_dir)
    pairs = [pair for pair in _text(ad, "SUBMIT_TransferOutputRemaps").split(";") if pair.strip()]
    remaps_unchanged = all(
        remaps.get(name.strip(" ")) == target.strip(" ") for name, _, target in (p.partition("=") for p in pairs)
    )
    log = os.path.basename(_text(ad, "UserLog"))
    if log and (target := within(_text(ad, "SUBMIT_UserLog"), initial_dir)) not in ("", log):
        remaps.setdefault(log, target)
    declared = _remapped([*_names(ad, "TransferOutput"), *_streams(ad)], remaps)
    return Outputs(
        number, _number(ad, "QDate"), initial_dir, folder, remaps, remaps.get(log, log),
        frozenset(str(folder / name) for name in declared),
        tuple(_remapped([*_spooled(ad), *_streams(ad), log], remaps)), remaps_unchanged, _problem(ad),
    )  # fmt: skip


def shared_names(jobs: Iterable[Outputs]) -> set[str]:
    """Return the output names that are listed by more than one job."""
    return {name for name, count in Counter(name for job in jobs for name in job.declared).items() if count > 1}


def within(path: str, base: str) -> str:
    """Convert `path` to a path that is relative to the folder `base`, and return the relative path.

    There are two exceptions:

    - If `path` is outside `base`, return only the last part of `path`.
    - If `path` is empty, or is `base` itself, return an empty text.
    """
    if not path:
        return ""
    base = os.path.normpath(base or "/")
    whole = os.path.normpath(os.path.join(base, path))
    if whole.startswith(base.rstrip("/") + "/"):
        return os.path.relpath(whole, base)
    return "" if whole == base else os.path.basename(whole)


def safe_remaps(text: str, base: str) -> dict[str, str]:
    """Return remaps as a dict from file name to target. All targets stay inside the job's own folder.

    A remap NAME=TARGET is left out in two cases:

    - NAME or TARGET contains `=`, a backslash, a tab, a line break or a zero byte.
    - TARGET is empty, or is the job's initialdir itself.

    Args:
        text: remaps in the syntax of transfer_output_remaps.
        base: the job's initialdir. An absolute target inside this folder becomes a relative target.
    """
    found = {}
    for pair in text.split(";"):
        name, _, target = (part.strip(" ") for part in pair.partition("="))
        if not any(character in name + target for character in _NOT_IN_REMAPS) and (target := within(target, base)):
            found[name] = target
    return found


def _problem(ad: Mapping[str, Any]) -> str:
    """Return the reason why a job's outputs must not be retrieved, or an empty text if they may be retrieved."""
    if not isinstance(ad.get("StageInFinish"), int):
        return "the job was not spooled, so HTCondor has written its outputs to their places; remove it with condor_rm"
    for name in (*_spooled(ad), *_streams(ad), _text(ad, "UserLog")):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            return f"its ad has the output {name!r}, which is not in its spool; a node may have changed the ad"
    return ""


def _remapped(names: Iterable[str], remaps: Mapping[str, str]) -> list[str]:
    """Return the names that files have after their retrieval.

    A retrieved file gets the last part of its path as its name. If there is a remap for this part, the file gets the
    remap's target as its name.
    """
    last = (os.path.basename(name.rstrip("/")) for name in names)
    return [remaps.get(name, name) for name in last if name]


def _spooled(ad: Mapping[str, Any]) -> list[str]:
    """Return the names of the files in a completed job's spool, except standard output, standard error and log."""
    return _names(ad, "SpooledOutputFiles") or _names(ad, "TransferOutput")


def _streams(ad: Mapping[str, Any]) -> list[str]:
    """Return the names of the files with a job's standard output and standard error."""
    return [_text(ad, name) for name in ("Out", "Err") if _text(ad, name) not in ("", "/dev/null")]


def _names(ad: Mapping[str, Any], attribute: str) -> list[str]:
    return [name.strip() for name in _text(ad, attribute).split(",") if name.strip()]


def _text(ad: Mapping[str, Any], attribute: str) -> str:
    value = ad.get(attribute)
    return value if isinstance(value, str) and "\0" not in value else ""


def _number(ad: Mapping[str, Any], attribute: str) -> int:
    value = ad.get(attribute)
    return value if isinstance(value, int) else 0
