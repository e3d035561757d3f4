"""What must hold at the moment at which a host is given a permit, judged by who has one, who is down, and what people have said.

Nothing here asks `deployd_core.admission`, which is what is judged. Only windows are read by the code that runs in production.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from deployd_core.coordination import Rollout, RolloutState, Snapshot
from deployd_core.model import FleetLimit, Role
from deployd_core.windows import closed

if TYPE_CHECKING:
    from deployd_core.simulate.host import VirtualHost
    from deployd_core.simulate.world import World

Finding = tuple[str, str]
"""A rule that is broken, and how."""
_ROUNDING = 0.001
"""Seconds by which moments may differ that are the same."""


class Granting:
    """The permits of a run, one after another."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._granted = 0
        self._last_at: float | None = None
        self._failed: dict[str, str] = {}
        """Host → the rollout in which it failed, as hosts have said."""

    def begin(self) -> None:
        """From now on; some permits may have been given before."""
        nodes, clock = self._world.nodes, self._world.clock
        self._granted = nodes.grants
        if nodes.granted_at is not None:
            self._last_at = clock.now - (clock.time() - nodes.granted_at.timestamp())

    def failed(self, host: str, rollout_id: str) -> set[str]:
        """A host has failed; returns all that have in the same rollout."""
        self._failed[host] = rollout_id
        return self._failed_in(rollout_id)

    def recovered(self, host: str) -> None:
        """A host that had failed is healthy after all."""
        self._failed.pop(host, None)

    def granted(self, host: VirtualHost, snapshot: Snapshot, limit: FleetLimit) -> Iterator[Finding]:
        """A host has just been given a permit; what is wrong with that."""
        yield from self._over_limit(host, limit)
        yield from (("stop", f"is given a permit {why}") for why in self._stops(host, snapshot))
        yield from self._too_few_left(host, limit)
        yield from self._too_fast(snapshot)
        self._granted += 1
        self._last_at = self._world.clock.now

    def _failed_in(self, rollout_id: str) -> set[str]:
        """Who has failed in a rollout, as they have said themselves or as it is on record."""
        recorded = self._world.nodes.rollout.failed_in(rollout_id)
        return {*recorded, *(host for host, failed_in in self._failed.items() if failed_in == rollout_id)}

    def _over_limit(self, host: VirtualHost, limit: FleetLimit) -> Iterator[Finding]:
        world = self._world
        out = {**world.restarting, **world.nodes.holders}
        if limit.hosts is not None and len(out) > (most := limit.hosts.at_most(world.members)):
            yield "limit", f"{len(out)} hosts hold permits or restart, and {limit.hosts} of {world.members} is {most}"
        if limit.per_zone is not None:
            within, members = sum(zone == host.zone for zone in out.values()), world.zones[host.zone]
            if within > (most := limit.per_zone.at_most(members)):
                yield "limit", f"{within} hosts of {host.zone} hold permits or restart, and {limit.per_zone} of {members} is {most}"

    def _stops(self, host: VirtualHost, snapshot: Snapshot) -> Iterator[str]:
        """Why nobody, or not this host, may be given a permit now."""
        world, policy, rollout = self._world, self._world.spec.rollout, self._world.nodes.rollout
        if world.ensemble.frozen:
            yield "while everything is frozen"
        if rollout.state is not RolloutState.OPEN:
            yield f"while the rollout is {rollout.state.value}"
        if policy.windows is not None and not rollout.rollback_of and (shut := closed(policy.windows, world.clock.date())):
            yield f"{shut.reason}"
        failed, budget = self._failed_in(snapshot.rollout_id), policy.budget.part_of(world.members)
        if len(failed) > budget:
            yield f"after {len(failed)} hosts have failed, and the budget is {budget}"
        build = snapshot.enabled.build if snapshot.enabled else ""
        if policy.canary_first and host.role is not Role.CANARY and rollout.promoted != build:
            yield f"before {build} is promoted"

    def _too_few_left(self, host: VirtualHost, limit: FleetLimit) -> Iterator[Finding]:
        """Permits together with hosts that are down; one that is down itself takes nothing away."""
        world, holders = self._world, self._world.nodes.holders
        down = world.nodes.out
        if host.name in down:
            return
        out = {**down, **holders}
        floor = world.spec.rollout.min_available
        most = world.members - floor.at_least(world.members)
        if limit.hosts is not None:
            most = min(most, limit.hosts.at_most(world.members))
        if len(out) > most:
            yield "room", f"{len(out)} hosts hold permits or are down, and limit and min_available leave {most} of {world.members}"
        if limit.per_zone is not None:
            within = sum(zone == host.zone for zone in out.values())
            if within > (most := limit.per_zone.at_most(world.zones[host.zone])):
                yield "room", f"{within} hosts of {host.zone} hold permits or are down, and its limit is {most}"

    def _too_fast(self, snapshot: Snapshot) -> Iterator[Finding]:
        world, policy, rollout = self._world, self._world.spec.rollout, self._world.nodes.rollout
        passed = world.clock.now - self._last_at if self._last_at is not None else None
        if passed is not None and passed < float(policy.stagger) - _ROUNDING:
            yield "pace", f"is given a permit {passed:.0f} s after the last one, and {policy.stagger} must pass"
        holding = len(world.nodes.holders)
        if rollout.rollback_of or holding <= (most := self._ramp(rollout, len(self._failed_in(snapshot.rollout_id)))):
            return
        yield "pace", f"{holding} hosts hold permits, and the ramp allows {most} now"

    def _ramp(self, rollout: Rollout, failed: int) -> int:
        """How many hosts the ramp lets hold a permit: of the steps that are not behind us, the smallest."""
        world = self._world
        finished = max(0, self._granted - rollout.grants_before - (len(world.nodes.holders) - 1) - failed)
        sizes = [step.at_most(world.members) for step in world.spec.rollout.ramp]
        ahead = [size for number, size in enumerate(sizes, start=1) if finished < sum(sizes[:number])]
        return min(ahead, default=world.members)
