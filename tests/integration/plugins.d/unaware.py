"""More strategies as they must not be: they forget what is under way, how large a host is, and where and when they are asked."""

import os
from typing import Annotated

from deployd_core.api import FleetOptions, HostView, Meta, Plan, Role, Share, Strategy, hookimpl


class ForgetsWhatIsUnderWay(Strategy[FleetOptions]):
    """Let the first that is stale go, though another is in the cycle."""

    name = "forgets-what-is-under-way"

    def plan(self, view: HostView) -> Plan:
        return Plan(cycle=view.stale[:1], limit=self.options.fleet_limit, why="one by one")


class BatchOptions(FleetOptions, frozen=True, kw_only=True):
    batch: Annotated[Share, Meta(description="instances of a batch, under a name that no check knows")] = Share("50%")


class ForgetsItsBatch(Strategy[BatchOptions]):
    """Begin the second batch while the first one warms up."""

    name = "forgets-its-batch"

    def plan(self, view: HostView) -> Plan:
        size = self.options.batch.at_most(len(view.instances))
        return Plan(cycle=view.stale[:size], limit=self.options.fleet_limit, why=f"batches of {size}")


class CanaryThenAllTooSoon(Strategy[FleetOptions]):
    """Let one go first, and the others as soon as that one serves: before it is ready."""

    name = "canary-then-all-too-soon"

    def plan(self, view: HostView) -> Plan:
        begun = any(found.serves == view.build for found in view.instances)
        return Plan(cycle=view.stale if begun else view.stale[:1], limit=self.options.fleet_limit, why="one, then all")


class TakesTheFirstOfASet(Strategy[FleetOptions]):
    """Let any one go."""

    name = "takes-the-first-of-a-set"

    def plan(self, view: HostView) -> Plan:
        return Plan(cycle=view.cycling or tuple(set(view.stale))[:1], limit=self.options.fleet_limit, why="any one")


class KnowsWhereItWasMade(Strategy[FleetOptions]):
    """Look at the host when it is made."""

    name = "knows-where-it-was-made"

    def __init__(self, options: FleetOptions) -> None:
        super().__init__(options)
        self.host = os.uname().nodename

    def plan(self, view: HostView) -> Plan:
        return Plan(cycle=view.cycling or view.stale[:1], limit=self.options.fleet_limit, why=f"one by one on {self.host}")


class AllCanariesAtOnce(Strategy[FleetOptions]):
    """Have no limit for canary hosts."""

    name = "all-canaries-at-once"

    def plan(self, view: HostView) -> Plan:
        if view.role is Role.CANARY:
            return Plan(cycle=view.stale, why="a canary")
        return Plan(cycle=view.cycling or view.stale[:1], limit=self.options.fleet_limit, why="one by one")


class HalfOfEachHour(Strategy[FleetOptions]):
    """Take the time of the view for one of day."""

    name = "half-of-each-hour"

    def plan(self, view: HostView) -> Plan:
        begins = view.stale[:1] if view.now % 3600 < 1800 else ()
        return Plan(cycle=view.cycling or begins, limit=self.options.fleet_limit, why="in the first half of each hour")


class StuckOnLargeHosts(Strategy[FleetOptions]):
    """Never come to the last of many."""

    name = "stuck-on-large-hosts"

    def plan(self, view: HostView) -> Plan:
        begins = () if len(view.instances) > 6 and len(view.stale) == 1 else view.stale[:1]
        return Plan(cycle=view.cycling or begins, limit=self.options.fleet_limit, why="one by one")


@hookimpl
def deployd_strategies() -> list[type]:
    return [found for found in globals().values() if isinstance(found, type) and "name" in vars(found)]
