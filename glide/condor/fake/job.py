"""A job in the queue of the fake pool, and how a model server serves it."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from glide.condor.fake.ad import expression, values
from glide.condor.fake.clock import FakeClock
from glide.protocol.request import Request, WrongInput, requests
from glide.vocabulary import Exit, Job, JobStatus

# A spooled job stays in the queue for ten days after its end, if its job file has no leave_in_queue.
LEAVE_SPOOLED = f"JobStatus == {JobStatus.COMPLETED} && time() - CompletionDate < 864000"
STREAM_SECONDS = 1.0  # seconds between two transfers of a job's results, if the job has no GlideStreamSeconds


class FakeJob:
    """A job in the queue.

    Args:
        now: the Unix time of the submission.
        spool: whether the job is spooled. In both cases, the input file is read immediately.

    Attributes:
        records: the requests in the job's input file.
        is_valid: whether the input file is valid. The ticket of a job with an invalid file ends with the exit code 2.
        output: content of the output file in the job's folder on the access point; None as long as the file does not
            exist. If the job is not spooled, this is the file with the streamed results in `folder`.
        lane: the FakeLane on which the job runs, or on which it is about to start; None if the job is not matched.
        run: the present start of the job on a lane; None if the job does not run, or if its node is dead.
        stuck: whether a lane has refused the job. Then the schedd does not match the job until it rebuilds its list.
        notified: time when the schedd last notified the job's shadow of an edit (monotonic seconds).
        keep_is_known: whether the shadow knows the newest value of GlideKeep, and the job can read it.
    """

    def __init__(self, ad: Any, user: str, now: int, spool: bool):
        self.ad = ad
        self.id = f"{ad['ClusterId']}.{ad['ProcId']}"
        self.folder = Path(os.path.abspath(ad.get("Iwd", ".")))
        self.records: list[Request] = []
        self.is_valid = True
        self.spool = spool
        self.output: bytearray | None = None
        self.lane: Any = None  # a FakeLane; its module imports this one
        self.run: FakeRun | None = None
        self.stuck = False
        self.notified = float("-inf")
        self.keep_is_known = False
        self._signature: tuple[Any, ...] = ()
        self._read_input()
        self.ad.update({
            "User": user, "Owner": user.partition("@")[0], "QDate": now, "NumJobStarts": 0, "NumShadowStarts": 0,
            "NumJobCompletions": 0, "Iwd": f"/spool/{self.id}" if spool else str(self.folder),
        })  # fmt: skip
        if spool:
            ad["SUBMIT_Iwd"] = str(self.folder)
            ad.setdefault("LeaveJobInQueue", expression(LEAVE_SPOOLED))
        self.set_status(JobStatus.IDLE, now)

    def _read_input(self) -> None:
        if name := self.ad.get("TransferInput"):
            try:
                self.records = [request for request, _ in requests(self.folder / name) if request]
            except WrongInput:
                self.is_valid = False

    @property
    def status(self) -> int:
        return int(self.ad["JobStatus"])

    @property
    def is_on_dead_lane(self) -> bool:
        return self.lane is not None and self.lane.job is self and not self.lane.glidein.alive

    def set_status(self, status: int, now: int) -> None:
        self.ad["JobStatus"], self.ad["EnteredCurrentStatus"] = status, now

    def number(self, attribute: str) -> Any:
        """Return the value of an attribute as a number: 1 for true, and 0 if the value is not a number."""
        return self.value(attribute, (int, float), 0)

    def value(self, attribute: str, kind: Any, default: Any) -> Any:
        """Return the value of an attribute if it has one of the types `kind`, else the default."""
        value = values(self.ad, [attribute]).get(attribute)
        return value if isinstance(value, kind) else default

    @property
    def signature(self) -> tuple[Any, ...]:
        """The values on which the match depends. HTCondor tests jobs with the same values only once (autocluster)."""
        if not self._signature:
            texts = [str(self.ad.lookup(name)) if name in self.ad else "" for name in ("Requirements", "Rank")]
            self._signature = *texts, *(self.ad.get(name) for name in (Job.TEMPLATE, Job.PROTOCOL, Job.EARLY))
        return self._signature

    def rank(self, machine: Any) -> float:
        """Return the value of Rank for a machine's ad: 1 for true, and 0 if the value is not a number."""
        value = self.ad.lookup("Rank").eval(self.ad, machine) if "Rank" in self.ad else 0
        return float(value) if isinstance(value, (int, float)) else 0.0

    def edit(self, attribute: str, text: str) -> None:
        self.ad[attribute] = expression(text)
        self._signature = ()

    def stream(self, content: bytes) -> None:
        """Append to the output file in the job's folder on the access point."""
        self.output = (self.output or bytearray()) + content
        if not self.spool and self.folder.exists():  # a driver deletes the folder when it removes the job
            with (self.folder / self.ad["TransferOutput"]).open("ab") as file:
                file.write(content)

    def transfer(self, content: bytes) -> None:
        """Transfer the whole output file at the end of the job. It replaces a file with the same name."""
        if self.spool:
            self.output = bytearray(content)
        elif self.folder.exists():
            name = self.ad["TransferOutput"]
            before, _, after = self.ad.get("TransferOutputRemaps", "").strip('"').partition("=")
            (self.folder / (after.strip() if before.strip() == name else name)).write_bytes(content)

    def write_output(self) -> None:
        """Copy the output files to the folder from which the job was submitted.

        Raises:
            FileNotFoundError: the job has not streamed any results. A running job streams for the first time after a
                second.
        """
        if self.output is None:
            raise FileNotFoundError(f"no output file of job {self.id}")
        (self.folder / self.ad["TransferOutput"]).write_bytes(self.output)
        # The model server creates an empty error output, because HTCondor copies the files only if all of them exist.
        with suppress(KeyError):
            (self.folder / self.ad["Err"]).touch()


