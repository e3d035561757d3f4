"""PURE: what keeps the hosts of a service from beginning, as a whole: stops, windows, a promotion, permits held for too long.

And who is in the way, with what to type about it. `deployd_core.explaining` speaks of the hosts one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from msgspec import Struct

from deployd_core.advancing import bake_of
from deployd_core.coordination import Denial, Permit, RolloutState
from deployd_core.errors import ConfigError
from deployd_core.picture import ago, step_of, stopped
from deployd_core.planner import HostStep
from deployd_core.spec import Promotion, RolloutTable
from deployd_core.windows import closed
from deployd_core.zookeeper.progress import standings, unpromoted
from deployd_core.zookeeper.services import ServiceRecord
from deployd_core.zookeeper.status import FleetStatus

BY_ITSELF = "nothing: it goes on by itself"
_HELD_LONG = "permit-held-long"
_TAKEN_BACK = "taken-back"


class Blocker(Struct, frozen=True, kw_only=True):
    """A host that is in the way of others."""

    host: str
    how: str
    """``holds a permit``, ``is down``, ``failed`` or ``waits before it``."""
    since: str = ""
    """RFC 3339; empty when nobody knows."""
    why: str = ""
    """What that host says of itself."""
    gone: bool = False
    """Its agent does not run."""


class Notice(Struct, frozen=True, kw_only=True):
    """Something that concerns the service as a whole."""

    code: str
    """A `Denial`'s value, ``permit-held-long`` or ``taken-back``."""
    text: str
    blockers: tuple[Blocker, ...] = ()
    until: str | None = None
    next: str = ""


def notices(fleet: FleetStatus, now: datetime, *, previous: str = "") -> tuple[Notice, ...]:
    """What keeps hosts of the service from beginning, and permits that are held for too long; the gravest first."""
    found = [
        *_stops(fleet, now, previous),
        *_taken_back(fleet),
        *_window(fleet, now),
        *promotion_notices(fleet, now),
        *_long(fleet, now),
    ]
    return tuple(found)


def policy_of(record: ServiceRecord) -> RolloutTable:
    """What the spec says about rollouts; the defaults when it cannot be read."""
    return record.spec.rollout if record.spec is not None else RolloutTable()


def permits_of(fleet: FleetStatus) -> Iterator[Permit]:
    """Every permit that is held, those of hosts that are not registered last."""
    registered = {entry.host: entry.permit for entry in fleet.hosts if entry.permit is not None}
    yield from registered.values()
    yield from (permit for permit in fleet.permits if permit.host not in registered)


def blocker_of(fleet: FleetStatus, host: str, code: Denial) -> Blocker:
    """What is known of a host that is in the way."""
    entry = next((entry for entry in fleet.hosts if entry.host == host), None)
    permit = next((permit for permit in permits_of(fleet) if permit.host == host), None)
    if entry is None:
        why = "it is not registered for the service"
        return Blocker(host=host, how="holds a permit", since=permit.since if permit is not None else "", why=why, gone=True)
    status = entry.status
    said = f"{status.step}: {status.reason}".rstrip(": ") if status is not None else "it never reported"
    words = " ".join(said.split()) if entry.alive else f"its agent is gone, it last said {' '.join(said.split())}"
    failure = fleet.record.rollout.failures.get(host)
    if code in (Denial.HALTED, Denial.FAILED) and failure is not None:
        return Blocker(host=host, how="failed", since=failure.at, why=" ".join(failure.reason.split()), gone=not entry.alive)
    if permit is not None:
        return Blocker(host=host, how="holds a permit", since=permit.since, why=words, gone=not entry.alive)
    if code is Denial.QUEUED:
        return Blocker(host=host, how="waits before it", since=status.since if status is not None else "", gone=not entry.alive)
    since = status.since if status is not None and entry.alive else ""
    return Blocker(host=host, how="is down", since=since, why=words, gone=not entry.alive)


def way_back(record: ServiceRecord, previous: str, canary: str = "") -> str:
    """The way back."""
    if canary:
        build = record.enabled.build if record.enabled is not None else "BUILD"
        return f"deployd enable {record.service} {build}{canary} goes back"
    if previous:
        return f"deployd rollback {record.service} goes back to {previous}"
    return f"deployd enable {record.service} BUILD takes another build"


def ways_on(record: ServiceRecord, code: Denial, previous: str) -> str:
    """What to type about a stop."""
    service = record.service
    if code is Denial.FROZEN:
        return "deployd unfreeze, when the reason is over; what serves goes on serving"
    if code is Denial.PAUSED:
        return f"deployd resume {service}"
    return f"deployd retry {service} tries the failed hosts again; {way_back(record, previous)}"


def _stops(fleet: FleetStatus, now: datetime, previous: str) -> Iterator[Notice]:
    record = fleet.record
    rollout, freeze = record.rollout, record.freeze
    if freeze is not None and freeze.active(now):
        yield Notice(
            code=Denial.FROZEN.value,
            text=stopped(record, now),
            until=freeze.until,
            next=ways_on(record, Denial.FROZEN, previous),
        )
    if rollout.state is RolloutState.OPEN:
        return
    code = Denial.HALTED if rollout.state is RolloutState.HALTED else Denial.PAUSED
    current = {record.fleet_rollout, record.canary_rollout}
    failed = sorted(host for host, failure in rollout.failures.items() if failure.rollout in current)
    by = f" by {rollout.by}" if rollout.by else ""
    yield Notice(
        code=code.value,
        text=f"the rollout is {rollout.state.value}{by}: {rollout.why or 'no reason given'}",
        blockers=tuple(blocker_of(fleet, host, code) for host in failed) if code is Denial.HALTED else (),
        next=ways_on(record, code, previous),
    )


