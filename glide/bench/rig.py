"""What every benchmark stands on: an embedded pool, a factory, and sweeps of noop records."""

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

from glide.condor import AccessPoint, EmbeddedPool, bindings
from glide.config import SiteFile, load
from glide.factory.daemon import close, reopen
from glide.sweep.driver import Progress, drive
from glide.sweep.prepare import prepare
from glide.sweep.results import begin
from glide.sweep.workplace import factory
from glide.vocabulary import Job


class Enough(KeyboardInterrupt):
    """Tells a sweep to stop, as its user would."""


class Rig:
    """A pool with a factory; `folder` is the benchmark's own and goes with it.

    Attributes:
        pool: which glideins join.
        outer: on which they run; may be the same.
    """

    def __init__(self, folder: Path, pool: EmbeddedPool, outer: EmbeddedPool):
        self.folder = folder
        self.pool = pool
        self.outer = outer
        self.runs = 0

    def drain(self) -> None:
        """Take all glideins down, so that what comes next starts cold and has the cores to itself."""
        site = load(self.folder / "site.yaml", SiteFile)
        close(site, "bench")  # or the factory would doubt that they are gone
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
        """Run a sweep of `count` noop records and return its summary; `changes` replace the sweep file's keys."""
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
        sweep = prepare(folder / "sweep.yaml")
        self.results = begin(sweep, f"bench-{os.getpid()}-{self.runs}")
        try:
            return drive(sweep, self.results, watch)
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
    """A fresh pool that offers `cores`, and a factory for it; noop glideins only sleep, so cores may exceed CPUs.

    Args:
        settings: further HTCondor configuration of the pool.
        outer: that of a second pool, if there is to be one: it has the cores, and glideins are submitted to it.
        entries: keys of each of the site's entries.
        entry: further keys of all of them.
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
            # Impatience now would leave the pools behind.
            heard = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
            for each in dict.fromkeys((pool, below)):
                each.down()
            for number, handler in heard.items():
                signal.signal(number, handler)
            os.environ.clear()
            os.environ.update(before)
