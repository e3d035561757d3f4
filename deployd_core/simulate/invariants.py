"""What must hold at every moment, judged by how the world really is and not by what the planner believes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from deployd_core.acts import Act, CloseGate, Restart, TakePermit
from deployd_core.api import FleetOptions
from deployd_core.coordination import Permit
from deployd_core.model import FleetLimit
from deployd_core.planner import Decision
from deployd_core.units import Share

if TYPE_CHECKING:
    from deployd_core.simulate.host import VirtualHost
    from deployd_core.simulate.instance import VirtualInstance
    from deployd_core.simulate.world import World

RULES = {
    "limit": "never more hosts restarting than the limit allows, in the fleet and in each zone",
    "permit": "no restart, and no gate closed, without a permit",
    "floor": "never fewer instances open and healthy on a host because of us than min_available",
    "needless": "no instance restarted that serves the wanted build and is healthy",
    "whole": "no permit given back while an instance that was taken out is not open and healthy",
    "budget": "never more failed hosts than the budget and the limit together",
    "gates": "at the end no healthy instance is left behind a closed gate",
    "woken": "a host that waits for a permit is woken when it may have one",
    "end": "a rollout ends: converged, halted, or waiting for a person, with the reason",
}
"""By name, for messages and for the documentation."""


class Broken(Struct, frozen=True, kw_only=True):
    """A rule that was broken."""

    rule: str
    at: float
    host: str
    what: str


class Judge:
    """Watches a run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._tokens: dict[str, int] = {}
        self._asked: dict[str, FleetLimit] = {}
        self.broken: list[Broken] = []

    def granted(self, host: VirtualHost, permit: Permit, act: TakePermit) -> None:
        """A host was given a permit, or told that it has one."""
        if self._tokens.get(host.name) == permit.token:
            return
        self._tokens[host.name] = permit.token
        limit, world = self._limit(host, act.limit), self._world
        holders = world.ensemble.holders(world.service)
        if limit.hosts is not None and len(holders) > (most := limit.hosts.at_most(world.members)):
            self._break("limit", host, f"{len(holders)} hosts hold permits, and {limit.hosts} of {world.members} is {most}")
        if limit.per_zone is not None:
            within, members = sum(zone == host.zone for zone in holders.values()), world.zones[host.zone]
            if within > (most := limit.per_zone.at_most(members)):
                what = f"{within} hosts of {host.zone} hold permits, and {limit.per_zone} of {members} is {most}"
                self._break("limit", host, what)

    def begins(self, host: VirtualHost, act: Act, decision: Decision) -> None:
        """A host begins an act."""
        if isinstance(act, TakePermit):
            self._asked[host.name] = act.limit
        if not isinstance(act, (Restart, CloseGate)):
            return
        world, instance = self._world, host.by_name[act.instance]
        if isinstance(act, CloseGate) and instance.closed is not None:
            return  # a lease is moved: nothing is taken out
        if host.name not in world.ensemble.holders(world.service):
            self._break("permit", host, f"{act.key} without a permit")
        current = host.disk.current  # the wanted build, or the one it goes back to
        if isinstance(act, Restart) and instance.serves == current and instance.healthy(world.clock.now):
            self._break("needless", host, f"{act.key}, which serves {current} and is healthy")
        if not instance.can_serve(world.clock.now):
            return  # nobody loses it
        left = sum(self._serves(host, other) for other in host.instances if other is not instance)
        floor = self._floor(host, decision)
        if left < floor:
            self._break("floor", host, f"{act.key} leaves {left} of {len(host.instances)} instances, and {floor} must stay")

    def settles(self, host: VirtualHost) -> None:
        """A host is about to give its permit back."""
        out = [instance.name for instance in host.instances if instance.disturbed]
        if out:
            self._break("whole", host, f"gives its permit back while {', '.join(out)} cannot serve")

    def failed(self, host: VirtualHost) -> None:
        """A host has entered its failure."""
        world, snapshot = self._world, host.snapshot
        found = self._limit(host, self._asked.get(host.name, FleetLimit())).hosts
        if snapshot is None or snapshot.spec is None or found is None:
            return
        failed = world.ensemble.rollout(world.service).failed_in(snapshot.rollout_id)
        most = snapshot.spec.rollout.budget.part_of(world.members) + found.at_most(world.members)
        if len(failed) > most:
            self._break("budget", host, f"{len(failed)} hosts have failed, and budget and limit together are {most}")

    def missed(self, host: VirtualHost) -> None:
        """A host got a permit only because it asked again by itself."""
        self._break("woken", host, "waited for a permit while there was room, and nobody woke it")

    def ends(self, stuck: dict[str, str]) -> None:
        """The run is over; by host, why those that wait for nobody are not done."""
        for host in self._world.hosts:
            for instance in host.instances:
                if instance.closed is not None and instance.healthy(self._world.clock.now):
                    self._break("gates", host, f"{instance.name} is healthy behind a closed gate")
            if host.name in stuck:
                self._break("end", host, f"nothing happens any more, but it is {stuck[host.name]}")

    def _break(self, rule: str, host: VirtualHost, what: str) -> None:
        self.broken.append(Broken(rule=rule, at=self._world.clock.elapsed, host=host.name, what=what))
        self._world.say(host, f"BREAKS {rule}: {what}")

    def _serves(self, host: VirtualHost, instance: VirtualInstance) -> bool:
        """Whether an instance is open and healthy, as far as an agent can know: a look at it takes a while."""
        return instance.closed is None and self._answered(host, instance)

    def _answered(self, host: VirtualHost, instance: VirtualInstance) -> bool:
        """Whether an instance answers its probe, or did when the last look at it was begun."""
        now = self._world.clock.now
        return instance.healthy(now) or instance.healthy(now - self._world.look_seconds(host))

    def _limit(self, host: VirtualHost, planned: FleetLimit) -> FleetLimit:
        """The limit that people wrote down; that of the plan for a strategy which has no such options."""
        options = host.setup.strategy.plugin.options
        return options.fleet_limit if isinstance(options, FleetOptions) else planned

    def _floor(self, host: VirtualHost, decision: Decision) -> int:
        count = len(host.instances)
        if count < 2 or decision.plan is None:
            return 0
        setup = host.setup
        written = getattr(setup.strategy.plugin.options, "min_available", None)
        floors = (
            setup.spec.instances.min_available,
            decision.plan.min_available,
            written if isinstance(written, Share) else Share(0),
        )
        return max(floor.at_least(count) for floor in floors)
