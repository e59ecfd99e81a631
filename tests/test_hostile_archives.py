"""Archives that somebody made to write elsewhere than where they are unpacked, or to fill the disk; real ones."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest

from glide.files import Cache
from glide.files.elf import PROGRAMS
from glide.files.sources import FolderSource
from glide.files.unpack import LARGEST_HEADER, unpack
from tests.conftest import eventually
from tests.file_trees import fetched, tree, written

SECRET = "untouched"


class Case:
    """A folder to unpack into, and beside it a file that is somebody's."""

    def __init__(self, folder: Path):
        self.folder = folder / "place"
        self.folder.mkdir()
        self.victim = folder / "victim"
        self.victim.write_text(SECRET)
        self.victim.chmod(0o400)
        self.archive = folder / "made.tar.gz"

    def pack(self, *members: tarfile.TarInfo | tuple[str, bytes]) -> Path:
        with tarfile.open(self.archive, "w:gz", compresslevel=1) as packed:
            for each in members:
                if isinstance(each, tuple):
                    mode = 0o755 if each[0].startswith("bin/") else 0o644
                    packed.addfile(member(each[0], size=len(each[1]), mode=mode), io.BytesIO(each[1]))
                else:
                    packed.addfile(each)
        return self.archive

    def unpack(self, *members: tarfile.TarInfo | tuple[str, bytes]) -> None:
        unpack(self.pack(*members), self.folder, lambda taken, more: None)

    def unharmed(self) -> bool:
        status = self.victim.stat()
        return self.victim.read_text() == SECRET and status.st_mode & 0o777 == 0o400 and status.st_nlink == 1


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0, mode: int = 0o644
) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size, made.mode, made.mtime = kind, link, size, mode, 1e9
    return made


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([member("a", tarfile.LNKTYPE, "../victim"), ("a", b"x")], "outside"),
        ([member("d", tarfile.DIRTYPE), member("d/a", tarfile.LNKTYPE, "d/../../victim"), ("d/a", b"x")], "outside"),
        ([member("d", tarfile.SYMTYPE, ".."), ("d/victim", b"x")], "that is a link"),
        ([member("d", tarfile.SYMTYPE, ".."), member("a", tarfile.LNKTYPE, "d/victim"), ("a", b"x")], "that is a link"),
        ([member("d", tarfile.SYMTYPE, ".."), member("d/victim", tarfile.DIRTYPE)], "that is a link"),
        ([("../victim", b"x")], "outside"),
        ([("a/../../victim", b"x")], "outside"),
        ([member("a", tarfile.FIFOTYPE)], "neither a file"),
        ([member("a", tarfile.CHRTYPE)], "neither a file"),
        ([member("a", size=1 << 40)], "exceed"),
        ([member("a", tarfile.XHDTYPE, size=LARGEST_HEADER + 1)], "a header in it is longer than"),
        ([member("a", tarfile.GNUTYPE_LONGNAME, size=LARGEST_HEADER + 1)], "a header in it is longer than"),
        ([member("a", tarfile.XHDTYPE)] * 3000, "recursion"),
        ([member("a", tarfile.LNKTYPE, "nothing")], "No such file"),
    ],
)  # fmt: skip
def test_malicious_archive_is_refused_and_harms_nothing(case, members, why):
    with pytest.raises(OSError, match=why):
        case.unpack(*members)
    assert case.unharmed()


def test_later_archive_entry_replaces_link_of_same_name(case):
    case.unpack(
        member("a", tarfile.SYMTYPE, str(case.victim)), ("a", b"mine"),
        ("b", b"one"), member("c", tarfile.LNKTYPE, "b"), ("c", b"two"),
        member(str(case.victim), mode=0o4777), member("d", tarfile.SYMTYPE, str(case.victim)),
        member("e", tarfile.DIRTYPE, mode=0), ("e/f", b"in it"), ("e/f", b"again"),
        member("e", tarfile.DIRTYPE, mode=0o555),
    )  # fmt: skip
    assert case.unharmed()
    names = {"a": "mine", "b": "one", "c": "two", "d": SECRET, "e/f": "again"}
    assert {name: (case.folder / name).read_text() for name in names} == names
    inside = case.folder / str(case.victim).lstrip("/")
    assert inside.stat().st_mode & 0o7777 == 0o777 and inside.stat().st_mtime == 1e9
    assert (case.folder / "e").stat().st_mode & 0o777 == 0o755


def test_glide_does_not_write_through_links_in_archive(case, tmp_path):
    """Its own notes, and programs that are told where their loader is."""
    program = shutil.copy("/bin/true", tmp_path / "program")
    before = Path(program).read_bytes()
    cache = Cache(tmp_path / "cache")
    listed = f"loader\n{program}\n../../../../program\nlink/program\nalias\n".encode()
    archive = case.pack(
        member(".glide-bytes", tarfile.SYMTYPE, str(case.victim)), ("x", b"x"), (PROGRAMS, listed), ("loader", b""),
        member("link", tarfile.SYMTYPE, str(tmp_path)), member("alias", tarfile.SYMTYPE, str(program)),
    )  # fmt: skip
    folder = cache.unpack("0" * 64, archive)
    assert case.unharmed() and Path(program).read_bytes() == before
    assert (folder / ".glide-bytes").read_text() == str(1 + len(listed))
    endless = case.pack(member(PROGRAMS, tarfile.SYMTYPE, "/dev/zero"))
    with pytest.raises(OSError, match="no regular file"):
        cache.unpack("1" * 64, endless)


@pytest.mark.parametrize("honest", [False, True])
def test_archive_bomb_evicts_no_other_model(case, tmp_path, monkeypatch, honest):
    monkeypatch.setattr("glide.files.unpack.LEAST", 8 << 20)
    other = written(tmp_path / "other", {"file": 4 << 20})
    cache = Cache(tmp_path / "cache", limit=16 << 20)
    fetched(cache, tree(other), FolderSource(other))
    names = [(f"{number}", bytes(1 << 20) if number else os.urandom(1 << 18)) for number in range(7 if honest else 60)]
    archive, place = case.pack(*names), cache.tree_folder(tree(other))
    assert place
    if honest:
        monkeypatch.setattr("glide.files.unpack.STEP", 1 << 20)
        with cache.in_use("0" * 64):
            assert (cache.unpack("0" * 64, archive) / "6").stat().st_size == 1 << 20
    else:
        with pytest.raises(OSError, match=r"unpacked files exceed 1\d MB"):
            cache.unpack("0" * 64, archive)
        assert not list((cache.folder / "trees").glob("*.files"))
    assert cache.tree_folder(tree(other)) == place


def test_program_from_archive_has_time_limit(case, monkeypatch):
    monkeypatch.setattr("glide.files.unpack.CONDA_SECONDS", 0.5)
    script = f"#!/bin/sh\nsleep 1000 & echo $! >{case.folder}/pid; sleep 1000\n".encode()
    with pytest.raises(OSError, match="python has not ended in"):
        case.unpack(("bin/conda-unpack", b""), ("x", b""), ("bin/python", script))
    child = int((case.folder / "pid").read_text())
    eventually(lambda: not running(child), "its child's end")


def running(process: int) -> bool:
    """Whether there is such a process, and it is not a zombie."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
