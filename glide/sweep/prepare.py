"""Read a sweep file and the files that it names, and check all of them before a job is submitted.

If a sweep file has several models, it becomes one sweep for each model. These sweeps share their records.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from glide.config import SweepFile, load, position
from glide.errors import InputError
from glide.server import engines
from glide.sweep import check_cache, formats, outputs
from glide.sweep.cells import Cell, cells, prompts_of
from glide.sweep.models import template_of
from glide.sweep.prompts import field_problem, prompt_checks
from glide.sweep.reading import read
from glide.sweep.record_set import RecordSet
from glide.sweep.records import Record, RecordFormat
from glide.template import Template


@dataclass(frozen=True)
class Sweep:
    """A sweep, with one model, that has been read and checked.

    Attributes:
        source: path of the sweep file.
        file: content of the sweep file.
        records: the records, in input order.
        template: the template that the records need.
        model: name of the model in the `models` of the sweep file; empty if the sweep file has `model`.
        fingerprints: for each cell, the fingerprints of its requests in input order, as numbers of 64 bits. A
            fingerprint depends on the template, the `generate` options, and the prompt, filled with the record's
            fields.
        labels: a digest of the right answers; empty if the sweep file has no `expect`.
        check_key: key under which the result of the check is kept (glide.sweep.check_cache).
    """

    source: Path
    file: SweepFile
    records: RecordSet
    template: Template
    fingerprints: Mapping[str, array[int]]
    labels: str = ""
    check_key: str = ""
    model: str = ""

    @classmethod
    def of(cls, source: Path, file: SweepFile, records: Iterable[Record], template: Template) -> Sweep:
        """Return a sweep of records that are in no file."""
        check = _RecordCheck(file, {"": template})
        found = RecordSet.of(records)
        for record in found:
            check(record)
        return cls(source, file, found, template, check.fingerprints[""], check.labels)

    @property
    def out(self) -> Path:
        """Folder of this model's results."""
        return self.out_of_all / self.model

    @property
    def out_of_all(self) -> Path:
        """The folder `out` of the sweep file, with the results of all models."""
        return Path(self.file.out.folder).absolute()

    @property
    def total(self) -> int:
        return len(self.records) * len(self.cells)

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """The combinations of the values of the sweep's axes, by name."""
        return cells(self.file)

    @cached_property
    def digest(self) -> str:
        """A digest of the requests, their order, and the right answers.

        These data determine the results of the sweep, and the number of correct results.
        """
        content = hashlib.sha256(json.dumps([self.file.expect, self.labels, *self.cells]).encode())
        content.update(self.records.ids)
        for fingerprints in self.fingerprints.values():
            content.update(fingerprints)
        return content.hexdigest()

    def request(self, cell: str, record: Record) -> dict[str, Any]:
        """Return the request of a record in a cell. No two requests of the sweep have the same `custom_id`."""
        request = self.cells[cell].request(record)
        return {"custom_id": f"{cell}/{record.custom_id}", **request, "timeout": self.file.timeout}


