"""Read the rows of input files: JSON lines, JSON arrays, CSV, TSV and Parquet, also compressed with gzip or zstd.

For each row, a reader yields the number of its line, and its content or an UnusableRow.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from glide.errors import InputError
from glide.sweep.json_rows import json_rows
from glide.sweep.tables import DATASET_STATE, arrow_rows, csv_rows, dataset_files, parquet_rows, tsv_rows
from glide.sweep.text_files import COMPRESSED, Row

HUB_DATASET = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:/([\w.-]+))?:([\w.-]+)")
OTHER_COMPRESSED = {".bz2": "bunzip2 -k", ".xz": "unxz -k", ".zip": "unzip"}


def files_of(parent: Path, records: str) -> list[Path]:
    """Return the files that the key `records` of a sweep file names. Files of a model hub are downloaded.

    Args:
        parent: folder of the sweep file.
        records: value of the key: a path, a pattern, or the address of a dataset.

    Raises:
        InputError: there is no such file, or the format of a file is unknown.
    """
    return hub_dataset(records) if records.startswith("hf://") else files(parent / records)


def hub_dataset(address: str) -> list[Path]:
    """Return the Parquet files of a dataset at a model hub. Files that are not in the hub's cache are downloaded.

    Args:
        address: hf://datasets/ORG/NAME:SPLIT, or hf://datasets/ORG/NAME/CONFIG:SPLIT for one of several configurations.

    Raises:
        InputError: the address is malformed, or the dataset cannot be downloaded.
    """
    matched = HUB_DATASET.fullmatch(address)
    if not matched:
        raise InputError(f"{address}: write hf://datasets/ORG/NAME:SPLIT, for example hf://datasets/org/claims:train")
    repository, config, split = matched.groups()
    try:
        from huggingface_hub import snapshot_download

        # The hub converts each dataset to Parquet. The files are in this revision, in a folder for each split.
        folder = snapshot_download(
            repository, repo_type="dataset", revision="refs/convert/parquet",
            allow_patterns=[f"{config or '*'}/{split}/*.parquet"],
        )  # fmt: skip
    except ImportError:
        raise InputError(f"{address}: needs huggingface_hub; run: pip install huggingface_hub") from None
    except Exception as error:  # huggingface_hub raises exceptions of many classes
        raise InputError(f"{address}: {' '.join(str(error).split())[:300]}") from None
    found = sorted(Path(folder).glob(f"{config or '*'}/{split}/*.parquet"))
    configs = sorted({each.parent.parent.name for each in found})
    if len(configs) > 1:
        example = f"hf://datasets/{repository}/CONFIG:{split}"
        raise InputError(f"{address}: has several configurations; use {example} with one of {', '.join(configs)}")
    if not found:
        raise InputError(f"{address}: the dataset has no files for this split")
    return found


def files(path: Path) -> list[Path]:
    """Return the files that `records` names, sorted by name: a file, the files of a folder, or the matches of a glob.

    Raises:
        InputError: there is no such file, or the format of a file is unknown.
    """
    if path.is_dir():
        if (path / DATASET_STATE).exists():
            return dataset_files(path)
        if (path / "dataset_dict.json").exists():
            splits = ", ".join(sorted(each.name for each in path.iterdir() if each.is_dir()))
            raise InputError(f"{path}: is a dataset with several splits; name one of its folders: {splits}")
        found = sorted(each for each in path.iterdir() if each.is_file() and _suffix(each) in _READERS)
        if not found:
            raise InputError(f"{path}: the folder has no file that records can be read from ({_known()})")
        return found
    if not path.exists() and glob.has_magic(str(path)):
        found = sorted(map(Path, glob.glob(str(path), recursive=True)))
        if not found:
            raise InputError(f"{path}: no file matches")
        return [each for match in found for each in (files(match) if match.is_dir() else [match])]
    return [path]


def rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file. The suffix gives the format.

    Raises:
        InputError: the file cannot be read, or its format is unknown.
    """
    if path.suffix.lower() in OTHER_COMPRESSED:
        command = OTHER_COMPRESSED[path.suffix.lower()]
        raise InputError(f"{path}: is compressed; unpack it first: {command} {path.name}, or use .gz or .zst")
    reader = _READERS.get(_suffix(path))
    if reader is None:
        raise InputError(f"{path}: unknown format {path.suffix or '(no suffix)'}; records can be read from {_known()}")
    yield from reader(path)


def _suffix(path: Path) -> str:
    """Return the suffix that names the format, in small letters, without the suffix of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in COMPRESSED), "")


def _known() -> str:
    return f"{', '.join(_READERS)}, each also with {' or '.join(COMPRESSED)}"


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": json_rows, ".ndjson": json_rows, ".json": json_rows, ".csv": csv_rows, ".tsv": tsv_rows,
    ".parquet": parquet_rows, ".arrow": arrow_rows,
}  # fmt: skip
