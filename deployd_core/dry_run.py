"""PURE: what a host would do, stepped forward in virtual time over a copy of what was observed. Nothing is touched.

The planner and the strategy are the real ones; only the world is imagined. It behaves as assumed: every act succeeds, requests end,
processes get healthy, clients come back. Time jumps from one event to the next, so that an hour costs no more than a second.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from deployd_core.acts import (
    Act,
    CloseGate,
    Fetch,
    Flip,
    InstanceAct,
    OpenGate,
    RecordFailure,
    Resolve,
    Restart,
    RunStep,
    Settle,
    TakePermit,
    Unpack,
    WarmUp,
)
from deployd_core.contracts import AtDeadline, Connections
from deployd_core.model import Health, HostView, PermitView, Plan, State
from deployd_core.observation import InstanceFacts, Observation, Rules, Staging
from deployd_core.planner import Decision, HostStep, plan_host

_QUIET = Connections(busy=0, idle=0)
_COUNTS = 3
"""Counts that find nothing before an instance is taken for drained, and how long they take."""
_COUNTING = 0.3
_MOST_ROUNDS = 100_000


class Assumptions(Struct, frozen=True, kw_only=True):
    """How the imagined world behaves. Times in seconds."""

    drain: float = 1.0
    """From closing a gate until the last request has ended."""
    start: float = 1.0
    """From a restart until the instance is healthy."""
    clients: float = 2.0
    """From opening a gate until clients are seen to be back."""


class Move(Struct, frozen=True, kw_only=True):
    """One act of the sequence."""

    at: float
    """Seconds from the beginning."""
    act: Act
    deadline: float | None = None
    """When the wait that follows it ends for the worse, or without what it waited for."""


class Story(Struct, frozen=True, kw_only=True):
    """What would happen."""

    moves: tuple[Move, ...]
    ended: HostStep
    """Converged, unless something stands in the way."""
    reason: str = ""
    """What stands in the way."""
    seconds: float = 0.0
    fewest_available: int = 0
    """Instances open and healthy at the worst moment."""


def tell(seen: Observation, strategy: Callable[[HostView], Plan], assumptions: Assumptions | None = None) -> Story:
    """Step a copy of the host forward until it is converged, has failed, or nothing more happens.

    Args:
        seen: The host as it is.
        strategy: What the real one answers to a view.
        assumptions: How the world behaves.
    """
    return _Host(seen, assumptions or Assumptions()).live(strategy)


class _Host:
    """The copy."""

    def __init__(self, seen: Observation, assumptions: Assumptions) -> None:
        self._assumptions = assumptions
        self._began = seen.now
        self._seen = msgspec.structs.replace(seen, busy=frozenset(), setbacks={}, connected=True)
        self._facts = {facts.name: facts for facts in seen.instances}
        self._coming: list[tuple[float, int, str, dict[str, Any]]] = []
        """What will happen: when, in which order, to which instance, and what is known of it then."""
        self._moves: list[Move] = []
        self._fewest = len(seen.instances)
        for facts in seen.instances:
            if facts.gate_closed:
                self._drained_later(facts.name)  # its drain has begun before we looked

    def live(self, strategy: Callable[[HostView], Plan]) -> Story:
        """Go round until nothing more happens."""
        decision = self._decide(strategy)
        for _ in range(_MOST_ROUNDS):
            for act in decision.acts:
                at = self._seen.now - self._began
                limit = _limit(act, self._seen.rules)
                self._moves.append(Move(at=at, act=act, deadline=None if limit is None else at + limit))
                self._perform(act)
            if not decision.acts and (decision.step is HostStep.CONVERGED or not self._advance(decision)):
                break
            decision = self._decide(strategy)
        return Story(
            moves=tuple(self._moves),
            ended=decision.step,
            reason=decision.reason,
            seconds=self._seen.now - self._began,
            fewest_available=self._fewest,
        )

    def _decide(self, strategy: Callable[[HostView], Plan]) -> Decision:
        self._seen = msgspec.structs.replace(self._seen, instances=tuple(self._facts.values()))
        decision = plan_host(self._seen, strategy)
        waits = {key: self._seen.waits.get(key, self._seen.now) for key in decision.waits}
        self._seen = msgspec.structs.replace(self._seen, waits=waits)
        self._fewest = min(self._fewest, sum(view.available for view in decision.instances))
        return decision

    def _advance(self, decision: Decision) -> bool:
        """Go on to what happens next; False when nothing does any more."""
        now = self._seen.now
        if not self._coming:
            # Only time can help: the end of a wait, which is a failure, or of a wait for clients that never come.
            if decision.deadline is None or decision.deadline <= now:
                return False
            self._seen = msgspec.structs.replace(self._seen, now=decision.deadline)
            return True
        at, _, name, changes = heapq.heappop(self._coming)
        if name:
            self._change(name, **changes)
        passed = max(now, at)
        self._seen = msgspec.structs.replace(self._seen, now=passed)
        for facts in list(self._facts.values()):
            lease = max(0.0, facts.lease_left - (passed - now))
            healthy = facts.health is Health.HEALTHY
            self._change(facts.name, lease_left=lease, healthy_until=passed if healthy else facts.healthy_until)
        return True

    def _change(self, name: str, **changes: Any) -> None:
        self._facts[name] = msgspec.structs.replace(self._facts[name], **changes)

    def _later(self, seconds: float, name: str = "", **changes: Any) -> None:
        heapq.heappush(self._coming, (self._seen.now + seconds, len(self._moves) + len(self._coming), name, changes))

    def _drained_later(self, name: str) -> None:
        """The requests of an instance whose gate is closed will have ended."""
        settle = self._seen.rules.drain.settle if self._seen.rules.drain else 0.0
        self._later(max(settle, self._assumptions.drain + _COUNTING), name, quiet=_COUNTS, connections=_QUIET)

    def _forget(self, name: str) -> None:
        """What was to happen to an instance will not."""
        self._coming = [event for event in self._coming if event[2] != name]
        heapq.heapify(self._coming)

    def _perform(self, act: Act) -> None:
        seen = self._seen
        match act:
            case InstanceAct():
                self._touch(act, self._facts[act.instance])
                return
            case Resolve() | Fetch() | Unpack() | RunStep():
                changes = self._stage(act)
            case TakePermit():
                changes = {"permit": PermitView(held=True)}
            case Flip(build=build, rollout=rollout):
                changes = {"current": build, "flipped_for": rollout}
                for name in self._facts:
                    self._change(name, ordered=False)
            case Settle(failed=failed):
                changes = {"permit": PermitView(), "good": not failed, "failure": seen.failure if failed else None}
            case RecordFailure(reason=reason):
                changes = {"failure": reason, "waits": {}}
            case _:
                changes = {"tidy": True}
        self._seen = msgspec.structs.replace(seen, **changes)

    def _stage(self, act: Resolve | Fetch | Unpack | RunStep) -> dict[str, Any]:
        staging = self._seen.staging
        match act:
            case Resolve():
                return {"digest": "sha256:" + "0" * 64}
            case Fetch():
                return {"staging": msgspec.structs.replace(staging, fetched=True)}
            case Unpack():
                return {"staging": Staging(fetched=True, unpacked=True, on_disk_digest=self._seen.digest)}
            case RunStep(marker=marker):
                return {"staging": msgspec.structs.replace(staging, steps_done=staging.steps_done | {marker})}

    def _touch(self, act: InstanceAct, facts: InstanceFacts) -> None:
        name, rules, now = act.instance, self._seen.rules, self._seen.now
        drain = rules.drain
        match act:
            case CloseGate() if drain is not None:
                if not facts.gate_closed:
                    self._drained_later(name)
                self._change(name, gate_closed=True, gate_ours=True, gate_held=False, lease_left=drain.lease, opened_at=None)
                self._later(drain.lease / 2 + 0.001)
            case Restart():
                self._forget(name)
                self._change(
                    name,
                    ordered=True,
                    running=True,
                    state=State.RUNNING,
                    serves=self._seen.current,
                    restarted_for=self._seen.flipped_for,
                    health=Health.UNHEALTHY,
                    streak=0,
                    warm=False,
                    opened_at=None,
                    traffic_back=False,
                )
                healthy_at = now + self._assumptions.start
                healthy = {"health": Health.HEALTHY, "streak": rules.healthy_after, "healthy_since": healthy_at}
                self._later(self._assumptions.start, name, **healthy)
                self._later(self._assumptions.start + rules.stable_for)
            case WarmUp():
                self._change(name, warm=True)
            case OpenGate():
                self._change(name, gate_closed=False, connections=None, quiet=0, opened_at=now, healthy_since=now)
                self._later(rules.stable_for)
                self._later(self._assumptions.clients, name, traffic_back=True)
            case _:
                pass


def _limit(act: Act, rules: Rules) -> float | None:
    """Seconds that what follows an act may take."""
    drain = rules.drain
    match act:
        case CloseGate() if drain is not None:
            return drain.timeout + (rules.healthy_timeout if drain.at_deadline is AtDeadline.WAIT else 0.0)
        case Restart():
            return rules.restart_timeout + rules.healthy_timeout
        case OpenGate() if drain is not None:
            return drain.traffic_timeout
        case _:
            return None
