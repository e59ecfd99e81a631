"""How long a glidein takes from its first step to Warm: cold, from peers, from its host's cache, many at once.

The source is a web server that gives so many bytes a second, to all together. Without peers, `n` glideins would take
`n` times as long as one, and would read it `n` times.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from glide.bench.origin import origin
from glide.bench.rig import Enough, Rig, rig
from glide.bench.sticky import make_model
from glide.files.listing import MANIFEST
from glide.sweep.driver import Progress
from glide.template.spec import files_of
from glide.vocabulary import State

MEGABYTES = 200
FILES = 4
RATE = 20e6  # bytes a second
COUNTS = (1, 4, 16)
STREAM_SECONDS = 10.0  # for the last words of glideins to be on the access point
OWN = "$_CONDOR_SCRATCH_DIR/cache"  # a cache for each glidein, as on separate hosts
ACCOUNT = re.compile(r"'s files: (\d+) MB, (\d+) from the cache, (\d+) from the source, (\d+) from peers")


def bootstrap(repeat: int) -> dict[str, Any]:
    """Seconds from Fetching to Warm, how often the source was read, and a line for each glidein.

    `waves` are glideins that start together with empty caches; `newcomer` finds a peer that has all; `cached` finds
    it on its own host; `transformers` loads a model from its host's cache, in memory or on disk alone (_chains).
    """
    overlaps = [_transformers() for _ in range(repeat)]
    runs = [_run(count) for _ in range(repeat) for count in COUNTS]
    alone = median(run["worst_s"] for run in runs if run["glideins"] == 1)
    for run in runs:
        run["over_one_fetch"] = round(run["worst_s"] / alone, 3)
    return {
        "megabytes": MEGABYTES, "source_mb_per_s": RATE / 1e6, "bytes_over_bandwidth_s": MEGABYTES * 1e6 / RATE,
        "waves": runs, **_later(), "transformers": overlaps,
    }  # fmt: skip


def _run(count: int) -> dict[str, Any]:
    """So many glideins at once, each with an empty cache of its own."""
    with rig(cores=count, cache={"folder": OWN}) as bench, origin(_model(bench.folder), RATE) as source:
        lines = _warm(bench, source.url, count)
        reads = sum(source.sent.values()) / (MEGABYTES * 1e6)
        return {
            "glideins": count, "worst_s": max(line["total_s"] for line in lines), "source_reads": round(reads, 3),
            "timeline": lines,
        }  # fmt: skip


def _later() -> dict[str, Any]:
    """One that comes when another has all: on another host, and on the same."""
    found = {}
    for name, cache in (("newcomer", OWN), ("cached", None)):
        with rig(cores=2, cache={"folder": cache}) as bench, origin(_model(bench.folder), RATE) as source:
            first = _warm(bench, source.url, 1)
            before = sum(source.sent.values())
            both = _warm(bench, source.url, 2)
            (second,) = [line for line in both if line["glidein"] != first[0]["glidein"]]
            found[name] = {**second, "source_bytes": sum(source.sent.values()) - before}
    return found


def _transformers() -> dict[str, Any]:
    """With the host's cache full: its files in the kernel's page cache, and on its disk alone."""
    with rig(cores=1, request={"memory": 4000, "disk": 2000}) as bench:
        model = bench.folder / "model"
        parameters = make_model(model)
        _publish(model)
        with origin(model) as source:
            options = {"dtype": "float32", "device": "cpu"}
            found = {}
            for name in ("filling", "cached", "cached_on_disk"):
                bench.drain()
                read = _read(bench.folder / "home" / "cache" / "contents") if name == "cached_on_disk" else 0.0
                summary, lines = _sweep(bench, source.url, 1, "transformers", options)
                found[name] = _chains(summary["glideins"][-1], lines[-1], read)
        return {"parameters": parameters, "cached": found["cached"], "cached_on_disk": found["cached_on_disk"]}


def _chains(phases: dict[str, float], line: dict[str, Any], read: float) -> dict[str, float]:
    """Seconds by phase; `overlap` is the time to what is loaded over that of the longer chain.

    One chain is importing and then loading, the other getting the files, reading them and then loading. Warming up
    comes after both, and does not count.
    """
    loaded = line["total_s"] - line["warming_s"]
    longer = max(phases["import_s"], phases["fetch_s"] + read) + phases["load_s"]
    return {
        "fetch_s": phases["fetch_s"], "read_s": round(read, 3), "import_s": phases["import_s"],
        "load_s": phases["load_s"], "warm_s": line["warming_s"], "total_s": line["total_s"],
        "overlap": round(loaded / longer, 3),
    }  # fmt: skip


def _read(folder: Path) -> float:
    """Have files on the disk alone, and return the seconds that reading them takes."""
    _leave_memory(folder)
    began = time.monotonic()
    for path in folder.iterdir():
        with path.open("rb") as file:
            while file.read(1 << 22):
                pass
    seconds = time.monotonic() - began
    _leave_memory(folder)
    return seconds


def _leave_memory(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not yet on the disk cannot leave the memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _model(folder: Path) -> Path:
    """Files of random bytes, with the list of them that a web server needs."""
    model = folder / "model"
    model.mkdir()
    chance = random.Random(1)
    for number in range(FILES):
        (model / f"part-{number}.bin").write_bytes(chance.randbytes(int(MEGABYTES * 1e6) // FILES))
    _publish(model)
    return model


def _publish(model: Path) -> None:
    (model / MANIFEST).write_text(json.dumps(files_of(model, model)), "utf-8")


def _warm(bench: Rig, url: str, count: int) -> list[dict[str, Any]]:
    """Have so many glideins that hold it; when each of them was in which state."""
    return _sweep(bench, url, count, "noop", {"record_seconds": 0.05})[1]


def _sweep(bench: Rig, url: str, count: int, engine: str, options: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """Until all glideins are warm; there is a job for each, as none waits for glideins that have no job to take."""

    def watch(progress: Progress) -> None:
        if engine == "noop" and progress.lanes.get(State.WARM, 0) >= 2 * count:
            raise Enough

    summary = None
    model = {"name": "bench", "engine": engine, "path": url, "options": options}
    with suppress(Enough):
        summary = bench.sweep(count * 40, {}, watch, model=model, glideins=count, pack=1)
    deadline = time.monotonic() + STREAM_SECONDS
    while len(lines := _lines(bench)) < count and time.monotonic() < deadline:
        time.sleep(0.2)
    return summary, lines


def _lines(bench: Rig) -> list[dict[str, Any]]:
    logs = sorted((bench.folder / "home" / "factory").rglob("*.out"))
    return [line for log in logs if (line := _line(log.stem, log.read_text("utf-8"))) is not None]


def _line(glidein: str, log: str) -> dict[str, Any] | None:
    """When a glidein was in which state, in seconds since it began to fetch, and from where its files came."""
    times = {
        state: datetime.fromisoformat(found[1]).timestamp()
        for state in (State.FETCHING, State.IMPORTING, State.LOADING, State.WARMING, State.WARM)
        if (found := re.search(rf"model server: (\S+) bench {state}\b", log))
    }
    if State.WARM not in times:
        return None
    start = times[State.FETCHING]
    account: Sequence[str] = found.groups() if (found := ACCOUNT.search(log)) else ("0",) * 4
    return {
        "glidein": glidein, "began": start, "fetched_s": round(times[State.IMPORTING] - start, 3),
        "total_s": round(times[State.WARM] - start, 3),
        "warming_s": round(times[State.WARM] - times.get(State.WARMING, times[State.WARM]), 3),
        **{f"{name}_mb": int(number) for name, number in zip(("cache", "source", "peers"), account[1:], strict=True)},
    }  # fmt: skip
