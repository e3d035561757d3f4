"""When the agent of a virtual host looks at its instances: when there is something new to see, and not ten times a second."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deployd_core.observation import InstanceFacts
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
    shown = _essence(host, facts)
    if shown != host.shown[number] or not facts.running:
        host.shown[number] = shown
        host.stir()
    plan_look(host, number, facts)


def _essence(host: VirtualHost, facts: InstanceFacts) -> tuple[object, ...]:
    """What of an instance can change a plan."""
    setup = host.setup or host.world.setup
    probe = setup.probe_options
    healthy = facts.streak >= probe.healthy_after
    since, until = facts.healthy_since, facts.healthy_until
    steady = healthy and since is not None and until is not None and until - since >= probe.stable_for
    counted = facts.connections is not None and facts.gate_closed
    lost = (facts.gate_closed, facts.gate_ours, facts.gate_lost)
    return (
        facts.looked,
        facts.state,
        facts.serves,
        facts.lives,
        healthy,
        steady,
        lost,
        facts.quiet >= 3,
        counted,
        facts.traffic_back,
        facts.warm,
    )


def awaits_clients(host: VirtualHost, facts: InstanceFacts, now: float) -> bool:
    """Whether the clients of an instance are waited for, so that they have to be counted."""
    drain = (host.setup or host.world.setup).drain
    if drain is None or facts.gate_closed or facts.opened_at is None or facts.traffic_back:
        return False
    held = host.snapshot is not None and host.snapshot.permit is not None
    return held and now - facts.opened_at < drain.traffic_timeout


def plan_look(host: VirtualHost, number: int, facts: InstanceFacts) -> None:
    """When a look at an instance will show something new."""
    instance, watch, now = host.instances[number], host.watches[number], host.world.clock.now
    probe = (host.setup or host.world.setup).probe_options
    due = instance.next_change(now) - now
    held = host.snapshot is not None and host.snapshot.permit is not None
    if not instance.runs:
        due = min(due, _DOWN if held and now - facts.state_since < 10 else NEVER)
    elif facts.streak and facts.streak < probe.healthy_after:
        due = min(due, _PACE)
    elif watch.healthy_since is not None and facts.healthy_until is not None:
        steady_at = watch.healthy_since + float(probe.stable_for)
        due = min(due, steady_at - now + 1e-6 if facts.healthy_until < steady_at else NEVER)
    if instance.closed is not None and facts.quiet < 3 and now >= instance.drained_at:
        due = min(due, _COUNTING)
    if awaits_clients(host, facts, now):
        due = min(due, max(_TRAFFIC, instance.back_at - now))
    if due < NEVER:
        look_soon(host, number, due + (host.world.look_seconds(host) if due else 0.0))
