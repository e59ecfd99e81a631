"""What files are at an address: asked once, where a template is made, so that all nodes know what is right."""

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
LARGEST_MANIFEST = 64 << 20  # bytes: some 400,000 files
MANIFEST_SECONDS = 300.0
# Of a hub's repository: what people read, and the same weights for other libraries.
UNWANTED = (".gitattributes", ".gitignore", "README.md", "LICENSE*", "*.md", "*.pdf", "*.png", "*.jpg", "onnx/*",
            "*.onnx", "*.gguf", "*.msgpack", "*.h5", "*.ot", "*.tflite", "*.mlmodel", "coreml/*", "openvino/*",
            "original/*", "runs/*")  # fmt: skip


def listing(path: str) -> tuple[str, dict[str, tuple[str, int]]]:
    """The address as nodes are to use it, and its files: sha256 and size by name.

    A hub's revision is pinned. Other servers need a file MANIFEST beside the model's, as `glide template files` writes.

    Raises:
        OSError: it cannot be read; ValueError: it makes no sense. Both name the address.
    """
    return _of_hub(path) if path.startswith("hf://") else (path.rstrip("/"), _of_manifest(path.rstrip("/")))


def _of_manifest(path: str) -> dict[str, tuple[str, int]]:
    try:
        text = _read(path)
    except OSError as error:
        raise OSError(f"{error}; it lists the files there: glide template files FOLDER > FOLDER/{MANIFEST}") from None
    try:
        return checks.files(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}/{MANIFEST} is not what glide template files writes: {error}") from None


def _read(path: str) -> bytes:
    """The list at an address; no more than any list has, and not for ever."""
    text, until = bytearray(), time.monotonic() + MANIFEST_SECONDS
    for data in open_source(path).read(MANIFEST, 0):
        text += data
        if len(text) > LARGEST_MANIFEST or time.monotonic() > until:
            raise OSError(f"{path}/{MANIFEST} has more than {LARGEST_MANIFEST} bytes, or takes too long")
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
            else:  # the hub knows small files by git's digest
                local = Path(hf_hub_download(repository, file.rfilename, revision=found.sha))
                files[file.rfilename] = (hashlib.sha256(local.read_bytes()).hexdigest(), local.stat().st_size)
    except Exception as error:  # the client's own, of many kinds
        raise OSError(f"{path}: {' '.join(str(error).split())[:300]}") from None
    return f"hf://{repository}@{found.sha}", files


def _wanted(files: list[Any]) -> list[Any]:
    kept = [file for file in files if not any(PurePosixPath(file.rfilename).match(each) for each in UNWANTED)]
    if any(file.rfilename.endswith(".safetensors") for file in kept):  # the same weights, only slower
        kept = [file for file in kept if PurePosixPath(file.rfilename).suffix not in (".bin", ".pt", ".pth")]
    return kept
