"""PURE: the cycle of one instance, the same for every strategy.

::

    stale, open ──▶ close gate ──▶ drained? ──▶ restart ──▶ fresh, closed ──▶ healthy (n in a row)? ──▶ warm up
                ──▶ open gate ──▶ healthy for the stability window ──▶ done
          any wait past its deadline ──▶ failed, with the reason

Without a gate the first and last moves fall away. A strategy says which instances may be in the cycle; this module walks it, and
holds the rules: never below the floor, never an instance that is right already, no wait without a deadline.
"""

from __future__ import annotations

from msgspec import Struct

from deployd_core.acts import Act, CloseGate, OpenGate, Restart, WarmUp
from deployd_core.model import Action, Health, InstanceView, Phase, Plan, State
from deployd_core.observation import InstanceFacts, Observation, Rules, Setback

_DOWN_TO_STAY = 2.0
"""Seconds without a process after which a restart counts as failed."""


_LIVES = 4
"""Processes after a restart that make a crash loop: its manager has started it again three times, and none got healthy."""


class Moves(Struct, frozen=True, kw_only=True):
    """What the cycle does now."""

    acts: tuple[Act, ...] = ()
    reason: str = ""
    failure: str = ""
    deadline: float | None = None
    waits: frozenset[str] = frozenset()


def views(seen: Observation) -> tuple[InstanceView, ...]:
    """What a strategy is shown of the instances."""
    shown = []
    for facts in seen.instances:
        phase = phase_of(facts, seen)
        shown.append(
            InstanceView(
                name=facts.name,
                port=facts.port,
                phase=phase,
                serves=facts.serves,
                state=facts.state,
                health=facts.health,
                gate_closed=facts.gate_closed,
                in_flight=facts.in_flight,
                since=seen.waits.get(_wait_key(phase, facts.name), seen.now),
            )
        )
    return tuple(shown)


def phase_of(facts: InstanceFacts, seen: Observation) -> Phase:
    """Where an instance stands, from evidence alone."""
    if Restart(instance=facts.name).key in seen.busy:
        return Phase.RESTARTING
    if facts.running and facts.serves is not None and facts.serves == seen.build:
        return Phase.READY if _steady(facts, seen) and not facts.gate_closed else Phase.WARMING
    if facts.ordered:
        return Phase.WARMING
    if not facts.running and seen.good and seen.current == seen.build and not seen.permit.held:
        # The deploy is over, and somebody has stopped it or it has died: that is its manager's business, not ours.
        return Phase.WARMING
    return Phase.DRAINING if facts.gate_closed else Phase.STALE


def waiting(seen: Observation, shown: tuple[InstanceView, ...]) -> frozenset[str]:
    """The waits of the instances, for `Decision.waits`."""
    keys = {_wait_key(view.phase, view.name) for view in shown if view.phase is not Phase.READY}
    # A restart that is tried again begins no new wait for health: what cannot start must not get a new deadline each time.
    again = {_wait_key(Phase.WARMING, view.name) for view in shown if view.phase is Phase.RESTARTING}
    return frozenset(keys | (again & seen.waits.keys()))


def impossible(wish: Plan, rules: Rules, count: int) -> str:
    """Why a plan can never be carried out, with the arithmetic; empty when it can."""
    if wish.action is Action.RELOAD:
        return "the strategy asks for a reload, but what a process that was only reloaded serves cannot be told: have it restart"
    floor = _floor(wish, rules, count)
    if floor < count or count < 2:
        return ""
    return f"min_available keeps {floor} of {count} instances up, which leaves none to restart: lower it, or add instances"


def plan(seen: Observation, shown: tuple[InstanceView, ...], wish: Plan) -> Moves:
    """Move every instance of the cycle on, and let those in that the strategy names and the floor allows."""
    acts: list[Act] = []
    reasons: list[str] = []
    failures: list[str] = []
    deadlines: list[float] = []
    for facts, view in zip(seen.instances, shown, strict=True):
        if not view.phase.in_cycle:
            continue
        act = _next_move(facts, view, seen, wish)
        setback = seen.setbacks.get(act.key) if act else None
        deadline = _deadline(view, seen.rules)
        failure = _failure(facts, view, seen, setback)
        if failure:
            failures.append(failure)
        elif act is not None and seen.ready(act.key):
            acts.append(act)
        deadlines.append(deadline)
        reasons.append(_waiting_for(facts, view, seen, setback))
    if failures:
        return Moves(acts=tuple(act for act in acts if not isinstance(act, Restart)), failure="; ".join(failures))
    entering, held_back = _enter(seen, shown, wish) if seen.connected else ([], "ZooKeeper does not answer")
    acts += [entry for name in entering if seen.ready((entry := _entry(name, wish, seen.rules)).key)]
    if acts or reasons:
        return Moves(acts=tuple(acts), reason="; ".join(reasons), deadline=min(deadlines, default=None))
    return _stalled(seen, held_back or wish.why)


def _steady(facts: InstanceFacts, seen: Observation) -> bool:
    """Healthy often enough in a row, and for long enough."""
    if facts.healthy_since is None or facts.healthy_until is None:
        return False
    # From look to look, and not until now: that nothing was heard since is no evidence.
    healthy_for = max(0.0, facts.healthy_until - facts.healthy_since)
    return healthy_for >= seen.rules.stable_for and _healthy(facts, seen.rules)


