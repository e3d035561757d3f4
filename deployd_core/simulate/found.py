"""What is there before the build is enabled, when that is not a fleet that is well and serves one build throughout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from deployd_core.coordination import Enabled, Excuse, Freeze, Link, Permit, Rollout
from deployd_core.model import Role
from deployd_core.simulate.instance import NEVER
from deployd_core.testing.coordination import MemoryEnsemble

if TYPE_CHECKING:
    from deployd_core.simulate.host import VirtualHost


class FoundHost(Struct, frozen=True, kw_only=True):
    """How one host stands."""

    current: str | None
    """The build that its `current` points at; None on an empty disk."""
    serves: Mapping[str, str | None] = {}
    """By instance, the build that it serves, where that is not `current`; None when it does not run."""
    sick: frozenset[str] = frozenset()
    """Instances that run and do not get healthy."""
    starting: frozenset[str] = frozenset()
    """Instances that were restarted a moment ago."""
    alive: bool = True
    """Its agent runs. One whose agent does not is taken to be down with everything on it, as admission takes it."""
    excused: Excuse | None = None
    """Not counted as down; only of one whose agent does not run."""
    holds: bool = False
    """It holds a permit."""

    @property
    def given_up(self) -> bool:
        """Whether nobody waits for it."""
        return self.excused is not None and not self.alive and not self.holds


class Found(Struct, frozen=True, kw_only=True):
    """What coordination holds."""

    enabled: Enabled | None
    """For the fleet."""
    canary: Enabled | None
    """For the canary hosts; None while they follow the fleet."""
    fleet_rollout: str
    canary_rollout: str
    rollout: Rollout
    freeze: Freeze | None
    permits: tuple[Permit, ...]
    grants: int
    """Permits granted so far, ever."""
    granted_at: datetime | None
    """When the last one was."""


class VirtualEnsemble(MemoryEnsemble):
    """The ensemble in memory, which can be brought to where another one was found."""

    def enabled(self, service: str, role: Role) -> str:
        """The build that hosts of a role should serve; empty when nothing is enabled."""
        with self.lock:
            return self._existing(service).rollout_id(role).rpartition("-")[0]

    @property
    def frozen(self) -> bool:
        """Whether somebody has stopped everything."""
        return self._freeze is not None and self._freeze.active(self._clock())

    def restore(self, service: str, found: Found, digest_of: Callable[[str], str]) -> None:
        """Have what was enabled, stopped and permitted be so here.

        Args:
            service: One that exists, with its hosts.
            found: What was found.
            digest_of: The digest that a build has here.
        """
        names: dict[str, str] = {}
        for role, enabled, rollout in (
            (Role.FLEET, found.enabled, found.fleet_rollout),
            (Role.CANARY, found.canary, found.canary_rollout),
        ):
            if enabled is not None:
                names[rollout] = self.enable(service, enabled.build, digest_of(enabled.build), role=role, by=enabled.by)
        completed = found.rollout.completed
        if completed is not None:
            completed = replace(completed, digest=digest_of(completed.build))
        with self.lock:
            there = self._existing(service)
            there.rollout = replace(_renamed(found.rollout, names), completed=completed)
            there.grants, there.granted_at = found.grants, found.granted_at
            for permit in found.permits:
                there.grant(replace(permit, rollout=names.get(permit.rollout, permit.rollout)))
            self._wrote(service, "rollout")
        self.set_freeze(found.freeze)


def place(host: VirtualHost, found: FoundHost) -> None:
    """Have a host stand as it was found, before its agent begins."""
    world = host.world
    for instance in host.instances:
        instance.serves = found.serves.get(instance.name, found.current)
        if instance.serves is None or not found.alive:
            instance.stop()
        elif instance.name in found.sick:
            instance.answers_from = NEVER
        elif instance.name in found.starting:
            instance.answers_from = world.clock.now + world.draw(world.scenario.behaviour.start)
            world.agenda.at(instance.answers_from, world.recount, host, instance)
        instance.available = instance.can_serve(world.clock.now)
    if not found.alive:
        host.up = False
        host.coordination.link = Link.LOST
        world.record.state(0.0, host.name, "down")
    if found.excused is not None:
        world.ensemble.excuse(world.service, host.name, by=found.excused.by, why=found.excused.why)


def _renamed(rollout: Rollout, names: Mapping[str, str]) -> Rollout:
    """A rollout with the names that rollouts have here."""
    failures = {
        host: replace(failure, rollout=names.get(failure.rollout, failure.rollout)) for host, failure in rollout.failures.items()
    }
    done = {names.get(rollout_id, rollout_id): at for rollout_id, at in rollout.done.items()}
    return replace(rollout, failures=failures, done=done)
