"""Hosts, their ensemble and time, put together: one run of one scenario from one seed."""

from __future__ import annotations

import random
from typing import Any

from deployd_core.acts import Act, Advance, CloseGate, CloseIdle, RecordFailure, Settle, TakePermit
from deployd_core.clock import until
from deployd_core.config import ServiceSetup
from deployd_core.coordination import Denial, Denied, Freeze, Permit, RolloutState
from deployd_core.model import Role
from deployd_core.planner import HostStep
from deployd_core.plugins import Plugins
from deployd_core.simulate import acting
from deployd_core.simulate.agenda import Agenda, VirtualClock
from deployd_core.simulate.disks import digest_of
from deployd_core.simulate.faults import FaultKind
from deployd_core.simulate.found import VirtualEnsemble, place
from deployd_core.simulate.host import VirtualHost
from deployd_core.simulate.injecting import Injector
from deployd_core.simulate.instance import VirtualInstance
from deployd_core.simulate.invariants import Judge
from deployd_core.simulate.looks import look_unasked
from deployd_core.simulate.record import Record
from deployd_core.simulate.scenario import HostSetup, Scenario, set_up_virtual
from deployd_core.spec import ServiceSpec

_LOOK, _SLOW_LOOK, _LATE = 0.02, 2.0, 30.0
_EXPIRED_FOR = 15.0
_NET = 120.0
"""Seconds without progress after which whoever waits asks again: the engine does every minute, needed or not."""
_MOST_ROUNDS = 200
"""Rounds that a host may make, and as many for each of its instances, before it is taken to go round in circles."""
_EXTRA = 4
"""Moments, while a host restarts, at which it is asked for a plan although it expects nothing new: acting too early shows then."""
_WEEK = 7 * 86_400.0
_PATIENCE = 3600.0
"""Seconds without progress after which nothing is expected any more; more when the spec itself lets things take longer."""


