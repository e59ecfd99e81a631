"""The factory's accounts: for whom devices worked, and what it cost."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from glide.factory import usage
from glide.factory.snapshot import OTHER, Lane, Snapshot
from glide.factory.usage import Amount, Usage, UsageKey, shares
from glide.vocabulary import State
from tests.snapshots import IDLE, demand, glidein, lane, site

ADA, BOB = "ada@x", "bob@x"
NOON = 1_795_000_000.0
ENTRY = {"name": "here", "max_glideins": 4, "owners": [ADA, BOB], "request": {"gpus": 2}, "price": 3.0}


def of(glideins, lanes=(), demands=()) -> dict[tuple[str, str, str], float]:
    snapshot = Snapshot(tuple(glideins), tuple(lanes), tuple(demands), user=ADA)
    return {key[1:]: share for _, key, share in shares(snapshot, site(ENTRY))}


def test_running_jobs_share_their_glidein():
    one = glidein(0)
    lanes = [lane(one, claimed=True, user=ADA), lane(one, claimed=True, user=BOB), lane(one)]
    assert of([one], lanes) == {(ADA, "model", "productive"): 0.5, (BOB, "model", "productive"): 0.5}
    assert of([one], [lane(one, claimed=True, user=ADA)] * 2) == {(ADA, "model", "productive"): 1.0}


@pytest.mark.parametrize(
    "state, kind", [(State.LOADING, "loading"), (State.WARM, "idle"), (State.FAILED, "lost"), (State.ASLEEP, "loading")]
)
def test_glidein_without_job_counts_for_those_who_wait_for_its_template(state, kind):
    one = glidein(0, model="model")
    waiting = [demand(user=ADA), demand(user="eve@x"), demand("T2", user=BOB)]
    assert of([one], [lane(one, state)], waiting) == {(ADA, "model", kind): 1.0}
    assert of([one], [lane(one, state)]) == {("", "model", kind): 1.0}


def test_user_who_is_unknown_or_not_served_has_no_share():
    """A user can change the slot in the ad of a job. Then it counts for nobody, and not for others who wait."""
    one = glidein(0)
    assert of([one], [lane(one, claimed=True)], [demand(user=BOB)]) == {("", "model", "productive"): 1.0}
    assert of([one], [lane(one, claimed=True, user="eve@x")]) == {("", "model", "productive"): 1.0}


def test_user_whose_jobs_all_run_does_not_wait():
    one = glidein(0)
    assert of([one], [lane(one)], [demand(user=ADA, idle=0, running=3)]) == {("", "model", "idle"): 1.0}


def test_glidein_without_lane_is_lost_and_waiting_ones_do_not_count():
    assert of([glidein(0, model="model")]) == {("", "model", "lost"): 1.0}
    assert of([glidein(0, status=IDLE), glidein(1, entry="of another site")]) == {}


def cycles(account: Usage, seconds, **fields) -> None:
    one = glidein(0, devices=2)
    for at, joules in seconds:
        lanes = (lane(one, claimed=True, user=ADA, joules=joules, **fields), lane(one, joules=joules))
        account.add(Snapshot((one,), lanes, now=NOON + at, user=ADA), site(ENTRY))


KEY = UsageKey("here", ADA, "model", "productive")


def test_time_energy_and_cost_are_added_up_and_kept(tmp_path):
    account = Usage(tmp_path)
    cycles(account, [(0, 500.0), (30, 700.0), (60, 1000.0)])
    assert account.amounts == {KEY: Amount(120.0, 500.0, pytest.approx(0.1))}  # two GPUs, 3.0 an hour each
    account.write()
    later = Usage(tmp_path)  # the factory starts again: the time in between does not count
    cycles(later, [(3600, 5000.0), (3630, 5100.0), (3650, 50.0)])  # the model server has started again, too
    assert later.amounts[KEY] == Amount(220.0, 600.0, pytest.approx(220 / 1200))
    later.write()
    assert usage.document(tmp_path, NOON) == {
        "month": "2026-11",
        "rows": [{
            "entry": "here", "user": ADA, "model": "model", "kwh": 0.0002, "cost": 0.1833,
            "device_hours": {"productive": 0.0611, "loading": 0.0, "lost": 0.0, "idle": 0.0},
        }],
    }  # fmt: skip


def test_new_month_begins_with_nothing(tmp_path):
    account = Usage(tmp_path)
    cycles(account, [(0, None), (10, None)])
    cycles(account, [(40 * 86400, None), (40 * 86400 + 10, None)])
    files = {path.name: json.loads(path.read_text()) for path in (tmp_path / "usage").iterdir()}
    assert sorted(files) == ["2026-11.json", "2026-12.json"]
    assert files["2026-11.json"][0]["seconds"] == 20
    assert account.amounts[KEY].seconds == pytest.approx(140)  # of the long gap, a minute counts


def test_steps_of_the_clock_and_gaps_count_a_minute_at_most(tmp_path):
    account = Usage(tmp_path)
    cycles(account, [(0, None), (7200, None), (0, None), (10, None)])
    assert account.amounts[KEY].seconds == 2 * (60 + 0 + 10)


def test_unavailable_pool_adds_nothing(tmp_path):
    account = Usage(tmp_path)
    cycles(account, [(0, None)])
    account.add(Snapshot(unavailable_sources=("no answer",), now=NOON + 20), site(ENTRY))
    cycles(account, [(30, None)])
    assert account.amounts[KEY].seconds == 60


def test_number_of_rows_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(usage, "MOST_ROWS", 3)
    account = Usage(tmp_path)
    one = glidein(0, devices=2)
    for number in range(9):
        many = lane(one, claimed=True, user=ADA)
        many: Lane = replace(many, model=f"m{number}")
        account.add(Snapshot((one,), (many,), now=NOON + number, user=ADA), site(ENTRY))
    assert [key.model for key in account.amounts] == ["m0", "m1", "m2", OTHER]
    assert sum(amount.seconds for amount in account.amounts.values()) == 16


def test_energy_is_what_devices_can_use_although_a_report_is_missing_or_wrong(tmp_path):
    account = Usage(tmp_path)
    cycles(account, [(0, 0.0), (10, None), (20, 4000.0), (30, 9e14)])
    assert account.amounts[KEY].joules == 4000 + usage.MOST_WATTS * 2 * (10 + usage.LONGEST_CYCLE)


def test_glideins_keep_their_devices_when_the_site_file_changes(tmp_path):
    account = Usage(tmp_path)
    one = glidein(0, devices=1)
    for at in (0, 10):
        account.add(Snapshot((one,), (lane(one, claimed=True, user=ADA),), now=NOON + at, user=ADA), site(ENTRY))
    assert account.amounts[KEY].seconds == 10  # the site file has two GPUs now


def test_unreadable_file_is_not_overwritten(tmp_path, monkeypatch):
    account = Usage(tmp_path)
    cycles(account, [(0, None), (10, None)])
    account.write()

    def fail(path: Path) -> dict:
        raise OSError(5, "Input/output error")

    later = Usage(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output error"):
        patch.setattr(usage, "read", fail)
        cycles(later, [(20, None)])
    cycles(later, [(30, None), (40, None)])
    assert later.amounts[KEY].seconds == 40


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"entry": "here"}]', "null"])
def test_damaged_file_is_set_aside(tmp_path, content):
    (tmp_path / "usage").mkdir()
    (tmp_path / "usage" / "2026-11.json").write_text(content)
    account = Usage(tmp_path)
    cycles(account, [(0, None), (10, None)])
    assert account.amounts[KEY].seconds == 20
    assert (tmp_path / "usage" / "2026-11.damaged").read_text() == content
