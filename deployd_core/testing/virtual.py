"""A virtual fleet for tests of strategies: the simulator, with a class that need not be installed.

run = virtual_fleet(MyStrategy, hosts=20, options={"limit": "10%"})
assert run.most_permits == 2
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deployd_core.api import Strategy
from deployd_core.plugins import Kind, Plugins
from deployd_core.simulate.faults import parse_faults
from deployd_core.simulate.runner import Run, simulate
from deployd_core.simulate.scenario import Scenario, roster, spec_for


def virtual_fleet(
    strategy: type[Strategy[Any]],
    *,
    hosts: int = 20,
    zones: int = 2,
    instances: int = 4,
    options: Mapping[str, Any] | None = None,
    facts: Mapping[str, Mapping[str, object]] | None = None,
    faults: str = "",
    seed: int = 0,
) -> Run:
    """Roll a virtual fleet from one build to the next, in virtual time.

    Args:
        strategy: The class.
        hosts: How many.
        zones: Over which they are spread.
        instances: Of each host.
        options: As a spec writes them.
        facts: What the strategy's own look would find, by the name of the host (``host-07``); under ``""`` at all others.
        faults: What goes wrong, as `deployd strategies simulate --faults` takes it.
        seed: Of everything that is left to chance.

    Raises:
        ConfigError: An option or a fault is wrong.
    """
    plugins = Plugins()
    plugins.add(Kind.STRATEGY, strategy)
    spec = spec_for(strategy.name, options or {}, instances)
    scenario = Scenario(spec=spec, hosts=roster(hosts, zones), facts=facts or {}, faults=parse_faults(faults) if faults else ())
    return simulate(scenario, plugins, seed)[0]
