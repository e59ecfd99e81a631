"""Processes that end with the process that started them, what they keep, and folders that change while being read."""

from __future__ import annotations

import re
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


# Makes tuples that Python keeps after they are freed: of length 20 as names of arguments, and of length 7.
KEPT_TUPLES = """
import sys
from glide import system

system.COLLECT_SECONDS = float(sys.argv[1])
garbage = system.GarbageCollection()
for number in range(1000):
    (lambda **names: None)(**{f"name{each}": each for each in range(20)})
    tuple(each for each in range(7))
garbage.run_if_due()
sys._debugmallocstats()
"""


def test_memory_of_freed_tuples_is_given_back_when_a_collection_is_due():
    def kept(seconds: float) -> int:
        command = [sys.executable, "-c", KEPT_TUPLES, str(seconds)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        return sum(map(int, re.findall(r"(\d+) free (?:7|20)-sized PyTupleObjects", told)))

    assert kept(0) < 20 and (kept(60) > 900 or sys.version_info[:2] > (3, 11))


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
