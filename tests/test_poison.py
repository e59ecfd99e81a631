"""Records that raise, hang, or take the engine down: each gets its error, all others their results."""

from __future__ import annotations

import math

import pytest

from glide.vocabulary import Exit
from tests.conftest import SweepFolder

pytestmark = pytest.mark.pool

COUNT = 2000


def run_with_one_bad_record(sweep: SweepFolder, **options) -> dict:
    """Run 2,000 records of which one contains POISON; the error of that one."""
    records = [{"custom_id": f"r{number}", "text": f"text {number}"} for number in range(COUNT)]
    records[777]["text"] = "POISON"
    model = {"name": f"poison-{next(iter(options))[:5]}", "engine": "noop", "options": options}
    done = sweep.write(records, model=model, glideins=1, timeout=2.0).run()
    assert done.returncode == Exit.RECORD_ERRORS, done.stderr
    assert "plain: r777: " in done.stderr
    results = sweep.results()
    assert [result["custom_id"] for result in results] == [record["custom_id"] for record in records]
    bad = [result for result in results if result["error"] is not None]
    assert [result["custom_id"] for result in bad] == ["r777"]
    assert all(
        result["text"] == record["text"] for result, record in zip(results, records, strict=True) if result not in bad
    )
    return bad[0]["error"]


def test_error_of_record_contains_type_of_exception(factory, sweep: SweepFolder):
    error = run_with_one_bad_record(sweep, raise_on="POISON")
    assert error["type"] == "Poisoned" and "POISON" in error["message"]


def test_hanging_record_gets_record_timeout_error(factory, sweep: SweepFolder):
    assert run_with_one_bad_record(sweep, hang_on="POISON")["type"] == "RecordTimeout"


def test_crashing_record_is_found_after_few_engine_crashes(factory, sweep: SweepFolder, pool):
    error = run_with_one_bad_record(sweep, crash_on="POISON")
    assert error["type"] == "EngineDied" and "signal 11 (SIGSEGV)" in error["message"]
    outputs = (pool.home / "factory").glob("testing/here/*/*.out")
    deaths = sum(path.read_text().count(" poison-crash Blank the engine ") for path in outputs)
    # A group in halves costs a death for each halving; what else was in the engine meanwhile costs some more.
    assert 1 <= deaths <= 2 * math.log2(COUNT)
