"""Use the queue of an access point through HTCondor's bindings: submit, spool, query, retrieve and remove jobs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from glide.condor import bindings
from glide.condor.bounded import CALL_SECONDS, Answer, isolated
from glide.condor.queries import query_collector, query_schedd
from glide.condor.signals import defer_signals
from glide.errors import CondorError, CondorRefused
from glide.vocabulary import JobStatus

SPOOLING_INPUT = 16  # HTCondor's HoldReasonCode while the input files of a job are being spooled
SPOOL_SECONDS = 45.0  # longest expected time to spool a job's input files, in seconds
SUBMIT_SECONDS = 60.0  # time limit of a submission with small input files, in seconds
# The attributes of a schedd's ad that the bindings need to contact it.
LOCATION = ["Name", "Machine", "MyType", "MyAddress", "AddressV1", "CondorVersion", "CondorPlatform"]
EDIT_SECONDS = 0.1  # additional time limit for each edit of one call, in seconds


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Key: the address of an access point. Value: the user name that the access point gives to this account.
_USERS: dict[str, str] = {}


class AccessPoint:
    """A schedd of the configured pool or of another pool.

    After a failed call, the collector is asked for the schedd's address again. A restarted schedd has a new address.

    Args:
        name: the schedd's name. None has two meanings:
            - with `collector`: the only schedd in the collector's pool
            - without `collector`: the default schedd of the configured pool
        collector: address of another pool's collector. None: the configured pool.

    Raises:
        CondorError: the schedd does not answer.
    """

    def __init__(self, name: str | None = None, collector: str | None = None):
        self.name = name
        self.collector = collector
        self._found: tuple[Any, Any] | None = None
        self._find()

    @defer_signals()
    def _find(self) -> tuple[Any, Any]:
        """Return the schedd's location ad and the bindings' Schedd object."""
        if self._found is None:
            try:
                if self.collector or self.name:
                    constraint = f"Name == {quoted(self.name)}" if self.name else "true"
                    (found,) = query_collector(self.collector, "Schedd", constraint, LOCATION)
                    location = bindings.classad2.ClassAd(found)
                else:
                    location = bindings.htcondor2.Collector().locate(bindings.htcondor2.DaemonType.Schedd)
                self._found = location, bindings.htcondor2.Schedd(location)
            except (RuntimeError, ValueError, TypeError, bindings.htcondor2.HTCondorException) as error:
                where = f" in the pool of {self.collector}" if self.collector else ""
                raise CondorError(f"no access point answers{where}: {error}") from None
        return self._found

    @property
    def location(self) -> Any:
        """The schedd's location ad, which contains its address."""
        return self._find()[0]

    @property
    def schedd(self) -> Any:
        """The bindings' Schedd object for this schedd."""
        return self._find()[1]

    @property
    def user(self) -> str:
        """This account's name at the access point, as User@UidDomain."""
        address = str(self.location["MyAddress"])
        if address not in _USERS:
            _USERS[address] = self._isolated(self._ping, CALL_SECONDS)
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
        """Submit one cluster of jobs, and return the cluster's number.

        After a failed submission, the queue contains no job of this cluster, or only held jobs without input files.

        Args:
            description: the text of a job file.
            macros: a dict from macro name to value. These values replace the values that the description gives.
            items: for each job, a dict of further macros. If `items` is empty, the queue statement in the description
                decides how many jobs are submitted.
            spool: whether the input files are copied to the access point, so that the jobs do not need this machine.
            seconds: time limit of the submission, in seconds.

        Raises:
            CondorRefused: HTCondor answers and refuses the job.
            CondorError: HTCondor does not answer in time, or the input files could not be spooled.
        """
        return self._isolated(partial(self._submit, description, macros, items, spool), seconds)

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
            self.time()  # this method raises CondorError if HTCondor does not answer
            raise CondorRefused(f"HTCondor refuses the job: {error}") from None
        cluster = int(result.cluster())
        if spool:
            try:
                self.schedd.spool(result)
            except (RuntimeError, bindings.htcondor2.HTCondorException) as error:
                self._found = None
                with suppress(CondorError):  # if the jobs cannot be removed, they stay held
                    self.remove(f"ClusterId == {cluster}", "its input files could not be spooled")
                raise CondorError(f"the input files could not be spooled: {error}") from None
        return cluster

    def jobs(self, constraint: str, attributes: Iterable[str], limit: int = -1) -> list[dict[str, Any]]:
        """Return attributes of each job that a constraint selects. Attributes that a job does not define are left out.

        While a job's input files are being spooled, HTCondor reports the job as held. This method reports such a job as
        idle, but only for the first SPOOL_SECONDS.

        Args:
            attributes: names of the attributes to return.
            limit: maximum number of jobs; -1: no maximum.
        """
        wanted = {*attributes, "JobStatus", "HoldReasonCode", "EnteredCurrentStatus", "ServerTime"}
        with self._locating_again():
            jobs = query_schedd(str(self.location), constraint, list(wanted), limit)
        for job in jobs:
            spooling = job.get("JobStatus") == JobStatus.HELD and job.get("HoldReasonCode") == SPOOLING_INPUT
            # A user can delete the attribute EnteredCurrentStatus of a job, or can set the attribute to a string.
            with suppress(KeyError, TypeError):
                if spooling and job["ServerTime"] - job["EnteredCurrentStatus"] < SPOOL_SECONDS:
                    job["JobStatus"] = JobStatus.IDLE
        return jobs

    @defer_signals()
    def time(self) -> int:
        """Return the Unix time of the access point's clock."""
        (summary,) = self._call("query", "false", [], opts=bindings.htcondor2.QueryOpts.SummaryOnly)
        return int(summary["ServerTime"])

    def retrieve(self, constraint: str) -> None:
        """Copy the outputs of spooled jobs to the folders from which the jobs were submitted."""
        self._call("retrieve", constraint)

    def edit(self, expressions: Mapping[str, str], attribute: str, notify_shadow: bool = False) -> None:
        """Set an attribute of jobs to expressions. If a call fails, for example for a job that is gone, continue.

        Args:
            expressions: the new values. Each key selects jobs: a cluster.proc or a constraint.
            notify_shadow: whether the shadows of running jobs get the new value. The schedd notifies a shadow
                immediately, but only once in SCHEDD_JOB_QUEUE_NOTIFY_UPDATES seconds (30 by default).

        Raises:
            CondorError: a call failed, or the access point does not answer.
        """
        options = {"flags": bindings.htcondor2.TransactionFlag.SetDirty} if notify_shadow else {}

        def edit_all() -> None:
            failure: CondorError | None = None
            for jobs, expression in expressions.items():
                try:
                    self._call("edit", jobs, attribute, expression, **options)
                except CondorError as error:
                    failure = error
                    self.time()  # if this fails, too, the schedd does not answer, and the other calls would fail
            if failure:
                raise failure

        self._isolated(edit_all, CALL_SECONDS + EDIT_SECONDS * len(expressions))

    @defer_signals()
    def remove(self, constraint: str, reason: str) -> int:
        """Remove the jobs that a constraint selects, and return the number of removed jobs."""
        result = self._call(
            "act", bindings.htcondor2.JobAction.Remove, constraint, reason=(reason, 0)
        )  # the bindings expect a tuple; they ignore a removal reason that is a plain text
        return int(result.get("TotalSuccess", 0))

    def reconsider(self, constraint: str, priority: int) -> None:
        """Set the priority of idle jobs, so that the schedd negotiates for these jobs again. Ignore errors.

        A slot can refuse a matched job. In HTCondor 25.14, the schedd then still treats the job as matched. The schedd
        corrects this error when it rebuilds its list of runnable jobs. The schedd rebuilds the list in three cases:
        - A new job arrives.
        - The priority of a job is set.
        - The list is 20 minutes old.
        """
        with suppress(CondorError):
            self.edit({constraint: str(priority)}, "JobPrio")

    def _isolated(self, call: Callable[[], Answer], seconds: float) -> Answer:
        """Run a call of the bindings in a separate process, and return the result of the call.

        Raises:
            CondorError: the call failed, or took longer than `seconds`.
        """
        with self._locating_again():
            return isolated(call, seconds)

    @contextmanager
    def _locating_again(self) -> Iterator[None]:
        """If the block raises CondorError, ask the collector for the schedd's address before the next call."""
        try:
            yield
        except CondorError:
            self._found = None
            raise

    @defer_signals()
    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        try:
            return getattr(self.schedd, method)(*arguments, **options)
        except (RuntimeError, bindings.htcondor2.HTCondorException) as error:
            self._found = None
            raise CondorError(f"access point: {method} failed: {error}") from None


