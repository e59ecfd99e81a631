"""Carry out a plan: the only place where the factory changes anything."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from glide import resources
from glide.arguments import in_environment
from glide.condor import AccessPoint, Collector, install, tokens
from glide.condor.access_point import any_of, parameter, quoted
from glide.config import Entry, Login, Pool, SiteFile
from glide.errors import CondorError, mistake
from glide.factory.folders import entry_folder, key_to, tidy
from glide.factory.look import Queue, take
from glide.factory.plan import Action
from glide.factory.room import owners
from glide.factory.seed import Seed
from glide.factory.snapshot import Glidein, Snapshot
from glide.files.environment import environment
from glide.files.unpack import is_archive
from glide.glidein import bundle
from glide.glidein.settings import SPREAD, Settings
from glide.invoke.carriers import GLIDEIN
from glide.ssh import LinkError, access_point_at
from glide.system import publish
from glide.template import Parcel, Template
from glide.vocabulary import IDENTITY, Job, JobStatus, Machine

QUEUE_SECONDS = 7 * 86400  # a glidein waits no longer than this where its token is renewed meanwhile
TOKEN_SECONDS = 86400  # by which a token outlives a glidein's lifetime; where it cannot be renewed none waits longer
KEEP_SECONDS = 3600  # glideins that have ended stay in the queue for so long, or twice the breaker's back-off
LOG_SECONDS = 7 * 86400  # and their logs on disk for so long
MOVE_SECONDS = 120  # for a sticky job to get its lane: some pools negotiate once a minute
SETTLE_SECONDS = 30  # for the lane's ad to say what it has got
FORGET_SECONDS = 300  # after which a move that failed is tried again
# As in submit_templates/sticky.sub.
STICKABLE = f"(TARGET.{Machine.ROOM} >= MY.GlideMegabytes) =!= false && {GLIDEIN}"
BATCH = 200  # jobs that are named in one command
REMIND_SECONDS = 10.0  # between reminders of glideins that wait (AccessPoint.reconsider)


class Hands:
    """Looks, submits, removes and expunges for one site; `folder` (0700) holds what its glideins are sent with."""

    def __init__(self, site: SiteFile, folder: Path, seed: Seed | None = None):
        self.site = site
        self.seed = seed
        self.folder = folder
        self.collector = Collector()
        self.access_points: dict[Pool | None, AccessPoint] = {}

    def access_point(self, pool: Pool | None = None) -> AccessPoint:
        """That of the pool that glideins join, or of one that they are submitted to; CondorError where it is away."""
        if pool not in self.access_points:
            self.access_points[pool] = AccessPoint(pool.schedd, pool.collector) if pool else AccessPoint()
        return self.access_points[pool]

    def of_entry(self, name: str) -> Queue:
        """Where an entry's glideins are queued."""
        return self._at(self._entry(name).away)

    @property
    def outer(self) -> list[tuple[Callable[[], Queue], list[str]]]:
        """Other pools that glideins are submitted to, each with the names of the entries there."""
        entries: dict[Pool | Login, list[str]] = {}
        for entry in self.site.entries:
            if entry.away:
                entries.setdefault(entry.away, []).append(entry.name)
        return [(partial(self._at, place), names) for place, names in entries.items()]

    def _at(self, place: Pool | Login | None) -> Queue:
        if not isinstance(place, Login):
            return self.access_point(place)
        remote = access_point_at(place)
        if self.seed:  # we are the factory: what we see there is what we submit by
            remote.claim(self.site.site)
        return remote

    def look(self) -> Snapshot:
        owners = {owner for entry in self.site.entries for owner in entry.owners or ("",)}
        accounts = self.folder / "accounts"
        earlier = set(accounts.read_text("utf-8").split()) if accounts.exists() else set()
        snapshot = take(self.access_point, self.collector, self.outer, owners, earlier=earlier)
        if self.seed and not snapshot.failed:  # we are the factory
            seen = [entry.name for entry in self.site.entries if entry.name not in snapshot.blind]
            names = {self.of_entry(name).user.partition("@")[0] for name in seen}
            if not names <= earlier:
                publish(accounts, "\n".join(sorted(names | earlier)))
        return snapshot

    def apply(self, actions: Iterable[Action], snapshot: Snapshot) -> list[str]:
        """Do what is to be done, and return what HTCondor refused; the next cycle sees what came of it."""
        refused: list[str] = []
        for action in actions:
            with _apart(f"{action.entry}: cannot {action.action}", refused):  # no reason to leave out the others
                self._do(action, snapshot)
        return refused

    def _do(self, action: Action, snapshot: Snapshot) -> None:
        if action.action == "submit":
            (self._bring if action.ids else self._submit)(action, snapshot)
        elif action.action == "remove":
            self._remove(action, snapshot)
        elif action.action == "drain":
            self._remove_jobs(action, action.ids)
        elif action.action == "expunge":
            for glide_id in action.ids:
                self.collector.expunge(f"{Machine.ID} == {quoted(glide_id)}")

    def care(self, snapshot: Snapshot) -> list[str]:
        """What each cycle needs whatever was decided: matches that were forgotten, tokens that age, logs to bring.

        Returns:
            What could not be done, and why.
        """
        refused: list[str] = []
        for entry in self.site.entries:
            if entry.name in snapshot.blind:
                continue
            mine, ended = snapshot.of(entry.name)
            waiting = [glidein for glidein in mine if glidein.status == JobStatus.IDLE]
            with _apart(f"{entry.name}: cannot remind the access point of waiting glideins", refused):
                self._remind(entry, waiting)
            for template in {glidein.template for glidein in waiting}:
                with _apart(f"{entry.name}: cannot renew the token of waiting glideins", refused):
                    self._renew(entry, template, snapshot.now)
            with _apart(f"{entry.name}: cannot fetch the logs of glideins that have ended", refused):
                if entry.away:
                    self._fetch(entry, ended, snapshot.now)
        return refused

    def _remind(self, entry: Entry, waiting: Iterable[Glidein]) -> None:
        late = [glidein.age for glidein in waiting if glidein.age >= REMIND_SECONDS]
        if any(age % REMIND_SECONDS < self.site.interval + 1 for age in late):
            idle = f"{Job.ENTRY} == {quoted(entry.name)} && JobStatus == {JobStatus.IDLE}"
            self.of_entry(entry.name).reconsider(idle, 0)

    def _renew(self, entry: Entry, template: str, now: float) -> None:
        left = tokens.seconds_left(self._folder(entry, template) / "token", now)
        if left is not None and left < entry.lifetime * (1 + SPREAD) + TOKEN_SECONDS / 2:
            self._mint(entry, template)
            if entry.ssh:
                access_point_at(entry.ssh).send(self._folder(entry, template))

    def _entry(self, name: str) -> Entry:
        return next(entry for entry in self.site.entries if entry.name == name)

    def _folder(self, entry: Entry, template: str) -> Path:
        return entry_folder(self.folder, entry.name, template)

    def _remove(self, action: Action, snapshot: Snapshot) -> None:
        """Take glideins down, but for those of which a lane has been claimed since we looked."""
        names = {glidein.job: glidein.glide_id for glidein in snapshot.of(action.entry)[0]}
        claimed = f'State == "Claimed" && {Machine.ID}'
        ids = [job for job in action.ids if not self.collector.lanes(["Name"], f"{claimed} == {quoted(names[job])}")]
        self._remove_jobs(action, ids)

    def _remove_jobs(self, action: Action, jobs: Sequence[str]) -> None:
        for some in _batches(jobs):
            self.of_entry(action.entry).remove(any_of(some), f"glide factory: {action.reason}")

    def _submit(self, action: Action, snapshot: Snapshot) -> None:
        entry = self._entry(action.entry)
        template = snapshot.template(action.template)
        if template is None and action.template:
            return
        folder = self._prepare(entry, template, snapshot)
        request = entry.request
        python = entry.python or f"{sys.executable}:python3"
        macros = {
            "folder": str(folder), "python": in_environment(python).replace("$", "$(DOLLAR)"), "entry": entry.name,
            "cpus": str(request.cpus), "gpus": str(request.gpus), "memory": f"{request.memory}MB",
            "disk": f"{request.disk}MB", "queue_seconds": str(QUEUE_SECONDS),
            "keep_seconds": str(int(max(KEEP_SECONDS, 2 * entry.breaker.backoff_seconds))),
            "node_requirements": _requirements(entry, action.avoid), "node_rank": _rank(action.prefer, action.last),
            "digest": action.template, "model": template.model if template else "",
        }  # fmt: skip
        macros |= {"gpus_minimum_memory": str(request.gpu_memory)} if request.gpu_memory else {}
        macros |= {"container_image": entry.container} if entry.container else {}
        if entry.container and entry.container.startswith("/"):  # an image that travels
            macros["reachable"] = f"$(folder),$(bundle),{Path(entry.container).parent}"
        text = resources.find("submit_templates", "glidein.sub").read_text("utf-8")
        # Another pool's access point has no files of ours but those that are sent to it, and keeps no streams for us.
        # Nor is a token there renewed: it must not wait longer than that is good for, its earlier lives included.
        away = {"stream_output": "false", "stream_error": "false", "waits_since": "QDate"}
        macros |= {**away, "queue_seconds": str(TOKEN_SECONDS)} if entry.pool else {}
        self.of_entry(entry.name).submit(f"{text}\nqueue {action.count}\n", macros, spool=entry.away is not None)

    def _bring(self, action: Action, snapshot: Snapshot) -> None:
        """Sticky jobs that have lanes of glideins which are there load a template."""
        template = snapshot.template(action.template)
        if template is None:
            return
        folder = entry_folder(self.folder, action.entry, template.digest)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        template = self._as_there(self._entry(action.entry), template)
        publish(folder / "template.json", template.to_json())
        description = resources.find("submit_templates", "sticky.sub").read_text("utf-8").rsplit("\nqueue", 1)[0]
        macros = {
            "initialdir": str(folder), "template": "template.json", "model": template.model,
            "megabytes": str(int(template.megabytes)), "requirements": f'TARGET.Name == "$(lane)" && {STICKABLE}',
            f"My.{Job.BRINGS}": quoted(template.digest), f"My.{Job.LANE}": '"$(lane)"',
            # What does not get its lane, or has failed, is held: it is not tried again until that is forgotten.
            "periodic_hold": f"JobStatus == {JobStatus.IDLE} && time() - EnteredCurrentStatus > {MOVE_SECONDS}",
            "periodic_hold_reason": quoted("the lane was not to be had"),
            "periodic_remove": f"JobStatus == {JobStatus.HELD} && time() - EnteredCurrentStatus > {FORGET_SECONDS}",
            # Until the lane's ad says what it has now.
            "leave_in_queue": f"JobStatus == {JobStatus.COMPLETED} && time() - CompletionDate < {SETTLE_SECONDS}",
        }  # fmt: skip
        self.access_point().submit(description, macros, [{"lane": name} for name in action.ids], spool=True)

    def _prepare(self, entry: Entry, template: Template | None, snapshot: Snapshot) -> Path:
        """Write the files that the glideins of an entry and template start from; blank ones have none."""
        template = template and self._as_there(entry, template)
        digest = template.digest if template else ""
        folder = self._folder(entry, digest)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        used = {glidein.template for glidein in (*snapshot.glideins, *snapshot.ended)}
        tidy(folder.parent, {folder, *(self._folder(entry, each) for each in used)}, snapshot.now - LOG_SECONDS)
        release, archive = self._condor(entry)
        settings = Settings(
            entry=entry.name, site=self.site.site, collector=self.collector.address, trust_domain=_trust_domain(),
            owners=owners(entry, snapshot), factory=snapshot.user, template=template, lanes=entry.lanes,
            memory=entry.request.model_memory, condor=release, bundle=archive,
            environment=self._parcel(entry.environment),
            idle_seconds=entry.idle_seconds if template else entry.lifetime, lifetime=entry.lifetime,
            cache=entry.cache.folder, cache_gigabytes=entry.cache.gigabytes,
            upload_megabytes=entry.cache.upload_megabytes, users_code=entry.users_code, knobs=entry.knobs,
        )  # fmt: skip
        self._mint(entry, digest)
        publish(folder / "glidein.json", settings.to_json())
        if not entry.ssh:  # behind a login host they start from what is deployed there
            for name, content in bundle.start().items():
                publish(folder / name, content, 0o700)
        return folder

    def _as_there(self, entry: Entry, template: Template) -> Template:
        """The template as the entry's glideins have it, with the key to its files at their peers."""
        if entry.service:
            return replace(template, service=entry.service.options, key="", seed="")
        files, environment = self._sendable(template.parcel), template.environment
        return replace(
            template, key=files.key, seed=files.seed, environment=environment and self._sendable(environment)
        )

    def _condor(self, entry: Entry) -> tuple[str | None, Parcel | None]:
        """HTCondor's release folder on an entry's nodes, and what brings it to those that have none there."""
        if entry.condor is None:
            archive = install.bundle()
            return _private_condor(), self._parcel(str(archive)) if archive else None
        return (None, self._parcel(entry.condor)) if is_archive(entry.condor) else (entry.condor, None)

    def _parcel(self, name: str | None) -> Parcel | None:
        """What an archive, an image or a folder of a site file is to nodes; CondorError when it is none of these."""
        if name is None:
            return None
        try:
            here = Path(name).stat() if Path(name).is_file() else None
            return self._sendable(_described(name, here and (here.st_mtime_ns, here.st_size, here.st_ino)))
        except (OSError, ValueError) as error:
            raise CondorError(str(error)) from None

    def _sendable(self, parcel: Parcel) -> Parcel:
        """With the key to its files at those who have them, and where this access point gives them."""
        parcel = replace(parcel, key=key_to(parcel, self.folder), seed="")  # whatever its description says
        here = parcel.files and parcel.path.startswith("/")
        return replace(parcel, seed=self.seed.offer(parcel)) if self.seed and here else parcel

    def _mint(self, entry: Entry, template: str) -> None:
        """A token for glideins of this entry: named after it, so that it can be revoked without the others'."""
        path = self._folder(entry, template) / "token"
        identity = f"{IDENTITY}{entry.name}@{_trust_domain()}"
        lifetime = int(entry.lifetime * (1 + SPREAD)) + TOKEN_SECONDS
        tokens.mint(path, identity, ("ADVERTISE_STARTD", "ADVERTISE_MASTER"), lifetime)

    def _fetch(self, entry: Entry, ended: Iterable[Glidein], now: float) -> None:
        """Bring the last words of glideins that have ended in another place's queue."""
        missing: dict[str, Path] = {}
        for each in ended:
            path = self._folder(entry, each.template) / f"{each.job}.out"
            is_old = not path.exists() or path.stat().st_mtime < now - each.age  # somebody asked while it ran
            if path.parent.exists() and is_old:
                missing[each.job] = path
        for some in _batches(list(missing)):
            try:
                self.of_entry(entry.name).retrieve(any_of(some))
            except LinkError:
                return  # another time
            except CondorError:
                pass  # one that had no time for logs is reported after bringing the others'
            for job in some:
                missing[job].touch()  # asked once; there may be none


