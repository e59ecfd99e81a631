"""Measure how long glideins take to become warm.

The model's files come from a web server (the source), from peers, or from the cache of the glidein's host. All clients
of the source share its limited rate. So without peers, `n` glideins that start together take `n` times as long as one
glidein, and read the source `n` times.
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
from glide.system import files_below
from glide.template.spec import files_of
from glide.vocabulary import State

MEGABYTES = 200
FILES = 4
RATE = 20e6  # bytes per second that the source sends to all clients together
COUNTS = (1, 4, 16)  # numbers of glideins that start together
STREAM_SECONDS = 10.0  # time limit of the wait for the glideins' output, in seconds
# Normally the glideins of a host share one cache. With this cache folder, each glidein has its own cache, like a
# glidein that is alone on its host.
OWN_CACHE = "$_CONDOR_SCRATCH_DIR/cache"
FETCHED = re.compile(r"'s files: (\d+) MB, (\d+) from the cache, (\d+) from the source, (\d+) from peers")


def bootstrap(repeat: int) -> dict[str, Any]:
    """Measure the seconds from the state Fetching to the state Warm, and how often the source is read.

    The report has these keys:

    - `waves`: several glideins start together, and each has an empty cache.
    - `newcomer`: a glidein gets all files from a peer.
    - `cached`: a glidein finds all files in the cache of its host.
    - `transformers`: a glidein loads a model with the transformers engine. The files are in the cache of the glidein's
      host. There are two measurements:

        - `transformers.cached`: the files are also in memory.
        - `transformers.cached_on_disk`: the files are only on disk.
    """
    overlaps = [_from_cache() for _ in range(repeat)]
    runs = [_together(count) for _ in range(repeat) for count in COUNTS]
    alone = median(run["worst_s"] for run in runs if run["glideins"] == 1)
    for run in runs:
        run["over_one_fetch"] = round(run["worst_s"] / alone, 3)
    return {
        "megabytes": MEGABYTES, "source_mb_per_s": RATE / 1e6, "bytes_over_bandwidth_s": MEGABYTES * 1e6 / RATE,
        "waves": runs, **_one_after_another(), "transformers": overlaps,
    }  # fmt: skip


def _together(count: int) -> dict[str, Any]:
    """Start `count` glideins together. Each glidein has its own empty cache."""
    with rig(cores=count, cache={"folder": OWN_CACHE}) as bench, origin(_write_model(bench.folder), RATE) as source:
        lines = _start_glideins(bench, source.url, count)
        reads = sum(source.sent.values()) / (MEGABYTES * 1e6)
        return {
            "glideins": count, "worst_s": max(line["total_s"] for line in lines), "source_reads": round(reads, 3),
            "timeline": lines,
        }  # fmt: skip


def _one_after_another() -> dict[str, Any]:
    """Start a second glidein when the first glidein has all files.

    Do this twice. In the first trial, each glidein has its own cache, as if it had its own host. In the second trial,
    both glideins share the cache of their host.
    """
    found = {}
    for name, cache in (("newcomer", OWN_CACHE), ("cached", None)):
        with rig(cores=2, cache={"folder": cache}) as bench, origin(_write_model(bench.folder), RATE) as source:
            first = _start_glideins(bench, source.url, 1)
            before = sum(source.sent.values())
            both = _start_glideins(bench, source.url, 2)
            (second,) = [line for line in both if line["glidein"] != first[0]["glidein"]]
            found[name] = {**second, "source_bytes": sum(source.sent.values()) - before}
    return found


def _from_cache() -> dict[str, Any]:
    """Measure how a glidein loads a model from the cache of its host.

    Do this twice. In the first trial, the files are in the kernel's page cache. In the second trial, they are only on
    disk.
    """
    with rig(cores=1, request={"memory": 4000, "disk": 2000}) as bench:
        model = bench.folder / "model"
        parameters = make_model(model)
        _write_listing(model)
        with origin(model) as source:
            options = {"dtype": "float32", "device": "cpu"}
            found = {}
            for name in ("filling", "cached", "cached_on_disk"):
                bench.drain()
                contents = bench.folder / "home" / "cache" / "contents"
                read = _seconds_to_read(contents) if name == "cached_on_disk" else 0.0
                summary, lines = _sweep(bench, source.url, 1, "transformers", options)
                found[name] = _phases(summary["glideins"][-1], lines[-1], read)
        return {"parameters": parameters, "cached": found["cached"], "cached_on_disk": found["cached_on_disk"]}


def _phases(phases: dict[str, float], line: dict[str, Any], read: float) -> dict[str, float]:
    """Return the seconds of each phase, and `overlap`.

    While the files are fetched and read, packages are imported. Then the model is loaded. `overlap` is the measured
    duration, divided by the ideal duration. A perfect overlap gives 1.

    - The measured duration is the time from the start of the fetch to the end of the load.
    - The ideal duration is load_s + max(import_s, fetch_s + read_s).

    Args:
        phases: the glidein's entry in summary.json.
        line: the glidein's timeline.
        read: seconds that it takes to read the files from disk; 0 if they are in memory.
    """
    loaded = line["total_s"] - line["warming_s"]
    longer = max(phases["import_s"], phases["fetch_s"] + read) + phases["load_s"]
    return {
        "fetch_s": phases["fetch_s"], "read_s": round(read, 3), "import_s": phases["import_s"],
        "load_s": phases["load_s"], "warm_s": line["warming_s"], "total_s": line["total_s"],
        "overlap": round(loaded / longer, 3),
    }  # fmt: skip


def _seconds_to_read(folder: Path) -> float:
    """Read all files of a folder from disk, and return how many seconds the reading took.

    The files are dropped from the page cache before the reading, and again after the reading.
    """
    _drop_from_memory(folder)
    began = time.monotonic()
    for path in folder.iterdir():
        with path.open("rb") as file:
            while file.read(1 << 22):
                pass
    seconds = time.monotonic() - began
    _drop_from_memory(folder)
    return seconds


def _drop_from_memory(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())  # the kernel drops only pages that are already on disk
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _write_model(folder: Path) -> Path:
    """Write model files of random bytes, and the list of these files. A model at a web address needs this list."""
    model = folder / "model"
    model.mkdir()
    chance = random.Random(1)
    for number in range(FILES):
        (model / f"part-{number}.bin").write_bytes(chance.randbytes(int(MEGABYTES * 1e6) // FILES))
    _write_listing(model)
    return model


def _write_listing(model: Path) -> None:
    (model / MANIFEST).write_text(json.dumps(files_of(model, model)), "utf-8")


def _start_glideins(bench: Rig, url: str, count: int) -> list[dict[str, Any]]:
    """Run a sweep until `count` glideins are warm. Return a timeline for each of these glideins.

    Glideins of earlier calls are still warm, and are counted, too. So the sweep starts only the missing glideins.
    """
    return _sweep(bench, url, count, "noop", {"record_seconds": 0.05})[1]


def _sweep(bench: Rig, url: str, count: int, engine: str, options: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """Run a sweep, and return its summary and the timelines of its glideins.

    With the noop engine, the sweep stops when all glideins are warm, and the summary is None. The sweep has many jobs,
    because with few jobs the factory would submit too few glideins.
    """

    def watch(progress: Progress) -> None:
        if engine == "noop" and progress.lanes.get(State.WARM, 0) >= 2 * count:
            raise Enough

    summary = None
    model = {"name": "bench", "engine": engine, "path": url, "options": options}
    with suppress(Enough):
        summary = bench.sweep(count * 40, {}, watch, model=model, glideins=count, pack=1)
    deadline = time.monotonic() + STREAM_SECONDS
    while len(lines := _timelines(bench)) < count and time.monotonic() < deadline:
        time.sleep(0.2)
    return summary, lines


def _timelines(bench: Rig) -> list[dict[str, Any]]:
    logs = sorted(files_below(bench.folder / "home" / "factory", "*.out"))
    return [line for log in logs if (line := _timeline(log.stem, log.read_text("utf-8"))) is not None]


def _timeline(glidein: str, log: str) -> dict[str, Any] | None:
    """Read a glidein's timeline from the glidein's output. If the glidein was never warm, return None.

    The timeline has these keys:

    - `glidein`: name of the glidein.
    - `began`: Unix time at which the glidein entered the state Fetching.
    - `fetched_s`: seconds from the state Fetching to the state Importing.
    - `warming_s`: seconds from the state Warming to the state Warm.
    - `total_s`: seconds from the state Fetching to the state Warm.
    - `cache_mb`, `source_mb`, `peers_mb`: size of the files from the cache, from the source and from peers, in MB.

    Args:
        log: the glidein's output.
    """
    times = {
        state: datetime.fromisoformat(found[1]).timestamp()
        for state in (State.FETCHING, State.IMPORTING, State.LOADING, State.WARMING, State.WARM)
        if (found := re.search(rf"model server: (\S+) bench {state}\b", log))
    }
    if State.WARM not in times:
        return None
    start = times[State.FETCHING]
    fetched: Sequence[str] = found.groups() if (found := FETCHED.search(log)) else ("0",) * 4
    return {
        "glidein": glidein, "began": start, "fetched_s": round(times[State.IMPORTING] - start, 3),
        "total_s": round(times[State.WARM] - start, 3),
        "warming_s": round(times[State.WARM] - times.get(State.WARMING, times[State.WARM]), 3),
        **{f"{name}_mb": int(number) for name, number in zip(("cache", "source", "peers"), fetched[1:], strict=True)},
    }  # fmt: skip
