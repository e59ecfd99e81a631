"""List the files at an address. This is done once for a template, so that all nodes expect the same files."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path, PurePosixPath
from typing import Any

from glide.files.sources import open_source
from glide.template import checks

MANIFEST = "glide-files.json"
LARGEST_MANIFEST = 64 << 20  # maximum size of a manifest in bytes, enough for about 400,000 files
MANIFEST_SECONDS = 300.0  # time limit for reading a manifest, in seconds
# Patterns of file names. If the name of a file on a model hub matches a pattern, nodes do not fetch the file. No engine
# needs such files. Examples are documentation, and weights for other libraries.
UNWANTED = (".gitattributes", ".gitignore", "README.md", "LICENSE*", "*.md", "*.pdf", "*.png", "*.jpg", "onnx/*",
            "*.onnx", "*.gguf", "*.msgpack", "*.h5", "*.ot", "*.tflite", "*.mlmodel", "coreml/*", "openvino/*",
            "original/*", "runs/*")  # fmt: skip


def listing(path: str) -> tuple[str, dict[str, tuple[str, int]]]:
    """Return the address from which nodes fetch, and a dict from each file's name to its sha256 and size in bytes.

    If `path` is a repository of a model hub, the returned address names a fixed revision of the repository. At any
    other address, the folder must contain the file MANIFEST, which `glide template files` writes.

    Raises:
        OSError: the list of files cannot be read. The message contains the address.
        ValueError: the address or the list is malformed. The message contains the address.
    """
    return _of_hub(path) if path.startswith("hf://") else (path.rstrip("/"), _of_manifest(path.rstrip("/")))


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


def _of_hub(path: str) -> tuple[str, dict[str, tuple[str, int]]]:
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError:
        raise ValueError(f"{path}: needs huggingface_hub here and on the nodes: pip install huggingface_hub") from None
    matched = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?/?", path)
    if not matched:
        raise ValueError(f"{path}: write hf://ORGANISATION/NAME, or hf://ORGANISATION/NAME@REVISION")
    repository, revision = matched[1], matched[2]
    try:
        found: Any = HfApi().model_info(repository, revision=revision, files_metadata=True)
        files = {}
        for file in _wanted(found.siblings):
            if file.lfs:
                files[file.rfilename] = (str(file.lfs.sha256), int(file.lfs.size))
            else:  # the hub reports no sha256 of a small file, so compute it from the file
                local = Path(hf_hub_download(repository, file.rfilename, revision=found.sha))
                files[file.rfilename] = (hashlib.sha256(local.read_bytes()).hexdigest(), local.stat().st_size)
    except Exception as error:  # huggingface_hub raises exceptions of many classes
        raise OSError(f"{path}: {' '.join(str(error).split())[:300]}") from None
    return f"hf://{repository}@{found.sha}", files


def _wanted(files: list[Any]) -> list[Any]:
    kept = [file for file in files if not any(PurePosixPath(file.rfilename).match(each) for each in UNWANTED)]
    if any(file.rfilename.endswith(".safetensors") for file in kept):
        # Leave out .bin, .pt and .pth files. They contain the same weights as the .safetensors files, but load slower.
        kept = [file for file in kept if PurePosixPath(file.rfilename).suffix not in (".bin", ".pt", ".pth")]
    return kept