class World:
    """Everything there is in a run."""

    def __init__(self, scenario: Scenario, plugins: Plugins, seed: int, *, full: bool = False) -> None:
        self.scenario = scenario
        self.service = scenario.service
        self.rng = random.Random(seed)  # noqa: S311 - it has to be foreseeable
        self.clock = VirtualClock(scenario.began)
        self.agenda = Agenda(self.clock)
        self.record = Record(full=full)
        self.judge = Judge(self)
        self.ensemble = VirtualEnsemble(clock=self.clock.date)
        self.setup = set_up_virtual(scenario.spec, scenario.service, plugins)
        self.rounds = 0
        """How often an agent has planned."""
        self.members = 0
        self.zones: dict[str, int] = {}
        """Members by zone."""
        self.ordered = scenario.build
        """The build that somebody enabled last."""
        self.ended_at = 0.0
        """When something last got further."""
        self.granted = 0
        """Hosts that have had a permit."""
        self._plugins = plugins
        self._setups = [self.setup]
        self._netted = False
        self._wanted: dict[Role, str] = {}
        self._opens_at = 0.0
        """When a window opens that hosts wait for."""
        self._news_at = self.clock.began
        """When something last got further, or a window opened: from then on nothing is expected to take for ever."""
        self._draw = scenario.behaviour.draw
        self.spec = scenario.spec
        """As it was last written."""
        self.ensemble.apply_spec(self.service, self.spec)
        self.nodes = self.ensemble.nodes(self.service)
        """Of the service, as they stand."""
        self.restarting: dict[str, str] = {}
        """Host → zone of every host on which deploying has taken an instance out."""
        entered = [(setup, self._add(setup, served=scenario.before)) for setup in scenario.hosts]
        self.hosts = [host for setup, host in entered if setup.found is None or not setup.found.given_up]
        """Those that are waited for."""
        self.record.begin()
        self.done: set[str] = set()
        """Hosts that serve what is wanted."""
        self.injector = Injector(self)

    # What happens.

    def run(self) -> None:
        """From the moment at which the build is enabled until nothing happens any more."""
        self._begin()
        self.judge.begin()
        self.enable(self.scenario.build)
        for host in self.hosts:
            if host.up:
                self.agenda.after(self.draw(self.scenario.behaviour.watch), self._agent_known, host)
        table = self.setup.spec.instances
        patience = max(_PATIENCE, 3 * (table.healthy_timeout + table.restart_timeout))
        most = len(self.hosts) * (_MOST_ROUNDS + _MOST_ROUNDS * len(self.setup.instances))
        while len(self.done) < len(self.hosts) or any(host.busy for host in self.hosts):
            quiet = self.agenda.next_at() - self._news_at
            if quiet > _NET and not self._netted:
                self._cast_net()
            elif (quiet > patience and not self._opens_soon()) or self.rounds > most:
                break
            else:
                self.agenda.step()

    def enable(self, build: str) -> None:
        """Have the fleet serve a build."""
        self.record.say(self.clock.elapsed, "-", f"enables {build}")
        self.ensemble.enable(self.service, build, digest_of(build), role=Role.FLEET, by="simulation")
        self.ordered = build
        self.done = set()
        self._wanted = self._now_wanted()

    def apply(self, spec: ServiceSpec) -> None:
        """Write the spec anew."""
        self.record.say(self.clock.elapsed, "-", "writes the spec anew")
        self.spec = spec
        self.ensemble.apply_spec(self.service, spec)

    def set_rollout(self, state: RolloutState) -> None:
        """Pause the rollout, or go on."""
        self.record.say(self.clock.elapsed, "-", f"sets the rollout to {state.value}")
        self.ensemble.set_rollout(self.service, state, by="simulation", why="to see what happens")

    def freeze(self, *, on: bool) -> None:
        """Stop everything, or go on."""
        self.record.say(self.clock.elapsed, "-", "freezes everything" if on else "ends the freeze")
        self.ensemble.set_freeze(Freeze(by="simulation", why="to see what happens") if on else None)

    def promote(self) -> None:
        """Let the fleet have what the canary hosts have."""
        self.record.say(self.clock.elapsed, "-", "promotes what the canary hosts have")
        self.ensemble.promote(self.service, by="simulation")
        self._reconsider()

    def join(self, setup: HostSetup) -> None:
        """A host joins, still with the old build."""
        host = self._add(setup, served=self.scenario.before)
        self.hosts.append(host)
        self.say(host, "joins")
        host.start()

    def kill_agent(self, host: VirtualHost, when: str) -> None:
        """An agent dies, and another one is started."""
        self.say(host, f"its agent dies {when}")
        host.stop()
        self.agenda.after(self.draw(self.scenario.behaviour.agent), self._agent_again, host, host.life)

    def go_down(self, host: VirtualHost, *, for_good: bool) -> None:
        """A host goes down with everything on it."""
        self.say(host, "goes down for good" if for_good else "goes down")
        host.stop()
        host.up = False
        for instance in host.instances:
            instance.stop()
            instance.starts += 1
            instance.closed = None
            self.recount(host, instance)
        self.record.state(self.clock.elapsed, host.name, "down")
        if not for_good:
            self.agenda.after(self.draw(self.scenario.behaviour.reboot), self._come_up, host)

    def waits_for_window(self, host: VirtualHost, answer: Denied) -> bool:
        """Whether a host waits for a window of which it is known when it opens: it asks then, and not every minute before."""
        if answer.code is not Denial.WINDOW or answer.until is None:
            return False
        seconds = until(answer.until, self.clock.time())
        self._opens_at = self.clock.now + seconds
        self.agenda.after(seconds, self._window_opens, host, host.life)
        return True

    def leave(self, host: VirtualHost) -> None:
        """A host goes down for good, and nobody waits for it any more."""
        self.go_down(host, for_good=True)
        self.say(host, "is taken out")
        self.ensemble.remove_permit(self.service, host.name)
        self.ensemble.excuse(self.service, host.name, by="simulation", why="to see what happens")
        self.hosts.remove(host)
        self.done.discard(host.name)
        self.restarting.pop(host.name, None)
        self.record.enter(host.zone, -len(host.instances), 0)

    def expire(self, host: VirtualHost) -> None:
        """The session of an agent expires."""
        self.say(host, "its session expires")
        host.expire()
        seconds = self.draw(_EXPIRED_FOR)
        self.agenda.after(seconds * self.rng.random(), look_unasked, host)
        self.agenda.after(seconds, host.reconnect, host.life)

    # What hosts tell of.

    def draw(self, typical: float) -> float:
        """One length of time around a typical one."""
        return self._draw(typical, self.rng)

    def say(self, host: VirtualHost, what: str) -> None:
        """One line of the trace."""
        self.record.say(self.clock.elapsed, host.name, what)

    def hear(self, host: VirtualHost) -> None:
        """Something was written that a host watches."""
        if not host.alive:
            return
        seconds = _LATE if FaultKind.LATE_WATCH in host.plagues else self.draw(self.scenario.behaviour.watch)
        self.agenda.after(seconds, host.woken, host.life)
        if FaultKind.DOUBLE_WATCH in host.plagues:
            self.agenda.after(seconds * 2, host.woken, host.life)

    def look_seconds(self, host: VirtualHost) -> float:
        """How long a look at an instance takes."""
        return _SLOW_LOOK if host.plagues and FaultKind.SLOW_PROBE in host.plagues else _LOOK

    def setup_of(self, spec: ServiceSpec) -> ServiceSetup:
        """What a spec names, made once for all hosts."""
        for setup in self._setups:
            if setup.spec is spec or setup.spec == spec:
                return setup
        self._setups.append(set_up_virtual(spec, self.service, self._plugins))
        return self._setups[-1]

    def recount(self, host: VirtualHost, instance: VirtualInstance) -> None:
        """An instance may be able to serve now, or not any more."""
        can = instance.can_serve(self.clock.now)
        if can is not instance.available:
            instance.available = can
            self.record.changed(self.clock.elapsed, host.zone, 1 if can else -1)
        if can and instance.disturbed:
            instance.disturbed = False
            host.disturbed -= 1
            if not host.disturbed:
                del self.restarting[host.name]

    def disturb(self, host: VirtualHost, instance: VirtualInstance) -> None:
        """An instance is taken out for the deploy."""
        if not instance.disturbed:
            instance.disturbed = True
            host.disturbed += 1
            self.restarting[host.name] = host.zone

    def stepped(self, host: VirtualHost) -> None:
        """A host is doing something else."""
        if host.step is None:
            return
        self.record.state(self.clock.elapsed, host.name, host.step.value)
        enabled = host.snapshot.enabled if host.snapshot else None
        if host.step is HostStep.CONVERGED and enabled is not None and enabled.build == self._wanted[host.role]:
            self.done.add(host.name)
            self.injector.converged(host)
        else:
            self.done.discard(host.name)

    def progressed(self, host: VirtualHost, act: Act, value: Any) -> None:
        """An act was done."""
        match act:
            case CloseIdle() | CloseGate():
                return
            case TakePermit() if not isinstance(value, Permit):
                return
            case TakePermit():
                self._permitted(host)
                self.record.hold(self.clock.elapsed, len(self.nodes.holders))
            case Settle():
                self.record.hold(self.clock.elapsed, len(self.nodes.holders))
            case RecordFailure():
                self.judge.failed(host)
                self._reconsider()
            case Advance():
                self._reconsider()
        self.advanced()

    def advanced(self) -> None:
        """Something has got further."""
        self.ended_at, self._news_at = self.clock.elapsed, self.clock.now
        self._netted = False

    # Within.

    def _begin(self) -> None:
        """Before the build is enabled: another one is, and everything is well, unless something else was found."""
        found = self.scenario.found
        if found is None:
            self.enable(self.scenario.before)
            return
        self.ensemble.restore(self.service, found, digest_of)
        self.record.hold(0.0, len(found.permits))

    def _now_wanted(self) -> dict[Role, str]:
        return {role: self.ensemble.enabled(self.service, role) for role in Role}

    def _reconsider(self) -> None:
        """What is enabled may have been taken back, or promoted: whoever was done with something else is not."""
        before, self._wanted = self._wanted, self._now_wanted()
        if self._wanted != before:
            self.done -= {host.name for host in self.hosts if self._wanted[host.role] != before[host.role]}

    def _add(self, setup: HostSetup, *, served: str) -> VirtualHost:
        found = setup.found
        host = VirtualHost(self, setup, served=served if found is None else found.current)
        host.coordination.join(self.service, setup.zone)
        host.coordination.snapshot(self.service)
        if setup.role is not Role.FLEET:
            self.ensemble.set_role(self.service, setup.name, setup.role)
        if found is not None:
            place(host, found)
        self.members += 1
        self.zones[setup.zone] = self.zones.get(setup.zone, 0) + 1
        if found is None or not found.given_up:
            available = sum(instance.available for instance in host.instances)
            self.record.enter(setup.zone, len(host.instances), available)
        return host

    def _agent_known(self, host: VirtualHost) -> None:
        """An agent that has been running all the time hears of the build."""
        host.start(known_for=self.clock.now)

    def _agent_again(self, host: VirtualHost, life: int) -> None:
        if host.up and life == host.life:
            self.say(host, "its agent starts")
            host.start()

    def _come_up(self, host: VirtualHost) -> None:
        self.say(host, "comes up")
        host.up = True
        for instance in host.instances:
            acting.start_instance(host, instance)
        self._agent_again(host, host.life)

    def _permitted(self, host: VirtualHost) -> None:
        if host.asked_again and not any(FaultKind.LATE_WATCH in one.plagues for one in self.hosts):
            self.judge.missed(host)
        moment = self.clock.now
        for _ in range(_EXTRA):
            moment += self.rng.expovariate(_EXTRA / (self.scenario.behaviour.start * len(host.instances)))
            self.agenda.at(moment, look_unasked, host)
        if not host.permitted:
            host.permitted = True
            self.granted += 1
            self.record.order.append(host.name)
            self.injector.reached(self.granted / len(self.hosts))

    def _window_opens(self, host: VirtualHost, life: int) -> None:
        self._news_at = self.clock.now
        if host.asleep:
            host.woken(life)

    def _opens_soon(self) -> bool:
        """Whether a window is still to open within a week of the last thing that happened."""
        return self.clock.now < self._opens_at <= self.clock.began + self.ended_at + _WEEK

    def _cast_net(self) -> None:
        """Whoever waits to be woken asks again by itself."""
        self._netted = True
        self.clock.now += max(0.0, self.ended_at + _NET - self.clock.elapsed)
        for host in self.hosts:
            if host.alive and host.asleep:
                host.ask_again()
