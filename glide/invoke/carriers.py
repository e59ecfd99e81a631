"""Carriers: the HTCondor jobs of one run. Records go out in parts, a part's results come back exactly once.

The queue is the truth: a carrier stays in it, completed, until its results are safe in the caller's hands.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glide import resources
from glide.condor import AccessPoint
from glide.condor.access_point import SUBMIT_SECONDS, any_of, quoted, value
from glide.errors import CondorError, Refused
from glide.invoke import answers
from glide.invoke.answers import Answers
from glide.template import Template
from glide.vocabulary import IDENTITY, KEPT_SECONDS, LEAVE_IN_QUEUE, Job, JobStatus, Machine, State

# As in submit_templates/invocation.sub.
# No other daemon of the pool passes for a lane, whatever it advertises.
GLIDEIN = f'substr(TARGET.AuthenticatedIdentity, 0, {len(IDENTITY)}) =?= "{IDENTITY}"'
WARM = f'TARGET.{Machine.TEMPLATE} =?= MY.{Job.TEMPLATE} && TARGET.{Machine.STATE} =?= "{State.WARM}" && {GLIDEIN}'
URGENT = 10  # the priority of carriers that have waited already
COMMON = ("generate", "timeout")  # of a record, and mostly the same for all
# When what happened to a job, in its ad; Unix time. Of the current or last start, where there were several.
TIMES = {
    "queued": "QDate", "started": "JobCurrentStartDate", "executing": "JobCurrentStartExecutingDate",
    "completed": "CompletionDate",
}  # fmt: skip
MEGABYTE = 1 << 20
SLOWEST = 100_000  # bytes/s that go to an access point at least
# Attributes that make a retrieval write to other places, as they are and as a spooled job keeps the submitter's.
ELSEWHERE = (
    "SUBMIT_TransferOutput", "SUBMIT_TransferOutputRemaps", "SUBMIT_UserLog", "SUBMIT_OutputDestination",
    "TransferOutputRemaps", "UserLog", "OutputDestination",
)  # fmt: skip
# A job that has waited for so long was left by a driver that was killed: no site keeps one waiting for that.
ABANDONED = (
    f"(JobStatus == {JobStatus.IDLE} || JobStatus == {JobStatus.HELD})"
    f" && time() - EnteredCurrentStatus > {KEPT_SECONDS}"
)
PART = re.compile(r"[0-9a-f]{12}")  # a part's name is a file's, too
REMINDED = 10  # one edit renews the access point's whole list of runnable jobs, and each costs it a transaction


@dataclass(frozen=True)
class Carrier:
    """One job in the queue: its part's name, its records, how often it has started, the lane's Name it runs on.

    `seconds` are those since its status changed; `last_lane` is the one of its last start, `times` are those of TIMES.
    """

    job: str
    part: str
    status: int
    records: int
    starts: int
    seconds: float
    lane: str = ""
    hold_reason: str = ""
    last_lane: str = ""
    times: Mapping[str, int] = field(default_factory=dict)


Keep = Callable[[Sequence[tuple[Carrier, Answers]]], None]


@dataclass(frozen=True)
class Run:
    """What a run's jobs have in common.

    Attributes:
        folder: holds the parts on their way out and back; no other run uses it.
        wanted: at most so many glideins at once.
        answer_bytes: the longest that a record's result may be, as a line.
        complaint: what is wrong with a result beyond what is checked of each; empty where nothing is.
    """

    name: str
    template: Template
    folder: Path
    wanted: int
    answer_bytes: int = 64 << 20
    complaint: Callable[[dict[str, Any]], str] = lambda result: ""


class Carriers:
    """The carriers of one run at one access point."""

    def __init__(self, run: Run, access_point: AccessPoint):
        self.run = run
        self.access_point = access_point
        self.parts: dict[str, str] = {}  # by job, as submitted or first seen: node code can write into a job's ad
        run.folder.mkdir(parents=True, exist_ok=True)

    def submit(
        self, parts: Sequence[Sequence[Mapping[str, Any]]], avoid: Sequence[str] = (), left: int = 0, last: bool = False
    ) -> None:
        """Send parts out, a job each, as one spooled cluster.

        A record has `custom_id`, `prompt`, `generate` (the engine's options) and `timeout` (seconds of an engine call).

        Args:
            left: how many of the run's records are in no job yet, for the factory to know what is to come.
            last: no more parts will follow, so that claims need not be kept for them: others may want the lanes.
            avoid: GlideIds of glideins that are known to be dead, although the collector may still have their ads.
                Parts sent while there are such go before others: what died with them has waited already.
        """
        items = []
        for records in parts:
            part = uuid.uuid4().hex[:12]
            most = answers.limit(len(records), self.run.answer_bytes)
            items.append({"part": part, "count": str(len(records)), "most_mb": str(most // MEGABYTE + 1)})
        try:
            for item, records in zip(items, parts, strict=True):
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in _lines(records))
                self._input(item["part"]).write_text(text, encoding="utf-8")
            self._submit(items, avoid, left, last)
        except (OSError, Refused):  # a full disk, say: nothing has been submitted
            for item in items:
                self._forget(item["part"])
            raise

    def _submit(self, items: Sequence[Mapping[str, str]], avoid: Sequence[str], left: int, last: bool) -> None:
        description = resources.find("submit_templates", "invocation.sub").read_text("utf-8").rsplit("\nqueue", 1)[0]
        macros = self._macros() | {f"My.{Job.LEFT}": str(left)} | ({"keep_claim_idle": "0"} if last else {})
        if avoid:
            dead = ", ".join(map(quoted, avoid))
            macros["priority"] = str(URGENT)
            macros["requirements"] = f"{WARM} && !member(TARGET.{Machine.ID}, {{{dead}}})"
        size = sum(self._input(item["part"]).stat().st_size for item in items)
        seconds = SUBMIT_SECONDS + size / SLOWEST
        cluster = self.access_point.submit(description, macros, items, spool=True, seconds=seconds)
        self.parts |= {f"{cluster}.{number}": item["part"] for number, item in enumerate(items)}

    def _macros(self) -> dict[str, str]:
        spec = self.run.template.to_json().replace("$", "\\u0024")  # which would begin a macro
        return {
            "digest": self.run.template.digest, "model": self.run.template.model,
            "initialdir": str(self.run.folder.resolve()), "records": "$(part).in", "results": "$(part).out",
            # Completed jobs stay until `gather` has their results and removes them, or nobody comes for long.
            "leave_in_queue": LEAVE_IN_QUEUE, "periodic_remove": ABANDONED, "max_transfer_output_mb": "$(most_mb)",
            "batch_name": self.run.name,
            f"My.{Job.RUN}": quoted(self.run.name), f"My.{Job.PART}": '"$(part)"', f"My.{Job.RECORDS}": "$(count)",
            f"My.{Job.WANTED}": str(self.run.wanted), f"My.{Job.SPEC}": value(spec),
        }  # fmt: skip

    def queue(self) -> list[Carrier]:
        """This run's jobs that are in the queue."""
        attributes = (
            "ClusterId",
            "ProcId",
            "JobStatus",
            "NumJobStarts",
            "RemoteHost",
            "HoldReason",
            "LastRemoteHost",
            Job.PART,
            Job.RECORDS,
            *TIMES.values(),
        )
        jobs = self.access_point.jobs(self._constraint(), attributes)
        found = [self._carrier(job) for job in jobs if _count(job, "JobStatus") != JobStatus.REMOVED]
        queue = [carrier for carrier in found if PART.fullmatch(carrier.part)]
        self.parts = {carrier.job: carrier.part for carrier in queue}
        return queue

    def _carrier(self, job: Mapping[str, Any]) -> Carrier:
        """A job's ad, with nothing in it that is of the wrong type."""
        number = f"{job['ClusterId']}.{job['ProcId']}"
        return Carrier(
            number, self.parts.get(number) or _text(job, Job.PART), _count(job, "JobStatus"), _count(job, Job.RECORDS),
            _count(job, "NumJobStarts"), max(0, _count(job, "ServerTime") - _count(job, "EnteredCurrentStatus")),
            _text(job, "RemoteHost"), _text(job, "HoldReason"), _text(job, "LastRemoteHost"),
            {name: at for name, attribute in TIMES.items() if (at := _count(job, attribute))},
        )  # fmt: skip

    def peek(self, carrier: Carrier, ids: Collection[str]) -> Answers:
        """What a carrier has streamed to the access point so far; `ids` are those of its records."""
        # A running job has no error output yet, which the retrieval reports as a failure after bringing the rest.
        with suppress(CondorError):
            self.access_point.retrieve(self._untouched([carrier]))
        return self._read(carrier, ids)

    def gather(self, done: Sequence[Carrier], ids: Mapping[str, Collection[str]], keep: Keep) -> None:
        """Bring home what completed carriers have: `keep` makes it durable, only then the job goes.

        Killed at any point, the next call brings the same results again, which `keep` must tell from new ones.

        Args:
            ids: of the records, by part.
        """
        if not done:
            return
        self.access_point.retrieve(self._untouched(done))
        keep([(carrier, self._read(carrier, ids[carrier.part])) for carrier in done])  # at once: each is a disk flush
        self.access_point.remove(any_of(carrier.job for carrier in done), "gathered")
        for carrier in done:
            self._forget(carrier.part)

    def _read(self, carrier: Carrier, ids: Collection[str]) -> Answers:
        path = self._output(carrier.part)
        found = answers.read(path, ids, self.run.answer_bytes, self.run.complaint)
        if found.flood:
            path.unlink(missing_ok=True)  # it may have filled the disk
        return found

    def _untouched(self, carriers: Iterable[Carrier]) -> str:
        """The constraint for these carriers, without those whose ad says to write elsewhere than to the run's folder.

        The retrieval goes by the job's ad, into which node code can write (chirp's set_job_attr).
        """
        mine = " || ".join(
            f"({any_of([carrier.job])} && TransferOutput =?= {quoted(f'{carrier.part}.out')})" for carrier in carriers
        )
        here = f"SUBMIT_Iwd =?= {quoted(str(self.run.folder.resolve()))}"
        return " && ".join([f"({mine})", here, *(f"{name} =?= undefined" for name in ELSEWHERE)])

    def carried(self, carriers: Iterable[Carrier]) -> set[str]:
        """The custom_ids that are on their way with these carriers."""
        ids: set[str] = set()
        for carrier in carriers:
            # By "\n" alone: a text may contain what else Python takes for the end of a line.
            with suppress(FileNotFoundError), self._input(carrier.part).open(encoding="utf-8", newline="\n") as lines:
                ids |= {record["custom_id"] for record in map(json.loads, lines) if "custom_id" in record}
        return ids

    def reconsider(self, carriers: Sequence[Carrier]) -> None:
        """Have idle carriers matched that should have been: they have waited already, so they go before others."""
        if carriers:
            self.access_point.reconsider(any_of(carrier.job for carrier in carriers[:REMINDED]), URGENT)

    def remove(self, carriers: Sequence[Carrier], reason: str) -> None:
        """Take carriers out of the queue; their records are to be sent again."""
        if carriers:
            self.access_point.remove(any_of(carrier.job for carrier in carriers), reason)
            for carrier in carriers:
                self._forget(carrier.part)

    def tidy(self, parts: Collection[str]) -> None:
        """Remove the files of all parts but these, which are in the queue: a driver that was killed has left them."""
        for path in self.run.folder.iterdir():
            if path.name.partition(".")[0] not in parts:
                path.unlink(missing_ok=True)

    def _forget(self, part: str) -> None:
        for suffix in ("in", "out", "in.err"):
            (self.run.folder / f"{part}.{suffix}").unlink(missing_ok=True)

    def _output(self, part: str) -> Path:
        return self.run.folder / f"{part}.out"

    def _input(self, part: str) -> Path:
        return self.run.folder / f"{part}.in"

    def _constraint(self) -> str:
        return f"{Job.RUN} == {quoted(self.run.name)}"


def _count(ad: Mapping[str, Any], name: str) -> int:
    found = ad.get(name)
    return found if isinstance(found, int) and 0 <= found < 1 << 53 else 0


def _text(ad: Mapping[str, Any], name: str) -> str:
    found = ad.get(name)
    return found if isinstance(found, str) else ""


def _lines(records: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Records as a job's input has them: what several in a row have in common stands before them, once."""
    common: dict[str, Any] = {}
    for record in records:
        if common != (own := {name: record[name] for name in COMMON}):
            common = own
            yield common
        yield {name: value for name, value in record.items() if name not in COMMON}


def read_results(path: Path) -> Iterator[dict[str, Any]]:
    """The results in a file, which is empty when it does not exist."""
    return filter(_is_result, read_lines(path))


def _is_result(line: dict[str, Any]) -> bool:
    return isinstance(line.get("custom_id"), str)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file of JSON objects; a torn line is none."""
    with suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            with suppress(ValueError, RecursionError):
                content = json.loads(line) if line.endswith("\n") else None
                if isinstance(content, dict):
                    yield content
