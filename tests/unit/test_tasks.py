"""Tasks: outcomes come back to the loop, late ones are abandoned, and a plugin that hangs costs a bounded number of threads."""

from __future__ import annotations

import threading

import pytest

from deployd_core.clock import SystemClock
from deployd_core.errors import Unavailable
from deployd_core.tasks import Outcome, Overdue, ThreadTasks


class SteppedClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


def collect_one(tasks: ThreadTasks, awake: threading.Event) -> Outcome:
    while True:
        assert awake.wait(10), "the task never ended"
        awake.clear()
        outcomes = tasks.collect()
        if outcomes:
            [outcome] = outcomes
            return outcome


def test_a_value_comes_back_under_its_key_and_wakes_the_loop() -> None:
    """What a task returns is its outcome's value, and its key is free again."""
    awake = threading.Event()
    tasks = ThreadTasks(SystemClock(), awake.set)

    tasks.start("fetch", lambda: 42, timeout=10, epoch=7)
    outcome = collect_one(tasks, awake)

    assert (outcome.key, outcome.value, outcome.error, outcome.epoch) == ("fetch", 42, None, 7)
    assert tasks.busy == frozenset()


def test_an_error_comes_back_as_it_was_raised() -> None:
    """The loop, not the thread, decides what an error means."""
    awake = threading.Event()
    tasks = ThreadTasks(SystemClock(), awake.set)
    error = ValueError("no")

    def fail() -> None:
        raise error

    tasks.start("fetch", fail, timeout=10, epoch=0)

    assert collect_one(tasks, awake).error is error


def test_a_late_task_is_abandoned_and_its_end_is_not_heard_of_again() -> None:
    """Past its deadline a task is overdue; whatever it returns later belongs to nobody."""
    clock, release, ended = SteppedClock(), threading.Event(), threading.Event()
    tasks = ThreadTasks(clock, ended.set)

    tasks.start("look:web", lambda: release.wait(30), timeout=5, epoch=0)
    assert tasks.busy == {"look:web"}
    assert tasks.next_deadline() == 105.0
    clock.now += 5
    [outcome] = tasks.collect()

    assert isinstance(outcome.error, Overdue)
    assert str(outcome.error) == "no answer within 5 s"
    release.set()
    assert ended.wait(10)
    assert tasks.collect() == []


def test_a_call_that_always_hangs_is_refused_after_three_threads() -> None:
    """A plugin that hangs for ever costs three threads, not one more at every look."""
    clock, release = SteppedClock(), threading.Event()
    tasks = ThreadTasks(clock, lambda: None)
    before = threading.active_count()
    for _ in range(3):
        tasks.start("look:web", lambda: release.wait(30), timeout=5, epoch=0)
        clock.now += 5
        tasks.collect()

    tasks.start("look:web", lambda: release.wait(30), timeout=5, epoch=0)
    [outcome] = tasks.collect()

    assert isinstance(outcome.error, Overdue)
    assert "3 earlier calls of it still hang" in str(outcome.error)
    assert threading.active_count() - before == 3
    release.set()


def test_a_task_that_gets_no_thread_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has no thread to spare for a moment costs a task that moment, and not the hours until its deadline."""
    awake = threading.Event()
    tasks = ThreadTasks(SteppedClock(), awake.set)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        tasks.start("fetch:v1", lambda: 42, timeout=6 * 3600, epoch=3)
    [outcome] = tasks.collect()

    assert isinstance(outcome.error, Unavailable)
    assert "fetch:v1 could not begin: can't start new thread" == str(outcome.error)
    assert tasks.busy == frozenset()
    awake.clear()
    tasks.start("fetch:v1", lambda: 42, timeout=6 * 3600, epoch=3)
    assert collect_one(tasks, awake).value == 42
