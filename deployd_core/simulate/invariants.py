"""What must hold at every moment, judged by how the world really is and not by what the planner believes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from deployd_core.acts import Act, Advance, CloseGate, Flip, InstanceAct, LeaveQueue, OpenGate, Restart, Settle, TakePermit
from deployd_core.api import AtDeadline, FleetOptions
from deployd_core.coordination import Link, Snapshot
from deployd_core.model import FleetLimit
from deployd_core.planner import Decision
from deployd_core.simulate.granting import Granting
from deployd_core.units import Share

if TYPE_CHECKING:
    from deployd_core.simulate.host import VirtualHost
    from deployd_core.simulate.instance import VirtualInstance
    from deployd_core.simulate.world import World

RULES = {
    "limit": "never more hosts restarting than the limit allows, in the fleet and in each zone",
    "room": "never more hosts with a permit or down than the limit and the fleet's min_available leave, when one is given a permit",
    "stop": "no permit while the rollout is stopped, frozen, outside its windows, over its budget, or not promoted",
    "pace": "no permit before the stagger has passed, and never more of them than the ramp allows",
    "permit": "no restart, and no gate closed, without a permit",
    "session": "nothing new is begun while the session is lost: no permit, no flip, no instance taken out",
    "floor": "never fewer instances open and healthy on a host because of us than min_available",
    "needless": "no instance restarted that serves the wanted build and is healthy",
    "cut": "no instance behind a gate restarted while requests are in flight, before its drain has had its time",
    "stable": "no gate opened on an instance that is not healthy, and none taken for done that is not stable",
    "lease": "no lease of a closed gate runs out while an agent is there that could have renewed it",
    "whole": "no permit given back while an instance that was taken out is not open and healthy",
    "budget": "never more failed hosts than the budget and the limit together",
    "gates": "at the end no healthy instance is left behind a closed gate",
    "woken": "a host that waits for a permit is woken when it may have one",
    "end": "a rollout ends: converged, halted, or waiting for a person, with the reason",
}
"""By name, for messages and for the documentation."""
_ROUNDING = 0.001
"""Seconds by which moments may differ that are the same."""
_SETTLES_IN = 10.0
"""Seconds after which an agent that has started has seen every gate, and taken over what an earlier one left closed."""


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
        self._granting = Granting(world)
        self._asked: dict[str, FleetLimit] = {}
        self.broken: list[Broken] = []

    def begin(self) -> None:
        """The run begins: everything is as it was found."""
        self._granting.begin()

    def granted(self, host: VirtualHost, snapshot: Snapshot, act: TakePermit) -> None:
        """A host was given a permit, whether it hears of it or not."""
        for rule, what in self._granting.granted(host, snapshot, self._limit(host, act.limit)):
            self._break(rule, host, what)

    def begins(self, host: VirtualHost, act: Act, decision: Decision) -> None:
        """A host begins an act."""
        if isinstance(act, TakePermit):
            self._asked[host.name] = act.limit
        if host.coordination.link is not Link.CONNECTED and self._is_new(host, act):
            self._break("session", host, f"begins {act.key} while its session is lost")
        if isinstance(act, InstanceAct):
            self._begins_on_instance(host, act, host.by_name[act.instance], decision)

    def settles(self, host: VirtualHost, act: Settle) -> None:
        """A host is about to give its permit back."""
        out = [instance.name for instance in host.instances if instance.disturbed]
        if out:
            self._break("whole", host, f"gives its permit back while {', '.join(out)} cannot serve")
        young = [instance.name for instance in host.instances if not instance.disturbed and not self._stable(host, instance)]
        if young:
            seconds = f"{host.setup.rules.stable_for:g} s"
            self._break("stable", host, f"gives its permit back before {', '.join(young)} has been healthy for {seconds}")
        if not act.failed:
            self._granting.recovered(host.name)

    def lease_runs_out(self, host: VirtualHost, instance: VirtualInstance) -> None:
        """The lease of a gate has run out. Nobody has to renew it while no other instance serves: clients may try their luck."""
        now = self._world.clock.now
        others = any(other.can_serve(now) for other in host.instances if other is not instance)
        if others and host.alive and now - host.started_at >= _SETTLES_IN:
            self._break("lease", host, f"the lease of {instance.name} runs out, and its agent is there")

    def failed(self, host: VirtualHost) -> None:
        """A host has entered its failure."""
        world, snapshot = self._world, host.snapshot
        found = self._limit(host, self._asked.get(host.name, FleetLimit())).hosts
        if snapshot is None:
            return
        failed = self._granting.failed(host.name, snapshot.rollout_id)
        if snapshot.spec is None or found is None:
            return
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

    # What is begun.

    def _is_new(self, host: VirtualHost, act: Act) -> bool:
        """Whether an act begins something, other than going on with an instance that is out already."""
        if isinstance(act, CloseGate | Restart):
            return not host.by_name[act.instance].disturbed
        return isinstance(act, TakePermit | Flip | Advance | LeaveQueue)

    def _begins_on_instance(self, host: VirtualHost, act: InstanceAct, instance: VirtualInstance, decision: Decision) -> None:
        match act:
            case OpenGate() if not self._answered(host, instance):
                self._break("stable", host, f"{act.key}, which is not healthy")
            case CloseGate() if instance.closed is None:  # else a lease is moved: nothing is taken out
                self._takes_out(host, act, instance, decision)
            case Restart():
                self._restarts(host, act, instance)
                self._takes_out(host, act, instance, decision)

    def _restarts(self, host: VirtualHost, act: Restart, instance: VirtualInstance) -> None:
        now, current = self._world.clock.now, host.disk.current  # the wanted build, or the one it goes back to
        if instance.serves == current and instance.healthy(now):
            self._break("needless", host, f"{act.key}, which serves {current} and is healthy")
        requests = instance.in_flight(now)
        if host.gated and requests and not self._may_cut(host, instance):
            self._break("cut", host, f"{act.key} with {requests} requests in flight")

    def _may_cut(self, host: VirtualHost, instance: VirtualInstance) -> bool:
        """Whether the drain of an instance has had the time that it may take."""
        drain, since = host.setup.rules.drain, instance.draining_since
        if drain is None or since is None or drain.at_deadline is not AtDeadline.PROCEED:
            return False
        return self._world.clock.now - since >= drain.timeout - _ROUNDING

    def _takes_out(self, host: VirtualHost, act: InstanceAct, instance: VirtualInstance, decision: Decision) -> None:
        if host.name not in self._world.nodes.holders:
            self._break("permit", host, f"{act.key} without a permit")
        now = self._world.clock.now
        if not (instance.can_serve(now) and instance.healthy(now - self._world.look_seconds(host))):
            return  # nobody loses it, or nobody could know yet that it is healthy
        left = sum(self._serves(host, other) for other in host.instances if other is not instance)
        floor = self._floor(host, decision)
        if left < floor:
            self._break("floor", host, f"{act.key} leaves {left} of {len(host.instances)} instances, and {floor} must stay")

    # How the world is.

    def _serves(self, host: VirtualHost, instance: VirtualInstance) -> bool:
        """Whether an instance can be relied on: it is open and healthy, and if it was restarted, it is stable."""
        if instance.closed is not None or not self._answered(host, instance):
            return False
        return instance.serves != host.disk.current or self._stable(host, instance)

    def _answered(self, host: VirtualHost, instance: VirtualInstance) -> bool:
        """Whether an instance answers its probe, as far as an agent can know: or it did when the last look at it was begun."""
        now = self._world.clock.now
        return instance.healthy(now) or instance.healthy(now - self._world.look_seconds(host))

    def _stable(self, host: VirtualHost, instance: VirtualInstance) -> bool:
        """Whether an instance has been healthy for as long as it has to be."""
        now = self._world.clock.now
        return now - instance.healthy_since(now) >= host.setup.rules.stable_for - _ROUNDING

    # What people have written.

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
