"""Which job a worker gets next."""

from __future__ import annotations

import threading
from typing import Any

from pdtrim_core.workers.queue import Task, TaskQueue


def job(cache: Any) -> None:
    del cache


def tasks_near(*near: object) -> list[Task]:
    return [Task(job, (), one) for one in near]


def test_a_worker_gets_its_own_jobs_first_then_those_of_nobody_then_the_last_of_another() -> None:
    queue = TaskQueue()
    a1, b1, a2, b2, a3, b3 = tasks_near("a", "b", "a", "b", "a", "b")
    queue.put([a1, b1, a2, b2, a3, b3])
    assert [queue.take(worker) for worker in (0, 1, 0, 0, 0, 1)] == [a1, b1, a2, a3, b3, b2]


def test_a_job_that_is_near_nothing_goes_to_whoever_asks() -> None:
    queue = TaskQueue()
    one, two = tasks_near(None, None)
    queue.put([one, two])
    assert [queue.take(0), queue.take(1)] == [one, two]


def test_a_job_for_one_worker_goes_to_no_other() -> None:
    queue = TaskQueue()
    for_one, other = Task(job, (), only=1), Task(job, ())
    queue.put([for_one, other])
    assert [queue.take(0), queue.take(1)] == [other, for_one]


def test_a_job_that_was_cancelled_is_not_given_out() -> None:
    queue = TaskQueue()
    gone, kept = tasks_near(None, None)
    queue.put([gone, kept])
    gone.future.cancel()
    assert queue.take(0) is kept


def test_a_job_whose_worker_was_lost_goes_in_front_and_is_begun_again() -> None:
    queue = TaskQueue()
    lost, other = tasks_near(None, None)
    assert lost.begin()
    queue.put([other])
    queue.put([lost], first=True)
    taken = queue.take(0)
    assert taken is lost
    assert taken.begin()


def test_who_waits_is_told_when_the_queue_is_closed_and_what_is_left_is_returned() -> None:
    queue, found = TaskQueue(), list[Any]()
    waiting = threading.Thread(target=lambda: found.append(queue.take(0)))
    waiting.start()
    left = Task(job, (), only=1)
    queue.put([left])
    assert queue.close() == [left]
    waiting.join(10)
    assert found == [None]


def test_what_is_for_a_worker_that_takes_no_more_is_done_by_another() -> None:
    queue = TaskQueue()
    before, behind = Task(job, (), only=1), Task(job, (), only=1)
    queue.put([before])
    queue.retire(1)
    queue.put([behind])
    assert [queue.take(0), queue.take(0)] == [before, behind]
