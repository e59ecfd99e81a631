"""A pool for the tests of glide doctor: healthy, with a factory, and with troubles that can be planted."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glide.condor import EmbeddedPool
from glide.doctor import Level
from glide.vocabulary import JobStatus, Machine
from tests.conftest import eventually
from tests.factory_rig import DESCRIPTION, FactoryProcess, command, entry


class Clinic:
    """A healthy pool with a factory, and what the doctor says of it."""

    def __init__(self, pool: EmbeddedPool, folder: Path):
        self.pool, self.folder = pool, folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        everybody = {**os.environ, **pool.environment(), "GLIDE_HOME": str(pool.home)}
        # The doctor alone has this folder, as its tests look for what it has left there at any moment.
        self.environment = {**everybody, "TMPDIR": str(self.temporary)}
        self.factory = FactoryProcess(folder, "clinic", entry("ward", ready=1), environment=everybody)

    def examine(self, *options: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
        """What the doctor says, whose exit code says the same."""
        done = command(
            "doctor", "--json", *(options or ("--quick",)), environment=self.environment | (environment or {})
        )
        told = json.loads(done.stdout)
        assert done.returncode == Level[told["level"].upper()], done.stderr
        return told

    def finds(self, *expected: tuple[str, str, str, str], environment: dict[str, str] | None = None) -> None:
        """That the doctor comes to find exactly these: check, level, words of what is found, words of the fix."""

        def same() -> bool:
            nonlocal told
            told = self.examine(environment=environment)
            found = findings(told)
            return len(found) == len(expected) and all(
                any(
                    (each["check"], each["level"]) == (check, level) and what in each["found"] and fix in each["fix"]
                    for each in found
                )
                for check, level, what, fix in expected
            )

        told: dict[str, Any] = {}
        try:
            eventually(same, "it finds that", budget=45)
        except AssertionError:
            raise AssertionError(json.dumps(findings(told), indent=1) + "\nexpected " + repr(expected)) from None
        assert told["level"] == max((level for _, level, _, _ in expected), default="ok", key=LEVELS.index)

    @contextmanager
    def configured(self, **settings: str) -> Iterator[None]:
        """The pool's daemons with other settings, and afterwards with their own again."""
        before = self.pool.config.read_text()
        try:
            self._configure(before + "".join(f"{name} = {value}\n" for name, value in settings.items()))
            yield
        finally:
            self._configure(before)

    def _configure(self, text: str) -> None:
        """In one step, for they may be reading what was written a moment ago."""
        written, owner = self.pool.config.with_suffix(".new"), self.pool.config.stat()
        written.write_text(text)
        os.chown(written, owner.st_uid, owner.st_gid)
        written.replace(self.pool.config)
        for process in self.pool.daemons("condor_master"):
            process.send(signal.SIGHUP)  # as condor_reconfig does, which root may not

    @contextmanager
    def job(self, *lines: str, without: tuple[str, ...] = ()) -> Iterator[str]:
        """An invocation job that waits for ever, with further lines and without those that begin so."""
        folder = self.folder / f"job{time.monotonic_ns()}"
        folder.mkdir()
        kept = [line for line in DESCRIPTION.splitlines() if not line.startswith((*without, "queue"))]
        text = "\n".join([*kept, "digest = nobody", "model = nobody", f"initialdir = {folder}", *lines, "queue", ""])
        for name in ("records-0.jsonl", "more"):
            (folder / name).write_text("{}\n")
        (folder / "job.sub").write_text(text)
        said = self.pool.tool("condor_submit", "-terse", "-spool", str(folder / "job.sub"))
        cluster = said.split(".")[0]
        try:
            eventually(lambda: self.query(f"ClusterId == {cluster} && JobStatus == {JobStatus.IDLE}"), "it waits")
            yield cluster
        finally:
            self.pool.tool("condor_rm", cluster)

    @contextmanager
    def advertised(self, **attributes: str) -> Iterator[None]:
        """An ad of a slot that somebody else might have."""
        ad = {"MyType": '"Machine"', "Machine": '"stranger"', "MyAddress": '"<127.0.0.1:1>"', "TotalSlotCpus": "1",
              "Name": '"slot1@stranger"', "Start": "true", **attributes}  # fmt: skip
        path = self.folder / "ad"
        path.write_text("".join(f"{name} = {value}\n" for name, value in ad.items()))
        self.pool.tool("condor_advertise", "-tcp", "UPDATE_STARTD_AD", str(path))
        try:
            yield
        finally:
            path.write_text('MyType = "Query"\nTargetType = "Machine"\nRequirements = Machine == "stranger"\n')
            self.pool.tool("condor_advertise", "-tcp", "INVALIDATE_STARTD_ADS", str(path))

    @contextmanager
    def site(self, *entries: dict[str, Any]) -> Iterator[None]:
        """Other entries in the site file, which the factory has not read."""
        before = self.factory.file.read_text()
        try:
            self.factory.write(*entries)
            yield
        finally:
            self.factory.file.write_text(before)

    def query(self, constraint: str) -> list[str]:
        said = self.pool.tool("condor_q", "-allusers", "-constraint", constraint, "-af", "ClusterId")
        return said.split()

    def lanes(self, state: str = "true") -> list[str]:
        constraint = f"{Machine.ENTRY} =!= undefined && {state}"
        return self.pool.tool("condor_status", "-constraint", constraint, "-af", "Name").split()


LEVELS = ("ok", "warning", "critical")


def findings(told: dict[str, Any]) -> list[dict[str, Any]]:
    unseen = [
        {"check": check["check"], "level": "warning", "found": f"not checked: {check['not_seen']}", "fix": ""}
        for check in told["checks"]
        if check["not_seen"]
    ]
    return unseen + [{"check": check["check"], **each} for check in told["checks"] for each in check["findings"]]
