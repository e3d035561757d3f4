"""How an engine ends: what it opens, and what it waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from deployd_core.acts import OpenGate
from deployd_core.ending import PATIENCE, go_round, last_acts
from deployd_core.model import Health
from deployd_core.observation import InstanceFacts, Observation, Setback
from deployd_core.tasks import Outcome

DRAINED = InstanceFacts(name="web@1", looked=True, running=True, health=Health.HEALTHY, streak=5, gate_closed=True, lease_left=60.0)
SEEN = Observation(now=1.0, service="web", host="h1", build="v2")


@pytest.mark.parametrize(
    ("changed", "opened"),
    [
        ({}, True),
        ({"health": Health.UNHEALTHY, "streak": 0}, False),
        ({"streak": 1}, False),
        ({"looked": False, "health": Health.UNKNOWN, "streak": 0}, False),
        ({"gate_ours": False}, False),
        ({"gate_ours": False, "gate_held": True}, False),
        ({"gate_closed": False}, False),
    ],
    ids=["can serve", "is sick", "healthy once only", "was not looked at", "a dead agent's", "a rehearsal's", "is open"],
)
def test_what_is_opened_at_the_end(changed: dict[str, Any], opened: bool) -> None:
    """What this agent has closed and is healthy; whatever else is closed stays so."""
    facts = InstanceFacts(**{**{name: getattr(DRAINED, name) for name in DRAINED.__struct_fields__}, **changed})

    acts = last_acts(SEEN, [facts], busy=frozenset(), setbacks={}, now=2.0)

    assert ((OpenGate(instance="web@1"),) if opened else ()) == acts


@pytest.mark.parametrize("key", ["opengate:web@1", "closegate:web@1"])
def test_a_gate_is_not_opened_while_it_is_being_moved(key: str) -> None:
    """Nobody could say which of the two came last."""
    assert () == last_acts(SEEN, [DRAINED], busy=frozenset({key}), setbacks={}, now=2.0)


def test_a_gate_that_could_not_be_opened_is_tried_again_when_it_is_time() -> None:
    """A setback counts from now, and not from the last round."""
    setbacks = {"opengate:web@1": Setback(reason="no", retry_at=3.0)}

    assert () == last_acts(SEEN, [DRAINED], busy=frozenset(), setbacks=setbacks, now=2.0)
    assert (OpenGate(instance="web@1"),) == last_acts(SEEN, [DRAINED], busy=frozenset(), setbacks=setbacks, now=3.0)


class Beside:
    """Tasks that are under way for a while, in a time that passes when it is asked for."""

    def __init__(self, until: dict[str, float]) -> None:
        self._until = until
        self.now = 0.0
        self.rounds = 0

    def monotonic(self) -> float:
        self.now += 0.5
        return self.now

    def time(self) -> float:
        return self.monotonic()

    @property
    def busy(self) -> frozenset[str]:
        return frozenset(key for key, end in self._until.items() if end > self.now)

    def start(self, key: str, function: Callable[[], Any], *, timeout: float, epoch: int, exclusive: bool = False) -> None:
        raise NotImplementedError

    def collect(self) -> list[Outcome]:
        return []

    def next_deadline(self) -> float | None:
        return None

    def round(self) -> float:
        raise AssertionError("it was told to stop")

    def final_round(self) -> None:
        self.rounds += 1
        raise RuntimeError("a bug of ours")

    def round_failed(self, error: Exception) -> None:
        assert "a bug of ours" == str(error)


class Awake(threading.Event):
    """Wakes at once."""

    def wait(self, timeout: float | None = None) -> bool:
        return True


@pytest.mark.parametrize(
    ("until", "least", "most"),
    [
        ({}, 0.0, 1.0),
        ({"look:web@1": 100.0, "report": 100.0, "fetch:v2": 100.0}, 0.0, 1.0),
        ({"opengate:web@1": 3.0}, 3.0, PATIENCE),
        ({"closegate:web@1": 100.0}, PATIENCE, PATIENCE + 1.0),
        ({"restart:web@1": 30.0, "opengate:web@2": 100.0}, 30.0, 31.0),
        ({"flip": 30.0}, 30.0, 31.0),
    ],
    ids=["nothing", "what has no effect", "a gate", "a gate that hangs", "a restart", "a flip"],
)
def test_how_long_the_end_takes(until: dict[str, float], least: float, most: float) -> None:
    """A restart and the flip are waited for to their end, gates for a few seconds; not even a bug of ours changes that."""
    beside, stop = Beside(until), threading.Event()
    stop.set()

    go_round(beside, stop, Awake(), beside, beside)

    assert least <= beside.now <= most + 1.0
    assert beside.rounds >= 1
