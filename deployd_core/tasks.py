"""Work beside the loop: each task on a thread of its own, with a deadline, its outcome handed back to the loop.

The threads are daemons and a late one is abandoned, because a plugin that hangs must cost one thread and never the agent. That is
also why this is not `concurrent.futures.ThreadPoolExecutor`, whose threads are joined when the process ends.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Protocol

from msgspec import Struct

from deployd_core.clock import Clock
from deployd_core.errors import DeploydError, PluginError, Unavailable

_LOG = logging.getLogger("deployd.tasks")

_OFTEN = ("look:", "report")
"""Tasks that come again and again: what goes wrong in them shows in the report, and need not fill the log."""
_MAX_ABANDONED = 3
"""Threads that may hang under one key before the task is refused."""


class Outcome(Struct, frozen=True, kw_only=True):
    """How a task ended."""

    key: str
    epoch: int
    started: float
    ended: float
    value: Any = None
    error: BaseException | None = None


class Overdue(Exception):
    """A task did not end in time."""


def error_of(outcome: Outcome, about: str) -> DeploydError | None:
    """What went wrong in a task, as an error of ours; a bug is logged with its traceback."""
    error = outcome.error
    if error is None:
        return None
    if isinstance(error, Overdue):
        return PluginError(f"{outcome.key}: {error}")
    if not isinstance(error, DeploydError):
        _LOG.error("%s: %s: %s", about, outcome.key, error, exc_info=error)
        return PluginError(f"{outcome.key}: {type(error).__name__}: {error}")
    if not outcome.key.startswith(_OFTEN):
        _LOG.warning("%s: %s: %s", about, outcome.key, error)
    return error


class Tasks(Protocol):
    """Runs what the loop must not wait for."""

    @property
    def busy(self) -> frozenset[str]:
        """Keys of the tasks under way."""
        ...

    def start(self, key: str, function: Callable[[], Any], *, timeout: float, epoch: int, exclusive: bool = False) -> None:
        """Begin a task; its key must not be busy. An exclusive one is refused while an earlier one of its key still hangs."""
        ...

    def collect(self) -> list[Outcome]:
        """Hand over the tasks that have ended or are overdue since the last call."""
        ...

    def next_deadline(self) -> float | None:
        """When the next task becomes overdue."""
        ...


class ThreadTasks:
    """Tasks on daemon threads."""

    def __init__(self, clock: Clock, wake: Callable[[], None]) -> None:
        self._clock = clock
        self._wake = wake
        self._lock = threading.Lock()
        self._under_way: dict[str, tuple[threading.Thread, float, float, int]] = {}
        self._ended: list[tuple[threading.Thread, Outcome]] = []
        self._abandoned: dict[str, list[threading.Thread]] = {}

    @property
    def busy(self) -> frozenset[str]:
        """Keys of the tasks under way."""
        with self._lock:
            return frozenset(self._under_way)

    def start(self, key: str, function: Callable[[], Any], *, timeout: float, epoch: int, exclusive: bool = False) -> None:
        """Begin a task on a new thread."""
        started = self._clock.monotonic()
        hanging = [thread for thread in self._abandoned.get(key, ()) if thread.is_alive()]
        self._abandoned[key] = hanging
        thread = threading.Thread(target=self._run, args=(key, function, started, epoch), name=f"deployd-{key}", daemon=True)
        with self._lock:
            self._under_way[key] = (thread, started, started + timeout, epoch)
        error: Exception | None = None
        if len(hanging) >= (1 if exclusive else _MAX_ABANDONED):
            error = Overdue(f"{len(hanging)} earlier {'call' if len(hanging) == 1 else 'calls'} of it still hang")
        else:
            try:
                thread.start()
            except RuntimeError as refused:
                # Left under way, it would keep its key busy until its deadline: hours, for a fetch.
                error = Unavailable(f"{key} could not begin: {refused}", hint="see the limits of the agent: TasksMax, ulimit -u")
        if error is not None:
            self._end(thread, Outcome(key=key, epoch=epoch, started=started, ended=started, error=error))

    def collect(self) -> list[Outcome]:
        """Hand over what has ended; abandon what is late."""
        now = self._clock.monotonic()
        outcomes = []
        with self._lock:
            for thread, outcome in self._ended:
                # An abandoned thread may still come to an end: nobody waits for its outcome any more.
                if self._under_way.get(outcome.key, (None,))[0] is thread:
                    del self._under_way[outcome.key]
                    outcomes.append(outcome)
            self._ended.clear()
            for key, (thread, started, deadline, epoch) in list(self._under_way.items()):
                if now >= deadline:
                    del self._under_way[key]
                    self._abandoned.setdefault(key, []).append(thread)
                    error = Overdue(f"no answer within {deadline - started:g} s")
                    outcomes.append(Outcome(key=key, epoch=epoch, started=started, ended=now, error=error))
        return outcomes

    def next_deadline(self) -> float | None:
        """When the next task becomes overdue."""
        with self._lock:
            return min((deadline for _, _, deadline, _ in self._under_way.values()), default=None)

    def _run(self, key: str, function: Callable[[], Any], started: float, epoch: int) -> None:
        value, error = None, None
        try:
            value = function()
        except BaseException as raised:  # noqa: BLE001 - carried to the loop, which knows what each kind means
            error = raised
        ended = self._clock.monotonic()
        outcome = Outcome(key=key, epoch=epoch, started=started, ended=ended, value=value, error=error)
        self._end(threading.current_thread(), outcome)

    def _end(self, thread: threading.Thread, outcome: Outcome) -> None:
        with self._lock:
            self._ended.append((thread, outcome))
        self._wake()
