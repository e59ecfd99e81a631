"""A factory that hangs, a daemon that does not answer, a disk that is full: it is noticed, and the rest goes on."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time

import pytest

from glide.arguments import in_environment
from glide.condor import AccessPoint, home
from glide.condor import access_point as access_point_module
from glide.condor.bounded import isolated
from glide.config import SiteFile
from glide.errors import CondorError, InputError
from glide.factory import headroom
from glide.factory.act import apply
from glide.factory.actions import Expunge, Submit
from glide.factory.home import site_folder
from glide.factory.loop import Factory
from glide.factory.plan import plan
from glide.factory.site_client import SiteClient
from glide.factory.snapshot import Snapshot
from glide.factory.watchdog import notify
from glide.template import Template
from tests.conftest import eventually
from tests.snapshots import demand, site

HANGS = """
import ctypes
from glide.factory.watchdog import time_limit
with time_limit(60):
    pass
print("went on", flush=True)
with time_limit(0.5):
    ctypes.PyDLL(None).sleep(600)  # a call that holds Python's lock, as the bindings do
"""


def test_factory_that_hangs_ends_with_stack_trace():
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "went on\n"
    assert "Timeout" in done.stderr and "line 8" in done.stderr


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_factory_notifies_systemd_and_tolerates_missing_socket(tmp_path, monkeypatch, kind):
    address = str(tmp_path / "notify") if kind == "path" else f"@{tmp_path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(address.replace("@", "\0", 1) if kind == "abstract" else address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify("READY=1")
        assert channel.recv(100) == b"READY=1"
    notify("WATCHDOG=1")  # that nobody listens any more is no error
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("WATCHDOG=1")


def test_call_in_child_process_has_time_limit():
    with pytest.raises(CondorError, match="no answer within"):
        isolated(lambda: time.sleep(600), 0.5)
    assert isolated(lambda: isolated(lambda: 7)) == 7
    with pytest.raises(CondorError, match=r"an error in glide: ZeroDivisionError.*test_watchdog\.py:\d+"):
        isolated(lambda: 1 // 0)


def test_failed_fork_raises_condor_error(monkeypatch):
    def no_fork() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", no_fork)
    with pytest.raises(CondorError, match="cannot start a process: Resource temporarily unavailable"):
        isolated(lambda: 7)


@pytest.mark.pool
def test_unanswered_access_point_ping_raises_timeout_error(pool, monkeypatch):
    """A socket that accepts and never answers, as a stopped daemon's."""
    access_point = AccessPoint()
    monkeypatch.setattr(access_point_module, "CALL_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        access_point.location["MyAddress"] = f"<127.0.0.1:{silent.getsockname()[1]}>"
        with pytest.raises(CondorError, match="no answer within 1 s"):
            _ = access_point.user


class Broken(Template):
    """Raises what nobody expects, as a description did that had not been checked."""

    @property
    def megabytes(self) -> float:
        raise OverflowError("int too large to convert to float")


def test_error_in_one_template_affects_no_other():
    demands = (demand("T", spec=Broken("m", "noop")), demand("U", 1))
    small = site({"name": "here", "max_glideins": 4, "request": {"memory": 100}})
    actions = {action.template: action for action in plan(Snapshot(demands=demands), small)}
    assert actions["T"].action == "wait" and "an error in glide: OverflowError" in actions["T"].reason
    assert (actions["U"].action, actions["U"].count) == ("submit", 1)


def test_error_in_one_entry_affects_no_other(monkeypatch):
    right = headroom.of_entry
    monkeypatch.setattr(
        headroom, "of_entry", lambda entry, *rest: right(entry, *rest) if entry.name == "there" else 1 // 0
    )
    both = site({"name": "here", "max_glideins": 4}, {"name": "there", "max_glideins": 1})
    submit, *_ = plan(Snapshot(demands=(demand(wanted=1),)), both)
    assert (submit.action, submit.entry, submit.count) == ("submit", "there", 1)
    (wait,) = plan(Snapshot(demands=(demand(wanted=1),)), site())
    assert wait.action == "wait" and "an error in glide: ZeroDivisionError" in wait.reason


@pytest.mark.pool
def test_failed_factory_action_does_not_prevent_later_ones(pool, tmp_path, capsys):
    one = SiteFile.model_validate({"site": "rest", "entries": [{"name": "here", "max_glideins": 1}]})
    (tmp_path / "here").write_text("a file in the place of a folder")
    snapshot = Snapshot(demands=(demand("T", spec=Template("m", "noop")),))
    actions = [
        Expunge("here", "", 1, "not a tuple", glide_ids=7),  # type: ignore[arg-type]
        Submit("here", "T", 1, "its folder cannot be made"),
        Expunge("here", "", 1, "a ghost", glide_ids=("here-1.0",)),
    ]
    refused = apply(SiteClient(one, tmp_path), actions, snapshot)
    assert len(refused) == 2
    assert "an error in glide: TypeError" in refused[0] and "Traceback" in capsys.readouterr().err
    assert "Not a directory" in refused[1] or "File exists" in refused[1]


@pytest.mark.pool
def test_journal_write_error_is_logged_only_once(pool, tmp_path, monkeypatch, capsys):
    file = tmp_path / "full.yaml"
    file.write_text("site: full\nentries: [{name: full, max_glideins: 0}]\n")
    factory = Factory([file])
    place = site_folder(factory.sites[file])
    (place / "journal.jsonl").symlink_to("/dev/full")
    for _ in range(3):
        factory._cycle()
    said = capsys.readouterr().err
    assert said.count("cannot write the journal: [Errno 28] No space left on device") == 1
    assert "Traceback" not in said
    for seed in factory.seeds.values():
        seed.stop()


def test_factory_continues_if_its_log_disk_is_full():
    code = "from glide.factory.loop import log; log('a line'); log('another'); print('went on')"
    with open("/dev/full", "wb", buffering=0) as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full)
    assert done.stdout == b"went on\n"


