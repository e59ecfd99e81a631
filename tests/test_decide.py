"""What the driver does next: decisions on views, without a pool."""

from __future__ import annotations

from glide.sweep.decide import GATHER_SECONDS, MOST_HOLDS, RECUT_SECONDS, STUCK_SECONDS, decide, decide_and_act
from glide.sweep.view import (
    ANSWERED,
    HELD,
    LOST,
    OUTDATED,
    RECUT,
    Gather,
    GiveUp,
    GlideinView,
    JobView,
    Memory,
    Peek,
    Remind,
    RemoveJobs,
    SubmitJobs,
    View,
)
from glide.vocabulary import JobStatus

NOW = 1000.0


def job(number: int, status: int, records: int = 10, **more) -> JobView:
    values = {"glidein": "a", "since": NOW, "read": NOW, **more}
    return JobView(f"1.{number}", f"p{number}", status, records, records, **values)


def view(*jobs: JobView, pending: int = 0, free: int = 0, pace: float = 0.1, **more) -> View:
    glideins = {"a": GlideinView(2, free, True, pace), "b": GlideinView(2, free, True, pace)}
    unfinished = pending + sum(each.unanswered for each in jobs)
    return View({each.part: each for each in jobs}, glideins, pending, unfinished, most_glideins=2, **more)


def kinds(actions) -> list[type]:
    return [type(action) for action in actions]


def test_completed_jobs_are_gathered_together():
    done, running = job(1, JobStatus.COMPLETED), job(2, JobStatus.RUNNING)
    recent = Memory(gathered=NOW - GATHER_SECONDS / 2)
    assert decide(recent, view(done, running), NOW) == []
    assert decide(Memory(), view(done, running), NOW) == [Gather((done,))]
    assert decide(recent, view(done), NOW) == [Gather((done,))]  # nothing else is left to wait for


def test_lost_outdated_and_held_jobs_are_removed_first():
    lost, old, held = job(1, JobStatus.RUNNING), job(2, JobStatus.IDLE, outdated=True), job(3, JobStatus.HELD)
    actions = decide(Memory(), view(lost, old, held, pending=50, lost={"1.1"}), NOW)
    assert actions == [RemoveJobs((old,), OUTDATED), RemoveJobs((held,), HELD), RemoveJobs((lost,), LOST)]


def test_run_gives_up_if_jobs_are_held_without_progress():
    held = job(1, JobStatus.HELD, hold_reason="no space")
    memory = Memory(holds=MOST_HOLDS, done_at_last_hold=7)
    (action,) = decide(memory, view(held, done=7), NOW)
    assert isinstance(action, GiveUp) and action.held and "job 1.1: no space" in action.reason
    assert kinds(decide(memory, view(held, done=8), NOW)) == [RemoveJobs]  # there was a result since then


def test_run_gives_up_if_template_cannot_be_loaded():
    assert decide(Memory(), view(pending=5, give_up="no such file"), NOW) == [GiveUp("no such file")]


def test_twin_of_finished_job_is_removed():
    finished = job(1, JobStatus.RUNNING, twin="p2")
    finished.unanswered = 0
    assert decide(Memory(), view(finished), NOW) == [RemoveJobs((finished,), ANSWERED)]


def test_outputs_are_read_in_order_of_last_read():
    new, old, older = (job(n, JobStatus.RUNNING, read=NOW - age) for n, age in enumerate((1, 5, 9)))
    assert decide(Memory(), view(new, old, older), NOW) == [Peek((older, old))]


def test_job_that_has_to_answer_is_read_in_each_cycle():
    """Its answer is the work that other lanes wait for."""
    other = job(1, JobStatus.RUNNING, read=NOW - 60)
    asked = job(2, JobStatus.RUNNING, read=NOW - 1, asked=5, asked_at=NOW - 1)
    assert decide(Memory(), view(other, asked), NOW) == [Peek((asked, other))]
    assert decide(Memory(peeked=NOW - 0.3), view(other, asked), NOW) == [Peek((asked,))]
    assert Peek not in kinds(decide(Memory(peeked=NOW), view(other, asked), NOW))  # it was read in this cycle
    asked.records = 5
    assert Peek not in kinds(decide(Memory(peeked=NOW - 0.3), view(other, asked), NOW))


