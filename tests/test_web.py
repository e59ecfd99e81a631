"""The web server on a real pool, in a real browser: what its pages show, and who may read them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from glide.condor.access_point import job_file_value
from glide.report.status import document, observe_pool
from glide.vocabulary import Exit, Job, JobStatus, State
from glide.web import pages
from glide.web.snapshot_cache import REFRESH_SECONDS, PoolView
from tests.conftest import SweepFolder, eventually
from tests.debian import fetched
from tests.factory_rig import DESCRIPTION, FactoryProcess, command, entry
from tests.web_rig import HOSTILE, ROUTES, WebProcess

pool_test = pytest.mark.pool
TOKEN = "a-secret-of-this-test"


@pytest.fixture(scope="module")
def web(factory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebProcess]:
    with WebProcess(tmp_path_factory.mktemp("web") / "log") as web:
        yield web
        assert "Traceback" not in web.stop()


@pytest.fixture(scope="module")
def private(factory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebProcess]:
    """The same, for who shows a token."""
    folder = tmp_path_factory.mktemp("private")
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o600)
    with WebProcess(folder / "log", "--token-file", str(folder / "token"), token=TOKEN) as web:
        yield web


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = fetched("chromium", "chromium-common", "fonts-dejavu-core")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found.program("usr/lib/chromium/chromium"), env=found.environment, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What the browser complains about, scripts that its policy forbids among it: nothing, at the end of a test."""
    complaints: list[str] = []
    yield complaints
    assert complaints == []


def opened(browser: Browser, complaints: list[str], **options: Any) -> Page:
    page = browser.new_context(**options).new_page()
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page


def last_words(told: dict[str, Any]) -> Iterator[list[str]]:
    """What a status tells of the last words of glideins."""
    failures = (entry["last_failure"] for site in told["sites"] for entry in site["entries"])
    return (failure["last_words"] for failure in failures if failure and failure["last_words"] is not None)


def last_failure(told: dict[str, Any]) -> str:
    """The GlideId of the glidein whose failure a status shows for the entry of the shared pool."""
    entries = (entry for site in told["sites"] for entry in site["entries"] if entry["entry"] == "here")
    return next((entry["last_failure"] or {}).get("glidein", "") for entry in entries)


def records(count: int) -> list[dict[str, str]]:
    return [{"custom_id": str(number), "text": "text"} for number in range(count)]


# ---- in a browser --------------------------------------------------------------------------------


@pool_test
def test_web_page_updates_itself_and_keeps_details_open(
    web, private, browser, complaints, sweep: SweepFolder, access_point
):
    page = opened(browser, complaints)
    page.goto(f"{private.url}/?token={TOKEN}")
    page.get_by_role("link", name="here").first.wait_for()
    page.evaluate("window.kept = true")
    crashing = {"name": "web-crash", "engine": "noop", "options": {"crash_in": State.LOADING}}
    assert sweep.write(records(10), model=crashing, glideins=1).run().returncode == Exit.FAILED
    page.get_by_text("SIGSEGV").first.wait_for(timeout=90000)
    # The words of a later failure would be in another element.
    crashing_now = f'{Job.ENTRY} =!= undefined && {Job.MODEL} == "web-crash" && JobStatus != {JobStatus.COMPLETED}'
    seen: list[tuple[str, float]] = []

    def settled() -> bool:
        """Whether three snapshots in a row show the same failure: a cycle of the factory may still submit a glidein."""
        if access_point.jobs(crashing_now, ["ProcId"]):
            seen.clear()
        failure, at = last_failure(private.json()), private.snapshot_time()
        if seen and failure != seen[-1][0]:
            seen.clear()
        if not seen or at > seen[-1][1] + 0.5:
            seen.append((failure, at))
        return len(seen) > 3

    eventually(settled, "no further glidein is about to fail")
    words = page.locator(f"[id='words-{last_failure(private.json())}']")
    words.locator("summary").hover()
    page.mouse.down()
    for _ in range(2):  # the page is fetched again while the button is down: the click must not be lost
        with page.expect_response(page.url, timeout=90000):
            pass
    page.mouse.up()
    assert words.get_attribute("open") is not None
    assert "with --token-file to show its output" not in page.content()
    eventually(lambda: "with --token-file to show its output" in web.page(), "without a token it says how to see them")
    assert "<details" not in web.page() and not list(last_words(web.json()))
    assert any(last_words(private.json()))
    working = {"name": "web-live", "engine": "noop", "options": {"record_seconds": 0.05}}
    sweep.write(records(400), model=working, glideins=1, name="live-run", out=str(sweep.folder / "live")).start()
    page.get_by_role("link", name="live-run").first.wait_for(timeout=90000)
    page.get_by_role("row", name="web-live Warm").wait_for(timeout=90000)
    assert page.evaluate("window.kept"), "it was loaded again"
    assert words.get_attribute("open") is not None
    page.get_by_role("link", name="live-run").first.click()
    page.get_by_role("heading", name="web-live").wait_for()
    assert "records left" in page.content()


