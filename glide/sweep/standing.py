"""How a sweep stands: what its folder holds of what its file asks, read without touching it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from glide.config import SUMMARY
from glide.errors import InputError
from glide.invoke.carriers import read_lines
from glide.sweep import lines, requests
from glide.sweep.out import RunState, has_lines, holder, read_state, results_file
from glide.sweep.prepare import Sweep
from glide.sweep.records import Record
from glide.sweep.requests import Asked, requests_file

# A summary without a driver: nothing was computed.
AT_REST = {
    "makespan_s": 0.0, "warm_makespan_s": 0.0, "jobs": 0, "evictions": 0, "recomputed": 0, "lost_in_flight": 0,
    "resumed": 0, "tokens": 0, "glideins": [],
}  # fmt: skip


@dataclass(frozen=True)
class Standing:
    """How far a sweep is.

    Attributes:
        state: new, running, interrupted or finished; changed if it had finished, and its file asks more since.
        driver: who works on it.
        done, errors: numbers of results and of errors among them, by prompt.
    """

    state: str
    driver: str | None
    done: dict[str, int]
    errors: dict[str, int]


def standing(sweep: Sweep) -> Standing:
    """Look at a sweep's folder without touching it.

    Raises:
        InputError: it holds another sweep's results.
    """
    state, driver = read_state(sweep.out), holder(sweep.out)
    asked = {prompt: asked_by(sweep, prompt) for prompt in sweep.file.prompts}
    if state is not None:
        check_whose(sweep, state, asked)
    done, errors = {}, {}
    for prompt in sweep.file.prompts:
        done[prompt] = errors[prompt] = 0
        for _, result in current(sweep, prompt, asked[prompt]):
            done[prompt] += 1
            errors[prompt] += result.get("error") is not None
    finished = state is not None and state.finished
    if driver:
        word = "running"
    elif finished:
        word = "finished" if sum(done.values()) == sweep.total else "changed"
    else:
        word = "interrupted" if state else "new"
    return Standing(word, driver, done, errors)


def current(sweep: Sweep, prompt: str, asked: Asked | None = None) -> Iterator[tuple[Record, dict[str, Any]]]:
    """The results that are there for what a sweep file asks now, whether a driver works there or not.

    Where nothing says what results answer, they are taken for answers by their ids.
    """
    path, asked = results_file(sweep.out, prompt), asked or asked_by(sweep, prompt)
    if not requests_file(sweep.out, prompt).exists():
        asked = replace(asked, same=bytearray(b"\1") * len(asked.prints))
    for number, result in lines.answers(path, asked, lines.find(path, asked)):
        yield sweep.records[number], result


def asked_by(sweep: Sweep, prompt: str) -> Asked:
    return requests.compare(requests_file(sweep.out, prompt), sweep.numbers, sweep.fingerprints(prompt))


def is_right(result: Mapping[str, Any], sweep: Sweep, record: Record) -> bool:
    """Whether a record's result is what the sweep expects of it."""
    expected, text = record.fields.get(sweep.file.expect or ""), result.get("text")
    return text is not None and text.strip() == str(expected).strip()


def check_whose(sweep: Sweep, state: RunState | None, asked: Mapping[str, Asked]) -> None:
    """Raise InputError if `out` holds results of another sweep.

    It is the same one if it has the same name and file; or one of these, and a request whose result may be there.
    """
    name = state is not None and state.name == sweep.file.name
    source = state is not None and state.source == str(sweep.source.absolute())
    known = any(any(each.same) for each in asked.values())
    if (name and source) or (known and (name or source or state is None)):
        return
    if state is None and not any(has_lines(results_file(sweep.out, prompt)) for prompt in asked):
        return
    whose = f"the results of another sweep, {state.name} ({state.source})" if state else "results of an unknown sweep"
    raise InputError(
        f"{sweep.source}: {sweep.out} holds {whose}; name another `out`, or move them aside: glide sweep run --again"
    )


def read_summary(sweep: Sweep) -> dict[str, Any] | None:
    """A sweep's summary.json; None when there is none that makes sense."""
    known = next(read_lines(sweep.out / SUMMARY), {})  # one line, as `finish` writes it
    prompts = known.get("prompts")
    if any(type(known.get(name)) is not type(value) for name, value in AT_REST.items()) or not _dicts(prompts):
        return None
    sound = all(type(glidein) is dict and type(glidein.get("records")) is int for glidein in known["glideins"])
    return known if sound else None


def _dicts(prompts: Any) -> bool:
    """Whether this is the summary of each prompt."""
    return isinstance(prompts, dict) and all(
        isinstance(each, dict) and isinstance(each.get("records"), int) and isinstance(each.get("errors"), int)
        and isinstance(each.get("accuracy"), (int, float, type(None))) and "accuracy" in each
        for each in prompts.values()
    )  # fmt: skip
