"""The simplest strategy: do not wait for anybody."""

from __future__ import annotations

from deployd_core.api import HostView, Options, Plan, Strategy, hookimpl


class AllAtOnce(Strategy[Options]):
    """Restart every instance of every host at once.

    The fastest way to a new build, and the only one with no service in between: for development, for batch workers, and for
    services that are down anyway.
    """

    name = "all-at-once"

    def plan(self, view: HostView) -> Plan:
        """Let every stale instance go."""
        return Plan(cycle=view.stale, why="every instance of every host at once")


@hookimpl
def deployd_strategies() -> list[type[AllAtOnce]]:
    """Register the strategy."""
    return [AllAtOnce]
