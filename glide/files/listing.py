"""List the files at an address. This is done once for a template, so that all nodes expect the same files."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from glide.files.sources import open_source
from glide.template import checks
from glide.template.private import MARKER

MANIFEST = "glide-files.json"
LARGEST_MANIFEST = 64 << 20  # maximum size of a manifest in bytes, enough for about 400,000 files
MANIFEST_SECONDS = 300.0  # time limit for reading a manifest, in seconds
# Patterns of file names. If the name of a file on a model hub matches a pattern, nodes do not fetch the file. No engine
# needs such files. Examples are documentation, and weights for other libraries.
UNWANTED = (".gitattributes", ".gitignore", "README.md", "LICENSE*", "*.md", "*.pdf", "*.png", "*.jpg", "onnx/*",
            "*.onnx", "*.gguf", "*.msgpack", "*.h5", "*.ot", "*.tflite", "*.mlmodel", "coreml/*", "openvino/*",
            "original/*", "runs/*")  # fmt: skip


def listing(path: str, patterns: Sequence[str] = ()) -> tuple[str, dict[str, tuple[str, int]]]:
    """Return the address from which nodes fetch, and a dict from each file's name to its sha256 and size in bytes.

    Args:
        patterns: patterns of the files to choose; if empty, all files that an engine needs.

    If `path` is a repository of a model hub, the returned address names a fixed revision of the repository. At any
    other address, the folder must contain the file MANIFEST, which `glide template files` writes.

    Raises:
        OSError: the list of files cannot be read. The message contains the address.
        ValueError: the address or the list is malformed, or no file matches. The message contains the address.
    """
    if path.startswith("hf://"):
        return _of_hub(path, patterns)
    return path.rstrip("/"), chosen(_of_manifest(path.rstrip("/")), patterns, path)


def chosen(files: dict[str, Any], patterns: Sequence[str], where: str) -> dict[str, Any]:
    """Return the files whose names match a pattern. Without patterns, return all files.

    Args:
        files: a dict whose keys are the names.
        patterns: patterns such as `*Q4_K_M.gguf`. A pattern without `/` may match in any folder.
        where: the place of the files, for messages.

    Raises:
        ValueError: a pattern matches no file.
    """
    for pattern in patterns:
        if not any(PurePosixPath(name).match(pattern) for name in files):
            names = ", ".join(sorted(files)[:8]) + (" …" if len(files) > 8 else "")
            raise ValueError(f"no file of {where} matches {pattern!r}; it has {names or 'no files'}")
    return {
        name: each
        for name, each in files.items()
        if not patterns or any(PurePosixPath(name).match(pattern) for pattern in patterns)
    }


def _of_manifest(path: str) -> dict[str, tuple[str, int]]:
    try:
        text = _read(path)
    except OSError as error:
        raise OSError(
            f"{error}; the folder at this address needs a list of its files; to write the list, run:"
            f" glide template files FOLDER > FOLDER/{MANIFEST}"
        ) from None
    try:
        return checks.files(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}/{MANIFEST} is not a valid list of files: {error}; to write the list again, run:"
            f" glide template files FOLDER > FOLDER/{MANIFEST}"
        ) from None


def _read(path: str) -> bytes:
    """Return the manifest at an address. Raises OSError if the manifest is too large, or if reading takes too long."""
    text, until = bytearray(), time.monotonic() + MANIFEST_SECONDS
    for data in open_source(path).read(MANIFEST, 0):
        text += data
        if len(text) > LARGEST_MANIFEST or time.monotonic() > until:
            raise OSError(
                f"{path}/{MANIFEST} has more than {LARGEST_MANIFEST} bytes, or reading it takes more than"
                f" {MANIFEST_SECONDS:.0f} s"
            )
    return bytes(text)


def download(path: str, token: str, models: Path, patterns: Sequence[str] = ()) -> tuple[Path, dict[str, str]]:
    """Use an access token to download a repository of a model hub. Return the folder, and the sha256 of large files.

    Files that are already there are not downloaded again. The folder has the marker of private files
    (glide.template.private).

    Args:
        models: folder that contains a folder for each revision of a repository.
        patterns: as in `listing`.

    Raises:
        OSError: the files cannot be downloaded. The message contains the address.
        ValueError: the address is malformed, the hub sends wrong names, or another account can use the folder. The
            message contains the address.
    """
    repository, revision = _repository(path)
    import huggingface_hub

    try:
        found: Any = huggingface_hub.HfApi(token=token).model_info(repository, revision=revision, files_metadata=True)
        wanted = _wanted(found.siblings, patterns, path)
    except ValueError:
        raise
    except Exception as error:  # huggingface_hub raises exceptions of many classes
        raise OSError(f"{path}: {' '.join(str(error).split())[:300]}") from None
    if not re.fullmatch(r"[0-9a-f]{40}", str(found.sha)) or not all(checks.is_file_name(f.rfilename) for f in wanted):
        raise ValueError(f"{path}: the hub sends a revision or a name that no file can have")
    folder = models / repository.replace("/", "--") / str(found.sha)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / MARKER).touch()
    owners = {folder.stat().st_uid, (folder / MARKER).lstat().st_uid}
    if owners != {os.geteuid()} or folder.stat().st_mode & 0o022:
        raise ValueError(f"{path}: other accounts can change {folder}; delete it, and run the command again")
    try:
        huggingface_hub.snapshot_download(
            repository, revision=found.sha, local_dir=folder, token=token,
            allow_patterns=[glob.escape(file.rfilename) for file in wanted],
        )  # fmt: skip
    except Exception as error:  # huggingface_hub raises exceptions of many classes
        raise OSError(f"{path}: {' '.join(str(error).split())[:300]}") from None
    return folder, {file.rfilename: str(file.lfs.sha256) for file in wanted if file.lfs}


def _repository(path: str) -> tuple[str, str | None]:
    """Return the repository and the revision in an address of a model hub. The revision may be missing: None."""
    if not find_spec("huggingface_hub"):
        raise ValueError(f"{path}: needs huggingface_hub here and on the nodes: pip install huggingface_hub")
    matched = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?/?", path)
    if not matched:
        raise ValueError(f"{path}: write hf://ORGANISATION/NAME, or hf://ORGANISATION/NAME@REVISION")
    return matched[1], matched[2]


def _of_hub(path: str, patterns: Sequence[str]) -> tuple[str, dict[str, tuple[str, int]]]:
    repository, revision = _repository(path)
    from huggingface_hub import HfApi, hf_hub_download

    try:
        found: Any = HfApi().model_info(repository, revision=revision, files_metadata=True)
        files = {}
        for file in _wanted(found.siblings, patterns, path):
            if file.lfs:
                files[file.rfilename] = (str(file.lfs.sha256), int(file.lfs.size))
            else:  # the hub reports no sha256 of a small file, so compute it from the file
                local = Path(hf_hub_download(repository, file.rfilename, revision=found.sha))
                files[file.rfilename] = (hashlib.sha256(local.read_bytes()).hexdigest(), local.stat().st_size)
    except ValueError:
        raise
    except Exception as error:  # huggingface_hub raises exceptions of many classes
        raise OSError(f"{path}: {' '.join(str(error).split())[:300]}") from None
    return f"hf://{repository}@{found.sha}", files


def _wanted(files: list[Any], patterns: Sequence[str], path: str) -> list[Any]:
    """Return those files of a repository that nodes must fetch.

    Without patterns, these are the files that an engine needs. GGUF files are left out if the repository also has
    other weights.

    Raises:
        ValueError: a pattern matches no file.
    """
    by_name = {file.rfilename: file for file in files}
    if patterns:
        return list(chosen(by_name, patterns, path).values())
    kept = [file for file in files if not any(PurePosixPath(file.rfilename).match(each) for each in UNWANTED)]
    suffixes = {PurePosixPath(file.rfilename).suffix for file in kept}
    if ".safetensors" in suffixes:
        # Leave out .bin, .pt and .pth files. They contain the same weights as the .safetensors files, but load slower.
        kept = [file for file in kept if PurePosixPath(file.rfilename).suffix not in (".bin", ".pt", ".pth")]
    elif not suffixes & {".bin", ".pt", ".pth"}:
        kept += [file for name, file in by_name.items() if name.endswith(".gguf")]
    return kept
