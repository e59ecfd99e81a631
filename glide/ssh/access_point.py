"""Use an access point behind a login host. HTCondor's commands run on that host, over one SSH connection.

If the connection breaks during a submission, condor_submit may still be running on the host, or may start there later.
If a query missed the jobs of this submission, the factory would submit the same jobs again. Two measures prevent this:
- A command that changes the queue holds an exclusive lock on the host. A query waits until the lock is free.
- A file on the host contains a random text, the fence token. Each submission contains a copy of the fence token. If the
  copy differs from the text in the file, condor_submit does not run. The factory writes a new fence token at its start,
  and after each broken connection.
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
from glide.ssh.link import SshError, SshLink
from glide.vocabulary import Job, Machine

INPUTS = ("glidein.json", "token")  # names of a glidein's input files; start.sh and glide.zip are left out
LOG_DAYS = 7  # the output of glideins is deleted from the host after this time, in days
LARGEST_LOG = 1_000_000  # maximum number of bytes that are retrieved from the end of a glidein's output
SUMS = "SHA256SUMS"
TIMED_OUT = 124  # exit code of the program `timeout` if the time limit is over
# OUTPUT matches the paths of glideins' outputs: SITE/ENTRY/TEMPLATE/cluster.proc. A folder name must not begin with
# a dot, so a path with `..` does not match.
OUTPUT = re.compile(r"(?:[A-Za-z0-9][\w.-]*/){3}\d{1,10}\.\d{1,10}", re.ASCII)
ENTER = 'set -e; umask 077; mkdir -p "$0"; cd "$0"'


class RemoteAccessPoint:
    """An access point behind a login host. Its methods are similar to those of glide.condor.AccessPoint.

    On the host, the folder `login.folder` contains glide's files:
    - bundles/VERSION contains one version of glide's code: the files start.sh and glide.zip.
    - SITE/ENTRY/TEMPLATE contains the other input files of glideins (INPUTS), and the output of glideins.

    On this machine, these input files and the output are in the folder GLIDE_HOME/factory/SITE/ENTRY/TEMPLATE.
    """

    def __init__(self, login: Login):
        self.login = login
        self.link = SshLink(login)
        self._user = ""
        self._fence_tokens: dict[str, str] = {}  # a dict from site to the token that `fence` wrote

    # ---- jobs --------------------------------------------------------------------------------------

    @property
    def user(self) -> str:
        """This account's name at the access point, as User@UidDomain."""
        if not self._user:
            output = self._tool("condor_ping", "-type", "SCHEDD", "-af", "MyRemoteUserName", "WRITE")
            if not (found := re.search(r"\S+@\S+", output)):
                raise CondorError(f"{self.login.name}: condor_ping does not print a user name: {output.strip()!r}")
            self._user = found[0]
        return self._user

    def fence(self, site: str) -> None:
        """Some earlier submissions of a site may not have reached the queue yet. Stop them, so that they add no jobs.

        Raises:
            CondorError: the host does not answer, or its access point has changed since earlier glideins were
                submitted. The access point may change if one host name leads to several hosts with different queues.
        """
        if site in self._fence_tokens:
            return
        token = secrets.token_hex(8)
        script = (
            'cd "$0"; here=$(condor_config_val SCHEDD_HOST 2>/dev/null || hostname);'
            ' [ -s access_point ] || echo "$here" >access_point; echo "$here"; cat access_point; echo "$2" >"word.$1"'
        )
        words = self._locked("-x", "sh", "-c", script, self._base, site, token).split()
        if len(words) < 2:
            raise CondorError(f"{self.login.name}: the host prints no name of its access point: {' '.join(words)!r}")
        here, before = words[-2:]
        if here != before and not self.login.schedd:
            raise CondorError(
                f"{self.login.name}: the access point is now {here}, but glideins were submitted at {before}; set"
                " `schedd` in the site's configuration, or set `host` to the name of a single host; if"
                f" {before} no longer exists, delete the file {self._base}/access_point on the login host"
            )
        self._fence_tokens[site] = token

    def submit(self, description: str, macros: Mapping[str, str], spool: bool = True) -> int:
        """Submit one cluster of glideins, and return the cluster's number.

        Args:
            description: the text of a job file.
            macros: a dict from macro name to value. These values replace the values that the description
                gives. The macro `folder` is required. Its value is the path of a folder on this machine. The folder
                contains the glideins' input files (INPUTS).
            spool: ignored. The parameter exists because AccessPoint.submit has it, too.

        Raises:
            CondorError: HTCondor refuses the job, or the connection broke. After a broken connection, it is unknown
                whether the job was submitted.
        """
        local = Path(macros["folder"])
        version = self.deploy()
        remote = self.send(local)
        folders = {"folder": remote, "bundle": f"{self._base}/bundles/{version}"}
        text, _, queue = description.rstrip().rpartition("\nqueue")
        lines = [job_file_line(name, value) for name, value in {**macros, **folders}.items()]
        site = local.relative_to(home() / "factory").parts[0]
        self.fence(site)
        check = '[ "$(cat "$0")" = "$1" ] || { echo "another factory has begun to submit here" >&2; exit 1; }'
        fence = ("sh", "-c", f'{check}; shift; "$@"', f"{self._base}/word.{site}", self._fence_tokens[site])
        description = "\n".join([text, *lines, f"queue{queue}\n"])
        output = self._tool("condor_submit", "-terse", changes=True, stdin=description.encode(), fence=fence)
        if not (found := re.search(r"^(\d+)\.", output, re.MULTILINE)):
            raise CondorError(f"{self.login.name}: condor_submit prints no cluster: {output.strip()!r}")
        return int(found[1])

    def jobs(self, constraint: str, attributes: Iterable[str], limit: int = -1) -> list[dict[str, Any]]:
        """Return attributes of each job that a constraint selects. Attributes that a job does not define are left out.

        Args:
            attributes: names of the attributes to return.
            limit: maximum number of jobs; -1: no maximum.
        """
        wanted = sorted({*attributes, "JobStatus", "HoldReasonCode", "EnteredCurrentStatus", "ServerTime"})
        most = ("-limit", str(limit)) if limit >= 0 else ()
        output = self._tool(
            "condor_q", "-allusers", "-json", "-attributes", ",".join(wanted), "-constraint", constraint, *most
        )
        return self._parse_ads("condor_q", output)

    def slots(self, attributes: Collection[str]) -> list[dict[str, Any]]:
        """Return attributes of the slots in the host's pool. Leave out lanes, and leave out undefined attributes."""
        words = ("-json", "-attributes", ",".join(attributes), "-constraint", f"{Machine.ID} =?= undefined")
        ads = self._parse_ads("condor_status", self.shell(join(["condor_status", *words])))
        # Attribute names are not case-sensitive, so nodes may spell them differently. Use the spelling in `attributes`.
        spelling = {name.lower(): name for name in attributes}
        return [{spelling.get(name.lower(), name): value for name, value in ad.items()} for ad in ads]

    def remove(self, constraint: str, reason: str) -> int:
        """Remove the jobs that a constraint selects, and return the number of removed jobs."""
        count = len(self.jobs(constraint, ["ClusterId"]))
        if count:
            # The account's login shell may be a C shell. A C shell fails on a `!` or a line break in the text `reason`.
            reason = " ".join(reason.replace("!", ".").split())
            self._tool("condor_rm", "-constraint", constraint, "-reason", reason, changes=True)
        return count

    def reconsider(self, constraint: str, priority: int) -> None:
        """Set the priority of idle jobs, so that the schedd negotiates for these jobs again. Ignore errors."""
        with suppress(CondorError):
            self._tool("condor_qedit", "-constraint", constraint, "JobPrio", str(priority), changes=True)

    def retrieve(self, constraint: str) -> None:
        """Copy the output and error files of glideins to the folders of these glideins on this machine.

        Only the last LARGEST_LOG bytes of each file are copied. The constraint selects the jobs of the glideins.
        """
        places = []
        for job in self.jobs(constraint, ["ClusterId", "ProcId", "Iwd", "User"]):
            # Iwd is not trusted, because the user or the code of a job can change it. So the path must match OUTPUT.
            folder = str(job.get("Iwd")).removeprefix(f"{self._base}/")
            name = f"{folder}/{job.get('ClusterId')}.{job.get('ProcId')}"
            if job.get("User") == self.user and OUTPUT.fullmatch(name):
                places += [f"{name}.out", f"{name}.err"]
        script = f'for name; do [ -f "$name" ] && echo "= $name" && tail -c {LARGEST_LOG} "$name" | base64; done; true'
        output = self.shell(f'cd "$0"; {script}', self._base, *places) if places else ""
        # In the output, a line `= NAME` comes before the base64 data of each file. base64 data never contains `= `.
        for text in output.split("= ")[1:]:
            name, _, content = text.partition("\n")
            if name in places:
                path = home() / "factory" / name
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                try:
                    path.write_bytes(base64.b64decode(content))
                except ValueError:
                    raise CondorError(f"{self.login.name}: {name} did not arrive as base64: {content[:80]!r}") from None

    # ---- files on the host -------------------------------------------------------------------------

    def send(self, folder: Path) -> str:
        """Copy the input files of glideins from a folder on this machine to the corresponding folder on the host.

        In the host's folder, delete glideins' output that is older than LOG_DAYS. Return the path of this folder.
        """
        remote = f"{self._base}/{folder.relative_to(home() / 'factory').as_posix()}"
        old = " -o ".join(f"-name '{pattern}'" for pattern in ("*.out", "*.err", "*.logs", ".new.*"))
        tidy = f"find . -maxdepth 1 -mtime +{LOG_DAYS} \\( {old} \\) -exec rm -rf {{}} +"
        self._write_files(remote, {name: (folder / name).read_bytes() for name in INPUTS}, tidy)
        return remote

    def deploy(self) -> str:
        """Make sure that the host has this version of glide's code, and return the version's name.

        If the code had to be sent, also delete old versions. Keep old versions that jobs in the queue still use.

        Raises:
            CondorError: the code on the host differs from the code that was sent.
        """
        files = bundle.start_files()
        sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items()).encode()
        digest = hashlib.sha256(sums).hexdigest()
        version = f"{metadata.version('glide')}-{digest[:12]}"
        place = f"{self._base}/bundles/{version}"
        if self._bundle_digest(place) != digest:
            self._write_files(place, {**files, SUMS: sums})
            if self._bundle_digest(place) != digest:
                raise CondorError(f"{self.login.name}: {place} does not contain what was sent; is its disk full?")
            self._delete_old_bundles(version)
        return version

    def versions(self) -> list[str]:
        """Return the versions of glide whose code is on the host."""
        return self.shell('mkdir -p "$0/bundles"; ls "$0/bundles"', self._base).split()

    def _bundle_digest(self, place: str) -> str:
        """Return the sha256 of the file SHA256SUMS in a folder on the host.

        SHA256SUMS lists the sha256 of all other files there. If a file is missing or damaged, return an empty text.
        """
        output = self.shell(f'cd "$0" 2>/dev/null && sha256sum --quiet -c {SUMS} && sha256sum {SUMS} || true', place)
        return output.split()[-2] if output.endswith(f" {SUMS}\n") else ""

    def _delete_old_bundles(self, version: str) -> None:
        """Delete old versions of glide's code from the host. Keep `version`, and each version that a job uses."""
        jobs = self.jobs(f"{Job.ENTRY} =!= undefined", ["Cmd"])
        used = {PurePosixPath(str(job.get("Cmd"))).parent.name for job in jobs} | {version}
        if old := [f"{self._base}/bundles/{each}" for each in self.versions() if each not in used]:
            self.shell('rm -rf "$0" "$@"', *old)

    def _write_files(self, folder: str, files: Mapping[str, bytes], then: str = "true") -> None:
        """Write files to a folder on the host. Only the owner can read the files.

        A program on the host sees either the old file or the complete new file.

        Args:
            folder: path of the folder. The folder is created if it does not exist.
            files: a dict from file name to content.
            then: shell command that runs in the folder after all files are written.
        """
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
        """The absolute path of glide's folder on the host. The folder is created if it does not exist."""
        lines = self.shell(f"{ENTER}; pwd -P", self.login.folder).splitlines()
        if not lines or not lines[-1].startswith("/"):  # a login shell may print a greeting before the path
            raise CondorError(f"{self.login.name}: no folder {self.login.folder} on the host: {' '.join(lines)!r}")
        return lines[-1]

    # ---- commands on the host ----------------------------------------------------------------------

    def shell(self, script: str, *arguments: str, stdin: bytes = b"") -> str:
        """Run a script with `sh` on the host, and return the script's output. The account may have any login shell.

        Args:
            arguments: the values of `$0`, `$1`, … in the script.
            stdin: standard input of the script.

        Raises:
            CondorError: the exit code is not 0, or the connection broke.
        """
        return self._run(["sh", "-c", script, *arguments], stdin)

    def _tool(
        self, name: str, *arguments: str, changes: bool = False, stdin: bytes = b"", fence: Sequence[str] = ()
    ) -> str:
        """Run one of HTCondor's commands on the host under the lock, and return the command's output.

        Args:
            changes: whether the command changes the queue. If it does, the lock is exclusive. If not, it is shared.
            fence: a prefix for the command. The prefix contains a token. The host compares this token with the token
                in a file on the host. If the tokens differ, the command does not run. Empty: no token is compared.
        """
        named = ("-name", self.login.schedd) if self.login.schedd else ()
        return self._locked("-x" if changes else "-s", *fence, name, *named, *arguments, stdin=stdin)

    def _locked(self, kind: str, *command: str, stdin: bytes = b"") -> str:
        """Run a command on the host under the lock, and return the command's output.

        Args:
            kind: the option of `flock`: "-x" for an exclusive lock, "-s" for a shared lock.
        """
        # The host ends the command after `budget` seconds. This machine waits 2 s longer for the host's answer.
        budget = str(max(1, int(self.login.seconds) - 2))
        try:
            return self._run(["timeout", budget, "flock", kind, f"{self._base}/lock", *command], stdin)
        except SshError:
            # The host may still start the command. If the fence token on the host changes, a late submission
            # submits nothing. So forget the fence tokens here. Then the next call of `fence` changes the fence
            # token on the host.
            self._fence_tokens.clear()
            raise

    def _parse_ads(self, name: str, output: str) -> list[dict[str, Any]]:
        """Return the ads in the JSON output of a command. `name`, the command's name, is used in error messages."""
        try:
            return [dict(ad) for ad in json.loads(output or "[]")]
        except (ValueError, TypeError):
            raise CondorError(f"{self.login.name}: {name} does not print JSON: {output[:80]!r}") from None

    def _run(self, command: Sequence[str], stdin: bytes = b"") -> str:
        result = self.link.run(join(command), stdin)
        if result.code != 0:
            self.__dict__.pop("_base", None)  # if glide's folder was deleted, the next call must create it again
            late = f"no answer within {command[1]} s, or another command holds the lock on the host"
            raise CondorError(f"{self.login.name}: {late if result.code == TIMED_OUT else result.last_line}")
        return result.output


def job_file_line(name: str, value: str) -> str:
    """Return the line of a job file that sets `name` to `value`.

    Raises:
        CondorError: the value contains a control character or ends with a backslash. Such a value could change other
            lines of the job file.
    """
    if re.search(r"[\x00-\x1f\x7f]", value) or value.endswith("\\"):
        raise CondorError(f"{name}: this value contains a control character, or ends with a backslash: {value!r:.200}")
    return f"{name} = {value}"


@cache
def access_point_at(login: Login) -> RemoteAccessPoint:
    """Return the access point behind a login host.

    Calls with the same login return the same object, and so share one connection. A new connection takes long to open.
    """
    return RemoteAccessPoint(login)
