"""Two real pools: an outer one whose machines may be taken away, and an overlay pool that glideins join."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glide.condor import EmbeddedPool
from glide.condor.access_point import job_file_value
from glide.factory.journal import Journal
from glide.template import Template
from glide.vocabulary import Job, Machine
from tests.conftest import eventually
from tests.factory_rig import DESCRIPTION, FactoryProcess, command, entry

# Two static slots, which a job that says it is important takes from any other, at once.
PREEMPTING = {
    "SLOT_TYPE_1": "cpus=1", "SLOT_TYPE_1_PARTITIONABLE": "False", "NUM_SLOTS_TYPE_1": "2",
    "RANK": "TARGET.Important =?= True", "MaxJobRetirementTime": "0",
}  # fmt: skip
IMPORTANT = "executable = /bin/sleep\narguments = {seconds}\nMy.Important = True\nrequest_memory = 1\nqueue {count}\n"


class Pools:
    """The two pools and a factory between them."""

    def __init__(self, overlay: EmbeddedPool, outer: EmbeddedPool, folder: Path):
        self.overlay, self.outer, self.folder = overlay, outer, folder
        self.environment = {**os.environ, **overlay.environment(), "GLIDE_HOME": str(overlay.home)}
        self.address = (outer.folder / "address" / "collector").read_text().splitlines()[0]
        self.factories: list[FactoryProcess] = []

    def factory(self, name: str, *others: dict[str, Any], **changes: Any) -> FactoryProcess:
        """A factory with an entry of that name in the outer pool, unless the changes place it elsewhere."""
        place = {} if "ssh" in changes else {"pool": {"collector": self.address}}
        entries = (entry(name, **place, **changes), *others)
        self.factories.append(FactoryProcess(self.folder, name, *entries, environment=self.environment))
        return self.factories[-1]

    def important(self, seconds: int, count: int = 2) -> None:
        """Take nodes of the outer pool away for a while."""
        (self.folder / "important.sub").write_text(IMPORTANT.format(seconds=seconds, count=count))
        self.outer.tool("condor_submit", str(self.folder / "important.sub"))

    def ask(self, template: Template, jobs: int = 1, records: int = 1, wanted: int = 1) -> None:
        """Submit jobs to the overlay pool that ask for a template."""
        folder = self.folder / template.model
        folder.mkdir()
        for number in range(jobs):
            lines = (json.dumps({"custom_id": str(each), "prompt": "text"}) + "\n" for each in range(records))
            (folder / f"records-{number}.jsonl").write_text("".join(lines))
        further = f"My.{Job.SPEC} = {job_file_value(template.to_json())}\nMy.{Job.WANTED} = {wanted}\nqueue {jobs}"
        text = DESCRIPTION.replace("\nqueue", f"\n{further}").replace("$(digest)", template.digest)
        (folder / "ask.sub").write_text(text.replace("$(model)", template.model))
        done = command("submit", str(folder / "ask.sub"), environment=self.environment)
        assert done.returncode == 0, done.stderr

    def glideins(self) -> list[str]:
        """Their statuses in the outer queue, those that have ended not among them."""
        return [each for each in self._query(self.outer, f"{Job.ENTRY} =!= undefined", "JobStatus") if each != "4"]

    def submitted(self, entry: str) -> int:
        """Return how many glideins of an entry are in the outer queue, whatever became of them."""
        return len(self._query(self.outer, f'{Job.ENTRY} == "{entry}"', "ClusterId"))

    def starts(self, entry: str) -> list[str]:
        """Return how often each of an entry's glideins was started."""
        return self._query(self.outer, f'{Job.ENTRY} == "{entry}"', "NumShadowStarts")

    def jobs(self) -> list[str]:
        return self._query(self.overlay, "true", "JobStatus")

    def lanes(self, attribute: str = Machine.STATE) -> list[str]:
        ads = self.overlay.tool("condor_status", "-constraint", f"{Machine.ID} =!= undefined", "-af", attribute)
        return ads.split()

    def _query(self, pool: EmbeddedPool, constraint: str, attribute: str) -> list[str]:
        return pool.tool("condor_q", "-allusers", "-constraint", constraint, "-af", attribute).split()

    def unseen(self) -> str:
        """What `glide factory status` says is not seen."""
        told = json.loads(command("factory", "status", "--json", environment=self.environment).stdout)
        return " ".join(why for site in told["sites"] for why in site["unseen"])

    def journal(self, factory: FactoryProcess) -> list[dict[str, Any]]:
        return list(Journal(self.overlay.home / "factory" / factory.name).lines())

    def clear(self) -> None:
        for factory in self.factories:
            factory.stop()
        for pool in (self.overlay, self.outer):
            pool.tool("condor_rm", "-all", check=False)
        eventually(lambda: not self.glideins() and not self.lanes(), "the pools are empty")
        for folder in (self.overlay.home / "factory").glob("*"):
            (folder / "file").unlink(missing_ok=True)


@contextmanager
def two_pools(folder: Path) -> Iterator[tuple[EmbeddedPool, EmbeddedPool]]:
    """The overlay pool and the outer one, for as long as this lasts."""
    overlay, outer = EmbeddedPool(folder / "overlay"), EmbeddedPool(folder / "outer")
    try:
        overlay.up(cores=1)
        outer.up(cores=2, settings=PREEMPTING)
        yield overlay, outer
    finally:
        overlay.down()
        outer.down()


def signalled(pool: EmbeddedPool, name: str, number: int) -> None:
    for process in pool.daemons(name):
        process.send(number)
