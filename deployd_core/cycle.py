"""PURE: the cycle of one instance, the same for every strategy.

::

    stale, open ──▶ close gate ──▶ drained? ──▶ restart ──▶ fresh, closed ──▶ healthy (n in a row)? ──▶ warm up
                ──▶ open gate ──▶ healthy for the stability window, and its clients are back ──▶ done
          any wait past its deadline ──▶ failed, with the reason

Without a gate the first and last moves fall away. A strategy says which instances may be in the cycle; this module walks it, and
holds the rules: never below the floor, never an instance that is right already, no wait without a deadline.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from deployd_core.acts import Act, CloseGate, CloseIdle, InstanceAct, OpenGate, Restart, WarmUp
from deployd_core.contracts import AtDeadline
from deployd_core.model import Action, Health, InstanceView, Phase, Plan, State
from deployd_core.observation import Drain, InstanceFacts, Observation, Rules, Setback
from deployd_core.spec import none_to_restart

_QUIET = 3
"""Counts in a row that find nothing, before an instance is taken for drained: one may fall between two requests."""
_DOWN_TO_STAY = 2.0
"""Seconds without a process after which a restart counts as failed."""
_STALE, _DRAINING, _RESTARTING = Phase.STALE, Phase.DRAINING, Phase.RESTARTING
_WARMING, _RETURNING, _READY, _HEALTHY = Phase.WARMING, Phase.RETURNING, Phase.READY, Health.HEALTHY
"""Looked up once: on Python 3.11 to find a member on its class takes as long as to make a view."""
_CLOSED = "closed:"  # how the key of a wait begins that tells since when a gate is closed
_OPPOSITES: dict[type[InstanceAct], type[InstanceAct]] = {CloseGate: OpenGate, OpenGate: CloseGate}
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
    shown, waits, now = [], seen.waits, seen.now
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
                in_flight=facts.connections.busy if facts.gate_closed and facts.connections else None,
                since=waits.get(phase.wait + facts.name, now),
            )
        )
    return tuple(shown)


def phase_of(facts: InstanceFacts, seen: Observation) -> Phase:
    """Where an instance stands, from evidence alone."""
    if seen.busy and Restart.key_of(facts.name) in seen.busy:
        return _RESTARTING
    if facts.running and seen.right(facts):
        if facts.gate_closed or not _steady(facts, seen.rules):
            return _WARMING
        return _RETURNING if _clients_away(facts, seen) else _READY
    if facts.ordered:
        return _WARMING
    if not facts.running and seen.good and seen.flipped and not seen.permit.held:
        # The deploy is over, and somebody has stopped it or it has died: that is its manager's business, not ours.
        return _WARMING
    # One that is being closed is not available any more: another must not be let in beside it.
    closing = seen.busy and CloseGate.key_of(facts.name) in seen.busy
    return _DRAINING if facts.gate_closed or closing else _STALE


def waiting(seen: Observation, shown: tuple[InstanceView, ...], *, draining: bool) -> frozenset[str]:
    """The waits of the instances, for `Decision.waits`; without `draining`, closed gates are opened, and no drain goes on."""
    keys = []
    for facts, view in zip(seen.instances, shown, strict=True):
        phase = view.phase
        if phase is _READY or (phase is _DRAINING and not draining):
            continue
        if draining and facts.gate_closed:
            keys.append(_CLOSED + facts.name)
        # The time of a drain goes on while its gate is lost, and is not closed again yet.
        if draining and phase is _STALE and (tried := _DRAINING.wait + view.name) in seen.waits:
            keys.append(tried)
        # While its manager is away nothing can be held against an instance: its time begins when the manager is back.
        if phase is not _WARMING or not _environment(facts, seen):
            keys.append(phase.wait + view.name)
        # A restart that is tried again begins no new wait for health: what cannot start must not get a new deadline each time.
        if phase is _RESTARTING and (again := _WARMING.wait + view.name) in seen.waits and not _environment(facts, seen):
            keys.append(again)
    return frozenset(keys)


def impossible(wish: Plan, rules: Rules, count: int) -> str:
    """Why a plan can never be carried out, with the arithmetic; empty when it can."""
    if wish.impossible:
        return wish.impossible
    if wish.action is Action.RELOAD:
        return "the strategy asks for a reload, but what a process that was only reloaded serves cannot be told: have it restart"
    return none_to_restart(_floor(wish, rules, count), count)


def plan(seen: Observation, shown: tuple[InstanceView, ...], wish: Plan) -> Moves:
    """Move every instance of the cycle on, and let those in that the strategy names and the floor allows."""
    acts: list[Act] = []
    reasons: list[str] = []
    failures: list[str] = []
    deadlines: list[float] = []
    stale: dict[str, tuple[InstanceFacts, InstanceView]] = {}
    for facts, view in zip(seen.instances, shown, strict=True):
        if view.phase is _STALE:
            stale[view.name] = facts, view
            failures += _not_let_in(facts, seen)
        if not view.phase.in_cycle:
            continue
        act = _next_move(facts, view, seen, wish)
        setback = seen.setbacks.get(act.key) if act else None
        manager_away = view.phase is _WARMING and _environment(facts, seen)
        deadline = _deadline(facts, view, seen.rules)
        failure = "" if manager_away else _failure(facts, view, seen, setback, deadline)
        if failure:
            failures.append(failure)
        elif act is not None and _may(act, seen):
            acts.append(act)
        if type(act) not in _OPPOSITES:
            acts += renewal(facts, seen)
        if not manager_away:
            deadlines.append(deadline)
        reasons.append(f"{facts.name}: {setback.reason if setback else _state_of_wait(facts, view, seen)}")
    if failures:
        return Moves(acts=leftovers(seen), failure="; ".join(failures))
    entering, held_back = _enter(seen, shown, wish, stale) if seen.connected else ([], "ZooKeeper does not answer")
    acts += [entry for name in entering if _may(entry := _entry(name, wish, seen.rules), seen)]
    if reasons:
        return Moves(acts=tuple(acts), reason="; ".join(reasons), deadline=min(deadlines, default=None))
    return _stalled(seen, tuple(acts), held_back or wish.why)


def leftovers(seen: Observation) -> tuple[Act, ...]:
    """What becomes of closed gates when the cycle does not go on: whoever can serve is opened.

    Whoever cannot stays closed while others serve; when nobody does, the lease runs out and clients may try their luck.
    """
    serving = any(facts.health is _HEALTHY and not facts.gate_closed for facts in seen.instances)
    acts: tuple[Act, ...] = ()
    for facts in seen.instances:
        if not facts.gate_closed or facts.gate_held:
            continue
        if _healthy(facts, seen.rules):
            act = OpenGate(instance=facts.name)
            acts += (act,) if _may(act, seen) else ()
        elif serving:
            acts += renewal(facts, seen)
    return acts


def _steady(facts: InstanceFacts, rules: Rules) -> bool:
    """Healthy often enough in a row, and for long enough."""
    if facts.healthy_since is None or facts.healthy_until is None or not _healthy(facts, rules):
        return False
    # From look to look, and not until now: that nothing was heard since is no evidence.
    return max(0.0, facts.healthy_until - facts.healthy_since) >= rules.stable_for


def _healthy(facts: InstanceFacts, rules: Rules) -> bool:
    return facts.streak >= rules.healthy_after and facts.health is _HEALTHY


def _clients_away(facts: InstanceFacts, seen: Observation) -> bool:
    """Whether there are clients to wait for: without any, at night, the wait ends with its deadline and is no failure."""
    drain = seen.rules.drain
    if drain is None or facts.opened_at is None or not seen.permit.held:
        return False
    return not facts.traffic_back and seen.now < facts.opened_at + drain.traffic_timeout


def renewal(facts: InstanceFacts, seen: Observation) -> tuple[Act, ...]:
    """Move the end of a lease before it runs out under us, and take over one that another agent has left."""
    drain = seen.rules.drain
    due = drain is not None and facts.gate_closed and (facts.lease_left < drain.lease / 2 or not facts.gate_ours)
    return (act,) if due and _may(act := CloseGate(instance=facts.name), seen) else ()


def _may(act: InstanceAct, seen: Observation) -> bool:
    """Whether an act may begin now; a gate is never closed and opened at once, since nobody could say which of them came last."""
    other = _OPPOSITES.get(type(act))
    return seen.ready(act.key) and (other is None or other.key_of(act.instance) not in seen.busy)


def _deadline(facts: InstanceFacts, view: InstanceView, rules: Rules) -> float:
    drain = rules.drain
    if drain is not None and view.phase is _DRAINING:
        return view.since + _drain_time(drain, rules)
    if drain is not None and view.phase is _RETURNING:
        return (facts.opened_at or view.since) + drain.traffic_timeout
    return view.since + (rules.restart_timeout if view.phase is _RESTARTING else rules.healthy_timeout)


def _drain_time(drain: Drain, rules: Rules) -> float:
    """Seconds that a drain may take."""
    return drain.timeout + (rules.healthy_timeout if drain.at_deadline is AtDeadline.WAIT else 0.0)


def _next_move(facts: InstanceFacts, view: InstanceView, seen: Observation, wish: Plan) -> InstanceAct | None:
    """The next act for an instance in the cycle; None while there is only waiting to do."""
    if view.phase is _DRAINING:
        return _next_drain_move(facts, view, seen, wish)
    if view.phase is not _WARMING or not facts.looked:
        return None
    restart = Restart(instance=facts.name, action=wish.action)
    if not seen.right(facts) and restart.key in seen.setbacks:
        return _restart_again(facts, view, seen, restart)
    if not _healthy(facts, seen.rules):
        return _close_again(facts, seen)
    if seen.rules.warmup and not facts.warm:
        return WarmUp(instance=facts.name)
    return OpenGate(instance=facts.name) if facts.gate_closed else None


def _close_again(facts: InstanceFacts, seen: Observation) -> InstanceAct | None:
    """Close a gate that somebody else has opened on an instance which cannot serve yet."""
    act = CloseGate(instance=facts.name)
    return act if facts.gate_lost and seen.rules.drain is not None and act.key not in seen.setbacks else None


def _restart_again(facts: InstanceFacts, view: InstanceView, seen: Observation, restart: Restart) -> InstanceAct | None:
    """Try a restart again that has failed or left nothing running; of a process that still serves behind its gate, and drained."""
    drain = seen.rules.drain
    if drain is None:
        return restart
    again = _close_again(facts, seen)
    if again is not None or not facts.running or facts.quiet >= _QUIET:
        return again or restart
    if facts.connections is None:
        return None
    if drain.at_deadline is AtDeadline.PROCEED and seen.now >= view.since + drain.timeout:
        return msgspec.structs.replace(restart, cut=facts.connections.busy)
    return CloseIdle(instance=facts.name) if facts.connections.idle else None


def _next_drain_move(facts: InstanceFacts, view: InstanceView, seen: Observation, wish: Plan) -> InstanceAct | None:
    """Restart once nothing is in flight; until then close what clients keep open and do not use.

    A pooled connection that is open is one that a request may be sent into at this very moment: it counts as in flight until it is
    gone, and is closed only after it has been idle for a while.
    """
    drain = seen.rules.drain
    if drain is None:
        return OpenGate(instance=facts.name)  # the spec has changed to a strategy without gates
    if facts.gate_closed and (not facts.gate_ours or facts.lease_left <= 0):
        # Left by an agent that died, or holding by half since somebody has meddled with the rules: made ours before anything else.
        return CloseGate(instance=facts.name)
    if facts.connections is None or not facts.gate_closed:
        return None
    settled = seen.now - seen.waits.get(_CLOSED + facts.name, seen.now) >= drain.settle
    if settled and facts.quiet >= _QUIET:
        return Restart(instance=facts.name, action=wish.action)
    if drain.at_deadline is AtDeadline.PROCEED and seen.now >= _deadline(facts, view, seen.rules):
        return Restart(instance=facts.name, action=wish.action, cut=facts.connections.busy)
    return CloseIdle(instance=facts.name) if facts.connections.idle else None


def _state_of_wait(facts: InstanceFacts, view: InstanceView, seen: Observation) -> str:
    if view.phase is _DRAINING:
        return _in_flight(facts)
    if view.phase is _RETURNING:
        return "open, until its clients are back"
    if view.phase is _RESTARTING:
        return "restarting"
    if facts.running and not seen.right(facts):
        return _evidence(facts, seen)
    if facts.health is _HEALTHY:
        return "healthy, until it is stable"
    return facts.reason or "not looked at yet"


def _evidence(facts: InstanceFacts, seen: Observation) -> str:
    """Why what an instance runs is not what is wanted."""
    return "it is the process from before the restart" if facts.serves == seen.build else facts.evidence


def _failure(facts: InstanceFacts, view: InstanceView, seen: Observation, setback: Setback | None, deadline: float) -> str:
    """Why an instance has failed; empty while there is hope."""
    wrong = facts.running and not seen.right(facts)
    last = setback.reason if setback else _evidence(facts, seen) if wrong else facts.reason
    if view.phase is _WARMING and _is_down(facts, seen) and (facts.state is State.FAILED or setback is None):
        return f"{facts.name} did not stay up after its restart: {last}"
    if view.phase is _WARMING and facts.lives >= _LIVES and facts.health is not _HEALTHY:
        return f"{facts.name} died {facts.lives - 1} times since its restart: {facts.reason or last}"
    if seen.now < deadline or view.phase in (_RESTARTING, _RETURNING):
        return ""
    if view.phase is _DRAINING:
        drain = seen.rules.drain
        if drain is None or (drain.at_deadline is AtDeadline.PROCEED and facts.connections is not None):
            return ""
        return f"{facts.name} was not drained after {_drain_time(drain, seen.rules):g} s: {_in_flight(facts)}"
    state = "ready" if _healthy(facts, seen.rules) else "healthy"  # one that is healthy may not get warm, or its gate not open
    return f"{facts.name} was not {state} {seen.rules.healthy_timeout:g} s after its restart: {last}"


def _not_let_in(facts: InstanceFacts, seen: Observation) -> tuple[str, ...]:
    """Why the drain of a stale one that has lost its gate has failed: its time goes on, so that closing it again has an end."""
    drain = seen.rules.drain
    since = seen.waits.get(_DRAINING.wait + facts.name) if drain else None
    if drain is None or since is None or seen.now < since + _drain_time(drain, seen.rules):
        return ()
    setback = seen.setbacks.get(CloseGate.key_of(facts.name))
    if setback is None and drain.at_deadline is AtDeadline.PROCEED and not facts.gate_problem:
        return ()
    why = setback.reason if setback else facts.gate_problem or "its gate did not stay closed"
    return (f"{facts.name} was not drained after {_drain_time(drain, seen.rules):g} s: {why}",)


def _environment(facts: InstanceFacts, seen: Observation) -> bool:
    """Whether the world around an instance is what it waits for: its manager cannot be asked. That is retried, and no failure."""
    setback = seen.setbacks.get(Restart.key_of(facts.name))
    return facts.manager_away or (setback is not None and setback.environment and not seen.right(facts))


def _is_down(facts: InstanceFacts, seen: Observation) -> bool:
    """Whether an instance is down to stay: for a moment it may be down between two tries of its manager, or before its pid file."""
    down = facts.looked and not facts.running and facts.state in (State.FAILED, State.STOPPED)
    return down and seen.now - facts.state_since >= _DOWN_TO_STAY


def _enter(
    seen: Observation, shown: tuple[InstanceView, ...], wish: Plan, stale: Mapping[str, tuple[InstanceFacts, InstanceView]]
) -> tuple[list[str], str]:
    """The stale instances that may enter the cycle now, and why others may not."""
    named = [name for name in dict.fromkeys(wish.cycle) if name in stale]
    if not named:
        return [], ""
    floor = _floor(wish, seen.rules, len(shown)) if len(shown) > 1 else 0
    pairs = zip(seen.instances, shown, strict=True)
    available = {view.name for facts, view in pairs if view.available and not _clients_away(facts, seen)}
    entering: list[str] = []
    held_back = ""
    for name in named:
        facts, view = stale[name]
        obstacle = _obstacle(facts, seen)
        if obstacle:
            held_back = f"{name}: {obstacle}"
        elif view.available and len(available - {name}) < floor:
            held_back = f"{name}: {len(available)} of {len(shown)} instances are available and {floor} must stay so"
        else:
            available.discard(name)
            entering.append(name)
    return entering, held_back


def _obstacle(facts: InstanceFacts, seen: Observation) -> str:
    """Why an instance cannot enter the cycle, whatever the others do."""
    if not facts.looked:
        return "not looked at yet"
    if facts.state is State.UNKNOWN:
        return f"nobody knows whether it runs: {facts.reason}" if facts.reason else "nobody knows whether it runs"
    return facts.gate_problem if seen.rules.drain is not None else ""


def _entry(name: str, wish: Plan, rules: Rules) -> InstanceAct:
    return CloseGate(instance=name) if rules.drain else Restart(instance=name, action=wish.action)


def _stalled(seen: Observation, acts: tuple[Act, ...], reason: str) -> Moves:
    """Nothing is in the cycle yet: a wait like any other, with an end, however often somebody tries to enter."""
    if not seen.connected or any(_environment(facts, seen) for facts in seen.instances):
        return Moves(acts=acts, reason=reason)
    deadline = seen.waits.get("stalled", seen.now) + seen.rules.healthy_timeout
    waits = frozenset({"stalled"})
    if seen.now >= deadline:
        return Moves(failure=f"no instance could be restarted for {seen.rules.healthy_timeout:g} s: {reason}", waits=waits)
    return Moves(acts=acts, reason=reason, deadline=deadline, waits=waits)


def _in_flight(facts: InstanceFacts) -> str:
    found = facts.connections
    if found is None:
        uncounted = "its connections were not counted yet" if facts.gate_closed else "its gate is being closed"
        return facts.gate_problem or uncounted
    return f"{found.busy} connections busy, {found.idle} kept open by clients"


def _floor(wish: Plan, rules: Rules, count: int) -> int:
    return max(rules.min_available.at_least(count), wish.min_available.at_least(count))
