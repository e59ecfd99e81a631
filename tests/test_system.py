"""Processes that end with the process that started them, and folders that change while they are read."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

from glide.system import files_below
from tests.conftest import eventually
from tests.processes import processes_with


def test_files_are_listed_although_folders_vanish_meanwhile(tmp_path):
    for name in "abc":
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    found = files_below(tmp_path)
    first = next(found)
    for name in {"a", "b", "c"} - set(first.parts):
        shutil.rmtree(tmp_path / name)
    assert [first, *found] == [first] and first.name == "file"


# The factory is killed as soon as the seed's process exists, so before the seed runs any of its own code.
KILLED_FACTORY = """
import os, signal, sys, time
from pathlib import Path
from glide.factory.seed import Seed
from glide.template import FileSet

time.sleep = lambda seconds: os.kill(os.getpid(), signal.SIGKILL)
Seed(Path(sys.argv[1]), "127.0.0.1").offer(FileSet("/nowhere"))
"""


# A forked child keeps its parent's handler of SIGTERM until it runs another program.
FORK = """
import os, signal
from glide.system import end_with_parent

signal.signal(signal.SIGTERM, lambda *_: None)
child = os.fork()
if not child:
    end_with_parent(signal.SIGTERM, parent=1)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_child_of_dead_parent_ends_in_spite_of_a_handler():
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True)
    assert done.stdout.strip() == str(-signal.SIGTERM), done.stderr


def test_seed_ends_if_its_factory_is_killed_at_once(tmp_path: Path):
    killed = subprocess.run([sys.executable, "-c", KILLED_FACTORY, str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    eventually(lambda: not processes_with(str(tmp_path)), "the seed has ended", budget=20)
