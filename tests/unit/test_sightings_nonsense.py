"""What a look makes of plugins that return something else than their contract says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployd_core.api import (
    ClosedGate,
    Connections,
    Gate,
    GateCall,
    HostCall,
    InstanceCall,
    Manager,
    Options,
    Passing,
    Probe,
    Status,
)
from deployd_core.boundary import Bound, Provider
from deployd_core.errors import PluginError
from deployd_core.model import Health, Instance, State
from deployd_core.sightings import Lookout, Sighting, Watch

ACME = Provider(entry="acme", distribution="", version="", origin="here")
WEB = Instance.parse("web", "web")
CALL = InstanceCall(service="web", host="h1", zone="z", address="127.0.0.1", root=Path("/srv/web"), timeout=1.0, instance=WEB)


class Says(Manager[Options], Probe[Options], Gate[Options]):
    """Return what it is told to."""

    name = "says"

    def __init__(self, answer: Any) -> None:
        super().__init__(Options())
        self.answer = answer

    def state(self, call: InstanceCall) -> Status:
        return self.answer  # type: ignore[no-any-return]

    check = closed = connections = state  # type: ignore[assignment]

    def start(self, call: InstanceCall) -> None: ...

    def stop(self, call: InstanceCall) -> None: ...

    def restart(self, call: InstanceCall) -> None: ...

    def close(self, call: GateCall) -> None: ...

    def open(self, call: InstanceCall) -> None: ...


class Half(Says):
    """Tell of a closed gate, and then break."""

    def closed(self, call: HostCall) -> tuple[ClosedGate, ...]:  # type: ignore[override]
        def listing() -> Iterator[ClosedGate]:
            yield ClosedGate(service="web", instance="other", owner="h1/1/1.00", until=1.0)
            raise ValueError("the socket has gone")

        return listing()  # type: ignore[return-value]


def bound(plugin: Any) -> Bound[Any]:
    return Bound(plugin, plugin.name, ACME)


def look(*, manager: Any = None, probe: Any = None, gate: Any = None) -> Sighting:
    """What is seen, and can be followed."""
    manager = bound(manager or Says(Status(state=State.RUNNING, pid=1)))
    lookout = Lookout(
        manager=manager,
        probe=bound(probe) if probe else None,
        gate=bound(gate) if gate else None,
        probe_timeout=1.0,
        owner="h1/1/1.00",
    )
    sighting = lookout.look(CALL, CALL.root, (), returning=True)
    watch = Watch(WEB)
    watch.saw(sighting, started=1.0, ended=1.0)
    watch.facts(0.0, "h1/1/1.00")
    return sighting


@pytest.mark.parametrize("answer", [True, None, "healthy", {"healthy": True}])
def test_a_probe_that_returns_no_verdict_is_named(answer: object) -> None:
    """Its instance is in an unknown state of health, for that reason."""
    verdict = look(probe=Says(answer)).verdict

    assert Health.UNKNOWN is verdict.health
    assert verdict.reason.startswith(f"plugin acme (here) failed checking web: it returned {answer!r}: ")


@pytest.mark.parametrize("answer", [None, "running", Status(state="gone"), Status(state=State.RUNNING, pid="7")])  # type: ignore[arg-type]
def test_a_manager_that_returns_no_status_is_named(answer: object) -> None:
    """Nothing is known of its instance, for that reason."""
    seen = look(manager=Says(answer))

    assert (State.UNKNOWN, False) == (seen.state, seen.manager_away)
    assert "plugin acme (here) failed asking for web: it returned " in seen.verdict.reason


@pytest.mark.parametrize(
    ("gate", "problem"),
    [
        (Says(None), "failed listing closed gates: TypeError"),
        (Says([{"instance": "web"}]), "failed listing closed gates: it returned ({'instance': 'web'},)"),
        (Half(None), "failed listing closed gates: ValueError: the socket has gone"),
        (Says(()), "failed counting the connections of web: it returned (): "),
    ],
    ids=["nothing", "no gate", "a half", "no count"],
)
def test_a_gate_that_returns_nonsense_is_named(gate: Gate[Options], problem: str) -> None:
    """Nothing is known of the gate, for that reason; what the manager says of the process still counts."""
    seen = look(gate=gate)

    assert seen.gate_problem.startswith(f"plugin acme (here) {problem}")
    assert State.RUNNING is seen.state


def test_values_of_ours_pass() -> None:
    """What is what it should be comes out as it went in, be it a list where a tuple is meant."""
    closed = ClosedGate(service="web", instance="web", owner="h1/1/1.00", until=1.0)

    assert (closed,) == bound(Says([closed])).ask(tuple[ClosedGate, ...], "listing", lambda it: tuple(it.closed(CALL)))
    assert Connections(busy=3) == bound(Says(Connections(busy=3))).ask(Connections, "counting", lambda it: it.connections(CALL))


def test_how_to_get_past_a_gate_is_asked_like_everything_else() -> None:
    """A gate that returns nonsense is named."""
    with pytest.raises(PluginError, match=r"plugin acme .* failed saying how: it returned '127.0.0.2': "):
        bound(Says(None)).ask(Passing, "saying how", lambda _: "127.0.0.2")
