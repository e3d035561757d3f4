"""Every strategy that ships keeps the contract."""

from __future__ import annotations

import inspect

from deployd_core.api import Share
from deployd_core.conformance.strategies import PROPERTIES
from deployd_core.plugins import Kind, Plugins
from deployd_core.testing import StrategyContract
from deployd_strategies.all_at_once import AllAtOnce
from deployd_strategies.concurrency import Concurrency, ConcurrencyOptions
from deployd_strategies.iptables_drain import IptablesDrain


class TestAllAtOnce(StrategyContract):
    """all-at-once."""

    strategy = AllAtOnce


class TestConcurrency(StrategyContract):
    """concurrency, narrow."""

    strategy = Concurrency

    def options(self) -> ConcurrencyOptions:
        return ConcurrencyOptions(instances_at_once=Share(1), min_available=Share("50%"), limit_per_zone=Share(1))


class TestIptablesDrain(StrategyContract):
    """iptables-drain."""

    strategy = IptablesDrain


def test_each_strategy_that_ships_is_here() -> None:
    """Whoever adds one adds its test."""
    tested = {found.strategy for found in globals().values() if inspect.isclass(found) and hasattr(found, "strategy")}

    assert {found.plugin for found in Plugins.load().of_kind(Kind.STRATEGY)} == tested


def test_every_property_is_a_test_of_the_contract() -> None:
    """What `deployd strategies check` looks at, the contract looks at."""
    tests = [name for name in vars(StrategyContract) if name.startswith("test_")]

    assert len(PROPERTIES) == len(tests)