def _healthy(facts: InstanceFacts, rules: Rules) -> bool:
    return facts.health is Health.HEALTHY and facts.streak >= rules.healthy_after


def _deadline(view: InstanceView, rules: Rules) -> float:
    patience = {Phase.DRAINING: rules.drain_timeout, Phase.RESTARTING: rules.restart_timeout}
    return view.since + patience.get(view.phase, rules.healthy_timeout)


def _next_move(facts: InstanceFacts, view: InstanceView, seen: Observation, wish: Plan) -> Act | None:
    """The next act for an instance in the cycle; None while there is only waiting to do."""
    if view.phase is Phase.DRAINING:
        drained = facts.in_flight == 0
        return Restart(instance=facts.name, action=wish.action) if drained else None
    if view.phase is not Phase.WARMING or not facts.looked:
        return None
    restart = Restart(instance=facts.name, action=wish.action)
    if facts.serves != seen.build and restart.key in seen.setbacks:
        return restart
    if not _healthy(facts, seen.rules):
        return None
    if seen.rules.warmup and not facts.warm:
        return WarmUp(instance=facts.name)
    return OpenGate(instance=facts.name) if facts.gate_closed else None


def _waiting_for(facts: InstanceFacts, view: InstanceView, seen: Observation, setback: Setback | None) -> str:
    if setback is not None:
        return f"{facts.name}: {setback.reason}"
    if view.phase is Phase.DRAINING:
        return f"{facts.name}: {facts.in_flight} connections in flight"
    if view.phase is Phase.RESTARTING:
        return f"{facts.name}: restarting"
    if facts.running and facts.serves != seen.build:
        return f"{facts.name}: {facts.evidence}"
    if facts.health is Health.HEALTHY:
        return f"{facts.name}: healthy, until it is stable"
    return f"{facts.name}: {facts.reason or 'not looked at yet'}"


def _failure(facts: InstanceFacts, view: InstanceView, seen: Observation, setback: Setback | None) -> str:
    """Why an instance has failed; empty while there is hope."""
    wrong_build = facts.running and facts.serves != seen.build
    last = setback.reason if setback else facts.evidence if wrong_build else facts.reason
    if view.phase is Phase.WARMING and _is_down(facts, seen) and (facts.state is State.FAILED or setback is None):
        return f"{facts.name} did not stay up after its restart: {last}"
    if view.phase is Phase.WARMING and facts.lives >= _LIVES and facts.health is not Health.HEALTHY:
        return f"{facts.name} died {facts.lives - 1} times since its restart: {last}"
    if seen.now < _deadline(view, seen.rules) or view.phase is Phase.RESTARTING:
        return ""
    if view.phase is Phase.DRAINING:
        return f"{facts.name} had {facts.in_flight} connections in flight after {seen.rules.drain_timeout:g} s"
    return f"{facts.name} was not healthy {seen.rules.healthy_timeout:g} s after its restart: {last}"


def _is_down(facts: InstanceFacts, seen: Observation) -> bool:
    """Whether an instance is down to stay: for a moment it may be down between two tries of its manager, or before its pid file."""
    down = facts.looked and not facts.running and facts.state in (State.FAILED, State.STOPPED)
    return down and seen.now - facts.state_since >= _DOWN_TO_STAY


def _enter(seen: Observation, shown: tuple[InstanceView, ...], wish: Plan) -> tuple[list[str], str]:
    """The stale instances that may enter the cycle now, and why others may not."""
    floor = _floor(wish, seen.rules, len(shown)) if len(shown) > 1 else 0
    by_name = {view.name: view for view in shown}
    looked = {facts.name for facts in seen.instances if facts.looked}
    available = sum(view.available for view in shown)
    entering: list[str] = []
    held_back = ""
    for name in dict.fromkeys(wish.cycle):
        view = by_name.get(name)
        if view is None or view.phase is not Phase.STALE:
            continue
        if name not in looked:
            held_back = f"{name}: not looked at yet"
        elif view.state is State.UNKNOWN:
            held_back = f"{name}: nobody knows whether it runs"
        elif view.available and available - 1 < floor:
            held_back = f"{name}: {available} of {len(shown)} instances are available and {floor} must stay so"
        else:
            available -= view.available
            entering.append(name)
    return entering, held_back


def _entry(name: str, wish: Plan, rules: Rules) -> Act:
    return CloseGate(instance=name) if rules.gate else Restart(instance=name, action=wish.action)


def _stalled(seen: Observation, reason: str) -> Moves:
    """Nothing is in the cycle and nothing may enter: a wait like any other, with an end."""
    if not seen.connected:
        return Moves(reason=reason)
    deadline = seen.waits.get("stalled", seen.now) + seen.rules.healthy_timeout
    waits = frozenset({"stalled"})
    if seen.now >= deadline:
        return Moves(failure=f"no instance could be restarted for {seen.rules.healthy_timeout:g} s: {reason}", waits=waits)
    return Moves(reason=reason, deadline=deadline, waits=waits)


def _floor(wish: Plan, rules: Rules, count: int) -> int:
    return max(rules.min_available.at_least(count), wish.min_available.at_least(count))


def _wait_key(phase: Phase, name: str) -> str:
    return f"{phase.value}:{name}"
