"""The contract of strategies, and the halves."""

from __future__ import annotations

from by_halves import ByHalves, ByHalvesOptions

from deployd_core.testing import StrategyContract, host_view


class TestByHalves(StrategyContract):
    """All that every strategy keeps to, on hundreds of modelled hosts."""

    strategy = ByHalves


def test_the_second_half_waits_for_the_first() -> None:
    """Until the last instance of the first half is ready."""
    plan = ByHalves(ByHalvesOptions()).plan

    assert plan(host_view("stale", "stale", "stale", "stale")).cycle == ("web@8001", "web@8002")
    assert plan(host_view("ready", "warming", "stale", "stale")).cycle == ("web@8002",)
    assert plan(host_view("ready", "ready", "stale", "stale")).cycle == ("web@8003", "web@8004")
