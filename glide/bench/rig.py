"""The common setup of all benchmarks: an embedded pool, a factory, and sweeps of noop records."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from glide.condor import AccessPoint, Collector, EmbeddedPool, bindings
from glide.config import SiteFile, load
from glide.factory.home import close, reopen
from glide.sweep.driver import Progress
from glide.sweep.opening import open_results
from glide.sweep.prepare import prepare
from glide.sweep.run import drive
from glide.sweep.workplace import factory
from glide.vocabulary import Job


class Enough(KeyboardInterrupt):
    """An exception that stops a sweep in the same way as Ctrl-C."""


class Rig:
    """A pool with a factory, for one benchmark.

    Attributes:
        folder: the benchmark's own folder, which is deleted at the end of the benchmark.
        pool: the pool that glideins join.
        outer: the pool on whose nodes glideins run. It may be the same pool as `pool`.
        runs: number of sweeps so far.
    """

    def __init__(self, folder: Path, pool: EmbeddedPool, outer: EmbeddedPool):
        self.folder = folder
        self.pool = pool
        self.outer = outer
        self.runs = 0

    def drain(self) -> None:
        """Remove all glideins, so that the next measurement starts cold and has all cores."""
        site = load(self.folder / "site.yaml", SiteFile)
        # Close the entry before the glideins are removed. There are two reasons:
        # - The factory submits no new glideins to a closed entry.
        # - If all glideins of an open entry disappear from the queue together, the factory assumes that the queue's
        #   answer is wrong. If the entry is closed, the factory accepts the answer.
        close(site, "bench")
        access_point = AccessPoint()
        access_point.remove(f"{Job.ENTRY} =!= undefined", "a benchmark starts cold")
        while access_point.jobs(f"{Job.ENTRY} =!= undefined", ["ClusterId"]):
            time.sleep(0.25)
        time.sleep(2 * site.interval)
        reopen(site, "bench")

    def sweep(
        self,
        count: int,
        options: dict[str, Any],
        watch: Callable[[Progress], None] = lambda progress: None,
        texts: Sequence[str] = (),
        **changes: Any,
    ) -> dict[str, Any]:
        """Run a sweep of `count` noop records and return its summary. The sweep starts when no lane is claimed.

        If it started earlier, its first jobs might wait for the negotiator's next cycle, one second later.

        Args:
            options: options of the noop engine.
            watch: a function that is called with the progress in each cycle of the driver. It may raise Enough.
            texts: texts of the records; if empty, the texts are `text 0`, `text 1` and so on.
            changes: keys of the sweep file, with values that replace the default values.
        """
        self.runs += 1
        print(f"bench: sweep {self.runs}, {count} records, {options or 'no options'}, {changes}", file=sys.stderr)
        folder = self.folder / f"run-{self.runs}"
        folder.mkdir()
        texts = texts or [f"text {number}" for number in range(count)]
        lines = [json.dumps({"custom_id": str(number), "text": text}) for number, text in enumerate(texts)]
        (folder / "records.jsonl").write_text("\n".join(lines), "utf-8")
        file = {
            "name": f"bench-{self.runs}", "model": {"name": "noop", "engine": "noop", "options": options},
            "records": "records.jsonl", "prompts": {"plain": "{text}"}, "out": str(folder / "out"),
        }  # fmt: skip
        (folder / "sweep.yaml").write_text(yaml.safe_dump(file | changes), "utf-8")
        (sweep,) = prepare(folder / "sweep.yaml")
        while Collector().lanes(["Name"], 'GlideId =!= undefined && State == "Claimed"'):
            time.sleep(0.05)
        self.results = open_results(sweep, f"bench-{os.getpid()}-{self.runs}")
        try:
            return drive([self.results], watch)
        finally:
            self.results.close()


@contextmanager
def rig(
    cores: int = 8,
    idle_seconds: int = 600,
    address: str = "127.0.0.1",
    settings: Mapping[str, str] = {},
    outer: Mapping[str, str] | None = None,
    entries: Sequence[Mapping[str, Any]] = ({"name": "bench"},),
    **entry: Any,
) -> Iterator[Rig]:
    """Provide a new pool and a factory for it in a `with` block, and stop both at the end of the block.

    Args:
        cores: number of CPU cores that the pool offers. The machine may have fewer, because noop engines only sleep.
        idle_seconds: value of the key `idle_seconds` in all entries.
        address: address at which the pool listens.
        settings: further HTCondor configuration of the pool.
        outer: HTCondor configuration of a second pool, on whose cores the glideins run. If `outer` is None, glideins
            run on the cores of the pool that they join.
        entries: for each entry of the site, its own keys and their values.
        entry: keys and values that all entries have.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="glide-bench-") as name:
        folder = Path(name)
        os.environ["GLIDE_HOME"] = str(folder / "home")
        pool = EmbeddedPool(folder / "home")
        below = pool if outer is None else EmbeddedPool(folder / "outer")
        common = {"max_glideins": cores, "request": {"memory": 512, "disk": 100}, "idle_seconds": idle_seconds, **entry}
        try:
            pool.up(cores if outer is None else 1, address, settings)
            if outer is not None:
                below.up(cores, address, outer)
                address_file = below.folder / "address" / "collector"
                common["pool"] = {"collector": address_file.read_text("utf-8").splitlines()[0]}
                token = pool.folder / "tokens.d" / "outer"
                token.write_bytes((below.folder / "tokens.d" / "owner").read_bytes())
                token.chmod(0o600)
            site = {"site": "bench", "interval": 1, "entries": [{**common, **each} for each in entries]}
            (folder / "site.yaml").write_text(yaml.safe_dump(site), "utf-8")
            os.environ.update(pool.environment())
            bindings.reload()
            with factory(folder / "site.yaml"):
                yield Rig(folder, pool, below)
        finally:
            # Ignore SIGINT and SIGTERM while the pools stop, because a second Ctrl-C here leaves the pools running.
            handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
            for each in dict.fromkeys((pool, below)):
                each.down()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.environ.clear()
            os.environ.update(before)
