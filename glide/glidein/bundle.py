"""Pack the part of glide's code that runs on nodes."""

from __future__ import annotations

import importlib.util
import io
import py_compile
import tempfile
import zipfile
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
# These files and folders contain the code that runs on nodes. The code needs only the standard library, and the
# packages that the engine imports.
NODE_CODE = (
    "__init__.py", "arguments.py", "errors.py", "job_ad.py", "parsl.py", "system.py", "vocabulary.py", "files",
    "programs", "protocol", "template", "server", "glidein", "invoke/ticket.sh", "server/advertise.sh",
)  # fmt: skip


def start_files() -> dict[str, bytes]:
    """Return the content of each file that a glidein needs to start. The keys are the files' names.

    These files are the same for all templates.
    """
    return {"glide.zip": bundle(), "start.sh": (PACKAGE / "glidein" / "start.sh").read_bytes()}


@cache
def bundle() -> bytes:
    """Return glide's code for nodes as a zip file. The same code always gives the same bytes.

    To pack takes a quarter of a second and some megabytes of memory, so a program does it once.
    """
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
    """Return a file transfer plugin for HTCondor. It fetches files whose addresses begin with glide://.

    The plugin is one file that contains glide's code. It runs with Python 3.10 or later.
    """
    buffer = io.BytesIO(b"#!/usr/bin/env python3\n" + bundle())
    with zipfile.ZipFile(buffer, "a") as program:
        program.writestr("__main__.py", "from glide.files.plugin import main\n\nmain()\n")
    return buffer.getvalue()


def _add(bundle: zipfile.ZipFile, name: str, content: bytes, mode: int = 0o644) -> None:
    member = zipfile.ZipInfo(name)  # every file is dated 1980, so that the same code always gives the same bytes
    member.external_attr, member.compress_type = mode << 16, zipfile.ZIP_DEFLATED
    bundle.writestr(member, content)


def _compiled(source: Path, place: Path) -> bytes:
    """Return a module's bytecode. Nodes with the same version of Python as this program need not compile the module."""
    with tempfile.NamedTemporaryFile(suffix=".pyc") as file:
        # Unpacking changes the files' times. So Python must not use these times to check the bytecode.
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(source), file.name, str(place), doraise=True, invalidation_mode=unchecked)
        return Path(file.name).read_bytes()
