"""Pack the part of glide's code that runs on nodes."""

from __future__ import annotations

import importlib.util
import io
import py_compile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
# These files and folders contain the code that runs on nodes. The code needs only the standard library, and the
# packages that the engine imports.
NODE_CODE = (
    "__init__.py", "arguments.py", "errors.py", "job_ad.py", "parsl.py", "system.py", "vocabulary.py", "files",
    "template", "server", "glidein", "invoke/ticket.sh", "server/advertise.sh",
)  # fmt: skip


def start_files() -> dict[str, bytes]:
    """Return the files that every glidein needs to start. The dictionary maps each file's name to its content.

    The files do not depend on the template.
    """
    return {"glide.zip": bundle(), "start.sh": (PACKAGE / "glidein" / "start.sh").read_bytes()}


def bundle() -> bytes:
    """Return glide's code for nodes as a zip file. The same code always gives the same bytes."""
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
    """Return a program that runs glide.files.plugin, HTCondor's file transfer plugin for glide's files.

    The program is one file that contains glide's code. It runs with Python 3.10 or later.
    """
    buffer = io.BytesIO(b"#!/usr/bin/env python3\n" + bundle())
    with zipfile.ZipFile(buffer, "a") as program:
        program.writestr("__main__.py", "from glide.files.plugin import main\n\nmain()\n")
    return buffer.getvalue()


def _add(bundle: zipfile.ZipFile, name: str, content: bytes, mode: int = 0o644) -> None:
    member = zipfile.ZipInfo(name)  # the default date, in 1980, makes the bytes independent of the time
    member.external_attr, member.compress_type = mode << 16, zipfile.ZIP_DEFLATED
    bundle.writestr(member, content)


def _compiled(source: Path, place: Path) -> bytes:
    """Return a module's bytecode. A Python of this version uses the bytecode. Other versions ignore it."""
    with tempfile.NamedTemporaryFile(suffix=".pyc") as file:
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH  # unpacking changes times, so do not compare them
        py_compile.compile(str(source), file.name, str(place), doraise=True, invalidation_mode=unchecked)
        return Path(file.name).read_bytes()
