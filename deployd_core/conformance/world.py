"""A small model of one host, for the real planner: it shows what it knows by `observe`, and `perform` does what is asked of it.

Time passes in `tick`, a quarter of a second each. An agent that crashes loses what it remembers, and nothing else. An act that no
rule allows raises `Fault`: the rules are the core's to hold, whatever a strategy returns, and here they are seen to be held.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deployd_core.acts import (
    Act,
    CloseGate,
    CloseIdle,
    Fetch,
    Flip,
    InstanceAct,
    OpenGate,
    RecordFailure,
    Restart,
    RunStep,
    Settle,
    TakePermit,
    Unpack,
    WarmUp,
)
from deployd_core.conformance.findings import Fault
from deployd_core.contracts import AtDeadline, Connections
from deployd_core.model import FleetView, Health, Instance, PermitView, Role, State
from deployd_core.observation import InstanceFacts, Observation, Rules, Setback, Staging
from deployd_core.planner import Decision

OLD, NEW = "v1", "v2"
_DIGEST = "sha256:" + "a" * 64
_STEP = "01-pip"
TICK = 0.25
RULES = "rules"
"""The check that a broken rule fails."""


@dataclass
class Running:
    """An instance of the model."""

    serves: str | None = OLD
    started: float = -100.0
    busy: int = 0
    """Requests in flight behind a closed gate; one ends with each tick and leaves an idle connection."""
    idle: int = 0
    quiet: int = 0
    warm: bool = False
    closed: bool = False
    closed_by: int = 0
    """Which life of the agent closed it."""
    until: float = 0.0
    """When its lease runs out."""
    draining_since: float | None = None
    opened_at: float | None = None


@dataclass
class Memory:
    """What an agent knows and loses in a crash."""

    setbacks: dict[str, Setback] = field(default_factory=dict)
    waits: dict[str, float] = field(default_factory=dict)
    ordered: set[str] = field(default_factory=set)
    opened: dict[str, float] = field(default_factory=dict)


@dataclass
class World:
    """One host, its service, and its agent."""

    instances: dict[str, Running]
    rules: Rules
    facts: Mapping[str, object] = field(default_factory=dict)
    role: Role = Role.FLEET
    sick: frozenset[str] = frozenset()
    """Instances that never get healthy on the new build."""
    stuck: frozenset[str] = frozenset()
    """Instances with a request that never ends."""
    start: float = 1.0
    """Seconds from a restart until an instance is healthy."""
    clients: float | None = 1.0
    """Seconds until clients come back to an opened instance; None: there are none."""
    current: str | None = OLD
    good: str | None = OLD
    fetched: bool = False
    unpacked: bool = False
    prepared: bool = False
    permit: bool = False
    failure: str | None = None
    now: float = 0.0
    life: int = 0
    memory: Memory = field(default_factory=Memory)
    restarts: dict[str, int] = field(default_factory=dict)
    floor: int = 0
    """Instances that must stay available, as the spec and the last plan of the strategy say."""

    @property
    def available(self) -> set[str]:
        """Instances that serve clients now."""
        return {name for name, found in self.instances.items() if self.can_serve(name) and not found.closed and self._back(name)}

    def crash(self) -> None:
        """End the agent, and start another."""
        self.memory = Memory()
        self.life += 1

    def remember(self, decision: Decision) -> None:
        """Keep what an agent keeps from one round to the next."""
        self.memory.waits = {key: self.memory.waits.get(key, self.now) for key in decision.waits}
        if decision.plan is not None:
            count = len(self.instances)
            self.floor = max(self.rules.min_available.at_least(count), decision.plan.min_available.at_least(count))

    def observe(self) -> Observation:
        """Everything as the agent sees it."""
        return Observation(
            now=self.now,
            service="web",
            host="h1",
            role=self.role,
            build=NEW,
            digest=_DIGEST,
            staging=Staging(
                fetched=self.fetched,
                unpacked=self.unpacked,
                steps_done=frozenset([_STEP] if self.prepared else []),
                on_disk_digest=_DIGEST if self.unpacked else None,
            ),
            steps=(_STEP,),
            current=self.current,
            good=self.good == NEW,
            instances=tuple(self._seen(name) for name in self.instances),
            rules=self.rules,
            permit=PermitView(held=self.permit),
            fleet=FleetView(hosts=8, permits=int(self.permit), failed=int(self.failure is not None)),
            failure=self.failure,
            setbacks=self.memory.setbacks,
            waits=self.memory.waits,
            facts=self.facts,
        )

    def perform(self, act: Act) -> None:
        """Do what the planner asks for.

        Raises:
            Fault: No rule allows it now.
        """
        match act:
            case Fetch():
                self.fetched = True
            case Unpack():
                self.unpacked = True
            case RunStep():
                self.prepared = True
            case TakePermit():
                self._require(self.prepared, "a permit is asked for only when everything is staged")
                self.permit = True
            case Flip():
                self._require(self.permit, "without a permit nothing is flipped")
                self.current = NEW
            case Settle():
                fresh = all(found.serves == NEW for found in self.instances.values())
                self._require(fresh, "a permit goes back when every instance serves the build")
                self.good, self.permit, self.failure = NEW, False, None
            case RecordFailure(reason=reason):
                self.failure = reason
            case InstanceAct():
                self._touch(act, self.instances[act.instance])

    def tick(self) -> None:
        """Let time pass."""
        self.now += TICK
        for name, found in self.instances.items():
            if found.closed and self.now >= found.until:
                found.closed, found.opened_at = False, self.now
            if not found.closed:
                found.quiet = 0
                continue
            if found.busy and name not in self.stuck:
                found.busy, found.idle = found.busy - 1, found.idle + 1
            found.quiet = 0 if found.busy or found.idle else found.quiet + 1

    def _touch(self, act: InstanceAct, found: Running) -> None:
        name = act.instance
        self._require(self.permit or found.closed, "without a permit no instance is touched")
        match act:
            case CloseGate():
                self._keep_floor(name)
                if not found.closed:
                    found.draining_since = self.now if found.draining_since is None else found.draining_since
                    found.busy = 2 if found.serves else 0
                    found.quiet = 0
                lease = self.rules.drain.lease if self.rules.drain else 0.0
                found.closed, found.closed_by, found.until, found.opened_at = True, self.life, self.now + lease, None
            case CloseIdle():
                found.idle = 0
            case OpenGate():
                found.closed, found.draining_since, found.opened_at = False, None, self.now
                self.memory.opened[name] = self.now
            case WarmUp():
                found.warm = True
            case Restart():
                self._keep_floor(name)
                self._restart(name, found)

    def _restart(self, name: str, found: Running) -> None:
        self._require(found.serves != NEW or not self.can_serve(name), "what serves the build and is healthy is not restarted")
        drain = self.rules.drain
        if drain is not None and (found.busy or found.idle):
            late = self.now - (found.draining_since or 0.0) >= drain.timeout
            proceed = late and drain.at_deadline is AtDeadline.PROCEED
            self._require(proceed, "no request is cut before the deadline of its drain")
        self.restarts[name] = self.restarts.get(name, 0) + 1
        self.memory.ordered.add(name)
        self.memory.opened.pop(name, None)
        self.instances[name] = Running(
            serves=self.current,
            started=self.now,
            closed=found.closed,
            closed_by=found.closed_by,
            until=found.until,
            draining_since=found.draining_since,
        )

    def _keep_floor(self, name: str) -> None:
        if name in self.available and len(self.instances) > 1:
            self._require(len(self.available) > self.floor, f"{self.floor} instances stay open and healthy")

    def _require(self, holds: bool, rule: str) -> None:
        if not holds:
            raise Fault(RULES, f"a rule was broken: {rule}")

    def can_serve(self, name: str) -> bool:
        """Whether an instance is healthy."""
        found = self.instances[name]
        return (
            found.serves is not None and self.now - found.started >= self.start and not (found.serves == NEW and name in self.sick)
        )

    def _back(self, name: str) -> bool:
        """Whether clients use it again, as far as anybody can wait for that."""
        opened_at, drain = self.instances[name].opened_at, self.rules.drain
        if opened_at is None or drain is None:
            return True
        return self._used(name) or self.now - opened_at >= drain.traffic_timeout

    def _used(self, name: str) -> bool:
        opened_at = self.instances[name].opened_at
        return self.clients is not None and opened_at is not None and self.now - opened_at >= self.clients

    def _seen(self, name: str) -> InstanceFacts:
        found, healthy = self.instances[name], self.can_serve(name)
        if not found.closed and self.rules.drain is not None:
            self.memory.opened.setdefault(name, self.now)
        return InstanceFacts(
            name=name,
            port=Instance.parse("web", name).port,
            looked=True,
            state=State.RUNNING if found.serves else State.STOPPED,
            running=found.serves is not None,
            serves=found.serves,
            health=Health.HEALTHY if healthy else Health.UNHEALTHY,
            streak=9 if healthy else 0,
            healthy_since=found.started + self.start if healthy else None,
            healthy_until=self.now,
            reason="" if healthy else "answers 503",
            ordered=name in self.memory.ordered,
            warm=found.warm,
            gate_closed=found.closed,
            gate_ours=not found.closed or found.closed_by == self.life,
            lease_left=max(0.0, found.until - self.now) if found.closed else 0.0,
            connections=Connections(busy=found.busy, idle=found.idle) if found.closed else None,
            quiet=found.quiet,
            opened_at=self.memory.opened.get(name),
            traffic_back=self._used(name) and name in self.memory.opened,
        )
