"""The loop of an engine, and how it ends: at a safe point, with nobody left without traffic who could serve.

A restart or a flip under way is waited for, however long it takes: it has an end of its own. Gates are not: what is not open after
`PATIENCE` opens by its lease. None of it needs ZooKeeper.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from deployd_core import cycle
from deployd_core.acts import OpenGate
from deployd_core.clock import Clock
from deployd_core.observation import InstanceFacts, Observation, Setback
from deployd_core.tasks import Tasks

_LOG = logging.getLogger("deployd.engine")

DISRUPTIVE = ("restart:", "flip")
"""Keys of acts that must not be left alone."""
PATIENCE = 5.0
"""Seconds that gates get in all, from the order to stop."""
_RETRY = 1.0
_GATES = ("closegate:", "opengate:")


class Rounds(Protocol):
    """What goes round."""

    def round(self) -> float:
        """Observe, plan and act once; the seconds until the next round is due."""
        ...

    def final_round(self) -> None:
        """Learn what has ended, and open what can serve."""
        ...

    def round_failed(self, error: Exception) -> None:
        """A round ended in a bug of ours, which is to be shown."""
        ...


def go_round(rounds: Rounds, stop: threading.Event, awake: threading.Event, tasks: Tasks, clock: Clock) -> None:
    """Go round until `stop` is set and `awake` as well; then end."""

    def wait(seconds: float) -> None:
        awake.wait(seconds)
        awake.clear()

    while not stop.is_set():
        wait(_guarded(rounds.round, rounds) or 0.0)
    late = clock.monotonic() + PATIENCE
    _guarded(rounds.final_round, rounds)
    while _awaited(tasks.busy, late=clock.monotonic() >= late):
        wait(_RETRY)
        _guarded(rounds.final_round, rounds)


def last_acts(
    seen: Observation, instances: Sequence[InstanceFacts], *, busy: frozenset[str], setbacks: Mapping[str, Setback], now: float
) -> tuple[OpenGate, ...]:
    """Open what this agent has closed and can serve, be it the old build that was only being drained.

    Whoever cannot stays closed until a new agent takes it over or its lease runs out; and what others have closed is theirs.

    Args:
        seen: What the last round saw.
        instances: What is known of them by now.
        busy: Keys of the acts that are under way.
        setbacks: What has failed.
        now: On the monotonic clock.
    """
    by_now = msgspec.structs.replace(seen, instances=tuple(instances), busy=busy, setbacks=setbacks, now=now)
    ours = {facts.name for facts in instances if facts.gate_ours}
    return tuple(act for act in cycle.leftovers(by_now) if isinstance(act, OpenGate) and act.instance in ours)


def _awaited(busy: frozenset[str], *, late: bool) -> bool:
    """Whether something is under way that the engine must not end before; `late` when its patience is over."""
    return any(key.startswith(DISRUPTIVE if late else (*DISRUPTIVE, *_GATES)) for key in busy)


def _guarded(round_: Callable[[], float | None], rounds: Rounds) -> float | None:
    try:
        return round_()
    except Exception as error:  # noqa: BLE001 - one of the two boundaries: a bug in one service must not end the others
        rounds.round_failed(error)
        return _RETRY
