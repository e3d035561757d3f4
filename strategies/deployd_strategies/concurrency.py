"""A rolling restart: so many hosts at a time, and on each host so many instances at a time."""

from __future__ import annotations

from typing import Annotated

from deployd_core.api import FleetOptions, HostView, Meta, Plan, Share, Strategy, hookimpl


class ConcurrencyOptions(FleetOptions, frozen=True, kw_only=True):
    """How wide the restart is."""

    instances_at_once: Annotated[Share, Meta(description="instances of a host restarting at a time")] = Share("100%")
    min_available: Annotated[Share, Meta(description="instances of a host that stay open and healthy")] = Share(0)


class Concurrency(Strategy[ConcurrencyOptions]):
    """Restart so many hosts at a time, and so many instances of each.

    A window that slides: as soon as one host is done and healthy the next one begins, and likewise for the instances of a host.
    """

    name = "concurrency"

    def plan(self, view: HostView) -> Plan:
        """Fill the window with stale instances."""
        count = len(view.instances)
        window = self.options.instances_at_once.at_most(count)
        cycling = view.cycling
        room = max(0, window - len(cycling))
        return Plan(
            cycle=cycling + view.stale[:room],
            limit=self.options.fleet_limit,
            min_available=self.options.min_available,
            why=f"{window} of {count} instances of a host at a time, on {self.options.limit.of('host')} at a time",
        )


@hookimpl
def deployd_strategies() -> list[type[Concurrency]]:
    """Register the strategy."""
    return [Concurrency]