def read_submit_file(path: Path) -> str:
    """Return the text of a job file. Raise CondorError if the text is not a valid job description."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # condor_submit accepts any bytes, and Latin-1 can decode any bytes
    try:
        bindings.htcondor2.Submit(text)
    except (RuntimeError, ValueError, bindings.htcondor2.HTCondorException) as error:
        raise CondorError(f"{path}: {error}") from None
    return text


def parameter(name: str) -> str | None:
    """Return the value of an HTCondor configuration parameter, such as UID_DOMAIN; None if it is not defined."""
    value = bindings.htcondor2.param.get(name)
    return None if value is None else str(value)


def job_file_value(text: str) -> str:
    """Return a text as a string literal for a job file: the text between double quotes.

    Put a backslash before each double quote in the text. Change no other character.

    Raises:
        CondorError: the text contains a control character or ends with a backslash. Such a text could change how
            HTCondor reads the next lines of the job file.
    """
    if _CONTROL.search(text) or text.endswith("\\"):
        raise CondorError(
            f"a text in a job file must not contain control characters or end with a backslash: {text!r:.200}"
        )
    return '"' + text.replace('"', '\\"') + '"'


def quoted(text: str) -> str:
    """Return a text as a string literal for a ClassAd expression.

    Control characters are escaped, so that the literal has only one line.
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + _CONTROL.sub(lambda found: f"\\{ord(found[0]) or ord('?'):03o}", escaped) + '"'


def any_of(jobs: Iterable[str]) -> str:
    """Return a ClassAd constraint that selects the given jobs. A job is given as cluster.proc."""
    clusters: defaultdict[int, list[int]] = defaultdict(list)
    for cluster, _, proc in (job.partition(".") for job in jobs):
        clusters[int(cluster)].append(int(proc))
    return either([
        f"(ClusterId == {cluster} && ProcId >= {first} && ProcId <= {last})"
        for cluster, procs in clusters.items()
        for first, last in _ranges(sorted(procs))
    ])  # fmt: skip


def _ranges(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last number of each range of consecutive numbers. The numbers are sorted."""
    first = 0
    for place, number in enumerate(numbers):
        if place + 1 == len(numbers) or numbers[place + 1] > number + 1:
            yield numbers[first], number
            first = place + 1


def either(conditions: Sequence[str]) -> str:
    """Return a ClassAd expression that is true if one of the conditions is true.

    The operators form a balanced tree. If some hundred operators follow each other without parentheses, HTCondor cannot
    evaluate the expression, and a query or a removal with this constraint selects no job.
    """
    if len(conditions) < 2:
        return conditions[0] if conditions else "false"
    middle = len(conditions) // 2
    return f"({either(conditions[:middle])} || {either(conditions[middle:])})"
