"""What people order: each is one transaction that carries its entry in the history, tried again when somebody else was faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from deployd_core.advancing import begun
from deployd_core.coordination import Enabled, Excuse, HistoryEntry, Rollout, Verb
from deployd_core.errors import Conflict
from deployd_core.model import Role
from deployd_core.zookeeper import layout
from deployd_core.zookeeper.layout import ServicePaths
from deployd_core.zookeeper.members import no_such_host, read_members
from deployd_core.zookeeper.services import (
    ATTEMPTS,
    Problems,
    ServiceRecord,
    assemble,
    commit_or_look_again,
    ensure_scaffold,
    gave_up,
    no_such_service,
    prune_history,
    read_rollout,
    record_paths,
)
from deployd_core.zookeeper.session import Node, Session


def write_enabled(session: Session, service: str, entry: HistoryEntry, *, expect: ServiceRecord | None = None) -> str:
    """Enable the build of an entry for its role and begin its rollout, open; returns the rollout's id.

    Failures and progress of the other role's rollout still count.

    Args:
        session: The connection.
        service: The service.
        entry: What the history will say; its verb tells a restart and a rollback from a new build.
        expect: What the order was decided from: the same rollouts must be under way, and in the same state. None is anything.

    Raises:
        NotFound: No such service.
        Conflict: Another rollout has begun than the one that was expected.
    """
    paths = ServicePaths(service)
    target = paths.enabled_for(entry.role)
    restart = entry.verb is Verb.RESTART
    data = layout.encode(Enabled(build=entry.build, digest=entry.digest, by=entry.by, at=entry.at, restart=restart))
    for _ in range(ATTEMPTS):
        nodes = session.get_many(record_paths(paths))
        node, gate, spec = nodes[target], nodes[paths.rollout], nodes[paths.spec]
        if spec is None:
            raise no_such_service(session, service)
        if node is not None and node.data == data:  # the answer to our own commit was lost
            prune_history(session, paths)
            return layout.rollout_id(entry.build, node.stat.mzxid)
        if node is None or gate is None or nodes[paths.permits] is None:
            ensure_scaffold(session, service)
            continue
        record = assemble(session, service, nodes)
        joins = _joins_the_fleet(record, entry)
        require_same(record, expect)
        now = replace(record.now, canary="") if joins else record.now
        rollout = begun(record.rollout, entry, now, needs_promotion=_needs_promotion(session, record, entry))
        transaction = session.transaction().check(paths.spec, spec.stat.version)
        transaction.set(target, data, node.stat.version).set(paths.rollout, layout.encode(rollout), gate.stat.version)
        if joins:
            canary = nodes[paths.canary]
            transaction.set(paths.canary, b"", canary.stat.version if canary else -1)
        transaction.create(paths.history_entry, layout.encode(entry), sequence=True)
        commit_or_look_again(session, transaction.commit)
    raise gave_up(session, target)


def require_same(record: ServiceRecord, expect: ServiceRecord | None) -> None:
    """See that a service is where it was when an order was decided.

    Raises:
        Conflict: Another rollout is under way, or somebody has stopped it or let it go on.
    """

    def under_way(found: ServiceRecord) -> tuple[object, ...]:
        return found.fleet_rollout, found.canary_rollout, found.rollout.state

    if expect is not None and under_way(record) != under_way(expect):
        now = f"{record.fleet_rollout or 'nothing'}, {record.rollout.state.value}"
        raise Conflict(f"{record.service} has gone on meanwhile: {now}", hint=f"deployd status {record.service}")


def _joins_the_fleet(record: ServiceRecord, entry: HistoryEntry) -> bool:
    """Whether the canary hosts follow the fleet again: when it gets their build, and to go first with the next one."""
    first = record.spec is not None and record.spec.rollout.canary_first
    return record.canary is not None and entry.role is Role.FLEET and (first or entry.verb is Verb.PROMOTE)


def _needs_promotion(session: Session, record: ServiceRecord, entry: HistoryEntry) -> bool:
    """Whether the fleet has to wait for the canary hosts."""
    if record.spec is None or not record.spec.rollout.canary_first or entry.verb is not Verb.ENABLE:
        return False
    return any(member.role is Role.CANARY for member in read_members(session, record.service).values())


def change_rollout(
    session: Session, service: str, entry: HistoryEntry, change: Callable[[Rollout, ServiceRecord], Rollout]
) -> Rollout:
    """Write what `change` makes of the rollout; nothing is written, and nothing put on record, when that is what it was.

    Raises:
        NotFound: No such service.
    """
    paths = ServicePaths(service)
    for _ in range(ATTEMPTS):
        nodes = session.get_many(record_paths(paths))
        node = nodes[paths.rollout]
        if nodes[paths.spec] is None:
            raise no_such_service(session, service)
        if node is None:
            ensure_scaffold(session, service)
            continue
        record = assemble(session, service, nodes)
        before = read_rollout(paths, nodes, Problems(session))
        rollout = change(before, record)
        if rollout == before and node.data.strip():
            return rollout
        about = replace(entry, rollout=record.fleet_rollout, build=record.enabled.build if record.enabled else "")
        transaction = session.transaction().set(paths.rollout, layout.encode(rollout), node.stat.version)
        transaction.create(paths.history_entry, layout.encode(about), sequence=True)
        if commit_or_look_again(session, transaction.commit):
            prune_history(session, paths)
            return rollout
    raise gave_up(session, paths.rollout)


def about_host(session: Session, service: str, host: str, entry: HistoryEntry) -> bool:
    """Carry out what an entry says of a host: take its permit away, excuse it, both (LOST), or take it out of the service (RETIRE).

    Returns:
        Whether there was anything to do.

    Raises:
        NotFound: No such service, or no such host in it.
        Conflict: It is to be given up or retired, and its agent lives.
    """
    paths = ServicePaths(service)
    own = (paths.host(host), paths.permit(host), paths.status(host), paths.down(host))
    for _ in range(ATTEMPTS):
        nodes = session.get_many((*own, layout.agent(host)))
        if nodes[paths.host(host)] is None and nodes[paths.permit(host)] is None:
            raise no_such_host(session, service, host)
        if entry.verb in (Verb.RETIRE, Verb.LOST) and nodes[layout.agent(host)] is not None:
            raise Conflict(
                f"the agent of {host} is running: it is not gone",
                hint=f"stop it first; to take its permit alone: deployd permits release {service} {host} --why TEXT",
            )
        removed = [path for path in _removed_by(entry.verb, paths, host) if nodes[path] is not None]
        excused = _excused(session, paths.host(host), nodes, entry)
        if not removed and excused is None:
            return False
        transaction = session.transaction()
        for path in removed:
            transaction.delete(path)
        if excused is not None:
            transaction.set(paths.host(host), *excused)
        transaction.create(paths.history_entry, layout.encode(replace(entry, host=host)), sequence=True)
        if commit_or_look_again(session, transaction.commit):
            prune_history(session, paths)
            return True
    raise gave_up(session, paths.host(host))


def _removed_by(verb: Verb, paths: ServicePaths, host: str) -> tuple[str, ...]:
    """The nodes of a host that an order removes."""
    if verb is Verb.RETIRE:
        return (paths.permit(host), paths.host(host), paths.status(host), paths.down(host))
    return (paths.permit(host),) if verb in (Verb.RELEASE, Verb.LOST) else ()


def _excused(session: Session, path: str, nodes: Mapping[str, Node | None], entry: HistoryEntry) -> tuple[bytes, int] | None:
    """A host's node with the excuse in it, and the version that it replaces; None when nothing is to be written."""
    node = nodes[path]
    if entry.verb not in (Verb.EXCUSE, Verb.LOST) or node is None:
        return None
    known = Problems(session).read(layout.decode_membership, path, node, None)
    if known is None or known.excused is not None:
        return None
    excuse = Excuse(by=entry.by, why=entry.why, at=entry.at)
    return layout.encode(replace(known, excused=excuse)), node.stat.version
