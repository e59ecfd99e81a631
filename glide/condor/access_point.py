"""The access point's queue through the bindings: submit, spool, query, retrieve, remove.

The bindings are used here, in the collector's module beside it, and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from glide.condor import bindings
from glide.condor.bounded import CALL_SECONDS, Answer, isolated
from glide.condor.signals import undisturbed
from glide.errors import CondorError, Refused
from glide.vocabulary import JobStatus

SPOOLING_INPUT = 16  # HTCondor's hold code
SPOOL_SECONDS = 45.0  # a client that spools for longer has died over it
SUBMIT_SECONDS = 60.0  # for a submission with little input; the bindings themselves would wait for ever


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_USERS: dict[str, str] = {}  # who we are, by access point: that does not change while we live


def plain(ad: Any) -> dict[str, Any]:
    """A ClassAd as a dict of Python values; what is undefined or an error is left out."""
    expression, nothing = bindings.classad2.ExprTree, bindings.classad2.Value
    # Most are values already; to evaluate all of a large queue's would take six times as long.
    values = ((name, ad.eval(name) if isinstance(value, expression) else value) for name, value in ad.items())
    return {name: value for name, value in values if not isinstance(value, nothing)}


class AccessPoint:
    """One schedd: the configured pool's own, a named one of its collector, or one of another pool's collector.

    After a call that failed the schedd is located again: a pool that was restarted has another address.
    """

    def __init__(self, name: str | None = None, collector: str | None = None):
        self.name = name
        self.collector = collector
        self._found: tuple[Any, Any] | None = None
        self._find()

    @undisturbed()
    def _find(self) -> tuple[Any, Any]:
        """The schedd's location and the bindings' object for it."""
        if self._found is None:
            try:
                kind = bindings.htcondor2.DaemonType.Schedd
                pool = (
                    bindings.htcondor2.Collector(self.collector) if self.collector else bindings.htcondor2.Collector()
                )
                if self.collector and not self.name:
                    (location,) = pool.locateAll(kind)
                else:
                    location = pool.locate(kind, self.name) if self.name else pool.locate(kind)
                self._found = location, bindings.htcondor2.Schedd(location)
            except (RuntimeError, ValueError, TypeError, bindings.htcondor2.HTCondorException) as error:
                where = f" in the pool of {self.collector}" if self.collector else ""
                raise CondorError(f"no access point answers{where}: {error}") from None
        return self._found

    @property
    def location(self) -> Any:
        """Its ad, with its address."""
        return self._find()[0]

    @property
    def schedd(self) -> Any:
        """The bindings' object."""
        return self._find()[1]

    @property
    def user(self) -> str:
        """Who we are to this access point, as User@UidDomain."""
        address = str(self.location["MyAddress"])
        if address not in _USERS:
            _USERS[address] = self._apart(self._ping, CALL_SECONDS)
        return _USERS[address]

    def _ping(self) -> str:
        try:
            return str(bindings.htcondor2.ping(self.location, "WRITE")["MyRemoteUserName"])
        except (RuntimeError, KeyError, TypeError, bindings.htcondor2.HTCondorException) as error:
            raise CondorError(f"access point denied WRITE authorization: {error}") from None

    def submit(
        self,
        description: str,
        macros: Mapping[str, str] = {},
        items: Sequence[Mapping[str, str]] = (),
        spool: bool = False,
        seconds: float = SUBMIT_SECONDS,
    ) -> int:
        """Submit a job file's text as one cluster and return its number.

        Args:
            macros: set over what the description says.
            items: one job each, as macros; without them the description's own queue statement counts.
            spool: send the input files to the access point, which then needs nothing of this machine.
            seconds: how long that may take.

        Raises:
            Refused: HTCondor answers, and refuses the job.
            CondorError: HTCondor does not answer in time.
            Nothing is left in its queue, or what never got its input, which HTCondor holds.
        """
        return self._apart(partial(self._submit, description, macros, items, spool), seconds)

    def _submit(
        self, description: str, macros: Mapping[str, str], items: Sequence[Mapping[str, str]], spool: bool
    ) -> int:
        try:
            submit = bindings.htcondor2.Submit(description)
            for name, value in macros.items():
                submit[name] = value
            if items:
                result = self.schedd.submit(submit, itemdata=iter([dict(item) for item in items]), spool=spool)
            else:
                result = self.schedd.submit(submit, spool=spool)
        except (RuntimeError, ValueError, bindings.htcondor2.HTCondorException) as error:
            self._found = None
            self.time()  # raises where it is away rather than unwilling
            raise Refused(f"HTCondor refuses the job: {error}") from None
        cluster = int(result.cluster())
        if spool:
            try:
                self.schedd.spool(result)
            except (RuntimeError, bindings.htcondor2.HTCondorException) as error:
                self._found = None
                with suppress(CondorError):  # else it is held, and removed by whoever sees that
                    self.remove(f"ClusterId == {cluster}", "its input files could not be spooled")
                raise CondorError(f"the input files could not be spooled: {error}") from None
        return cluster

    @undisturbed()
    def jobs(self, constraint: str, attributes: Iterable[str], limit: int = -1) -> list[dict[str, Any]]:
        """Jobs in the queue, at most `limit` where that is given, each with those of the attributes it has.

        A job whose input is still being spooled is formally held; here it is what it is to its user, idle.
        """
        wanted = {*attributes, "JobStatus", "HoldReasonCode", "EnteredCurrentStatus", "ServerTime"}
        jobs = [plain(ad) for ad in self._call("query", constraint, list(wanted), limit=limit)]
        for job in jobs:
            spooling = job.get("JobStatus") == JobStatus.HELD and job.get("HoldReasonCode") == SPOOLING_INPUT
            with suppress(KeyError, TypeError):  # a job's owner may write anything there
                if spooling and job["ServerTime"] - job["EnteredCurrentStatus"] < SPOOL_SECONDS:
                    job["JobStatus"] = JobStatus.IDLE
        return jobs

    @undisturbed()
    def time(self) -> int:
        """Unix time, by the access point's clock."""
        (summary,) = self._call("query", "false", [], opts=bindings.htcondor2.QueryOpts.SummaryOnly)
        return int(summary["ServerTime"])

    def retrieve(self, constraint: str) -> None:
        """Bring the outputs of spooled jobs to the folder they were submitted from."""
        self._call("retrieve", constraint)

    def edit(self, job: str, attribute: str, expression: str) -> None:
        """Set an attribute in the ad of a job, named as cluster.proc, or of those that a constraint selects."""
        self._apart(partial(self._call, "edit", job, attribute, expression), CALL_SECONDS)

    @undisturbed()
    def remove(self, constraint: str, reason: str) -> int:
        """Remove jobs and return how many."""
        result = self._call(
            "act", bindings.htcondor2.JobAction.Remove, constraint, reason=(reason, 0)
        )  # a bare text is not passed on
        return int(result.get("TotalSuccess", 0))

    def reconsider(self, constraint: str, priority: int) -> None:
        """Have idle jobs negotiated for again, with this priority.

        A schedd of 25.14 takes a job whose match the other side refused for matched until it rebuilds its list of
        runnable jobs: when a job comes, or a priority is set, or after 20 minutes. That none is left is no error.
        """
        with suppress(CondorError):
            self.edit(constraint, "JobPrio", str(priority))

    def _apart(self, call: Callable[[], Answer], seconds: float) -> Answer:
        """Return what a call returns that has no time limit of its own; CondorError as `isolated`."""
        try:
            return isolated(call, seconds)
        except CondorError:
            self._found = None
            raise

    @undisturbed()
    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        try:
            return getattr(self.schedd, method)(*arguments, **options)
        except (RuntimeError, bindings.htcondor2.HTCondorException) as error:
            self._found = None
            raise CondorError(f"the access point does not {method}: {error}") from None


