"""Restarts in two halves."""

from __future__ import annotations

from typing import Annotated

from deployd_core.api import FleetOptions, HostView, Meta, Plan, Share, Strategy, hookimpl


class ByHalvesOptions(FleetOptions, frozen=True, kw_only=True):
    """What a spec can say under [restart.options]; `limit` and `limit_per_zone` are there already."""

    instances_at_once: Annotated[Share, Meta(description="instances of a host that make one half")] = Share("50%")


class ByHalves(Strategy[ByHalvesOptions]):
    """Restart the instances of a host in two halves.

    The second half begins when every instance of the first one is ready.
    """

    name = "by-halves"

    def plan(self, view: HostView) -> Plan:
        """Take the first half of those that are stale."""
        half = self.options.instances_at_once.at_most(len(view.instances))
        return Plan(cycle=view.cycling or view.stale[:half], limit=self.options.fleet_limit, why=f"{half} at once")


@hookimpl
def deployd_strategies() -> list[type[ByHalves]]:
    """Register the strategy."""
    return [ByHalves]
