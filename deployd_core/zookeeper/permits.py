"""Permits and failures: who may be restarting, and when a rollout halts. Each change is one transaction.

A grant sets the node above the permits at the version it read, so that between two grants only releases happen and there are never
more permits than the limit. It also checks the versions of all it obeyed (spec, enabled, membership, freeze, rollout), so that none
commits after one of them has changed. A permit is a persistent node: it outlives the agent, its session and its host.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from msgspec.structs import replace

from deployd_core.admission import Request, admit, halted_over_budget
from deployd_core.coordination import Denial, Denied, Failure, HostStatus, Permit, Rollout, Snapshot
from deployd_core.model import FleetLimit, Role
from deployd_core.units import Share
from deployd_core.zookeeper import layout
from deployd_core.zookeeper.layout import ServicePaths
from deployd_core.zookeeper.members import read_members
from deployd_core.zookeeper.services import (
    ATTEMPTS,
    Problems,
    commit_or_look_again,
    ensure_scaffold,
    gave_up,
    read_rollout,
    wanted,
)
from deployd_core.zookeeper.session import Node, OutcomeUnknown, Refused, Session, Watch

_REASON_LIMIT = 500


def read_permits(session: Session, service: str, hosts: tuple[str, ...] | None = None) -> tuple[Permit, ...]:
    """The permits of these hosts, or of all; one that was released meanwhile is left out."""
    paths = ServicePaths(service)
    if hosts is None:
        children = session.children(paths.permits)
        hosts = children.names if children else ()
    nodes = session.get_many(paths.permit(host) for host in hosts)
    return tuple(layout.decode_permit(path, node.data, node.stat) for path, node in nodes.items() if node is not None)


def take(
    session: Session, snapshot: Snapshot, limit: FleetLimit, *, nonce: str, now: datetime, watch: Watch | None = None
) -> Permit | Denied:
    """Ask for a permit; the watch is on the coming and going of others'.

    Raises:
        Unavailable: ZooKeeper cannot be asked; after a lost answer the permit may be held.
    """
    paths = ServicePaths(snapshot.service)
    own = paths.permit(snapshot.host)
    for _ in range(ATTEMPTS):
        # Our own first: what we hold is not counted against us, and this is how a lost answer is found.
        held = session.get(own)
        if held is not None:
            return layout.decode_permit(own, held.data, held.stat)
        if not set(guards(paths, snapshot.membership.role)) <= set(snapshot.versions):
            # A node that is not there has no version to check: make it, and let the host look at it first.
            ensure_scaffold(session, snapshot.service)
            return Denied(code=Denial.CHANGED, reason="the service was not complete in ZooKeeper: look again")
        children = session.children(paths.permits, watch)
        if children is None:
            ensure_scaffold(session, snapshot.service)
            continue
        decision = admit(_request(session, snapshot, limit, children.names, now))
        if isinstance(decision, Denied):
            return decision
        permit = Permit(
            host=snapshot.host,
            zone=snapshot.membership.zone,
            rollout=snapshot.rollout_id,
            since=now.isoformat(timespec="milliseconds"),
            nonce=nonce,
        )
        refused = _grant(session, snapshot, permit, children.stat.version)
        if refused is not None:
            return refused
    return Denied(code=Denial.CHANGED, reason=f"others were granted permits {ATTEMPTS} times while this host asked")


def guards(paths: ServicePaths, role: Role) -> tuple[str, ...]:
    """The nodes that a grant to a host of this role obeys."""
    canary = (paths.canary,) if role is Role.CANARY else ()
    return (paths.spec, paths.enabled, *canary, paths.rollout, layout.FREEZE)


def _request(session: Session, snapshot: Snapshot, limit: FleetLimit, holders: tuple[str, ...], now: datetime) -> Request:
    paths = ServicePaths(snapshot.service)
    zones = dict.fromkeys(holders, "")
    zone_hosts = 0
    if limit.per_zone is not None:
        zones |= {permit.host: permit.zone for permit in read_permits(session, snapshot.service, holders)}
        if limit.per_zone.is_percentage:
            members = read_members(session, snapshot.service).values()
            zone_hosts = sum(member.zone == snapshot.membership.zone for member in members)
    hosts = session.stat(paths.hosts)
    return Request(
        host=snapshot.host,
        zone=snapshot.membership.zone,
        rollout_id=snapshot.rollout_id,
        rollout=snapshot.rollout,
        freeze=snapshot.freeze,
        holders=zones,
        hosts=hosts.children if hosts else 1,
        zone_hosts=zone_hosts,
        limit=limit,
        now=now,
    )


def _grant(session: Session, snapshot: Snapshot, permit: Permit, admission: int) -> Denied | None:
    """Commit a grant; None means look again: it was granted, its answer was lost, or somebody else was admitted first."""
    paths = ServicePaths(snapshot.service)
    transaction = session.transaction()
    for path, version in snapshot.versions.items():
        transaction.check(path, version)
    transaction.set(paths.permits, b"", admission).create(paths.permit(permit.host), layout.encode(permit))
    generation = session.generation
    try:
        transaction.commit()
    except Refused as error:
        if error.path in (paths.permits, paths.permit(permit.host)):
            return None
        return Denied(code=Denial.CHANGED, reason=str(error))
    except OutcomeUnknown:
        if session.generation == generation or not session.wait_connected(session.operation_timeout):
            raise
    return None


def release(
    session: Session, service: str, host: str, status: HostStatus, *, token: int | None, keep_failure: bool = False
) -> None:
    """Give the permit of that token back, report, and clear the host's failure unless it is kept, in one transaction.

    When it is gone, or is another by now, the rest is done all the same.
    """
    paths = ServicePaths(service)
    permit, report = paths.permit(host), paths.status(host)
    for _ in range(ATTEMPTS):
        nodes = session.get_many((permit, report, paths.rollout))
        transaction = session.transaction()
        held = nodes[permit]
        if held is not None and held.stat.czxid == token:
            transaction.delete(permit)
        if nodes[report] is None:
            transaction.create(report, layout.encode_status(status))
        else:
            transaction.set(report, layout.encode_status(status))
        gate = nodes[paths.rollout]
        cleared = None if keep_failure else _without(session, paths, nodes, host)
        if gate is not None and cleared is not None:
            transaction.set(paths.rollout, layout.encode(cleared), gate.stat.version)
        if commit_or_look_again(session, transaction.commit):
            return
    raise gave_up(session, permit)


def _without(session: Session, paths: ServicePaths, nodes: Mapping[str, Node | None], host: str) -> Rollout | None:
    """The rollout without the host's failure; None when there is none to clear, or the node cannot be read."""
    rollout = read_rollout(paths, nodes, Problems(session))
    if host not in rollout.failures:
        return None
    return replace(rollout, failures={other: failure for other, failure in rollout.failures.items() if other != host})


