"""The part of glide that travels: what runs on nodes."""

from __future__ import annotations

import importlib.util
import io
import py_compile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
# What runs on nodes, and nothing that needs more than the standard library and the engine's own packages.
NODE_CODE = (
    "__init__.py", "arguments.py", "errors.py", "job_ad.py", "parsl.py", "system.py", "vocabulary.py", "files",
    "template", "server", "glidein", "invoke/ticket.sh", "server/advertise.sh",
)  # fmt: skip


def start() -> dict[str, bytes]:
    """What every glidein starts from, whatever it is to hold: the content of files by name."""
    return {"glide.zip": bundle(), "start.sh": (PACKAGE / "glidein" / "start.sh").read_bytes()}


def bundle() -> bytes:
    """It as a zip file, the same for the same code."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for part in (PACKAGE / name for name in NODE_CODE):
            for source in [part] if part.is_file() else sorted(part.rglob("*.py")):
                place = Path("glide") / source.relative_to(PACKAGE)
                _add(bundle, str(place), source.read_bytes(), source.stat().st_mode)
                if source.suffix == ".py":
                    _add(bundle, importlib.util.cache_from_source(str(place)), _compiled(source, place))
    return buffer.getvalue()


def plugin() -> bytes:
    """It as a file transfer plugin (glide.files.plugin): one file, for any Python from 3.10 on."""
    buffer = io.BytesIO(b"#!/usr/bin/env python3\n" + bundle())
    with zipfile.ZipFile(buffer, "a") as program:
        program.writestr("__main__.py", "from glide.files.plugin import main\n\nmain()\n")
    return buffer.getvalue()


def _add(bundle: zipfile.ZipFile, name: str, content: bytes, mode: int = 0o644) -> None:
    member = zipfile.ZipInfo(name)  # of 1980: when it was written is nothing by which to know it
    member.external_attr, member.compress_type = mode << 16, zipfile.ZIP_DEFLATED
    bundle.writestr(member, content)


def _compiled(source: Path, place: Path) -> bytes:
    """For nodes with this Python; one of another version takes no notice of it."""
    with tempfile.NamedTemporaryFile(suffix=".pyc") as file:
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH  # unpacking changes the sources' times
        py_compile.compile(str(source), file.name, str(place), doraise=True, invalidation_mode=unchecked)
        return Path(file.name).read_bytes()
