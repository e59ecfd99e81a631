"""Read a sweep file and the files that it names, and check all of them before a job is submitted."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from glide.config import PHASES, ModelSpec, SweepFile, load, position
from glide.errors import InputError
from glide.files.environment import environment
from glide.files.listing import listing
from glide.server import engines
from glide.sweep import check_cache, formats, outputs
from glide.sweep.cells import Cell, cells, prompts_of
from glide.sweep.prompts import field_problem, prompt_checks
from glide.sweep.reading import read
from glide.sweep.record_set import RecordSet
from glide.sweep.records import Record, RecordFormat
from glide.template import Template

WEIGHTS = (".safetensors", ".bin")  # suffixes of the files from which transformers loads weights


@dataclass(frozen=True)
class Sweep:
    """A sweep that has been read and checked.

    Attributes:
        source: path of the sweep file.
        file: content of the sweep file.
        records: the records, in input order.
        template: the template that the records need.
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

    @classmethod
    def of(cls, source: Path, file: SweepFile, records: Iterable[Record], template: Template) -> Sweep:
        """Return a sweep of records that are in no file."""
        check = _RecordCheck(file, template)
        found = RecordSet.of(records)
        for record in found:
            check(record)
        return cls(source, file, found, template, check.fingerprints, check.labels)

    @property
    def out(self) -> Path:
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

    Attributes:
        problems: the first problem of each kind.
        fingerprints: as in Sweep. They are incomplete if there are problems.
    """

    def __init__(self, file: SweepFile, template: Template):
        self.cells = cells(file)
        self.problems: list[str] = []
        self.fingerprints = {name: array("Q") for name in self.cells}
        prompts = prompts_of(file)
        self.checks: list[Callable[[Record], str]] = [partial(_request_problem, bool(prompts))]
        self.checks += prompt_checks(prompts)
        if file.expect is not None:
            self.checks.append(partial(field_problem, [file.expect], "`expect` uses this field"))
        self.expect = file.expect
        self._labels = hashlib.sha256()
        self._common = {
            name: hashlib.sha256(json.dumps([template.digest, cell.generate], sort_keys=True).encode())
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
            content = self._common[name].copy()
            content.update(cell.content(record))
            self.fingerprints[name].frombytes(content.digest()[:8])
        if self.expect is not None:
            self._labels.update(json.dumps(record.fields[self.expect]).encode() + b"\n")


def _request_problem(has_prompts: bool, record: Record) -> str:
    if record.request is not None and has_prompts:
        return f"{record.place}: is a request of OpenAI's Batch API; remove `prompts` from the sweep file"
    if record.request is None and not has_prompts:
        return f"{record.place}: is no request of OpenAI's Batch API, so the sweep file needs `prompts` or `messages`"
    return ""


def prepare(source: Path, progress: Callable[[int], None] = lambda count: None) -> Sweep:
    """Read and check a sweep file and the files that it names.

    Args:
        progress: function that is called now and then with the number of records that have been checked.

    Raises:
        InputError: a file is wrong. The error lists all problems, each as `file:line: problem`.
    """
    file = load(source, SweepFile)
    problems: list[str] = []
    template = Template("", "")
    records = RecordSet.of(())
    try:
        template = prepare_model(source)
    except InputError as error:
        problems += error.problems
    problems += check_generate(source, file)
    try:
        outputs.check_format(file.out.format)
    except InputError as error:
        problems += [f"{position(source, 'out')}: {error}"]
    check = _RecordCheck(file, template)
    key = ""
    try:
        sources = formats.files_of(source.parent, file.records)
        form = RecordFormat(file.id, file.format, len(sources) > 1)
        with suppress(OSError):  # ignore a missing file here, because `read` reports it below with a clear message
            key = check_cache.key_of(file, template.digest, sources)
        known = check_cache.load(Path(file.out.folder), key, form, list(check.cells)) if key and not problems else None
        if known is not None:
            return Sweep(source, file, known[0], template, known[1], known[2], key)
        records = read(source.parent / file.records, sources, form, check, progress)
    except InputError as error:
        problems += error.problems
    problems += check.problems
    if problems:
        raise InputError(*problems)
    return Sweep(source, file, records, template, check.fingerprints, check.labels, key)


def check_generate(source: Path, file: SweepFile) -> list[str]:
    """Return the problems in a sweep's `generate` options.

    If this machine does not have the model's folder, some limits are not checked.
    """
    folder = source.parent / file.model.path if file.model.path and "://" not in file.model.path else None
    problems = []
    places = {"generate": file.generate} | {f"variants.{name}": own for name, own in (file.variants or {}).items()}
    for place, options in places.items():
        try:
            engines.check_generate(file.model.engine, options, folder)
        except engines.WrongOption as error:
            where = position(source, *place.split(".", 1), error.option)
            problems.append(f"{where}: the {file.model.engine} engine refuses {error}")
    return problems


def prepare_model(source: Path) -> Template:
    """Return the template of the model in a sweep file. The records are not read.

    Raises:
        InputError: the sweep file or its model is wrong. The error lists the problems, each as `file:line: problem`.
    """
    spec = load(source, SweepFile).model
    key = "environment"
    try:
        file_set = environment(spec.environment, source.parent) if spec.environment else None
        key = "path"
        return replace(_template(source.parent, spec), environment=file_set)
    except ValueError as error:
        raise InputError(f"{position(source, 'model', key)}: {error}") from None


def _template(parent: Path, spec: ModelSpec) -> Template:
    """Return the template of a model. The model's path is relative to `parent`. Raise ValueError if a file is wrong."""
    budgets = {PHASES[phase]: seconds for phase, seconds in spec.budgets.items()}
    if spec.path is None:
        return Template(spec.name, spec.engine, options=spec.options, budgets=budgets, keep=spec.keep)
    if "://" in spec.path:
        return _remote_template(spec, budgets)
    folder = (parent / spec.path).resolve()
    try:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
        if spec.engine == "transformers":
            _check_transformers(folder)
        template = Template.of_folder(spec.name, spec.engine, folder, spec.options)
        return replace(template, budgets=budgets, keep=spec.keep)
    except OSError as error:
        raise ValueError(f"{error.filename}: {error.strerror}") from None


def _remote_template(spec: ModelSpec, budgets: dict[str, float]) -> Template:
    """Return the template of a model that nodes fetch from an address. Only the list of the model's files is read."""
    try:
        path, files = listing(str(spec.path))
    except OSError as error:
        raise ValueError(str(error)) from None
    if spec.engine == "transformers" and "config.json" not in files:
        raise ValueError(f"{path} has no config.json; a transformers model needs one")
    if spec.engine == "transformers" and not any(name.endswith(WEIGHTS) for name in files):
        raise ValueError(f"{path} has no weights: no file ends with {' or '.join(WEIGHTS)}")
    return Template(spec.name, spec.engine, path, files, spec.options, budgets=budgets, keep=spec.keep)


def _check_transformers(folder: Path) -> None:
    config = folder / "config.json"
    try:
        json.loads(config.read_bytes())
    except ValueError as error:
        raise ValueError(f"{config} is not JSON: {error}") from None
    if not any(path.suffix in WEIGHTS for path in folder.iterdir()):
        raise ValueError(f"{folder} has no weights: no file ends with {' or '.join(WEIGHTS)}")