def record_failure(session: Session, snapshot: Snapshot, reason: str, now: datetime) -> None:
    """Enter a host's failure, halting the rollout in the same write when it exceeds the budget. Nothing happens when it is entered
    already, or when a newer rollout has begun: that one has failures of its own.
    """
    paths = ServicePaths(snapshot.service)
    failure = Failure(rollout=snapshot.rollout_id, reason=reason[:_REASON_LIMIT], at=now.isoformat(timespec="seconds"))
    for _ in range(ATTEMPTS):
        nodes = session.get_many((paths.enabled, paths.canary, paths.rollout, paths.hosts))
        current = _current_rollouts(session, paths, nodes)
        gate, hosts = nodes[paths.rollout], nodes[paths.hosts]
        if gate is None:
            ensure_scaffold(session, snapshot.service)
            continue
        decider = nodes[current[snapshot.rollout_id]] if snapshot.rollout_id in current else None
        if decider is None:
            return
        before = read_rollout(paths, nodes, Problems(session))
        if snapshot.host in before.failed_in(snapshot.rollout_id):
            return
        kept = {host: entry for host, entry in before.failures.items() if entry.rollout in current}
        after = replace(before, failures={**kept, snapshot.host: failure})
        budget = snapshot.spec.rollout.budget if snapshot.spec else Share(0)
        after = halted_over_budget(after, snapshot.rollout_id, budget, hosts.stat.children if hosts else 1, snapshot.host)
        transaction = session.transaction().check(current[snapshot.rollout_id], decider.stat.version)
        transaction.set(paths.rollout, layout.encode(after), gate.stat.version)
        if commit_or_look_again(session, transaction.commit):
            return
    raise gave_up(session, paths.rollout)


def _current_rollouts(session: Session, paths: ServicePaths, nodes: Mapping[str, Node | None]) -> dict[str, str]:
    """The rollouts under way: id → the node that began it."""
    found = {}
    for role in (Role.CANARY, Role.FLEET):
        decision = wanted(paths, nodes, role, Problems(session))
        if decision.rollout_id:
            found[decision.rollout_id] = decision.deciders[-1]
    return found