def _taken_back(fleet: FleetStatus) -> Iterator[Notice]:
    """That a rollout has been taken back by itself."""
    rollout, hosts = fleet.record.rollout, {entry.host for entry in fleet.hosts}
    if rollout.rollback_of and rollout.by in hosts and fleet.record.enabled is not None:
        yield Notice(
            code=_TAKEN_BACK,
            text=f"{rollout.rollback_of} was taken back, and the fleet goes to {fleet.record.enabled.build}: {rollout.why}",
            next=f"enable a build that is mended; deployd history {fleet.record.service} tells what happened",
        )


def _window(fleet: FleetStatus, now: datetime) -> Iterator[Notice]:
    windows = policy_of(fleet.record).windows
    if windows is None or fleet.record.rollout.rollback_of or fleet.record.fleet_rollout in fleet.record.rollout.done:
        return
    try:
        found = closed(windows, now)
    except ConfigError:
        return
    if found is not None:
        until = found.until.isoformat(timespec="seconds") if found.until is not None else None
        yield Notice(code=Denial.WINDOW.value, text=f"no host may begin now: {found.reason}", until=until, next=BY_ITSELF)


def promotion_notices(fleet: FleetStatus, now: datetime) -> Iterator[Notice]:
    """What a build waits for before the fleet may have it."""
    record = fleet.record
    service, build, policy = record.service, unpromoted(record), policy_of(record)
    if build is None or record.rollout.state is RolloutState.HALTED:
        return
    code = Denial.PROMOTION.value
    bake = bake_of(build.build, standings(fleet))
    force = f"deployd promote {service} --force --why TEXT"
    if not bake.canaries:
        text = f"{build.build} waits to be promoted, and {service} has no canary host"
        yield Notice(code=code, text=text, next=f"deployd hosts role {service} HOST canary; or {force}")
        return
    if bake.lacking:
        entries = {entry.host: entry for entry in fleet.hosts}
        states = [f"{host} ({step_of(entries[host])})" for host in bake.lacking[:5]]
        more = f" and {len(bake.lacking) - 5} more" if len(bake.lacking) > 5 else ""
        text = f"{build.build} waits to be promoted until its canary hosts are healthy with it: {', '.join(states)}{more}"
        yield Notice(code=code, text=text, next=f"deployd why {service} {bake.lacking[0]}")
        return
    baked = bake.baked_at(policy)
    names = f"{len(bake.canaries)} canary host{'' if len(bake.canaries) == 1 else 's'}"
    if baked is not None and policy.promotion is Promotion.AUTO:
        until = baked.isoformat(timespec="seconds")
        text = f"{build.build} bakes on {names} for {policy.bake}, and is promoted by itself after that"
        yield Notice(
            code=code, text=text, until=until, next=f"nothing: it is promoted by itself; at once: deployd promote {service}"
        )
        return
    healthy = f", healthy with it for {ago(bake.since.isoformat(), now)}" if bake.since is not None else ""
    text = f"{build.build} waits to be promoted: it is on {names}{healthy}"
    yield Notice(code=code, text=text, next=f"deployd promote {service}")


def _long(fleet: FleetStatus, now: datetime) -> Iterator[Notice]:
    """Permits that are held for longer than the spec finds right, or by hosts that are not there."""
    service = fleet.record.service
    longest = timedelta(seconds=float(policy_of(fleet.record).permit_alarm))
    registered = {entry.host for entry in fleet.hosts}
    for permit in permits_of(fleet):
        held = _held(permit, now)
        if held is not None and held < longest and permit.host in registered:
            continue
        blocker = blocker_of(fleet, permit.host, Denial.SLOTS_FULL)
        since = f" for {ago(permit.since, now)}" if held is not None else ""
        release = f"deployd permits release {service} {permit.host} --why TEXT"
        told = release if permit.host not in registered else unblock(service, blocker) or f"deployd why {service} {permit.host}"
        yield Notice(code=_HELD_LONG, text=f"{permit.host} holds a permit{since}: {blocker.why}", blockers=(blocker,), next=told)


def _held(permit: Permit, now: datetime) -> timedelta | None:
    try:
        since = datetime.fromisoformat(permit.since)
    except ValueError:
        return None
    return now - since if since.tzinfo is not None else None


def unblock(service: str, blocker: Blocker) -> str:
    """What to type about a host that is in the way; empty when it gets out of it by itself."""
    host = blocker.host
    if blocker.how == "holds a permit" and blocker.gone:
        return f"start the agent of {host}; should it never come back: deployd hosts lost {service} {host} --why TEXT"
    if blocker.how == "is down":
        return f"mend {host}; to go on without it: deployd hosts excuse {service} {host} --why TEXT"
    if blocker.how == "holds a permit" and blocker.why.partition(":")[0] in (HostStep.FAILED.value, HostStep.BROKEN.value):
        return f"deployd why {service} {host}"
    return ""
