"""When the agent of a virtual host looks at its instances: when there is something new to see, and not ten times a second.

And when it plans anew although nothing has happened: when the time itself has made a difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deployd_core.acts import CloseGate
from deployd_core.model import Phase
from deployd_core.observation import InstanceFacts
from deployd_core.planner import Decision
from deployd_core.simulate.instance import NEVER

if TYPE_CHECKING:
    from deployd_core.simulate.host import VirtualHost

_PACE, _COUNTING, _DOWN = 0.25, 0.1, 1.0
"""Seconds between two looks at an instance that gets healthy, that is drained, and that is down."""
_DOWN_FOR = 10.0
"""Seconds for which one that is down is looked at so often."""
_TRAFFIC = 0.375
"""Seconds between two counts of clients that come back: five of them take as long as the engine wants to see some."""
_QUIET = 3
"""Counts in a row that find nothing, before there is no use in another."""


def look_soon(host: VirtualHost, number: int, seconds: float) -> None:
    """Look at an instance after a while, if no look at it is due before."""
    when = host.world.clock.now + seconds
    if when < host.looks[number] or host.looks[number] <= host.world.clock.now:
        host.looks[number] = when
        host.world.agenda.at(when, _look, host, number, host.life)


def look_again(host: VirtualHost, number: int) -> None:
    """Something was done to an instance: look at it at once."""
    host.dirty(number)
    look_soon(host, number, host.world.look_seconds(host))


def _look(host: VirtualHost, number: int, life: int) -> None:
    """Look at an instance; plan when that shows something new."""
    now = host.world.clock.now
    if life != host.life or not host.alive or host.looks[number] > now:
        return
    host.looks[number] = NEVER
    instance, watch = host.instances[number], host.watches[number]
    if f"restart:{instance.name}" in host.busy:
        return
    returning = host.gated and watch.opened_at is not None
    watch.saw(instance.sighting(now, gated=returning), started=now, ended=now)
    host.dirty(number)
    facts = host.known[number] = watch.facts(host.world.clock.time(), host.owner)
    shown = essence(host, facts)
    if shown != host.shown[number] or not facts.running:
        host.shown[number] = shown
        host.stir()
    plan_look(host, number, facts)


def essence(host: VirtualHost, facts: InstanceFacts) -> tuple[object, ...]:
    """What of an instance can change a plan."""
    setup = host.setup or host.world.setup
    probe, held = setup.probe_options, host.holds
    healthy = facts.streak >= probe.healthy_after
    since, until = facts.healthy_since, facts.healthy_until
    steady = healthy and since is not None and until is not None and until - since >= probe.stable_for
    closed = facts.gate_closed
    if held and not closed and setup.spec.warmup is None:
        # Open and restarted: nothing follows before it is stable, and with a gate not before its clients are back.
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


def awaits_clients(host: VirtualHost, facts: InstanceFacts, now: float) -> bool:
    """Whether the clients of an instance are waited for, so that they have to be counted."""
    if facts.opened_at is None or facts.gate_closed or facts.traffic_back or not host.holds:
        return False
    drain = (host.setup or host.world.setup).drain
    return drain is not None and now - facts.opened_at < drain.traffic_timeout


def plan_look(host: VirtualHost, number: int, facts: InstanceFacts) -> None:
    """When a look at an instance will show something new."""
    instance, watch, now = host.instances[number], host.watches[number], host.world.clock.now
    probe = (host.setup or host.world.setup).probe_options
    due = instance.next_change(now) - now
    if not instance.runs:
        due = min(due, _DOWN if host.holds and now - facts.state_since < _DOWN_FOR else NEVER)
    elif facts.streak and facts.streak < probe.healthy_after:
        due = min(due, _PACE)
    elif watch.healthy_since is not None and facts.healthy_until is not None:
        steady_at = watch.healthy_since + float(probe.stable_for)
        due = min(due, steady_at - now + 1e-6 if facts.healthy_until < steady_at else NEVER)
    if instance.closed is not None and facts.quiet < _QUIET and now >= instance.drained_at:
        due = min(due, _COUNTING)
    if awaits_clients(host, facts, now):
        due = min(due, max(_TRAFFIC, instance.back_at - now))
    if due < NEVER:
        look_soon(host, number, due + (host.world.look_seconds(host) if due else 0.0))


def come_back(host: VirtualHost, decision: Decision) -> None:
    """Have a host plan again when something is due that no event will tell of."""
    now = host.world.clock.now
    due = [decision.deadline] if decision.deadline is not None and decision.deadline > now else []
    for key, setback in host.setbacks.by_key.items():
        if now < setback.retry_at < NEVER and not host.idle(key):
            due.append(setback.retry_at)
    drain = host.setup.drain if host.setup is not None else None
    for number, view in enumerate(decision.instances):
        facts = host.known[number]
        if facts is None:
            continue
        if drain is not None and facts.gate_closed:
            if CloseGate.key_of(view.name) not in host.busy:
                due.append(now + max(0.01, facts.lease_left - drain.lease / 2 + 0.01))
            if view.phase is Phase.DRAINING and facts.quiet >= _QUIET:
                due.append(now + drain.settle)
        returning = awaits_clients(host, facts, now)
        if returning and drain is not None and facts.opened_at is not None:
            due.append(facts.opened_at + drain.traffic_timeout)
        if (view.phase.in_cycle or returning) and (host.looks[number] <= now or host.looks[number] == NEVER):
            plan_look(host, number, facts)
    host.stir_at(min(due, default=NEVER))