@contextmanager
def _apart(what: str, refused: list[str]) -> Iterator[None]:
    """Note why something failed, and go on: HTCondor refuses it, a disk is full, or glide itself is wrong."""
    try:
        yield
    except (CondorError, OSError) as error:  # a full disk, or a process that cannot be started, is no mistake in glide
        refused.append(f"{what}: {error}")
    except Exception as error:
        traceback.print_exc()
        refused.append(f"{what}: {mistake(error)}")


def _batches(jobs: Sequence[str]) -> list[Sequence[str]]:
    """Jobs in portions whose names fit into a command line."""
    return [jobs[start : start + BATCH] for start in range(0, len(jobs), BATCH)]


@lru_cache(64)
def _described(name: str, looks: tuple[int, int, int] | None) -> Parcel:
    """A file is read in full for this, so once for as long as it looks the same."""
    return environment(name, Path("/"))


def _trust_domain() -> str:
    return parameter("TRUST_DOMAIN") or ""


def _requirements(entry: Entry, avoid: Iterable[str]) -> str:
    bad = ", ".join(map(quoted, avoid))
    return f"({entry.requirements}) && !member(TARGET.Machine, {{{bad}}})" if bad else entry.requirements


def _rank(prefer: Iterable[str], last: Iterable[str]) -> str:
    """The nodes that are preferred before all others, and those that come after all others."""
    good, bad = (", ".join(map(quoted, nodes)) for nodes in (prefer, last))
    ranks = [f"ifThenElse(member(TARGET.Machine, {{{good}}}) =?= true, 1, 0)"] if good else []
    ranks += [f"ifThenElse(member(TARGET.Machine, {{{bad}}}) =?= true, -1, 0)"] if bad else []
    return " + ".join(ranks) or "0"


def _private_condor() -> str | None:
    """The release folder of glide's private HTCondor, if that is the one in use here."""
    found = install.find()
    return str(found.release_dir) if found and found.is_private else None
