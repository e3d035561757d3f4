"""Every strategy that ships keeps the contract."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

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


def test_a_seed_that_is_none_is_refused_once(tmp_path: Path) -> None:
    """Before any test, and not in each."""
    (tmp_path / "test_mine.py").write_text(
        "from deployd_core.testing import StrategyContract\n"
        "from deployd_strategies.concurrency import Concurrency\n"
        "class TestMine(StrategyContract): strategy = Concurrency\n"
    )
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path]
    done = subprocess.run(command, env={**os.environ, "DEPLOYD_SEED": "abc"}, capture_output=True, text=True, check=False)

    assert 4 == done.returncode
    assert 1 == (done.stdout + done.stderr).count("$DEPLOYD_SEED is 'abc' and must be a whole number")
    assert "ValueError" not in done.stdout + done.stderr


def test_every_property_is_a_test_of_the_contract() -> None:
    """What `deployd strategies check` looks at, the contract looks at."""
    tests = [name for name in vars(StrategyContract) if name.startswith("test_")]

    assert len(PROPERTIES) == len(tests)
