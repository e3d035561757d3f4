"""When the agent of a virtual host looks at its instances: when there is something new to see, and not ten times a second.

And when it plans anew although nothing has happened: when the time itself has made a difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deployd_core.acts import CloseGate, Restart
from deployd_core.coordination import Link
from deployd_core.model import InstanceView, Phase
from deployd_core.observation import InstanceFacts
from deployd_core.planner import Decision
from deployd_core.simulate.instance import NEVER, VirtualInstance

if TYPE_CHECKING:
    from deployd_core.simulate.host import VirtualHost

_PACE, _COUNTING, _DOWN = 0.25, 0.1, 1.0
"""Seconds between two looks at an instance that gets healthy, that is drained, and that is down."""
_DOWN_FOR = 10.0
"""Seconds for which one that is down is looked at so often."""
_TRAFFIC = 0.375
"""Seconds between two counts of clients that come back: all of them take as long as the engine wants to see some."""
_CLIENTS = 5
"""Counts that find clients, before they are taken for back."""
_QUIET = 3
"""Counts in a row that find nothing, before there is no use in another."""


def look_soon(host: VirtualHost, number: int, seconds: float) -> bool:
    """Look at an instance after a while, if no look at it is due before; whether that is so."""
    when = host.world.clock.now + seconds
    if host.world.clock.now < host.looks[number] <= when:
        return False
    host.looks[number] = when
    host.counts[number] = [moment for moment in host.counts[number] if moment < when]
    host.world.agenda.at(when, _look, host, number, host.life)
    return True


def look_again(host: VirtualHost, number: int) -> None:
    """Something was done to an instance: look at it at once."""
    host.dirty(number)
    look_soon(host, number, host.world.look_seconds(host))


def look_unasked(host: VirtualHost) -> None:
    """Have a host look and plan although nothing new is expected, as the engine does ten times a second."""
    if not host.alive or not (host.disturbed or host.coordination.link is not Link.CONNECTED):
        return
    for number, instance in enumerate(host.instances):
        if instance.disturbed:
            look_soon(host, number, 0.0)
    host.world.agenda.after(0.0, host.stir)  # after these looks


def catch_up(host: VirtualHost, number: int) -> None:
    """Take the looks at an instance that were due by now, each as of its own moment."""
    now, counts = host.world.clock.now, host.counts[number]
    while counts and counts[0] <= now:
        _see(host, number, counts.pop(0))


def _see(host: VirtualHost, number: int, moment: float) -> None:
    """Take a look as of a moment."""
    watch = host.watches[number]
    returning = watch.opened_at is not None and host.gated
    watch.saw(host.instances[number].sighting(moment, gated=returning), started=moment, ended=moment)
    host.dirty(number)


def _look(host: VirtualHost, number: int, life: int) -> None:
    """Look at an instance; plan when that shows something new."""
    now = host.world.clock.now
    if life != host.life or not host.alive or host.looks[number] > now:
        return
    host.looks[number] = NEVER
    if host.busy and Restart.key_of(host.instances[number].name) in host.busy:
        return
    catch_up(host, number)
    _see(host, number, now)
    facts = host.know(number)
    shown = essence(host, facts)
    if shown != host.shown[number] or not facts.running:
        host.shown[number] = shown
        host.stir()
    plan_look(host, number, facts)


def essence(host: VirtualHost, facts: InstanceFacts) -> tuple[object, ...]:
    """What of an instance can change a plan."""
    rules = host.setup.rules
    healthy = facts.streak >= rules.healthy_after
    since, until = facts.healthy_since, facts.healthy_until
    steady = healthy and since is not None and until is not None and until - since >= rules.stable_for
    closed = facts.gate_closed
    if _only_steady(host, facts):
        healthy = steady = steady and not awaits_clients(host, facts, host.world.clock.now)
    return (
        facts.looked,
        facts.state,
        facts.serves,
        facts.lives,
        healthy,
        steady,
        closed,
        facts.gate_ours,
        facts.gate_lost,
        closed and facts.quiet >= _QUIET,
        closed and facts.connections is not None,
        facts.warm,
    )


def _only_steady(host: VirtualHost, facts: InstanceFacts) -> bool:
    """Whether nothing follows before an instance is stable, and with a gate not before its clients are back: it is open."""
    return host.holds and not facts.gate_closed and not host.setup.rules.warmup


def awaits_clients(host: VirtualHost, facts: InstanceFacts, now: float) -> bool:
    """Whether the clients of an instance are waited for, so that they have to be counted."""
    if facts.traffic_back or facts.gate_closed or facts.opened_at is None or not host.holds:
        return False
    drain = host.setup.rules.drain
    return drain is not None and now < facts.opened_at + drain.traffic_timeout


def plan_look(host: VirtualHost, number: int, facts: InstanceFacts) -> None:
    """Have an instance looked at when that shows something new; looks before that are only counted, which `catch_up` does."""
    instance, now, second = host.instances[number], host.world.clock.now, host.world.look_seconds(host)
    if not instance.runs:
        due = _DOWN if host.holds and now - facts.state_since < _DOWN_FOR else NEVER
        moments = [min(instance.next_change(now), now + due) + second]
    else:
        healthy_at = now if facts.streak else instance.next_healthy(now)
        series = [_until_drained(instance, facts, now, second), *_until_steady(host, number, facts, healthy_at, second)]
        news = min([moments[-1] for moments in series if moments], default=NEVER)
        news = min(news, instance.next_change(healthy_at) + second)
        moments = sorted([moment for moments in series for moment in moments if moment < news])
        moments.append(news)
    if moments[-1] < NEVER and look_soon(host, number, moments[-1] - now):
        host.counts[number] = moments[:-1]


def _until_drained(instance: VirtualInstance, facts: InstanceFacts, now: float, second: float) -> list[float]:
    """Counts of the connections behind a closed gate, until they have found nothing often enough."""
    if instance.closed is None or facts.quiet >= _QUIET:
        return []
    pace = _COUNTING + second
    first = now + pace if now >= instance.drained_at else instance.drained_at + second
    return [first + count * pace for count in range(_QUIET - facts.quiet)]


def _until_steady(host: VirtualHost, number: int, facts: InstanceFacts, healthy_at: float, second: float) -> list[list[float]]:
    """Looks at an instance that answers, or will: until it is healthy, until it is stable, and until its clients are back."""
    rules, now, pace = host.setup.rules, host.world.clock.now, _PACE + second
    since, until = facts.healthy_since, facts.healthy_until
    if since is not None and until is not None and facts.streak:
        healthy = [now + count * pace for count in range(1, rules.healthy_after - facts.streak + 1)]
    elif healthy_at < NEVER:
        now = since = until = healthy_at + second  # when it is first seen to answer
        healthy = [now + count * pace for count in range(rules.healthy_after)]
    else:
        return []
    steady_at = since + rules.stable_for
    steady = [max(steady_at + 1e-6 + second, *healthy, now)] if until < steady_at else []
    if not _only_steady(host, facts):
        return [healthy, steady]
    back: list[float] = []
    if awaits_clients(host, facts, now):
        first = max(now + _TRAFFIC, host.instances[number].back_at) + second
        back = [first + count * (_TRAFFIC + second) for count in range(_CLIENTS)]
    return [sorted([*healthy, *steady, *back])]


def come_back(host: VirtualHost, decision: Decision) -> None:
    """Have a host plan again when something is due that no event will tell of."""
    now = host.world.clock.now
    due = [decision.deadline] if decision.deadline is not None and decision.deadline > now else []
    for key, setback in host.setbacks.by_key.items():
        if now < setback.retry_at < NEVER and not host.idle(key):
            due.append(setback.retry_at)
    ready = Phase.READY
    for number, view in enumerate(decision.instances):
        facts = host.known[number]
        if facts is None or view.phase is ready:
            continue
        returning = awaits_clients(host, facts, now)
        if facts.gate_closed or returning:
            due += _gate_due(host, view, facts)
        if (view.phase.in_cycle or returning) and (host.looks[number] <= now or host.looks[number] == NEVER):
            plan_look(host, number, facts)
    host.stir_at(min(due, default=NEVER))


def _gate_due(host: VirtualHost, view: InstanceView, facts: InstanceFacts) -> list[float]:
    """When something is due about a gate: its lease is to be moved, its instance has been quiet for long enough, or its clients
    have been waited for.
    """
    now, drain = host.world.clock.now, host.setup.rules.drain
    if drain is None:
        return []
    if not facts.gate_closed:
        return [facts.opened_at + drain.traffic_timeout] if facts.opened_at is not None else []
    due = []
    if CloseGate.key_of(view.name) not in host.busy:
        due.append(now + max(0.01, facts.lease_left - drain.lease / 2 + 0.01))
    if view.phase is Phase.DRAINING and facts.quiet >= _QUIET:
        due.append(now + drain.settle)
    return due
