"""What a rollout would begin from: a service as ZooKeeper has it, for the simulator and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime

from deployd_core.coordination import Denial
from deployd_core.errors import some_of
from deployd_core.model import Health, State
from deployd_core.noticing import notices
from deployd_core.picture import HostState, state_of
from deployd_core.simulate.found import Found, FoundHost
from deployd_core.simulate.scenario import HostSetup
from deployd_core.zookeeper.status import FleetStatus, HostEntry

_STOPS = (Denial.FROZEN.value, Denial.PAUSED.value, Denial.HALTED.value)
_UNKNOWN = ""
"""The build that an instance serves of which nobody can tell: none of those there are."""


def found_in(fleet: FleetStatus) -> Found:
    """What ZooKeeper holds of a service."""
    record = fleet.record
    return Found(
        enabled=record.enabled,
        canary=record.canary,
        fleet_rollout=record.fleet_rollout,
        canary_rollout=record.canary_rollout if record.canary is not None else "",
        rollout=record.rollout,
        freeze=record.freeze,
        permits=fleet.permits,
        grants=record.grants,
        granted_at=fleet.granted_at,
    )


def hosts_in(fleet: FleetStatus, instances: Iterable[str]) -> tuple[HostSetup, ...]:
    """The roster, each host as it last said that it stands.

    Args:
        fleet: The service.
        instances: The names of those on each host.
    """
    names = tuple(instances)
    return tuple(HostSetup(name=entry.host, zone=entry.zone, role=entry.role, found=_host(entry, names)) for entry in fleet.hosts)


def most_served(hosts: Iterable[HostSetup]) -> str:
    """The build that most hosts serve; empty when none serves any."""
    builds = Counter(host.found.current for host in hosts if host.found is not None and host.found.current is not None)
    return max(sorted(builds), key=builds.__getitem__, default="")


def serve_already(hosts: Iterable[HostSetup], build: str) -> bool:
    """Whether a build is what every host serves, with every instance, so that no host would restart."""
    stands = [host.found for host in hosts if host.found is not None]
    return all(found.current == build and not found.serves and not found.sick for found in stands)


def in_words(fleet: FleetStatus, hosts: Iterable[HostSetup], now: datetime) -> Iterator[str]:
    """What was found, a line each: what serves, what is stopped, and which hosts are in the way."""
    yield f"{_enabled(fleet)}; {_serving(hosts)}"
    for notice in notices(fleet, now):
        opens = notice.code in (Denial.PAUSED.value, Denial.HALTED.value)
        if notice.code in _STOPS or notice.code == Denial.WINDOW.value:
            yield notice.text + (" (to enable a build opens it)" if opens else "")
    yield from _in_the_way(fleet)


def _host(entry: HostEntry, names: tuple[str, ...]) -> FoundHost:
    status = entry.status
    told = {one.name: one for one in status.instances if one.name in names} if status is not None else {}
    current = _current(entry)
    serves = {name: one.serves or (_UNKNOWN if one.state == State.RUNNING.value else None) for name, one in told.items()}
    unwell = {name for name, one in told.items() if one.health != Health.HEALTHY.value}
    # What is not healthy without the host being down is on its way to be: it was restarted just now.
    sick = (unwell or frozenset(names)) if entry.down else frozenset()
    return FoundHost(
        current=current,
        serves={name: build for name, build in serves.items() if build != current},
        sick=frozenset(sick),
        starting=frozenset(unwell - sick),
        alive=entry.alive,
        excused=entry.excused if not entry.alive else None,
        holds=entry.permit is not None,
    )


def _current(entry: HostEntry) -> str | None:
    """The build that `current` points at, as far as a report says so: of several the wanted one, to which it was flipped."""
    status = entry.status
    if status is None:
        return None
    served = {one.serves for one in status.instances if one.serves}
    if status.served is None and status.wanted in served:
        return status.wanted
    return status.served or next(iter(sorted(served)), None)


def _enabled(fleet: FleetStatus) -> str:
    record = fleet.record
    if record.enabled is None:
        return "nothing is enabled"
    canary = f", and {record.canary.build} for the canary hosts" if record.canary is not None else ""
    return f"{record.enabled.build} is enabled{canary}"


def _serving(hosts: Iterable[HostSetup]) -> str:
    counts = Counter(_builds(host.found) for host in hosts if host.found is not None)
    parts = [f"{number} {'host serves' if number == 1 else 'hosts serve'} {what}" for what, number in sorted(counts.items())]
    return ", ".join(parts)


def _builds(found: FoundHost) -> str:
    """What a host serves."""
    builds = {found.current, *found.serves.values()} - {None}
    return " and ".join(sorted(build or "an unknown build" for build in builds)) or "nothing"


def _in_the_way(fleet: FleetStatus) -> Iterator[str]:
    """The hosts of which something has to be known."""
    gone = [entry for entry in fleet.hosts if not entry.alive]
    there = [entry for entry in fleet.hosts if entry.alive]
    groups = {
        "dead": [entry.host for entry in gone if entry.excused is None],
        "excused": [entry.host for entry in gone if entry.excused is not None],
        "down": [entry.host for entry in there if entry.down],
        "failed": [entry.host for entry in there if state_of(entry) is HostState.FAILED],
        "blocked": [entry.host for entry in there if state_of(entry) is HostState.BLOCKED],
    }
    for what, names in groups.items():
        if names:
            yield f"{'1 host is' if len(names) == 1 else f'{len(names)} hosts are'} {what}: {some_of(names)}"
    if fleet.permits:
        count = "1 permit is" if len(fleet.permits) == 1 else f"{len(fleet.permits)} permits are"
        yield f"{count} held: {some_of([permit.host for permit in fleet.permits])}"
