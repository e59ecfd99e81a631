"""The web server where no pool runs: what it reports, who may read it, and that nobody's text becomes markup."""

from __future__ import annotations

import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from glide.config import SiteFile
from glide.factory.activity import Activity, activities
from glide.factory.home import factory_lock, is_running
from glide.factory.snapshot import Demand, Glidein, Lane, Snapshot
from glide.vocabulary import Exit, JobStatus, State
from glide.web import pages, snapshot_cache
from glide.web.chart import Chart, Series
from glide.web.guard import COOKIE
from glide.web.snapshot_cache import SnapshotCache
from tests.conftest import eventually
from tests.factory_rig import command
from tests.web_rig import HOSTILE, ROUTES, WebProcess, hangs, names_itself, stumbles, view_of


def test_web_page_without_pool_suggests_starting_one(tmp_path, monkeypatch):
    monkeypatch.delenv("CONDOR_CONFIG", raising=False)
    monkeypatch.setenv("GLIDE_HOME", str(tmp_path / "home"))
    with WebProcess(tmp_path / "log") as web:
        eventually(lambda: "no pool: start one here with `glide pool up`" in web.page(), "it says so")
        assert "glide_pool_answers 0.0" in web.page("/metrics")


def test_failed_pool_observation_is_reported_and_tried_again():
    see = SnapshotCache(stumbles)
    eventually(lambda: "an error in glide" in see().trouble, "it says so")
    eventually(lambda: see().answered, "it looks again")


def test_worker_is_replaced_before_it_grows(monkeypatch):
    """HTCondor's bindings lose memory with each query."""
    monkeypatch.setattr(snapshot_cache, "MOST_SNAPSHOTS", 3)
    monkeypatch.setattr(snapshot_cache, "REFRESH_SECONDS", 0.0)
    see = SnapshotCache(names_itself)
    eventually(lambda: see().answered, "the first one answers")
    pids: list[str] = []
    while len(set(pids)) < 3:
        view = see()
        assert view.trouble == ""
        pids.append(view.snapshot.user)


def test_hanging_pool_observation_ends_with_timeout_message():
    see = SnapshotCache(hangs, timeout=0.5)
    eventually(lambda: "no answer from the pool within" in see().trouble, "it says so")


def test_checking_factory_lock_never_prevents_factory_start(tmp_path, monkeypatch):
    monkeypatch.setenv("GLIDE_HOME", str(tmp_path))
    site = SiteFile.model_validate({"site": "lab", "entries": [{"name": "here", "max_glideins": 1}]})
    answers: set[bool] = set()
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            answers.add(is_running(site))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(50):
            with factory_lock(site):
                assert is_running(site)
    finally:
        over.set()
        asking.join()
    assert True in answers and not is_running(site)


def test_remote_web_access_needs_token_that_stays_secret(tmp_path, monkeypatch):
    monkeypatch.delenv("CONDOR_CONFIG", raising=False)
    monkeypatch.setenv("GLIDE_HOME", str(tmp_path / "home"))
    with WebProcess(tmp_path / "log", "--host", "0.0.0.0") as web:
        file = tmp_path / "home" / "web" / "token"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        token = file.read_text().strip()
        wrong = {"Authorization": "Bearer wrong"}, {"Authorization": token}, {"Cookie": f"{COOKIE}={token}"}
        for path in ROUTES:
            assert {web.ask(path, headers=shown)[0] for shown in ({}, *wrong)} == {401}
            assert web.ask(path.partition("?")[0] + "?token=wrong")[0] == 401
            assert web.ask(path, headers={"Authorization": f"Bearer {token}"})[0] in (200, 404)
        status, headers, _ = web.ask(f"/?hours=6&token={token}")
        assert status == 303 and headers["location"] == "/?hours=6"
        assert "HttpOnly" in headers["set-cookie"] and "SameSite=strict" in headers["set-cookie"]
        cookie = headers["set-cookie"].partition(";")[0]  # which the browser sends to others on this host, too
        assert token not in cookie and web.ask("/", headers={"Cookie": cookie})[0] == 200
        assert web.ask("/", headers={"Authorization": f"Bearer {cookie.partition('=')[2]}"})[0] == 401
        assert web.ask(f"//elsewhere.example/?token={token}")[1]["location"] == "/elsewhere.example/"
        command_line = Path(f"/proc/{web.process.pid}/cmdline").read_text()
        said = web.stop()
        assert token not in said and token not in command_line and str(file) in said
    with WebProcess(tmp_path / "log", "--token-file", str(file)) as web:
        assert web.ask("/")[0] == 401 and web.ask("/", headers={"Authorization": f"bearer {token}"})[0] == 200


