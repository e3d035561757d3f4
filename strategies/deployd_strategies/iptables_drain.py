"""Rolling restarts that no client notices: the traffic of an instance is turned off before it is restarted."""

from __future__ import annotations

from typing import Annotated

from deployd_core.api import DrainOptions, HostView, Meta, Plan, Share, Strategy, hookimpl


class IptablesDrainOptions(DrainOptions, frozen=True, kw_only=True):
    """How wide the restart is, on top of how each instance is drained."""

    instances_at_once: Annotated[Share, Meta(description="instances of a host that are drained or restarting at a time")] = Share(1)
    min_available: Annotated[Share, Meta(description="instances of a host that stay open and healthy")] = Share(1)


class IptablesDrain(Strategy[IptablesDrainOptions]):
    """Turn the traffic of a few instances off at the firewall, restart them when nothing is in flight, and go on.

    Each instance is closed to new connections, drained, restarted, warmed up and probed past the closed gate, and opened; the next
    one goes when clients really use this one again. Needs two instances on a host, so that one serves while the other is restarted;
    with one alone, `hold = true` has new clients wait for the moment of its restart, and min_available = 0 says that this is meant.
    """

    name = "iptables-drain"

    def plan(self, view: HostView) -> Plan:
        """Let as many stale instances into the cycle as fit."""
        options, count = self.options, len(view.instances)
        window = options.instances_at_once.at_most(count)
        cycling = view.cycling
        return Plan(
            cycle=cycling + view.stale[: max(0, window - len(cycling))],
            impossible=self._impossible(count, window),
            limit=options.fleet_limit,
            min_available=options.min_available,
            why=f"{window} of {count} instances of a host at a time, drained, on {options.limit.of('host')} at a time",
        )

    def _impossible(self, count: int, window: int) -> str:
        """Why no instance could ever be restarted under these options."""
        floor = self.options.min_available.at_least(count)
        if count == 0 or count - floor >= 1:
            return ""
        there, leave = ("1 instance", "leaves") if count == 1 else (f"{count} instances", "leave")
        return (
            f"{there} less {window} at a time {leave} {count - window}, but min_available keeps {floor}: add instances, or "
            "lower min_available (0 with hold = true has clients wait for a single instance)"
        )


@hookimpl
def deployd_strategies() -> list[type[IptablesDrain]]:
    """Register the strategy."""
    return [IptablesDrain]
