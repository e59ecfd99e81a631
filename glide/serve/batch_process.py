"""The slow steps of a batch, in a process of its own: `python -m glide.serve.batch_process STEP FOLDER`.

The step `check` checks the input, and submits the batch's sweep. It reads FOLDER/request.json, and writes
FOLDER/checked.json: the number of requests and the model, or what is wrong. The step `collect` writes the answers of a
batch that was cancelled.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from glide.config import ModelFile, load
from glide.errors import GlideError, InputError
from glide.protocol.json_lines import decoded
from glide.serve.errors import ApiError
from glide.serve.live_api import parse
from glide.sweep import driver_job
from glide.sweep.out import ERRORS, OUTPUT
from glide.sweep.outputs import write_answers
from glide.sweep.prepare import prepare
from glide.sweep.status import current_results
from glide.system import publish

MOST_PROBLEMS = 50  # maximum number of wrong lines that are reported
INPUT, SWEEP = "input.jsonl", "sweep.yaml"


@dataclass(frozen=True)
class CheckRequest:
    """The input of a batch, and how to check it.

    Attributes:
        id: name of the batch.
        endpoint: the only url that its requests may have.
        models: the offered models by name: the file that describes each, and its key in the `models` of this file.
        site: site file of the factory that the driver runs; None as in `glide sweep submit`.
        user: user to whom HTCondor accounts the jobs; empty for the account itself.
    """

    id: str
    endpoint: str
    models: dict[str, tuple[str, str]]
    site: str | None
    user: str


@dataclass(frozen=True)
class CheckOutcome:
    """The result of a check.

    Attributes:
        total: number of requests.
        model: name of the model that they name.
        problems: what is wrong: a message, and the number of the line or None. If there are any, nothing was submitted.
        is_temporary: whether another try may succeed, because HTCondor did not answer.
    """

    total: int = 0
    model: str = ""
    problems: list[tuple[str, int | None]] = field(default_factory=list)
    is_temporary: bool = False


def check(folder: Path, asked: CheckRequest) -> CheckOutcome:
    """Check the input of a batch, and submit its sweep if nothing is wrong."""
    total, names = 0, set[str]()
    problems: list[tuple[str, int | None]] = []
    for number, problem, model in _lines(folder / INPUT, asked):
        total += not problem
        names |= {model} if model else set()
        if problem and len(problems) < MOST_PROBLEMS:
            problems.append((problem, number))
    if not problems and not total:
        problems.append(("the file has no requests", None))
    if len(names) > 1:
        problems.append((f"a batch must have one model, and this one has {', '.join(sorted(names)[:10])}", None))
    if problems:
        return CheckOutcome(total, problems=problems)
    (name,) = names
    (folder / SWEEP).write_text(yaml.safe_dump(_sweep(folder, asked, name), sort_keys=False), "utf-8")
    try:
        sweep = prepare(folder / SWEEP)[0]
    except InputError as error:
        return CheckOutcome(total, name, [_problem_of(each, folder) for each in error.problems])
    try:
        driver_job.submit(sweep, Path(asked.site) if asked.site else None)
    except driver_job.DriverQueued:
        pass  # an earlier check was killed after the submission
    except GlideError as error:
        is_temporary = not isinstance(error, InputError)
        return CheckOutcome(total, name, [(str(error), None)], is_temporary)
    return CheckOutcome(total, name)


def _lines(path: Path, asked: CheckRequest) -> Iterator[tuple[int, str, str]]:
    """Yield for each line: its number, what is wrong with it, and the name of the model without the adapter."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = decoded(line)
                problem, model = _problem(row, asked)
            except (ValueError, RecursionError) as error:
                problem, model = f"not JSON: {error}", ""
            yield number, problem, model


def _problem(row: Any, asked: CheckRequest) -> tuple[str, str]:
    """Return what is wrong with a line (empty if nothing is), and the name of its model."""
    if not isinstance(row, dict) or not isinstance(row.get("body"), dict):
        return "not an object with custom_id, method, url and body", ""
    if row.get("method") != "POST" or row.get("url") != asked.endpoint:
        return f"the method must be POST, and the url {asked.endpoint}", ""
    model = row["body"].get("model")
    if not isinstance(model, str) or model not in asked.models:
        return f"no model {str(model)[:100]!r}; this server has: {', '.join(asked.models)}", ""
    try:
        parse(asked.endpoint, row["body"])
    except ApiError as error:
        return error.message, ""
    return "", model


def _sweep(folder: Path, asked: CheckRequest, model: str) -> dict[str, Any]:
    """Return the content of the sweep file of a batch."""
    source, key = asked.models[model]
    file = load(Path(source), ModelFile)
    spec = file.model_axis[key].model_dump(exclude_defaults=True, mode="json")
    parent = Path(source).parent
    for name in ("path", "environment", "token"):
        if spec.get(name) and "://" not in spec[name]:
            spec[name] = str(parent / spec[name])
    return {
        "name": asked.id, "model": spec, "records": INPUT, "format": "openai", "glideins": file.glideins,
        "out": {"folder": str(folder / "out"), "format": "openai"},
        **({"accounting_group_user": asked.user} if asked.user else {}),
    }  # fmt: skip


def _problem_of(text: str, folder: Path) -> tuple[str, int | None]:
    """Return a problem that `prepare` has found, without the path of this machine, and its line in the input."""
    found = re.fullmatch(rf"{re.escape(INPUT)}:(\d+): (.*)", text := text.replace(f"{folder}/", ""), re.DOTALL)
    return (found[2], int(found[1])) if found else (text, None)


def collect(folder: Path) -> None:
    """Write the answers of the requests that have a result, as the sweep does for all requests when it finishes."""
    sweep = prepare(folder / SWEEP)[0]
    out = sweep.out
    (cell,) = sweep.cells
    answered = ((sweep.records[number], result) for number, result in current_results(sweep, cell))
    out.mkdir(parents=True, exist_ok=True)
    write_answers(out / OUTPUT, out / ERRORS, answered, sweep.template.model)


def main() -> None:
    step, folder = sys.argv[1], Path(sys.argv[2])
    if step == "collect":
        return collect(folder)
    asked = CheckRequest(**json.loads((folder / "request.json").read_text("utf-8")))
    outcome = check(folder, asked)
    publish(folder / "checked.json", json.dumps(asdict(outcome)) + "\n")


if __name__ == "__main__":
    main()
