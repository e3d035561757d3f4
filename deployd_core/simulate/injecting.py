"""Carries out what a scenario makes go wrong: on which hosts and when is left to the seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from deployd_core.coordination import RolloutState
from deployd_core.simulate.faults import Fault, FaultKind, moments
from deployd_core.simulate.scenario import HostSetup
from deployd_core.units import Duration

if TYPE_CHECKING:
    from deployd_core.simulate.host import VirtualHost
    from deployd_core.simulate.world import World

_PAUSED_FOR = 600.0
_WRITES = 8
"""One of so many first writes of a host has its answer lost."""


class Injector:
    """The faults of one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng
        self._builds = 0
        self._joined = 0
        self._coming: list[tuple[float, int, Fault]] = []
        """Those that wait for a part of the hosts to have got a permit, the last one first."""
        for fault in world.scenario.faults:
            self._prepare(fault)
        self._coming.sort(reverse=True, key=lambda entry: entry[:2])

    def reached(self, part: float) -> None:
        """So large a part of the hosts has got a permit."""
        while self._coming and self._coming[-1][0] <= part:
            _, _, fault = self._coming.pop()
            self._world.agenda.after(0.0, self._happen, fault)

    def _prepare(self, fault: Fault) -> None:
        world = self._world
        if fault.kind.lasting:
            for host in self._rng.sample(world.hosts, fault.count(len(world.hosts))):
                self._afflict(host, fault.kind)
            return
        for one in moments(fault, len(world.hosts), self._rng):
            if one.at is not None:
                world.agenda.after(one.at, self._happen, one)
            else:
                self._coming.append((one.progress or 0.0, -len(self._coming), one))

    def _afflict(self, host: VirtualHost, kind: FaultKind) -> None:
        """What is so for a host from the beginning."""
        rng, instances = self._rng, len(host.instances)
        if kind is FaultKind.CRASH:
            acts = 6 + instances * (4 if self._world.setup.drain is not None else 1)
            host.dies_at = (rng.randint(1, acts), rng.random() < 0.5)
        elif kind is FaultKind.LOST_ANSWER:
            host.loses = (rng.randrange(_WRITES), rng.random() < 0.5)
        else:
            host.plagues.add(kind)

    def _happen(self, fault: Fault) -> None:
        """Its moment has come."""
        world = self._world
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
            case FaultKind.JOIN:
                self._joined += 1
                zone = self._rng.choice(sorted(world.zones))
                world.join(HostSetup(name=f"joined-{self._joined}", zone=zone))
            case _:
                self._strike(fault.kind)
        world.advanced()

    def _strike(self, kind: FaultKind) -> None:
        """It happens to one host: one that is restarting, if there is one."""
        world = self._world
        up = [host for host in world.hosts if host.alive]
        restarting = [host for host in up if host.disturbed]
        if not up:
            return
        host = self._rng.choice(restarting or up)
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

    def _go_on(self) -> None:
        world = self._world
        if world.ensemble.rollout(world.service).state is RolloutState.PAUSED:
            world.set_rollout(RolloutState.OPEN)
            world.advanced()