@pool_test
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1300])
def test_web_pages_fit_their_window_width(web, browser, complaints, tmp_path, scheme, width):
    page = opened(browser, complaints, viewport={"width": width, "height": 800}, color_scheme=scheme)
    for name, path in (("overview", "/?hours=6"), ("entry", "/entry/here")):
        page.goto(web.url + path)
        page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 3 * 128) == (scheme == "dark")


@pool_test
def test_hostile_run_name_is_shown_as_plain_text(web, browser, complaints, access_point, tmp_path):
    name = HOSTILE + "x" * 100
    text = DESCRIPTION.replace("$(digest)", "nobody-has-it").replace("$(model)", "hostile")
    (tmp_path / "records-0.jsonl").write_text('{"custom_id": "a", "prompt": "text"}\n')
    for run, count in (("endless", 'real("INF")'), (name, "1")):
        further = f"\nMy.{Job.RUN} = {job_file_value(run)}\nMy.{Job.RECORDS} = {count}\nqueue"
        (tmp_path / "hostile.sub").write_text(text.replace("\nqueue", further))
        done = command("submit", str(tmp_path / "hostile.sub"))
        assert done.returncode == 0, done.stderr
    page = opened(browser, complaints, viewport={"width": 400, "height": 800})
    page.goto(web.url)
    page.get_by_role("link", name=name).first.wait_for(timeout=90000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.get_by_role("link", name=name).first.click()
    page.get_by_role("heading", name=f"Run {name}").wait_for()
    page.wait_for_load_state()  # with its style, which makes it narrow
    assert [run["run"] for run in web.json()["queue"] if run["model"] == "hostile"] == [name]
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.evaluate("window.taken") is None
    access_point.remove(f'{Job.MODEL} == "hostile"', "the test is over")


# ---- what it shows -------------------------------------------------------------------------------


@pool_test
def test_web_json_contains_status_of_pool_and_entry(web):
    told = web.json()
    assert {"entries", "lanes", "queue", "sites", "failures"} < told.keys() and told["age_s"] < 60
    (site,) = [site for site in told["sites"] if site["site"] == "testing"]
    assert site["running"] and site["entries"][0]["entry"] == "here"
    assert web.json("/entry/here.json")["told"]["entry"] == "here"
    assert web.ask("/entry/nowhere.json")[0] == web.ask("/entry/nowhere")[0] == web.ask("/run?name=no")[0] == 404


@pool_test
def test_web_page_keeps_last_state_while_schedd_hangs(own_pool, browser, tmp_path):
    """A schedd that hangs costs who looks its whole timeout, and who reads a moment."""
    factory = FactoryProcess(tmp_path, "hanging", entry("quiet"))
    factory.start("--once")
    assert factory.process and factory.process.wait() == 0
    with WebProcess(tmp_path / "log") as web:
        assert "quiet" in web.page() and "does not answer" not in web.page()
        shown = opened(browser, [])
        shown.goto(web.url)
        shown.get_by_role("link", name="quiet").wait_for(timeout=90000)  # the first look may take a while
        (schedd,) = own_pool.daemons("condor_schedd")
        schedd.send(signal.SIGSTOP)
        try:
            time.sleep(REFRESH_SECONDS)  # or it would be the look before
            assert "quiet" in web.page()  # one is under way, for which nobody waits that long
            os.kill(web.process.pid, signal.SIGSTOP)
            shown.get_by_text("is not reachable since").wait_for(timeout=90000)
            assert shown.get_by_role("link", name="quiet").count(), "what was seen before stays"
            os.kill(web.process.pid, signal.SIGCONT)
            shown.get_by_text("is not reachable since").wait_for(state="detached", timeout=90000)
            page = eventually(lambda: "does not answer" in (page := web.page()) and page, "it says so")
            assert "quiet" in page and "access point" in page, page
            told = web.page("/metrics")
            assert "glide_pool_answers 0.0" in told and "glide_glideins{" not in told
        finally:
            os.kill(web.process.pid, signal.SIGCONT)
            schedd.send(signal.SIGCONT)
        eventually(lambda: "does not answer" not in web.page(), "it answers again")
        looking = _child(web.process.pid, "spawn_main")
        os.kill(looking, signal.SIGKILL)
        eventually(lambda: "has died" in web.page(), "it says so")
        eventually(lambda: "has died" not in web.page(), "another process looks")
        looking = _child(web.process.pid, "spawn_main")
        web.process.kill()
        eventually(lambda: not Path(f"/proc/{looking}").exists(), "it ends with whom it looks for")


def test_invalid_site_file_hides_no_other_site(pool, tmp_path, monkeypatch):
    monkeypatch.setenv("GLIDE_HOME", str(tmp_path))
    for name, entries in (
        ("lab", "[{name: here, max_glideins: 1}]"),
        ("torn", "[{name: there, max_glideins: 1, max: 1}]"),
    ):
        (tmp_path / f"{name}.yaml").write_text(f"site: {name}\nentries: {entries}\n")
        (tmp_path / "factory" / name).mkdir(parents=True)
        (tmp_path / "factory" / name / "file").write_text(str(tmp_path / f"{name}.yaml"))
    snapshot, views = observe_pool()
    told = document(snapshot, views)
    (problem,) = told["unseen"]
    assert problem.startswith(f"{tmp_path}/torn.yaml:2: ") and "max" in problem
    assert [site["site"] for site in told["sites"]] == ["lab"] and not snapshot.unavailable_sources
    page = pages.overview(PoolView().updated((snapshot, told)), lambda site, entries: [], 1)
    assert "/entry/here" in page and f"{tmp_path}/torn.yaml:2: " in page
    done = command("status")
    assert done.returncode == 0 and "torn.yaml:2: " in done.stdout.replace("\n", "")


def _child(pid: int, words: str) -> int:
    """The child with these words in its arguments, which may be about to be replaced."""

    def children() -> list[int]:
        told = ["ps", "-ww", "--ppid", str(pid), "-o", "pid=", "-o", "args="]
        listed = subprocess.run(told, capture_output=True, text=True).stdout
        return [int(line.split()[0]) for line in listed.splitlines() if words in line]

    (child,) = eventually(children, words)
    return child


# ---- who may read it -----------------------------------------------------------------------------


@pool_test
@pytest.mark.parametrize("path", ROUTES)
def test_web_server_allows_only_reading(web, path):
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"):
        status, headers, _ = web.ask(path, method)
        assert status == 405 and headers["allow"] == "GET, HEAD"
    status, headers, body = web.ask(path, "HEAD")
    assert status == web.ask(path)[0] and body == ""
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


@pool_test
def test_web_server_refuses_unknown_host_names(web):
    for host in ("attacker.example", f"attacker.example:{web.port}", "127.0.0.1.attacker.example", ""):
        assert web.ask("/status.json", headers={"Host": host})[0] == 421
    for host in ("localhost", f"LOCALHOST:{web.port}", "127.0.0.1", f"[::1]:{web.port}"):
        assert web.ask("/status.json", headers={"Host": host})[0] == 200
