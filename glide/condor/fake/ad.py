"""The ClassAds of the fake pool: read values, parse expressions, and make job ads from the text of a job file.

HTCondor's own library (classad2) evaluates all expressions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from glide.condor import bindings
from glide.errors import CondorError

# The attribute that each command of a job file sets. The values of TEXTS are plain texts, the others are expressions.
# Commands that are missing here have no effect in the fake pool.
TEXTS = {
    "executable": "Cmd", "arguments": "Arguments", "transfer_input_files": "TransferInput",
    "transfer_output_files": "TransferOutput", "transfer_output_remaps": "TransferOutputRemaps", "error": "Err",
    "batch_name": "JobBatchName", "initialdir": "Iwd",
}  # fmt: skip
EXPRESSIONS = {
    "requirements": "Requirements", "rank": "Rank", "priority": "JobPrio", "leave_in_queue": "LeaveJobInQueue",
    "periodic_remove": "PeriodicRemove", "periodic_hold": "PeriodicHold", "periodic_hold_reason": "PeriodicHoldReason",
    "on_exit_remove": "OnExitRemove", "on_exit_hold": "OnExitHold", "on_exit_hold_reason": "OnExitHoldReason",
    "keep_claim_idle": "KeepClaimIdle", "job_lease_duration": "JobLeaseDuration", "want_io_proxy": "WantIOProxy",
    "transfer_executable": "TransferExecutable", "request_cpus": "RequestCpus", "request_memory": "RequestMemory",
    "request_disk": "RequestDisk", "max_transfer_output_mb": "MaxTransferOutputMB",
}  # fmt: skip
_COMMAND = re.compile(r"\s*([\w.+]+)\s*=\s*(.*?)\s*")
_QUEUE = re.compile(r"\s*queue\s*(\d*)\s*", re.IGNORECASE)
_MACRO = re.compile(r"(?<!\$)\$\(([\w.]+)\)")  # $$(NAME) is no macro: HTCondor replaces it when it matches the job
_TIME = re.compile(r"\btime\(\)")


def load_functions() -> None:
    """Add HTCondor's own functions, such as stringListMember, to the ClassAd library.

    The import of htcondor2 does this. If this machine has no configuration of HTCondor, the import also sets
    CONDOR_CONFIG. This function undoes that.
    """
    before = os.environ.get("CONDOR_CONFIG")
    bindings.htcondor2  # noqa: B018
    if before is None:
        os.environ.pop("CONDOR_CONFIG", None)


def expression(text: str) -> Any:
    """Parse a ClassAd expression. Raise CondorError if the text is not a valid expression.

    ClassAds call `time()` for the time of this machine, which is not the fake clock's time. So each `time()` becomes
    `ServerTime`. The queue sets this attribute before it evaluates an expression.
    """
    try:
        return bindings.classad2.ExprTree(_TIME.sub("ServerTime", text))
    except (RuntimeError, ValueError, bindings.classad2.ClassAdException):
        raise CondorError(f"not a ClassAd expression: {text}") from None


def values(ad: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return attributes of a ClassAd as Python values. Leave out attributes that are missing, undefined or an error."""
    tree, nothing = bindings.classad2.ExprTree, bindings.classad2.Value
    # Only expressions are evaluated, because most attributes are plain values, and an evaluation takes longer.
    found = ((name, value.eval(ad) if isinstance(value := ad.get(name), tree) else value) for name in names)
    return {name: value for name, value in found if value is not None and not isinstance(value, nothing)}


def job_ads(
    description: str, macros: Mapping[str, str], items: Sequence[Mapping[str, str]], cluster: int
) -> Iterator[Any]:
    """Yield the ads of a cluster's jobs.

    Args:
        description: the text of a job file.
        macros: further commands and macros, which replace those of the job file.
        items: for each job, further macros. If there are no items, the queue statement determines the number of jobs.

    Raises:
        CondorError: a value of the job file is not a valid expression.
    """
    commands: dict[str, tuple[str, str]] = {}  # by name in lower case, because names are not case-sensitive
    count = 1
    lines = description.replace("\\\n", " ").splitlines()
    for line in [*lines, *(f"{name} = {value}" for name, value in macros.items())]:
        if found := _QUEUE.fullmatch(line):
            count = int(found[1] or 1)
        elif not line.lstrip().startswith("#") and (found := _COMMAND.fullmatch(line)):
            commands[found[1].lower()] = found[1], found[2]
    for proc, item in enumerate(items or [{}] * count):
        numbers = {"cluster": str(cluster), "clusterid": str(cluster), "process": str(proc), "procid": str(proc)}
        texts = {name: value for name, (_, value) in commands.items()} | {each.lower(): item[each] for each in item}
        ad = bindings.classad2.ClassAd({"ClusterId": cluster, "ProcId": proc, "JobUniverse": 5, "JobPrio": 0})
        for name, (spelling, value) in commands.items():
            text = _expanded(value, texts | numbers)
            own = spelling[1:] if name.startswith("+") else spelling[3:] if name.startswith("my.") else ""
            if name in TEXTS:
                ad[TEXTS[name]] = text
            elif attribute := EXPRESSIONS.get(name) or own:
                # In a job file, a backslash escapes only a quote. In an expression, it also escapes other characters.
                ad[attribute] = expression(re.sub(r'\\(?!")', r"\\\\", text) or "undefined")
        yield ad


def _expanded(text: str, macros: Mapping[str, str]) -> str:
    """Replace $(NAME) by the value of the macro, as long as there is one. An undefined macro is an empty text."""
    while (new := _MACRO.sub(lambda found: macros.get(found[1].lower(), ""), text)) != text:
        text = new
    return text
