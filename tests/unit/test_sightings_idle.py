"""What a watch makes of idle connections that were closed."""

from __future__ import annotations

from deployd_core.api import ClosedGate, Connections, Instance, State, Verdict
from deployd_core.sightings import Sighting, Watch


def counted(busy: int, idle: int) -> Sighting:
    """A look at a closed instance."""
    gate = ClosedGate(service="web", instance="web@8001", owner="h1/1/1", until=1000.0)
    return Sighting(state=State.RUNNING, verdict=Verdict.healthy(), closed=gate, connections=Connections(busy=busy, idle=idle))


def test_closed_connections_are_not_closed_again_and_busy_ones_stay_known() -> None:
    """Until the next count nothing is idle, so nothing is closed over and over; what is busy is still known at the deadline."""
    watch = Watch(Instance.parse("web", "web@8001"))
    watch.saw(counted(busy=2, idle=5), started=10.0, ended=10.01)
    watch.idle_closed(10.02)

    assert Connections(busy=2, idle=0) == watch.facts(10.0, "h1/1/1").connections


def test_count_begun_before_the_closing_is_dropped_and_the_next_is_taken() -> None:
    """A count that may still hold what was closed says nothing; the one after it does."""
    watch = Watch(Instance.parse("web", "web@8001"))
    watch.saw(counted(busy=2, idle=5), started=10.0, ended=10.01)
    watch.idle_closed(10.02)

    watch.saw(counted(busy=1, idle=5), started=10.015, ended=10.03)
    assert Connections(busy=2, idle=0) == watch.facts(10.0, "h1/1/1").connections
    watch.saw(counted(busy=1, idle=3), started=10.1, ended=10.11)
    assert Connections(busy=1, idle=3) == watch.facts(10.0, "h1/1/1").connections


def test_renewed_lease_leaves_the_count_as_it_is() -> None:
    """Moving the end of a lease opens nothing: a drain that is at its deadline must not be taken for one that was never counted."""
    watch = Watch(Instance.parse("web", "web@8001"))
    watch.saw(counted(busy=2, idle=0), started=10.0, ended=10.01)
    watch.gate_closed(10.02, ClosedGate(service="web", instance="web@8001", owner="h1/1/1", until=2000.0))

    assert Connections(busy=2) == watch.facts(10.0, "h1/1/1").connections
