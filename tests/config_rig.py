"""What is reported of a file that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from glide.config import SweepFile, load
from glide.errors import InputError


@pytest.fixture
def refusal(tmp_path: Path):
    """What is said of such a file: a list of (line, words)."""

    def refusal(text: str | bytes, model: type = SweepFile) -> list[tuple[int, str]]:
        path = tmp_path / "f.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InputError) as refused:
            load(path, model)
        said = []
        for problem in refused.value.problems:
            assert problem.startswith(f"{path}:"), problem
            assert "\n" not in problem, f"more than one line: {problem}"
            line, _, words = problem.removeprefix(f"{path}:").partition(": ")
            said.append((int(line), words))
        return said

    return refusal
