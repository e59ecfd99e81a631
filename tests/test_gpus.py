"""What a stand-in for nvidia-smi reports about GPUs, and what glide makes of it."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest

from glide.server import gpus

SMI = """#!/bin/sh
echo 0, GPU-aaaa1111-2222, NVIDIA A100-SXM4, 3, 40960, 8.0, 61.50
echo 1, GPU-bbbb1111-2222, Tesla P100, USED, 16384, 6.0, [N/A]
"""


@pytest.fixture
def nvidia(tmp_path, monkeypatch):
    """Put a stand-in for nvidia-smi on the PATH."""

    def write(used: int) -> None:
        (tmp_path / "nvidia-smi").write_text(SMI.replace("USED", str(used)))
        (tmp_path / "nvidia-smi").chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    write(5)
    return write


@pytest.mark.parametrize(
    "visible, names",
    [(None, ["NVIDIA A100-SXM4", "Tesla P100"]), ("GPU-bbbb1111", ["Tesla P100"]),
     ("1,0", ["Tesla P100", "NVIDIA A100-SXM4"]), ("", []), ("GPU-cccc", [])],
)  # fmt: skip
def test_visible_gpus_are_found_by_index_or_short_uuid(nvidia, monkeypatch, visible, names):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in gpus.gpus()] == names


def test_energy_is_the_power_over_time(nvidia, monkeypatch):
    monkeypatch.setattr(gpus, "POWER_SECONDS", 0.1)
    reports: list[tuple[float, float]] = []
    began = time.monotonic()

    async def measure() -> None:
        measuring = gpus.measure_energy(lambda joules: reports.append((joules, time.monotonic() - began)))
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(measuring, 2)

    asyncio.run(measure())
    assert len(reports) > 1
    for joules, seconds in reports:  # only the first GPU reports its power, 61.5 W
        assert 0 < joules <= 61.5 * seconds


def test_power_is_unknown_if_the_driver_does_not_report_it(nvidia):
    assert [gpu.watts for gpu in gpus.gpus()] == [61.5, None]


def test_program_starts_only_when_the_memory_of_its_gpu_is_free(nvidia):
    nvidia(9000)
    asked = []

    def query() -> list[gpus.Gpu]:
        asked.append(True)
        if len(asked) == 2:
            nvidia(5)
        return gpus.gpus()

    found = gpus.wait_until_free(60, query)
    assert len(asked) == 2 or len(asked) == 3
    assert max(gpu.used for gpu in found) == 5


def test_node_without_driver_has_no_gpus(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.gpus() == [] and gpus.wait_until_free(0.0) == []