def test_stuck_jobs_are_matched_again_if_lane_is_free():
    stuck = job(1, JobStatus.IDLE, since=NOW - STUCK_SECONDS - 1)
    assert Remind in kinds(decide(Memory(), view(stuck, free=1), NOW))
    assert Remind not in kinds(decide(Memory(), view(stuck, free=0), NOW))
    assert Remind not in kinds(decide(Memory(reminded=NOW - 1), view(stuck, free=1), NOW))


def test_all_records_are_submitted_at_once_before_first_measurement():
    (action,) = decide(Memory(), View(pending=4000, unfinished=4000, most_glideins=2), NOW)
    assert isinstance(action, SubmitJobs) and sum(action.sizes) == 4000 and action.last


def test_waiting_jobs_are_divided_again_if_far_too_large():
    running = [job(n, JobStatus.RUNNING, 100) for n in range(4)]
    waiting = [job(n, JobStatus.IDLE, 9000) for n in range(4, 6)]
    (action,) = decide(Memory(recut=NOW - RECUT_SECONDS - 1), view(*running, *waiting), NOW)
    assert action == RemoveJobs(tuple(waiting), RECUT)
    assert decide(Memory(recut=NOW - 1), view(*running, *waiting), NOW) == []
    # A free lane will take one of the waiting jobs. If each of them has a free lane, they stay as they are.
    one_free = view(*running, *waiting)
    one_free.glideins["a"].free = 1
    (action,) = decide(Memory(recut=NOW - RECUT_SECONDS - 1), one_free, NOW)
    assert action == RemoveJobs(tuple(waiting[1:]), RECUT)
    assert decide(Memory(recut=NOW - RECUT_SECONDS - 1), view(*running, *waiting, free=len(waiting)), NOW) == []
    assert decide(Memory(), view(*running, *waiting, fixed=9000), NOW) == []
    waiting[0].id = ""  # it was submitted a moment ago
    assert decide(Memory(), view(*running, *waiting), NOW) == []


def test_waiting_jobs_keep_their_size_while_only_a_retired_glidein_is_measured():
    waiting = [job(n, JobStatus.IDLE, 100) for n in range(2)]
    seen = view(*waiting, pending=20000, pace=3.0)
    for each in seen.glideins.values():
        each.retired = True
    assert RemoveJobs not in kinds(decide(Memory(), seen, NOW))


def test_only_as_many_old_jobs_as_lanes_are_free_are_removed_in_a_cycle():
    old = [job(n, JobStatus.IDLE, since=NOW - 500 + n) for n in range(50)]
    seen = view(*old, pending=1000, free=1)

    def act(action):
        for each in action.jobs if isinstance(action, RemoveJobs) else ():
            seen.pending += seen.jobs.pop(each.part).unanswered

    decide_and_act(Memory(), seen, NOW, act)
    assert list(seen.jobs.values()) == old[2:]  # each of the two glideins has one free lane


def test_results_of_completed_jobs_count_before_held_jobs_are_judged():
    memory = Memory()
    seen = view(done=0)

    def act(action):
        if isinstance(action, Gather):
            seen.done += len(action.jobs)
        for each in action.jobs if isinstance(action, (Gather, RemoveJobs)) else ():
            seen.jobs.pop(each.part)
        assert not isinstance(action, GiveUp)

    for cycle in range(2 * MOST_HOLDS):
        for number, status in ((1, JobStatus.COMPLETED), (2, JobStatus.HELD), (3, JobStatus.RUNNING)):
            each = job(number, status)
            seen.jobs[each.part] = each
        decide_and_act(memory, seen, NOW + cycle / 10, act)
    assert memory.holds == 1


def test_memory_counts_losses_and_holds():
    memory, lost, held = Memory(), job(1, JobStatus.RUNNING), job(2, JobStatus.HELD)
    memory.note(RemoveJobs((lost,), LOST), view(lost), NOW)
    for done in (5, 5, 6):
        memory.note(RemoveJobs((held,), HELD), view(held, done=done), NOW)
    assert (memory.evictions, memory.holds, memory.done_at_last_hold) == (1, 1, 6)
