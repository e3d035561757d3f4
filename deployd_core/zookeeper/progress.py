"""Taking a rollout further: that it is complete, and that a build goes from the canaries to the fleet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime

from msgspec.structs import replace

from deployd_core.advancing import Standing, completed_by, recorded, to_promote, until_promoted
from deployd_core.coordination import Enabled, HistoryEntry, Rollout, RolloutState, Snapshot, Verb
from deployd_core.errors import Conflict
from deployd_core.model import Role
from deployd_core.spec import Promotion, RolloutTable
from deployd_core.zookeeper import layout
from deployd_core.zookeeper.layout import ServicePaths
from deployd_core.zookeeper.orders import change_rollout, require_same, write_enabled
from deployd_core.zookeeper.services import (
    ATTEMPTS,
    Problems,
    ServiceRecord,
    assemble,
    commit_or_look_again,
    gave_up,
    read_rollout,
    record_paths,
)
from deployd_core.zookeeper.session import Session
from deployd_core.zookeeper.status import FleetStatus, HostEntry, Roster

_FALLBACK = 300.0
"""Seconds until a host that is not the last one looks again: a net, since the last one completes the rollout."""
_ASK_AGAIN = 60.0


def standings(fleet: FleetStatus) -> tuple[Standing, ...]:
    """How the hosts of a service stand."""
    return tuple(_standing(entry) for entry in fleet.hosts)


def _standing(entry: HostEntry) -> Standing:
    return Standing(
        host=entry.host,
        role=entry.role,
        rollout_id=entry.rollout_id,
        build=entry.wanted.build if entry.wanted else "",
        alive=entry.alive,
        excused=entry.excused is not None,
        status=entry.status,
        permit=entry.permit,
    )


def unpromoted(record: ServiceRecord) -> Enabled | None:
    """The build that the canaries have and the fleet has not yet; None when there is none."""
    policy = record.spec.rollout if record.spec else RolloutTable()
    return to_promote(policy, record.rollout, record.enabled, record.canary)


def promote(session: Session, record: ServiceRecord, build: Enabled, *, by: str, why: str, at: str) -> str:
    """Let the fleet have the build of the canaries; returns the id of the rollout.

    Raises:
        Conflict: Something else was enabled meanwhile.
    """
    entry = HistoryEntry(verb=Verb.PROMOTE, build=build.build, digest=build.digest, by=by, at=at, why=why)
    if record.enabled is None or record.enabled.build != build.build:
        return write_enabled(session, record.service, entry, expect=record)

    def promoted(rollout: Rollout, now: ServiceRecord) -> Rollout:
        require_same(now, record)
        return replace(rollout, promoted=build.build)

    # The rollout of the fleet has begun already, and waits.
    change_rollout(session, record.service, entry, promoted)
    return record.fleet_rollout


def complete(session: Session, service: str, rollout_id: str, hosts: Iterable[Standing], now: datetime) -> bool:
    """Put on record that every host has completed a rollout, if it is so; whether it is."""
    if not completed_by(rollout_id, hosts):
        return False
    paths, at = ServicePaths(service), now.isoformat(timespec="microseconds")
    for _ in range(ATTEMPTS):
        nodes = session.get_many(record_paths(paths))
        record = assemble(session, service, nodes)
        gate, before = nodes[paths.rollout], record.rollout
        if gate is None or rollout_id in before.done:
            return True
        role = Role.FLEET if rollout_id == record.fleet_rollout else Role.CANARY
        enabled, decider = record.enabled_for(role), nodes[paths.enabled_for(role)]
        if enabled is None or decider is None or rollout_id != record.rollout_for(role):
            return False
        after, entry = recorded(before, rollout_id, role, enabled, at)
        transaction = session.transaction().check(paths.enabled_for(role), decider.stat.version)
        transaction.set(paths.rollout, layout.encode(after), gate.stat.version)
        transaction.create(paths.history_entry, layout.encode(entry), sequence=True)
        if commit_or_look_again(session, transaction.commit):
            return True
    raise gave_up(session, paths.rollout)


def advance(session: Session, snapshot: Snapshot, may_promote: Callable[[str], str], now: datetime) -> float | None:
    """Take the rollout of a host that is done further; see `deployd_core.coordination.Coordination.advance`."""
    service, paths = snapshot.service, ServicePaths(snapshot.service)
    canary = snapshot.membership.role is Role.CANARY
    policy = snapshot.spec.rollout if snapshot.spec else RolloutTable()
    promotes = canary and policy.promotion is Promotion.AUTO
    rollout = read_rollout(paths, {paths.rollout: session.get(paths.rollout)}, Problems(session))
    permits = session.stat(paths.permits)
    done = snapshot.rollout_id in rollout.done
    if done and not promotes:
        return None
    # What somebody has stopped goes no further by itself.
    if rollout.state is not RolloutState.OPEN or (permits is not None and permits.children and not canary):
        return _ASK_AGAIN if promotes else _FALLBACK
    fleet = Roster(session, service, watching=False).read()
    completed = done or complete(session, service, snapshot.rollout_id, standings(fleet), now)
    if promotes:
        return _promote_when_baked(session, fleet, may_promote, now)
    return None if completed else _FALLBACK


def _promote_when_baked(session: Session, fleet: FleetStatus, may_promote: Callable[[str], str], now: datetime) -> float | None:
    record = fleet.record
    build, policy = unpromoted(record), record.spec.rollout if record.spec else RolloutTable()
    if build is None:
        return None
    left = until_promoted(build.build, standings(fleet), policy, now)
    if left:
        return left
    if left is None or may_promote(build.build):
        return _ASK_AGAIN
    why = f"the canaries were healthy with it for {policy.bake}"
    try:
        promote(session, record, build, by="deployd", why=why, at=now.isoformat(timespec="microseconds"))
    except Conflict:  # a person was faster, and may have decided otherwise
        return _ASK_AGAIN
    return None
