"""Carry out a plan: the only place where the factory changes anything."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

from glide import resources
from glide.condor import AccessPoint, Collector, install, tokens
from glide.condor.access_point import any_of, parameter, quoted
from glide.config import Entry, SiteFile
from glide.factory.plan import Action
from glide.factory.snapshot import Snapshot, take
from glide.glidein.settings import Settings
from glide.template import Template
from glide.vocabulary import Job, JobStatus, Machine

# A glidein waits in a queue and then runs, and its token must outlive both.
TOKEN_SECONDS = 7 * 86400
REMIND_SECONDS = 15.0
PACKAGE = Path(__file__).resolve().parent.parent


class Hands:
    """Looks, submits, removes and expunges for one site; `folder` (0700) holds what its glideins are sent with."""

    def __init__(self, site: SiteFile, folder: Path):
        """Find the pool that glideins join, and those that they are submitted to; CondorError where one is away."""
        self.site = site
        self.folder = folder
        self.access_point = AccessPoint()
        self.collector = Collector()
        pools = {entry.pool for entry in site.entries if entry.pool is not None}
        self.outer = {pool: AccessPoint(pool.schedd, pool.collector) for pool in pools}
        self.of_entry = {
            entry.name: self.outer[entry.pool] if entry.pool else self.access_point for entry in site.entries
        }

    def look(self) -> Snapshot:
        return take(self.access_point, self.collector, self.outer.values())

    def remind(self, snapshot: Snapshot) -> None:
        """Have glideins matched that their access point has forgotten (AccessPoint.reconsider)."""
        for entry in self.site.entries:
            ages = [g.age for g in snapshot.glideins if g.entry == entry.name and g.status == JobStatus.IDLE]
            if any(age % REMIND_SECONDS < self.site.interval for age in ages if age > REMIND_SECONDS):
                idle = f"{Job.ENTRY} == {quoted(entry.name)} && JobStatus == {JobStatus.IDLE}"
                self.of_entry[entry.name].reconsider(idle, 0)

    def apply(self, actions: Iterable[Action], snapshot: Snapshot) -> None:
        """Do what is to be done; CondorError when HTCondor refuses, and the next cycle sees what came of it."""
        for action in actions:
            if action.action == "submit":
                self._submit(action, snapshot)
            elif action.action in ("remove", "drain"):
                self.of_entry[action.entry].remove(any_of(action.ids), f"glide factory: {action.reason}")
            elif action.action == "expunge":
                for glide_id in action.ids:
                    self.collector.expunge(f'{Machine.ID} == "{glide_id}"')

    def _submit(self, action: Action, snapshot: Snapshot) -> None:
        entry = next(entry for entry in self.site.entries if entry.name == action.entry)
        template = snapshot.template(action.template)
        if template is None:
            return
        folder = self._prepare(entry, template)
        macros = {
            "folder": str(folder), "python": entry.python or sys.executable, "entry": entry.name,
            "cpus": str(entry.request.cpus), "gpus": str(entry.request.gpus),
            "memory": f"{entry.request.memory}MB", "disk": f"{entry.request.disk}MB",
            "node_requirements": _requirements(entry, action.avoid), "digest": template.digest, "model": template.model,
        }  # fmt: skip
        text = resources.find("submit_templates", "glidein.sub").read_text()
        self.of_entry[entry.name].submit(f"{text}\nqueue {action.count}\n", macros)

    def _prepare(self, entry: Entry, template: Template) -> Path:
        """Write the files that the glideins of an entry and template start from."""
        folder = self.folder / entry.name / template.digest[:16]
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        trust = parameter("TRUST_DOMAIN") or ""
        settings = Settings(
            entry=entry.name, site=self.site.site, collector=self.collector.address, trust_domain=trust,
            owners=entry.owners or (self.access_point.user,), template=template, lanes=entry.lanes,
            condor=entry.condor or _private_condor(), idle_seconds=entry.idle_seconds, knobs=entry.knobs,
        )  # fmt: skip
        tokens.mint(folder / "token", f"glidein@{trust}", ("ADVERTISE_STARTD", "ADVERTISE_MASTER"), TOKEN_SECONDS)
        _publish(folder / "glidein.json", settings.to_json().encode())
        _publish(folder / "glide.zip", _bundle())
        _publish(folder / "start.sh", (PACKAGE / "glidein" / "start.sh").read_bytes(), 0o700)
        return folder


def _requirements(entry: Entry, avoid: Iterable[str]) -> str:
    bad = ", ".join(map(quoted, avoid))
    return f"({entry.requirements}) && !member(TARGET.Machine, {{{bad}}})" if bad else entry.requirements


# What runs on nodes, and nothing that needs more than the standard library and the engine's own packages.
NODE_CODE = ("__init__.py", "vocabulary.py", "template", "server", "glidein", "invoke/ticket.sh")


def _bundle() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for part in (PACKAGE / name for name in NODE_CODE):
            for source in [part] if part.is_file() else sorted(part.rglob("*.py")):
                bundle.write(source, Path("glide") / source.relative_to(PACKAGE))
    return buffer.getvalue()


def _publish(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file in one step: a glidein that is being sent must not get half of it."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(content)
    fresh.chmod(mode)
    fresh.replace(path)


def _private_condor() -> str | None:
    """The release folder of glide's private HTCondor, if that is the one in use here."""
    found = install.find()
    return str(found.release_dir) if found and found.release_dir.is_relative_to(install.cache_dir()) else None
