"""An agent on its virtual host: observe → plan → act, like the engine, woken by events alone.

The engine looks at an instance ten times a second where something is happening; here a look happens when there is something new to
see. What it remembers between two rounds, and what it forgets when, is what `deployd_core.engine` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from deployd_core.asking import ask_strategy
from deployd_core.clock import rfc3339
from deployd_core.config import ServiceSetup
from deployd_core.coordination import Denial, Denied, HostStatus, Link, Permit, Snapshot
from deployd_core.errors import DeploydError
from deployd_core.model import HostView, Plan, Role
from deployd_core.observation import InstanceFacts, Observation
from deployd_core.observing import observe, stand
from deployd_core.planner import Decision, HostStep, plan_host
from deployd_core.retention import Disk
from deployd_core.setbacks import Setbacks
from deployd_core.sightings import Watch
from deployd_core.simulate import acting, looks
from deployd_core.simulate.agenda import Alarm
from deployd_core.simulate.disks import disk_with
from deployd_core.simulate.faults import FaultKind
from deployd_core.simulate.instance import NEVER, VirtualInstance
from deployd_core.simulate.scenario import HostSetup
from deployd_core.spec import Promotion
from deployd_core.turn import Turn

if TYPE_CHECKING:
    from deployd_core.simulate.world import World

_RETRY = 1.0
_READ = ("rollout_id", "spec", "enabled", "permit", "hosts", "permits", "membership")
_GIVING_BACK = ("takepermit", "settle", "recordfailure")
_ENDING = (Denial.FROZEN, Denial.WINDOW, Denial.STAGGER, Denial.DUPLICATE, Denial.CHANGED)
"""Denials that time alone may end; all others end only by a change in coordination, so that there is no use in asking before."""


class VirtualHost:
    """A host, its agent, its disk, and its instances."""

    def __init__(self, world: World, setup: HostSetup, *, served: str | None) -> None:
        self.world = world
        self.name = setup.name
        self.zone = setup.zone
        self.role = setup.role
        # The world, which outlives the agent.
        self.up = True
        """The machine runs."""
        self.alive = False
        """The agent runs."""
        self.started_at = 0.0
        """When the last one was started."""
        self.life = 0
        """Counts agents: what an earlier one began says nothing to this one."""
        self.disk = disk_with(served)
        self.instances = [VirtualInstance(instance, served) for instance in world.setup.instances]
        self.by_name = {instance.name: instance for instance in self.instances}
        self.coordination = world.ensemble.coordination(self.name, self._written)
        # What the agent knows.
        self.snapshot: Snapshot | None = None
        self.setup = world.setup
        """What it runs by: the spec that it has last read."""
        self.reason = ""
        self.asleep = False
        """It was denied a permit, and waits to be woken."""
        self.asked_again = False  # without having been woken
        self.denial: Denial | None = None
        """Why it has no permit."""
        self.permitted = False  # ever
        self.acts = 0
        """Begun, by all of its agents; one that is tried again is counted once."""
        self.last_begun = ""
        self.plans = 0
        """Made, by all of its agents."""
        self.disturbed = 0
        """Instances that deploying has taken out, and that have not been open and healthy since."""
        self.plagues: set[FaultKind] = set()
        """What is wrong with it from the beginning."""
        self.dies_at: tuple[int, bool] | None = None
        """At which of its acts its agent dies, and whether before it."""
        self.loses: tuple[int, bool] | None = None
        """After how many writes the answer to the next is lost, and whether that one is carried out."""
        self.busy: dict[str, int] = {}
        self._forget(tidy=True)

    def __repr__(self) -> str:
        return self.name

    # The life of an agent.

    def start(self, *, known_for: float = 0.0) -> None:
        """An agent starts. With `known_for` it has looked at its instances for so many seconds already."""
        self.alive, self.started_at = True, self.world.clock.now
        self._forget(tidy=known_for > 0)
        self.coordination.join(self.world.service, self.zone)
        if self.coordination.link is not Link.CONNECTED:
            self.coordination.link = Link.CONNECTED
        for number, watch in enumerate(self.watches):
            for ago in (known_for, known_for / 2) if known_for else ():
                past = self.world.clock.now - ago
                watch.saw(self.instances[number].sighting(past, gated=self.gated), started=past, ended=past)
            if not known_for:
                looks.look_soon(self, number, 0.0)
        self.stir()

    def stop(self) -> None:
        """The agent dies: what it knew is gone, and what it was doing is left as it is."""
        self.alive = False
        self.life += 1
        self.busy.clear()
        self.asleep = self.asked_again = False
        self.snapshot = None
        self._alarm.set(NEVER)
        self.coordination.link = Link.LOST

    def _forget(self, *, tidy: bool) -> None:
        self.owner = f"{self.name}/{self.life + 1}/1.00"
        self.step: HostStep | None = None
        self.down = False
        """It has said that an instance cannot serve, and that this is not the doing of a restart."""
        self.changed = True
        self.woken_at = 0.0
        self.aim: tuple[object, ...] = ()
        self.epoch = 0
        self.tidy = tidy
        self.waits: dict[str, float] = {}
        self.setbacks = Setbacks(self.world.rng)
        self.turn = Turn(self.setbacks, self.world.clock, self.world.rng)
        self.watches = [Watch(instance.model) for instance in self.instances]
        self.known: list[InstanceFacts | None] = [None] * len(self.instances)
        self._known_at = [0.0] * len(self.instances)
        self.looks = [NEVER] * len(self.instances)
        """When each instance is looked at next."""
        self.counts: list[list[float]] = [[] for _ in self.instances]
        """Of each instance, the looks until then that show nothing new."""
        self.shown: list[tuple[object, ...]] = [()] * len(self.instances)
        """Of each instance, what the last look at it showed."""
        self._standing: tuple[Snapshot, ServiceSetup, Disk, Observation] | None = None
        """What coordination and the disk said when it last planned."""
        self._decision: Decision | None = None
        """What it decided when it last planned."""
        self._queued = False
        self.full_at: int | None = None
        """So many permits were held when it was told that these are too many."""
        self._news = True
        """Something has happened since it last planned."""
        self._alarm = Alarm(self.world.agenda, self.stir)

    # Observe.

    def _written(self, _service: str) -> None:
        """Coordination says that something was written."""
        self.world.hear(self)

    def woken(self, life: int) -> None:
        """The agent hears of it."""
        if self.alive and life == self.life:
            self.woken_at = self.world.clock.now
            self.changed = True
            self.asked_again = False
            # Whoever waits asks again when woken; for others there may be nothing new in it, such as their own writes.
            self.stir(news=self.full_at is None and self._waits())

    def _waits(self) -> bool:
        """Whether an act of it may be tried again; whether all have finished is asked only at rest, and not before its time."""
        return any(
            key != "advance" or (self.step is HostStep.CONVERGED and setback.retry_at <= self.world.clock.now)
            for key, setback in self.setbacks.by_key.items()
        )

    def expire(self) -> None:
        """Its session is lost, and with it its place in the queue: it has to ask again."""
        self.full_at = None
        self.coordination.link = Link.LOST

    def reconnect(self, life: int) -> None:
        """It has a new session, and looks at everything afresh."""
        if self.alive and life == self.life:
            self.coordination.link, self.changed = Link.CONNECTED, True
            self.stir()

    def stir(self, *, news: bool = True) -> None:
        """Have it plan, after whatever else happens at this moment; without `news` only if coordination says something new."""
        self._news = self._news or news
        if self.alive and not self._queued:
            self._queued = True
            self.world.agenda.after(0.0, self._round, self.life)

    def stir_at(self, when: float) -> None:
        """Have it plan at a moment, unless it has planned before and found another one."""
        self._alarm.set(when)

    @property
    def gated(self) -> bool:
        """Whether instances are walked through a gate."""
        return self.setup.rules.drain is not None

    @property
    def holds(self) -> bool:
        """Whether its agent knows that it holds a permit."""
        return self.snapshot is not None and self.snapshot.permit is not None

    def dirty(self, number: int) -> None:
        """Something is known of an instance that was not known before."""
        self.known[number] = None

    def know(self, number: int) -> InstanceFacts:
        """What is known of an instance now."""
        facts, now = self.known[number], self.world.clock.now
        if facts is None or (facts.gate_closed and self._known_at[number] < now):  # the rest of a lease changes all the time
            facts = self.known[number] = self.watches[number].facts(self.world.clock.time(), self.owner)
            self._known_at[number] = now
        return facts

    def facts(self) -> tuple[InstanceFacts, ...]:
        """What is known of each instance now."""
        for number, counts in enumerate(self.counts):
            if counts:
                looks.catch_up(self, number)
        return tuple(
            [self.know(number) if facts is None or facts.gate_closed else facts for number, facts in enumerate(self.known)]
        )

    # Plan, and act.

    def _round(self, life: int) -> None:
        """Observe, plan and act once."""
        if life != self.life or not self.alive:
            return
        self._queued = False
        now, before, was_full = self.world.clock.now, self.snapshot, self.full_at is not None
        self._read(now)
        old = self.full_at is not None if was_full else _same(before, self.snapshot)
        if old and not self._news:
            return
        self._news = False
        if self.snapshot is None:
            self.stir_at(now + _RETRY)
            return
        self.plans += 1
        self.world.rounds += 1
        decision = self._decide(self.snapshot, self.setup, now)
        if decision.waits != self.waits.keys():
            self.waits = {key: self.waits.get(key, now) for key in decision.waits}
        for act in decision.acts:
            acting.begin(self, act, decision)
            if life != self.life:
                return  # it has died of it
        self._tell(decision, self.snapshot)
        self._decision = decision
        looks.come_back(self, decision)

    def _decide(self, snapshot: Snapshot, setup: ServiceSetup, now: float) -> Decision:
        known = self._standing
        if known is None or known[0] is not snapshot or known[1] is not setup or known[2] is not self.disk:
            known = self._standing = snapshot, setup, self.disk, stand(snapshot, setup, self.disk, digest=None)
        seen = observe(
            known[3],
            self.facts(),
            tidy=self.tidy,
            advanced=self.turn.advanced,
            busy=frozenset(self.busy),
            setbacks=self.setbacks.by_key,
            waits=self.waits,
            facts=self.world.scenario.facts_of(self.name),
            connected=self.coordination.link is Link.CONNECTED,
            now=now,
        )

        def strategy(view: HostView) -> Plan:
            return ask_strategy(setup.strategy, view, within=None)  # a thread for each question would cost ten times as much

        return plan_host(seen, strategy)

    def _read(self, now: float) -> None:
        """Bring the snapshot up to date, and what follows from it; as `Engine` does."""
        if not self.changed:
            return
        self.changed = False
        try:
            snapshot = self.coordination.snapshot(self.world.service)
        except DeploydError:
            self.changed = True
            self.stir_at(now + _RETRY)
            return
        before, self.snapshot = self.snapshot, snapshot
        if snapshot.spec is not None:
            self.setup = self.world.setup_of(snapshot.spec)
        aim = (snapshot.rollout_id, snapshot.spec)
        if aim != self.aim:
            self.aim = aim
            self._take_aim()
        elif before is not None and (before.failure is None) != (snapshot.failure is None):
            self._take_aim()
        if not (self.asleep and self._still_full(before)):
            self.asleep, self.full_at = False, None
            for key in _GIVING_BACK:
                self.setbacks.lift(key)

    def _still_full(self, before: Snapshot | None) -> bool:
        """Whether there is no use in asking again, since not one permit has come back. (The engine does ask, in vain.)"""
        after = self.snapshot
        if self.full_at is None or before is None or after is None or after.permits < self.full_at:
            return False
        return _same(before, replace(after, permits=before.permits))

    def _take_aim(self) -> None:
        self.epoch += 1
        self.tidy = False
        self.setbacks.clear()
        self.waits.clear()
        self.turn.begin(self.snapshot)
        self.forget_orders()

    def forget_orders(self) -> None:
        """What was ordered for another build says nothing now."""
        for number, watch in enumerate(self.watches):
            watch.forget_orders()
            self.dirty(number)

    def answered(self, answer: Permit | Denied, started: float) -> None:
        """Coordination has answered the question for a permit."""
        # One that asks at the very moment at which it is woken has looked before it asked.
        changed = self.turn.answered(answer, self.world.clock.now) or self.woken_at > started
        self.denial = answer.code if isinstance(answer, Denied) else None
        if isinstance(answer, Permit):
            self.asked_again = False
        elif not changed:
            self.asleep = answer.code not in _ENDING or self.world.waits_for_window(self, answer)
            full = answer.code is Denial.SLOTS_FULL and not self.setup.spec.rollout.ramp  # on a ramp room comes without a permit
            self.full_at = len(answer.blockers) if full else None
            self.reason = answer.reason
            if self.asleep:
                return  # a plan made of that says what the last one said
        self.changed |= changed
        self.stir()

    def ask_again(self) -> None:
        """The net under missed watches: what the engine does every minute."""
        self.changed = self.asked_again = True
        self.full_at = None
        self.stir()

    # Report, and wait.

    def _tell(self, decision: Decision, snapshot: Snapshot) -> None:
        """Report a new step; a report that is lost is written again with the next one."""
        self.reason = decision.reason
        if (decision.step, decision.down) == (self.step, self.down):
            return
        self.step, self.down = decision.step, decision.down
        self.world.stepped(self)
        acting.write_report(self, self.status(decision, snapshot))

    def status(self, decision: Decision, snapshot: Snapshot) -> HostStatus:
        """The report that a decision makes, without its instances: nobody here reads them."""
        served = self.instances[0].serves if self.instances else self.disk.current
        return HostStatus(
            host=self.name,
            zone=self.zone,
            role=snapshot.membership.role,
            wanted=snapshot.enabled.build if snapshot.enabled else None,
            served=served if all(instance.serves == served for instance in self.instances) else None,
            step=decision.step.value,
            since=rfc3339(self.world.clock.time()),
            rollout=snapshot.rollout_id,
            reason=decision.reason,
            down=decision.down,
        )

    def lease_moved(self) -> None:
        """The lease of a gate was moved, which changes no plan: only the next time is another one."""
        if self._decision is not None:
            self.facts()
            looks.come_back(self, self._decision)

    def idle(self, key: str) -> bool:
        """Whether a question, asked every minute, hears the same until this host is woken or is the last to finish."""
        if key == "advance":
            policy = self.setup.spec.rollout
            return self.role is not Role.CANARY or policy.promotion is not Promotion.AUTO
        return self.asleep and key == "takepermit"


def _same(before: Snapshot | None, after: Snapshot | None) -> bool:
    """Whether two readings give one plan: whatever else was written is nothing to a host."""
    if before is None or after is None or before is after:
        return before is after
    return all(getattr(before, name) == getattr(after, name) for name in _READ) and before.failure == after.failure