class FakeRun:
    """One start of a job on a lane, as the glidein's model server sees it.

    Args:
        ended: a function that gets this object and the job's exit code when the job ends by itself.

    Attributes:
        attempts: number of times that the job's records were tried, this start included.
        waiting: the records that the engine has not received: pairs of the position in the input file and the request.
        begun: number of records that the engine has received in this start.
        sent: number of records from the start of the input up to the last one that any engine has received.
        unanswered: number of records that have no result and that the job keeps.
        output: content of the job's output file on the node. When the job ends, this replaces the streamed content.
        unsent: the part of `output` that has not been streamed to the access point.
        kept: number of records, from the start of the input, that the job keeps. It never grows.
        asked: value of GlideKeep that `kept` is the answer to; None if the job has not answered any.
        active: whether the job is still on the lane.
    """

    def __init__(self, clock: FakeClock, job: FakeJob, ended: Callable[[FakeRun, int], None]):
        self.clock, self.job, self.ended = clock, job, ended
        self.seconds = job.number(Job.STREAM) or STREAM_SECONDS
        # A restarted job skips records whose results an earlier start has streamed, because the spool still has them.
        lines = [json.loads(line) for line in (job.output or b"").split(b"\n") if line]
        results = {line["custom_id"] for line in lines if "custom_id" in line}
        earlier = [line for line in lines if line.keys() != {"begun"}]
        self.output = bytearray(b"".join(json.dumps(line).encode() + b"\n" for line in earlier))
        self.unsent = bytearray()
        self.attempts = job.number("NumJobStarts") + 1 - sum("refused" in line for line in earlier)
        answers = [(line["kept"], line["asked"]) for line in earlier if "kept" in line]
        self.kept: int = answers[-1][0] if answers else len(job.records)
        self.asked: int | None = answers[-1][1] if answers else None
        self.waiting: deque[tuple[int, Request]] = deque()
        self.begun = self.reported = self.sent = 0
        for place, record in enumerate(job.records[: self.kept]):
            if record.custom_id in results:
                self.sent = place + 1
            else:
                self.waiting.append((place, record))
        self.unanswered = len(self.waiting)
        self.active = True
        self.set_keep()
        clock.call_later(self.seconds if self.unanswered else 0.0, self._stream)

    def set_keep(self) -> None:
        """Read GlideKeep in the job's ad, and give back records if the value is new.

        The job keeps the first GlideKeep records of the input, and all records that an engine has received.
        """
        keep = self.job.value(Job.KEEP, int, None)
        if keep is None or keep == self.asked:
            return
        self.kept, self.asked = min(self.kept, max(keep, self.sent)), keep
        before = len(self.waiting)
        self.waiting = deque((place, record) for place, record in self.waiting if place < self.kept)
        self.unanswered -= before - len(self.waiting)
        self._write(json.dumps({"begun": self.begun, "kept": self.kept, "asked": keep}).encode() + b"\n")

    def pop_first(self) -> Request:
        """Return the next record for the engine."""
        place, record = self.waiting.popleft()
        self.begun += 1
        self.sent = max(self.sent, place + 1)
        return record

    def add(self, line: bytes) -> None:
        """Write a result. If it is the last one, end the job."""
        self._write(line)
        self.unanswered -= 1
        if not self.unanswered:
            self.end(Exit.OK)

    def end(self, code: int) -> None:
        """End the job with an exit code. HTCondor then transfers the whole output file to the access point."""
        if code == Exit.SERVER_LOST and not self.begun:
            self._write(b'{"begun": 0, "refused": true}\n')  # this start does not count as an attempt
        self.stop()
        self.job.transfer(bytes(self.output))
        self.ended(self, code)

    def stop(self) -> None:
        """Remove the job from the lane. Results that have not been streamed are lost."""
        self.active = False

    def _write(self, line: bytes) -> None:
        self.output += line
        self.unsent += line

    def _stream(self) -> None:
        """Append new results to the job's output on the access point. Do this again and again while the job runs."""
        if not self.active:
            return
        if self.job.keep_is_known:
            self.set_keep()
        if self.unsent or self.begun != self.reported:
            self.job.stream(bytes(self.unsent) + b'{"begun": %d}\n' % self.begun)
            self.unsent, self.reported = bytearray(), self.begun
        if self.unanswered:
            self.clock.call_later(self.seconds, self._stream)
        else:
            self.end(Exit.OK)
