"""Read a sweep file and the files that it names, and check all of them before a job is submitted."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from glide.config import PHASES, ModelSpec, SweepFile, load, position
from glide.errors import InputError
from glide.files.environment import environment
from glide.files.listing import listing
from glide.server import engines
from glide.sweep import outputs
from glide.sweep.cells import Cell, cells
from glide.sweep.prompts import check_fields, check_prompts
from glide.sweep.records import Record, read
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
    """

    source: Path
    file: SweepFile
    records: list[Record]
    template: Template

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
        """A digest of the records, the prompts, the `generate` options, the `expect` field and the template.

        These data determine the results of the sweep, and the number of correct results.
        """
        file = self.file.model_dump(mode="json", include={"prompts", "messages", "variants"})
        parts = [self.template.digest, file.pop("prompts"), self.file.generate, self.file.expect]
        parts += [file] if any(file.values()) else []
        content = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
        for record in self.records:
            content.update(json.dumps(record.fields, sort_keys=True, ensure_ascii=True).encode())
        return content.hexdigest()

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The position of each record in the input, counted from 0, by custom_id."""
        return {record.custom_id: number for number, record in enumerate(self.records)}

    def fingerprints(self, cell: str) -> array[int]:
        """Return the 64-bit fingerprints of a cell's requests, one for each record.

        A fingerprint depends on the template, the `generate` options, and the prompt, filled with the record's fields.
        """
        chosen = self.cells[cell]
        common = hashlib.sha256(json.dumps([self.template.digest, chosen.generate], sort_keys=True).encode())
        prints = array("Q")
        for record in self.records:
            content = common.copy()
            content.update(chosen.content(record))
            prints.frombytes(content.digest()[: prints.itemsize])
        return prints

    def request(self, cell: str, record: Record) -> dict[str, Any]:
        """Return the request of a record in a cell. No two requests of the sweep have the same `custom_id`."""
        request = self.cells[cell].request(record)
        return {"custom_id": f"{cell}/{record.custom_id}", **request, "timeout": self.file.timeout}


def prepare(source: Path) -> Sweep:
    """Read and check a sweep file and the files that it names.

    Raises:
        InputError: a file is wrong. The error lists all problems, each as `file:line: problem`.
    """
    file = load(source, SweepFile)
    problems: list[str] = []
    template = Template("", "")
    records: list[Record] = []
    try:
        template = prepare_model(source)
    except InputError as error:
        problems += error.problems
    problems += check_generate(source, file)
    try:
        records = read(source.parent / file.records, file.id, file.format)
    except InputError as error:
        problems += error.problems
    problems += _check_requests(file, records)
    try:
        outputs.check_format(file.out.format)
    except InputError as error:
        problems += [f"{position(source, 'out')}: {error}"]
    if file.expect is not None:
        problems += check_fields(records, [file.expect], "`expect` uses this field")
    if problems:
        raise InputError(*problems)
    return Sweep(source, file, records, template)


def _check_requests(file: SweepFile, records: Sequence[Record]) -> list[str]:
    """Return the problems with the records' requests: at most one for each prompt."""
    prompts = {name: cell.prompt for name, cell in cells(file).items() if cell.prompt is not None}
    own = next((record for record in records if record.request is not None), None)
    if own is not None and prompts:
        return [f"{own.place}: is a request of OpenAI's Batch API; remove `prompts` and `messages` from the sweep file"]
    bare = next((record for record in records if record.request is None), None)
    if bare is not None and not prompts:
        return [
            f"{bare.place}: is not a request of OpenAI's Batch API, so the sweep file needs `prompts` or `messages`"
        ]
    return check_prompts(records, prompts)


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
