"""Carries out what a scenario makes go wrong: on which hosts and when is left to the seed."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from msgspec.structs import replace

from deployd_core.coordination import RolloutState
from deployd_core.model import Role
from deployd_core.planner import HostStep
from deployd_core.simulate.faults import Fault, FaultKind, moments
from deployd_core.simulate.scenario import HostSetup
from deployd_core.units import Duration

if TYPE_CHECKING:
    from deployd_core.simulate.host import VirtualHost
    from deployd_core.simulate.world import World

_PAUSED_FOR = 600.0
_PROMOTED_WITHIN = 600.0
_ONCE = 7
"""Acts of a host that are no steps of its build and touch no instance: fetch, unpack, permit, flip, settle, tidy, advance."""
_WRITES = 8
"""One of so many first writes of a host has its answer lost."""

_SHOWN_BY_AN_ACT = (FaultKind.CRASH, FaultKind.LOST_ANSWER, FaultKind.FAILED_START)
"""So from the beginning, and nothing comes of it before the host gets to some act."""


class Injector:
    """The faults of one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng
        self._builds = 0
        self._joined = 0
        self._coming: list[tuple[float, int, float, Fault, Fault]] = []
        """Those that wait for a part of the hosts to have got a permit, the last one first; each with how long after that, and with
        what was asked for."""
        self._asked: Counter[Fault] = Counter()
        """How often what has a moment is to happen."""
        self._happened: Counter[Fault] = Counter()
        self._promotion: Fault | None = None
        """Somebody promotes the build as soon as all canary hosts serve it, or a while later."""
        for fault in world.scenario.faults:
            self._prepare(fault)
        self._coming.sort(reverse=True, key=lambda entry: entry[:2])

    def reached(self, part: float) -> None:
        """So large a part of the hosts has got a permit."""
        while self._coming and self._coming[-1][0] <= part:
            _, _, later, fault, asked = self._coming.pop()
            self._world.agenda.after(later, self._happen, fault, asked)

    def missed(self) -> tuple[str, ...]:
        """What has not happened until now, as it was asked for; of a number of hosts how many are left."""
        left = self._asked - self._happened
        for fault in self._world.scenario.faults:
            if fault.kind in _SHOWN_BY_AN_ACT:
                left[fault] = sum(_has_yet_to_come(fault.kind, host) for host in self._world.hosts)
        return tuple(
            f"{number} of {fault}" if number < self._asked[fault] else str(fault) for fault, number in left.items() if number
        )

    def converged(self, host: VirtualHost) -> None:
        """A host serves what is wanted."""
        promotion = self._promotion
        if promotion is None or host.role is not Role.CANARY:
            return
        if all(other.name in self._world.done for other in self._world.hosts if other.role is Role.CANARY):
            self._promotion = None
            self._world.agenda.after(self._rng.uniform(0.0, _PROMOTED_WITHIN), self._happen, promotion, promotion)

    def _prepare(self, fault: Fault) -> None:
        world = self._world
        if fault.kind.lasting:
            self._asked[fault] = fault.count(len(world.hosts)) if fault.kind in _SHOWN_BY_AN_ACT else 0
            for host in self._rng.sample(world.hosts, fault.count(len(world.hosts))):
                self._afflict(host, fault.kind)
            return
        if fault.kind is FaultKind.PROMOTE and fault.at is None and fault.progress is None:
            self._promotion = fault
            self._asked[fault] += 1
            return
        for one in moments(fault, len(world.hosts), self._rng):
            self._asked[fault] += 1
            if one.at is not None:
                world.agenda.after(one.at, self._happen, one, fault)
            else:
                # Left to the seed it happens while instances restart, and not always at the moment of a permit.
                later = self._rng.uniform(0.0, world.scenario.behaviour.start) if fault.progress is None else 0.0
                self._coming.append((one.progress or 0.0, -len(self._coming), later, one, fault))

    def _afflict(self, host: VirtualHost, kind: FaultKind) -> None:
        """What is so for a host from the beginning."""
        rng, instances = self._rng, len(host.instances)
        if kind is FaultKind.CRASH:
            acts = _ONCE + len(self._world.setup.steps) + instances * self._acts_of_an_instance()
            host.dies_at = (rng.randint(1, acts), rng.random() < 0.5)
        elif kind is FaultKind.LOST_ANSWER:
            host.loses = (rng.randrange(_WRITES), rng.random() < 0.5)
        else:
            host.plagues.add(kind)

    def _acts_of_an_instance(self) -> int:
        """How many acts restart one: with a gate it is closed and opened, too."""
        rules = self._world.setup.rules
        return 1 + (2 if rules.drain is not None else 0) + rules.warmup

    def _happen(self, fault: Fault, asked: Fault) -> None:
        """Its moment has come."""
        world = self._world
        self._happened[asked] += 1
        match fault.kind:
            case FaultKind.NEWER_BUILD:
                self._builds += 1
                world.enable(f"{world.scenario.build}-{self._builds}")
            case FaultKind.NEW_SPEC:
                spec = world.spec
                later = Duration(spec.instances.healthy_timeout + 1)
                world.apply(replace(spec, instances=replace(spec.instances, healthy_timeout=later)))
            case FaultKind.PAUSE:
                self._pause()
            case FaultKind.FREEZE:
                self._freeze()
            case FaultKind.PROMOTE:
                world.promote()
            case FaultKind.JOIN:
                self._joined += 1
                zone = self._rng.choice(sorted(world.zones))
                world.join(HostSetup(name=f"joined-{self._joined}", zone=zone))
            case _:
                self._strike(fault.kind)
        world.advanced()

    def _strike(self, kind: FaultKind) -> None:
        """It happens to one host: one that is restarting, if there is one. Half of the sessions are of one that waits."""
        world = self._world
        up = [host for host in world.hosts if host.alive]
        if not up:
            return
        if kind is FaultKind.SESSION and self._rng.random() < 0.5:
            likely = [host for host in up if host.step is HostStep.WAITING and not host.holds]
        else:
            likely = [host for host in up if host.name in world.nodes.holders]
        host = self._rng.choice(likely or up)
        match kind:
            case FaultKind.SESSION:
                world.expire(host)
            case FaultKind.REBOOT:
                world.go_down(host, for_good=False)
            case FaultKind.DEAD:
                world.go_down(host, for_good=True)
            case FaultKind.LEAVE:
                world.leave(host)

    def _pause(self) -> None:
        world = self._world
        if world.ensemble.rollout(world.service).state is RolloutState.OPEN:
            world.set_rollout(RolloutState.PAUSED)
            world.agenda.after(_PAUSED_FOR, self._go_on)

    def _freeze(self) -> None:
        if not self._world.ensemble.frozen:
            self._world.freeze(on=True)
            self._world.agenda.after(_PAUSED_FOR, self._thaw)

    def _thaw(self) -> None:
        self._world.freeze(on=False)
        self._world.advanced()

    def _go_on(self) -> None:
        world = self._world
        if world.ensemble.rollout(world.service).state is RolloutState.PAUSED:
            world.set_rollout(RolloutState.OPEN)
            world.advanced()


def _has_yet_to_come(kind: FaultKind, host: VirtualHost) -> bool:
    """Whether a host has not come to the act at which a fault of its shows."""
    if kind is FaultKind.CRASH:
        return host.dies_at is not None and host.acts < host.dies_at[0]
    return host.loses is not None if kind is FaultKind.LOST_ANSWER else kind in host.plagues