@pytest.mark.parametrize("content, mode, why", [("", 0o600, "empty"), ("x", 0o644, "others can read it")])
def test_web_server_refuses_empty_or_unprotected_token_file(tmp_path, content, mode, why):
    file = tmp_path / "token"
    file.write_text(content)
    file.chmod(mode)
    done = command("web", "--port", "0", "--token-file", str(file))
    assert done.returncode == Exit.INPUT and why in done.stderr and str(file) in done.stderr


# ---- markup --------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.found: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found |= {tag, *(name for name, _ in attributes)}


def test_user_text_never_becomes_html_markup(tmp_path, monkeypatch):
    monkeypatch.setenv("GLIDE_HOME", str(tmp_path))
    digest = "0" * 64
    lane = Lane("here-1.0", "here", digest, HOSTILE, State.FAILED, False, HOSTILE, name=HOSTILE)
    warm = replace(lane, state=HOSTILE, glide_id=HOSTILE, entry=HOSTILE)
    held = Glidein(1, 0, "here", digest, JobStatus.HELD, hold_reason=HOSTILE, host=HOSTILE)
    ended = Glidein(2, 0, "here", digest, JobStatus.COMPLETED, state=State.FAILED, failure=HOSTILE)
    odd = replace(ended, proc=1, state=HOSTILE)
    demand = Demand(digest, HOSTILE, HOSTILE, HOSTILE, 1, 0, 1)
    down = {"start": "1970-01-01", "end": "2099-01-01", "reason": HOSTILE}
    site = SiteFile.model_validate(
        {"site": "lab", "entries": [{"name": "here", "max_glideins": 2, "downtimes": [down]}]}
    )
    view = view_of(Snapshot((held,), (lane, warm), (demand,), ended=(ended, odd), now=time.time(), user="ada"), site)
    told = view.status["sites"][0]
    told |= {"unseen": [HOSTILE], "refused": [HOSTILE]}
    told["entries"][0]["last_failure"]["last_words"] = [HOSTILE, HOSTILE]
    view = replace(view, trouble=HOSTILE)
    chart = Chart(HOSTILE, "stack", [Series(HOSTILE, "green", [1.0, None, 2.0])], 0.0, 60.0, HOSTILE)
    entry_told, run_told = pages.entry_document(view, "here"), pages.run_document(view, HOSTILE)
    assert entry_told and run_told
    shown = {
        "overview": pages.overview(view, lambda site, entries: [chart], 1),
        "entry": pages.page("entry.html", view, page=entry_told),
        "other": pages.page("entry.html", view, page=pages.entry_document(view, HOSTILE) or entry_told),
        "run": pages.page("run.html", view, page=run_told),
        "missing": pages.page("missing.html", view, what=HOSTILE),
    }
    for name, page in shown.items():
        assert "&lt;script&gt;window.taken" in page, name
        assert page.count("<script") == 1 and page.count("<img") == 1, name  # its own
        assert not Elements(page).found & {"onerror", "onload", "onclick", "style"}, name


def test_glidein_has_activity_of_its_most_active_lane():
    glidein = Glidein(1, 0, "here", "T", JobStatus.RUNNING, 1)
    lane = Lane("here-1.0", "here", "T", "model", State.WARM, False)
    blank = replace(lane, state=State.BLANK, template="")
    does = {
        (lane, replace(lane, claimed=True)): Activity.SERVING,
        (lane,): Activity.IDLE,
        (blank,): Activity.COMING,
        (replace(lane, state=State.LOADING),): Activity.COMING,
        (replace(lane, state=State.FAILED),): Activity.LOST,
        (): Activity.LOST,
    }
    for lanes, what in does.items():
        assert activities(Snapshot((glidein,), lanes)) == {"here": {what: 1}}
    ready = Snapshot((replace(glidein, template=""),), (blank,))
    assert activities(ready) == {"here": {Activity.IDLE: 1}}
    assert activities(Snapshot((replace(glidein, status=JobStatus.IDLE),))) == {}


# ---- as it is installed --------------------------------------------------------------------------


def test_package_includes_html_templates_and_static_files(tmp_path):
    root = Path(pages.__file__).parents[2]
    built = subprocess.run(
        [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build_py", "--build-lib", str(tmp_path)],
        cwd=root, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    files = {path.relative_to(root) for path in (root / "glide" / "web").rglob("*.*") if path.suffix != ".pyc"}
    assert {path.suffix for path in files} == {".py", ".html", ".css", ".js", ".svg"}
    assert all((tmp_path / path).exists() for path in files)