@pytest.mark.pool
def test_job_environment_keeps_spaces_and_quotes(pool, access_point, tmp_path):
    """As the factory gives the path of an interpreter, in a checkout that may be anywhere."""
    path = '/a b/it\'s "q" $(HOME)/python:python3'
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    script = folder / "say.sh"
    script.write_text('#!/bin/sh\nprintf %s "$GLIDE_PYTHON"\n')
    script.chmod(0o700)
    macros = {"folder": str(folder), "python": in_environment(path).replace("$", "$(DOLLAR)")}
    description = (
        "executable = $(folder)/say.sh\ntransfer_input_files = $(folder)/say.sh\ninitialdir = $(folder)\n"
        'output = said\nenvironment = "GLIDE_PYTHON=$(python)"\nrequest_cpus = 1\n'
        "request_memory = 10\nrequest_disk = 10\nqueue\n"
    )
    cluster = access_point.submit(description, macros)
    try:
        eventually(lambda: (folder / "said").exists() and (folder / "said").read_text() == path, "the job said it")
    finally:
        access_point.remove(f"ClusterId == {cluster}", "the test is over")


@pytest.mark.parametrize("name", ["a,b", 'a"b', "a$b", "a\\b", "a\nb"])
def test_glide_home_folder_with_unusable_characters_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setenv("GLIDE_HOME", str(tmp_path / name))
    with pytest.raises(InputError, match="set GLIDE_HOME to another folder"):
        home()
    monkeypatch.setenv("GLIDE_HOME", str(tmp_path / "it's fine"))
    assert home() == tmp_path / "it's fine"


def test_unwritable_glide_home_is_reported_with_its_path(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GLIDE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(InputError, match=r"file/home: Not a directory; set GLIDE_HOME"):
        site_folder(site())