class _RecordCheck:
    """Checks each record, and computes the fingerprints of its requests.

    Args:
        templates: the templates by the name of their model.

    Attributes:
        problems: the first problem of each kind.
        fingerprints: for each model, its fingerprints as in Sweep. They are incomplete if there are problems.
    """

    def __init__(self, file: SweepFile, templates: Mapping[str, Template]):
        self.cells = cells(file)
        self.problems: list[str] = []
        self.fingerprints = {model: {name: array("Q") for name in self.cells} for model in templates}
        prompts = prompts_of(file)
        self.checks: list[Callable[[Record], str]] = [partial(_request_problem, bool(prompts))]
        self.checks += prompt_checks(prompts)
        if file.expect is not None:
            self.checks.append(partial(field_problem, [file.expect], "`expect` uses this field"))
        self.expect = file.expect
        self._labels = hashlib.sha256()
        # The keys are cells. Each value is a list with one pair for each model. The first element of a pair is a hash
        # of the part that all requests to this model have in common. The second is the array for their fingerprints.
        self._hashes = {
            name: [
                (
                    hashlib.sha256(
                        json.dumps([template.with_only(cell.adapter).digest, cell.generate], sort_keys=True).encode()
                    ),
                    self.fingerprints[model][name],
                )
                for model, template in templates.items()
            ]
            for name, cell in self.cells.items()
        }

    @property
    def labels(self) -> str:
        return self._labels.hexdigest() if self.expect is not None else ""

    def __call__(self, record: Record) -> None:
        found = {check: problem for check in self.checks if (problem := check(record))}
        if found:
            self.problems += found.values()
            self.checks = [check for check in self.checks if check not in found]
        if self.problems:
            return
        for name, cell in self.cells.items():
            content = cell.content(record)
            for common, fingerprints in self._hashes[name]:
                whole = common.copy()
                whole.update(content)
                fingerprints.frombytes(whole.digest()[:8])
        if self.expect is not None:
            self._labels.update(json.dumps(record.fields[self.expect]).encode() + b"\n")


def _request_problem(has_prompts: bool, record: Record) -> str:
    if record.request is not None and has_prompts:
        return f"{record.place}: is a request of OpenAI's Batch API; remove `prompts` from the sweep file"
    if record.request is None and not has_prompts:
        return f"{record.place}: is no request of OpenAI's Batch API, so the sweep file needs `prompts` or `messages`"
    return ""


def prepare(source: Path, progress: Callable[[int], None] = lambda count: None) -> list[Sweep]:
    """Read and check a sweep file and the files that it names. Return the sweep of each model.

    Args:
        progress: function that is called now and then with the number of records that have been checked.

    Raises:
        InputError: a file is wrong. The error lists all problems, each as `file:line: problem`.
    """
    file = load(source, SweepFile)
    problems: list[str] = []
    templates: dict[str, Template] = {}
    for model in file.model_axis:
        try:
            templates[model] = template_of(source, file, model)
        except InputError as error:
            problems += error.problems
    problems += check_generate(source, file)
    try:
        outputs.check_format(file.out.format)
    except InputError as error:
        problems += [f"{position(source, 'out')}: {error}"]
    check = _RecordCheck(file, templates)
    try:
        sources = formats.files_of(source.parent, file.records)
        form = RecordFormat(file.id, file.format, len(sources) > 1)
        key, known = "", None
        with suppress(OSError):  # ignore a missing file here, because `read` reports it below with a clear message
            key = check_cache.key_of(file, {model: each.digest for model, each in templates.items()}, sources)
        if key and not problems:
            known = check_cache.load(Path(file.out.folder), key, form, list(templates), list(check.cells))
        if known is None:
            records = read(source.parent / file.records, sources, form, check, progress)
            known = records, check.fingerprints, check.labels
    except InputError as error:
        raise InputError(*problems, *error.problems, *check.problems) from None
    problems += check.problems
    if problems:
        raise InputError(*problems)
    records, fingerprints, labels = known
    return [
        Sweep(source, file, records, template, fingerprints[model], labels, key, model)
        for model, template in templates.items()
    ]


def check_generate(source: Path, file: SweepFile) -> list[str]:
    """Return the problems in a sweep's `generate` options.

    If this machine does not have a model's folder, some limits of the model are not checked.
    """
    problems: list[str] = []
    places = {"generate": file.generate} | {f"variants.{name}": own for name, own in (file.variants or {}).items()}
    for spec in file.model_axis.values():
        folder = source.parent / spec.path if spec.path and "://" not in spec.path else None
        for place, options in places.items():
            try:
                engines.check_generate(spec.engine, options, folder)
            except engines.WrongOption as error:
                where = position(source, *place.split(".", 1), error.option)
                problems.append(f"{where}: the {spec.engine} engine refuses {error}")
    return list(dict.fromkeys(problems))  # several models may have the same problem
