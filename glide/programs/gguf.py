"""Find the models in a list of GGUF files."""

from __future__ import annotations

import re
from collections.abc import Iterable

SUFFIX = ".gguf"
_PART = re.compile(r"-(\d{5})-of-\d{5}\.gguf$")  # end of the name of a file that contains a part of a model


def models(names: Iterable[str]) -> list[str]:
    """Return the GGUF files among file names, sorted. If a model is split into several files, return only the first."""
    files = sorted(name for name in names if name.endswith(SUFFIX))
    return [name for name in files if not (part := _PART.search(name)) or int(part[1]) == 1]
