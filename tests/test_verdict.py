"""When a template is beyond hope: one bad node is one bad node."""

from __future__ import annotations

from glide.sweep.verdict import ALONE_SECONDS, Failure, hopeless

LONG = 100 * ALONE_SECONDS


def failures(*hosts: str) -> dict[str, Failure]:
    return {f"here-{number}.0": Failure(host, f"no room on {host}", 0.0) for number, host in enumerate(hosts)}


def test_one_bad_node_of_many_ends_nothing_however_often_it_fails():
    assert not hopeless(failures("bad"), True, {"bad", "good"}, LONG)
    assert not hopeless(failures("bad"), False, {"bad", "good"}, LONG)
    assert not hopeless(failures(*["bad"] * 9), False, {"bad", "good"}, LONG)
    assert not hopeless(failures("bad", "worse"), False, {"bad", "worse", "good"}, LONG)


def test_glideins_of_other_pools_may_run_where_nobody_knows():
    assert not hopeless(failures(*["bad"] * 9), False, set(), LONG)


def test_three_hosts_are_enough_and_the_message_names_each():
    why = hopeless(failures("one", "two", "three"), True, set(), 0.0)
    assert why == "; ".join(f"here-{n}.0 ({host}): no room on {host}" for n, host in enumerate(("one", "two", "three")))


def test_a_pool_of_one_machine_is_tried_twice():
    assert not hopeless({}, False, {"here"}, LONG)
    assert not hopeless(failures("here"), False, {"here"}, 1.0)
    assert not hopeless(failures("here", "here"), True, {"here"}, LONG), "a third one may do better"
    assert hopeless(failures("here", "here"), False, {"here"}, 0.0)
    assert hopeless(failures("here"), False, {"here"}, ALONE_SECONDS), "no other has come"