def read_submit_file(path: Path) -> str:
    """A job file's text; CondorError when it is no valid job description."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # condor_submit takes any bytes, and every byte is a character of Latin-1
    try:
        bindings.htcondor2.Submit(text)
    except (RuntimeError, ValueError, bindings.htcondor2.HTCondorException) as error:
        raise CondorError(f"{path}: {error}") from None
    return text


def parameter(name: str) -> str | None:
    """A value of the configuration that is in force, such as UID_DOMAIN."""
    value = bindings.htcondor2.param.get(name)
    return None if value is None else str(value)


def value(text: str) -> str:
    """A string as an attribute's value in a job file, where only quotes are escaped.

    Raises:
        CondorError: it has a line break, or ends in a backslash: it would say more than one value.
    """
    if _CONTROL.search(text) or text.endswith("\\"):
        raise CondorError(f"no attribute of a job can have this value in a job file: {text!r:.200}")
    return '"' + text.replace('"', '\\"') + '"'


def quoted(text: str) -> str:
    """A string in a ClassAd expression, in one line whatever characters it has."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + _CONTROL.sub(lambda found: f"\\{ord(found[0]) or ord('?'):03o}", escaped) + '"'


def any_of(jobs: Iterable[str]) -> str:
    """The constraint that selects these jobs, each named as cluster.proc."""
    return " || ".join("(ClusterId == {} && ProcId == {})".format(*job.split(".")) for job in jobs)
