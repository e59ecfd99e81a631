"""An access point that only its login host reaches, by HTCondor's own commands there, over one connection.

What changes something there holds a lock that what looks waits for: a submission whose connection was cut may be still
under way, and who does not see it submits again. One that has not come as far as the lock is fenced off: a factory
writes a word there before it looks, and what was begun under an earlier word submits nothing.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import secrets
import tarfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path, PurePosixPath
from shlex import join
from typing import Any

from glide.condor import home
from glide.config import Login
from glide.errors import CondorError
from glide.glidein import bundle
from glide.ssh.link import Link, LinkError
from glide.vocabulary import Job, Machine

INPUTS = ("glidein.json", "token")  # of glideins, beside what the bundle has
LOG_DAYS = 7
LARGEST_LOG = 1_000_000  # bytes of a glidein's output that are brought here
SUMS = "SHA256SUMS"
TIMED_OUT = 124  # what `timeout` says of a command
# The output of a glidein, in the folder of its site, entry and template: no name of it begins with a dot.
OUTPUT = re.compile(r"(?:[A-Za-z0-9][\w.-]*/){3}\d{1,10}\.\d{1,10}", re.ASCII)
ENTER = 'set -e; umask 077; mkdir -p "$0"; cd "$0"'


class RemoteAccessPoint:
    """Like glide.condor.AccessPoint, for one that is reached through a login host.

    There, `folder` of the login holds `bundles/VERSION` with what all glideins start from, and SITE/ENTRY/TEMPLATE
    with what some of them start from and what they say, as the factory's own folder here.
    """

    def __init__(self, login: Login):
        self.login = login
        self.link = Link(login)
        self._user = ""
        self._words: dict[str, str] = {}  # by site

    # ---- what the factory does at an access point --------------------------------------------------

    @property
    def user(self) -> str:
        """Who we are to this access point, as User@UidDomain."""
        if not self._user:
            said = self._tool("condor_ping", "-type", "SCHEDD", "-af", "MyRemoteUserName", "WRITE")
            if not (found := re.search(r"\S+@\S+", said)):
                raise CondorError(f"{self.login.name}: condor_ping does not say who we are: {said.strip()!r}")
            self._user = found[0]
        return self._user

    def claim(self, site: str) -> None:
        """See to it that nothing is under way of what was submitted for a site before.

        Raises:
            CondorError: that is not known, or this is another access point than before: a name may stand for several
                hosts, each with a queue of its own.
        """
        if site in self._words:
            return
        word = secrets.token_hex(8)
        script = (
            'cd "$0"; here=$(condor_config_val SCHEDD_HOST 2>/dev/null || hostname);'
            ' [ -s access_point ] || echo "$here" >access_point; echo "$here"; cat access_point; echo "$2" >"word.$1"'
        )
        said = self._locked("-x", "sh", "-c", script, self._base, site, word).split()
        if len(said) < 2:
            raise CondorError(f"{self.login.name}: it does not say which access point it is: {' '.join(said)!r}")
        here, before = said[-2:]
        if here != before and not self.login.schedd:
            raise CondorError(
                f"{self.login.name}: this is {here}, and glideins were submitted at {before}; name `schedd`, or one"
                f" host; or, if that one is no more, remove {self._base}/access_point"
            )
        self._words[site] = word

    def submit(self, description: str, macros: Mapping[str, str], spool: bool = True) -> int:
        """Submit a job file's text, whose macro `folder` is the folder here with the glideins' own files.

        Args:
            macros: set over what the description says.
            spool: as for other access points: here, there is no other way.

        Raises:
            CondorError: it is refused, or nobody knows, as the connection broke.
        """
        local = Path(macros["folder"])
        version = self.deploy()
        remote = self.send(local)
        folders = {"folder": remote, "bundle": f"{self._base}/bundles/{version}"}
        text, _, queue = description.rstrip().rpartition("\nqueue")
        lines = [job_file_line(name, value) for name, value in {**macros, **folders}.items()]
        site = local.relative_to(home() / "factory").parts[0]
        self.claim(site)
        check = '[ "$(cat "$0")" = "$1" ] || { echo "another factory has begun to submit here" >&2; exit 1; }'
        fence = ("sh", "-c", f'{check}; shift; "$@"', f"{self._base}/word.{site}", self._words[site])
        description = "\n".join([text, *lines, f"queue{queue}\n"])
        said = self._tool("condor_submit", "-terse", changes=True, stdin=description.encode(), fence=fence)
        if not (found := re.search(r"^(\d+)\.", said, re.MULTILINE)):
            raise CondorError(f"{self.login.name}: condor_submit says {said.strip()!r}")
        return int(found[1])

    def jobs(self, constraint: str, attributes: Iterable[str], limit: int = -1) -> list[dict[str, Any]]:
        """Jobs in the queue, at most `limit` where that is given, each with those of the attributes it has."""
        wanted = sorted({*attributes, "JobStatus", "HoldReasonCode", "EnteredCurrentStatus", "ServerTime"})
        most = ("-limit", str(limit)) if limit >= 0 else ()
        said = self._tool(
            "condor_q", "-allusers", "-json", "-attributes", ",".join(wanted), "-constraint", constraint, *most
        )
        return self._listed("condor_q", said)

    def nodes(self, attributes: Collection[str]) -> list[dict[str, Any]]:
        """Ads of the slots of its pool, those of glideins not among them, each with those of the attributes it has."""
        words = ("-json", "-attributes", ",".join(attributes), "-constraint", f"{Machine.ID} =?= undefined")
        ads = self._listed("condor_status", self.shell(join(["condor_status", *words])))
        # In ClassAds' names case does not count, and here they come as the nodes write them.
        asked = {name.lower(): name for name in attributes}
        return [{asked.get(name.lower(), name): value for name, value in ad.items()} for ad in ads]

    def remove(self, constraint: str, reason: str) -> int:
        """Remove jobs and return how many there were."""
        count = len(self.jobs(constraint, ["ClusterId"]))
        if count:
            # In one line and without what a C shell takes for a reference to its history.
            reason = " ".join(reason.replace("!", ".").split())
            self._tool("condor_rm", "-constraint", constraint, "-reason", reason, changes=True)
        return count

    def reconsider(self, constraint: str, priority: int) -> None:
        """Have idle jobs negotiated for again, with this priority; that none is left is no error."""
        with suppress(CondorError):
            self._tool("condor_qedit", "-constraint", constraint, "JobPrio", str(priority), changes=True)

    def retrieve(self, constraint: str) -> None:
        """Bring the ends of what glideins have said to the folders here that they were submitted from."""
        places = []
        for job in self.jobs(constraint, ["ClusterId", "ProcId", "Iwd", "User"]):
            # Other users' jobs may say anything of themselves, and so may what runs on a node of its own job.
            folder = str(job.get("Iwd")).removeprefix(f"{self._base}/")
            name = f"{folder}/{job.get('ClusterId')}.{job.get('ProcId')}"
            if job.get("User") == self.user and OUTPUT.fullmatch(name):
                places += [f"{name}.out", f"{name}.err"]
        script = f'for name; do [ -f "$name" ] && echo "= $name" && tail -c {LARGEST_LOG} "$name" | base64; done; true'
        said = self.shell(f'cd "$0"; {script}', self._base, *places) if places else ""
        for text in said.split("= ")[1:]:  # no line of base64 has a space
            name, _, content = text.partition("\n")
            if name in places:
                path = home() / "factory" / name
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                try:
                    path.write_bytes(base64.b64decode(content))
                except ValueError:
                    raise CondorError(f"{self.login.name}: {name} does not come as base64: {content[:80]!r}") from None

    # ---- files there -------------------------------------------------------------------------------

    def send(self, folder: Path) -> str:
        """Send what glideins of a folder start from, and return the folder there; what is long over is deleted."""
        remote = f"{self._base}/{folder.relative_to(home() / 'factory').as_posix()}"
        over = " -o ".join(f"-name '{pattern}'" for pattern in ("*.out", "*.err", "*.logs", ".new.*"))
        tidy = f"find . -maxdepth 1 -mtime +{LOG_DAYS} \\( {over} \\) -exec rm -rf {{}} +"
        self._put(remote, {name: (folder / name).read_bytes() for name in INPUTS}, tidy)
        return remote

    def deploy(self) -> str:
        """Have this version's bundle there, and return the version's name; others go that no job names any more.

        Raises:
            CondorError: what has come is not what was sent.
        """
        files = bundle.start()
        sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items()).encode()
        digest = hashlib.sha256(sums).hexdigest()
        version = f"{metadata.version('glide')}-{digest[:12]}"
        place = f"{self._base}/bundles/{version}"
        if self._verified(place) != digest:
            self._put(place, {**files, SUMS: sums})
            if self._verified(place) != digest:
                raise CondorError(f"{self.login.name}: {place} does not hold what was sent; is its disk full?")
            self._forget(version)
        return version

    def versions(self) -> list[str]:
        """The bundles that are there."""
        return self.shell('mkdir -p "$0/bundles"; ls "$0/bundles"', self._base).split()

    def _verified(self, place: str) -> str:
        """The digest of the sums that a bundle's files have; empty where they have not."""
        said = self.shell(f'cd "$0" 2>/dev/null && sha256sum --quiet -c {SUMS} && sha256sum {SUMS} || true', place)
        return said.split()[-2] if said.endswith(f" {SUMS}\n") else ""

    def _forget(self, version: str) -> None:
        """Delete other bundles, but for those that jobs in the queue are to start from."""
        jobs = self.jobs(f"{Job.ENTRY} =!= undefined", ["Cmd"])
        used = {PurePosixPath(str(job.get("Cmd"))).parent.name for job in jobs} | {version}
        if old := [f"{self._base}/bundles/{each}" for each in self.versions() if each not in used]:
            self.shell('rm -rf "$0" "$@"', *old)

    def _put(self, folder: str, files: Mapping[str, bytes], then: str = "true") -> None:
        """Write files there, each in one step, for its owner alone; then something is done in their folder."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.mtime = int(time.time())
                member.size, member.mode = len(content), 0o700 if name.endswith(".sh") else 0o600
                tar.addfile(member, io.BytesIO(content))
        unpack = 'new=$(mktemp -d .new.XXXXXX); tar -xzf - -C "$new"; mv -f "$new"/* .; rmdir "$new"'
        self.shell(f"{ENTER}; {unpack}; {then}", folder, stdin=archive.getvalue())

    @cached_property
    def _base(self) -> str:
        """The folder of ours there, as a whole path."""
        said = self.shell(f"{ENTER}; pwd -P", self.login.folder).splitlines()
        if not said or not said[-1].startswith("/"):  # shells that greet do so before
            raise CondorError(f"{self.login.name}: no folder {self.login.folder} there: {' '.join(said)!r}")
        return said[-1]

    # ---- commands there ----------------------------------------------------------------------------

    def shell(self, script: str, *arguments: str, stdin: bytes = b"") -> str:
        """Run a line of shell there, whatever shell the account has, and return what it writes; `$0` is first.

        Raises:
            CondorError: it did not end well.
        """
        return self._run(["sh", "-c", script, *arguments], stdin)

    def _tool(
        self, name: str, *arguments: str, changes: bool = False, stdin: bytes = b"", fence: Sequence[str] = ()
    ) -> str:
        """Run one of HTCondor's commands."""
        named = ("-name", self.login.schedd) if self.login.schedd else ()
        return self._locked("-x" if changes else "-s", *fence, name, *named, *arguments, stdin=stdin)

    def _locked(self, kind: str, *command: str, stdin: bytes = b"") -> str:
        """Run a command with the lock; where the connection breaks, nobody knows whether it was run, or will be."""
        # Once it has the lock, the host itself gives up before we do.
        budget = str(max(1, int(self.login.seconds) - 2))
        try:
            return self._run(["timeout", budget, "flock", kind, f"{self._base}/lock", *command], stdin)
        except LinkError:
            self._words.clear()
            raise

    def _listed(self, name: str, said: str) -> list[dict[str, Any]]:
        """The ads that a command has written."""
        try:
            return [dict(ad) for ad in json.loads(said or "[]")]
        except (ValueError, TypeError):
            raise CondorError(f"{self.login.name}: {name} does not write JSON: {said[:80]!r}") from None

    def _run(self, command: Sequence[str], stdin: bytes = b"") -> str:
        said = self.link.run(join(command), stdin)
        if said.code != 0:
            self.__dict__.pop("_base", None)  # it may be gone, and is made anew
            late = f"no answer within {command[1]} s, or another command holds the lock there"
            raise CondorError(f"{self.login.name}: {late if said.code == TIMED_OUT else said.last_words}")
        return said.output


def job_file_line(name: str, value: str) -> str:
    """A line of a job file; CondorError where it would become several, which may say anything."""
    if re.search(r"[\x00-\x1f\x7f]", value) or value.endswith("\\"):
        raise CondorError(f"{name}: a job file cannot have this value in one line: {value!r:.200}")
    return f"{name} = {value}"


@cache
def access_point_at(login: Login) -> RemoteAccessPoint:
    """The access point behind a login host, for as long as this process lives: opening a connection takes a while."""
    return RemoteAccessPoint(login)
