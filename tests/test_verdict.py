"""When a template is beyond hope: one bad node is one bad node."""

from __future__ import annotations

from dataclasses import replace

from glide.sweep.verdict import ALONE_SECONDS, Failure, reason_to_give_up
from glide.vocabulary import UNSUITABLE

LONG = 100 * ALONE_SECONDS


def failures(*hosts: str) -> dict[str, Failure]:
    return {f"here-{number}.0": Failure(host, f"no room on {host}", 0.0) for number, host in enumerate(hosts)}


def test_sweep_continues_while_one_good_node_remains():
    assert not reason_to_give_up(failures("bad"), True, {"bad", "good"}, LONG)
    assert not reason_to_give_up(failures("bad"), False, {"bad", "good"}, LONG)
    assert not reason_to_give_up(failures(*["bad"] * 9), False, {"bad", "good"}, LONG)
    assert not reason_to_give_up(failures("bad", "worse"), False, {"bad", "worse", "good"}, LONG)


def test_sweep_continues_when_available_nodes_are_unknown():
    assert not reason_to_give_up(failures(*["bad"] * 9), False, set(), LONG)


def test_sweep_stops_after_loading_failed_on_three_hosts():
    why = reason_to_give_up(failures("one", "two", "three"), True, set(), 0.0)
    assert why == "; ".join(f"here-{n}.0 ({host}): no room on {host}" for n, host in enumerate(("one", "two", "three")))


def test_hosts_that_cannot_run_the_program_do_not_count():
    unsuitable = {name: replace(each, reason=f"{UNSUITABLE}: SIGILL") for name, each in failures(*"abcd").items()}
    assert not reason_to_give_up(unsuitable, False, {*"abcde"}, LONG)
    assert reason_to_give_up(unsuitable, False, {*"abcd"}, LONG), "no host of the pool can run it"


def test_sweep_on_single_host_ends_after_load_failures():
    assert not reason_to_give_up({}, False, {"here"}, LONG)
    assert not reason_to_give_up(failures("here"), False, {"here"}, 1.0)
    assert not reason_to_give_up(failures("here", "here"), True, {"here"}, LONG), "a third one may do better"
    assert reason_to_give_up(failures("here", "here"), False, {"here"}, 0.0)
    assert reason_to_give_up(failures("here"), False, {"here"}, ALONE_SECONDS), "no other has come"
