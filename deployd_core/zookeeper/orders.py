"""What people order: each is one transaction that carries its entry in the history, tried again when somebody else was faster.

An order whose answer was lost is told by its entry, whatever others have written over it: it is carried out once. When it was not
carried out and somebody else has ordered something meanwhile, it is not repeated over that.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from deployd_core.advancing import begun, canaries_rejoin, waits_for_canaries
from deployd_core.coordination import Enabled, Excuse, HistoryEntry, Rollout, Verb, is_well
from deployd_core.errors import Conflict
from deployd_core.model import Role
from deployd_core.spec import RolloutTable
from deployd_core.zookeeper import layout
from deployd_core.zookeeper.layout import ServicePaths
from deployd_core.zookeeper.members import host_is_missing, read_members
from deployd_core.zookeeper.services import (
    ATTEMPTS,
    Problems,
    ServiceRecord,
    assemble,
    commit,
    ensure_scaffold,
    gave_up,
    no_such_service,
    prune_history,
    read_rollout,
    record_paths,
)
from deployd_core.zookeeper.session import Node, Refused, Session
from deployd_core.zookeeper.transaction import Transaction


class _Order:
    """An order on its way."""

    def __init__(self, session: Session, service: str, entry: HistoryEntry) -> None:
        self._session = session
        self._paths = ServicePaths(service)
        self.entry = replace(entry, nonce=secrets.token_hex(8))
        self.sent = False
        """A commit of it was not refused: it was carried out, or its answer was lost."""

    def commit(self, transaction: Transaction, entry: HistoryEntry | None = None) -> bool:
        """Send it, with its entry; False when it was refused, or its answer was lost.

        Raises:
            Unavailable: As `commit` of `deployd_core.zookeeper.services` says.
        """
        transaction.create(self._paths.history_entry, layout.encode(entry or self.entry), sequence=True)
        try:
            answered = commit(self._session, transaction.commit)
        except Refused:
            return False
        self.sent = True
        return answered

    def carried_out(self) -> int | None:
        """The zxid of the transaction that carried it out; None when there was none before what was read last."""
        if not self.sent:
            return None
        children, problems = self._session.children(self._paths.history), Problems(self._session)
        nodes = self._session.get_many(self._paths.history_child(name) for name in (children.names if children else ()))
        for path, node in nodes.items():
            found = problems.read(layout.decode_history, path, node, None)
            if node is not None and found is not None and found.nonce == self.entry.nonce:
                prune_history(self._session, self._paths)
                return node.stat.czxid
        return None


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
        Conflict: Another rollout has begun than the one that was expected, or since a commit whose answer was lost and that never
            happened.
    """
    paths, order = ServicePaths(service), _Order(session, service, entry)
    target = paths.enabled_for(entry.role)
    restart = entry.verb is Verb.RESTART
    data = layout.encode(Enabled(build=entry.build, digest=entry.digest, by=entry.by, at=entry.at, restart=restart))
    for _ in range(ATTEMPTS):
        nodes = session.get_many(record_paths(paths))
        node, gate, spec = nodes[target], nodes[paths.rollout], nodes[paths.spec]
        if spec is None:
            raise no_such_service(session, service)
        if (zxid := order.carried_out()) is not None:
            return layout.rollout_id(entry.build, zxid)
        if node is None or gate is None or nodes[paths.permits] is None:
            ensure_scaffold(session, service)
            continue
        record = assemble(session, service, nodes)
        policy = record.spec.rollout if record.spec else RolloutTable()
        joins = record.canary is not None and canaries_rejoin(policy, entry)
        require_same(record, expect)
        now = replace(record.now, canary="") if joins else record.now
        waits = waits_for_canaries(policy, record.rollout, entry) and _has_canaries(session, service)
        rollout = begun(record.rollout, entry, now, needs_promotion=waits)
        transaction = session.transaction().check(paths.spec, spec.stat.version)
        transaction.set(target, data, node.stat.version).set(paths.rollout, layout.encode(rollout), gate.stat.version)
        if joins:
            canary = nodes[paths.canary]
            transaction.set(paths.canary, b"", canary.stat.version if canary else -1)
        order.commit(transaction)
        expect = record if order.sent else expect
    raise gave_up(session, target)


def require_same(record: ServiceRecord, expect: ServiceRecord | None) -> None:
    """See that a service is where it was when an order was decided.

    Raises:
        Conflict: Another rollout is under way, or somebody has stopped it or let it go on.
    """

    def under_way(found: ServiceRecord) -> tuple[object, ...]:
        return found.fleet_rollout, found.canary_rollout, found.rollout.state, found.rollout.by, found.rollout.why

    if expect is not None and under_way(record) != under_way(expect):
        raise Conflict(
            f"{record.service} has gone on meanwhile, and this was not done: {_there_now(record)}",
            hint=f"deployd status {record.service}",
        )


def _there_now(record: ServiceRecord) -> str:
    """What a service was told last, and by whom."""
    rollout = record.rollout
    told = [(record.fleet_rollout, record.enabled, ""), (record.canary_rollout, record.canary, " for the canary hosts")]
    parts = [f"{rollout_id} is enabled{whom}{_by(enabled.by)}" for rollout_id, enabled, whom in told if enabled is not None]
    stopped = f"the rollout is {rollout.state.value}{_by(rollout.by)}{f': {rollout.why}' if rollout.why else ''}"
    return "; ".join([*(parts or ["nothing is enabled"]), stopped])


def _by(whom: str) -> str:
    return f" by {whom}" if whom else ""


def _has_canaries(session: Session, service: str) -> bool:
    return any(member.role is Role.CANARY for member in read_members(session, service).values())


def change_rollout(
    session: Session, service: str, entry: HistoryEntry, change: Callable[[Rollout, ServiceRecord], Rollout]
) -> Rollout:
    """Write what `change` makes of the rollout; nothing is written, and nothing put on record, when that is what it was.

    Raises:
        NotFound: No such service.
        Conflict: Another order came since a commit whose answer was lost and that never happened.
    """
    paths, order = ServicePaths(service), _Order(session, service, entry)
    expect: ServiceRecord | None = None
    sent = Rollout()
    for _ in range(ATTEMPTS):
        nodes = session.get_many(record_paths(paths))
        node = nodes[paths.rollout]
        if order.carried_out() is not None:
            return sent
        if nodes[paths.spec] is None:
            raise no_such_service(session, service)
        if node is None:
            ensure_scaffold(session, service)
            continue
        record = assemble(session, service, nodes)
        require_same(record, expect)
        before = read_rollout(paths, nodes, Problems(session))
        rollout = change(before, record)
        if rollout == before and node.data.strip():
            return rollout
        about = replace(order.entry, rollout=record.fleet_rollout, build=record.enabled.build if record.enabled else "")
        transaction = session.transaction().set(paths.rollout, layout.encode(rollout), node.stat.version)
        if order.commit(transaction, about):
            prune_history(session, paths)
            return rollout
        if order.sent:
            expect, sent = record, rollout
    raise gave_up(session, paths.rollout)


def about_host(session: Session, service: str, host: str, entry: HistoryEntry) -> bool:
    """Carry out what an entry says of a host: take its permit away, excuse it, both (LOST), or take it out of the service (RETIRE).

    Returns:
        Whether there was anything to do.

    Raises:
        NotFound: No such service, or no such host in it.
        Conflict: It is to be given up and its agent lives, or retired and its agent follows the service; it is to be excused, and
            is well; or it has gone on since a commit that never happened.
    """
    paths, order = ServicePaths(service), _Order(session, service, replace(entry, host=host))
    own = (paths.host(host), paths.permit(host), paths.status(host), paths.down(host))
    expect: Mapping[str, Node | None] | None = None
    for _ in range(ATTEMPTS):
        nodes = session.get_many((*own, layout.agent(host)))
        if order.carried_out() is not None:
            return True
        if nodes[paths.host(host)] is None and nodes[paths.permit(host)] is None:
            raise host_is_missing(session, service, host)
        transaction = session.transaction()
        if entry.verb is not Verb.RELEASE:
            _demand_absence(session, transaction, service, order.entry, nodes)
        removed = [path for path in _removed_by(entry.verb, paths, host) if nodes[path] is not None]
        excused = _excused(session, paths.host(host), nodes, entry)
        if not removed and excused is None:
            return False
        _require_same_host(service, host, nodes, expect)
        for path in removed:
            transaction.delete(path)
        if excused is not None:
            transaction.set(paths.host(host), *excused)
        if order.commit(transaction):
            prune_history(session, paths)
            return True
        expect = nodes if order.sent else None
    raise gave_up(session, paths.host(host))


def _require_same_host(service: str, host: str, nodes: Mapping[str, Node | None], expect: Mapping[str, Node | None] | None) -> None:
    """See that a host is registered as it was, and holds what it held, when an order about it was sent.

    Raises:
        Conflict: It is not so.
    """
    if expect is None:
        return
    paths = ServicePaths(service)
    path, now = paths.permit(host), ""
    permit = nodes[path]
    if permit is not None and _written_since(expect[path], permit):
        held = layout.decode_permit(path, permit.data, permit.stat)
        now = f"it holds another permit, since {held.since} for {held.rollout}"
    elif _written_since(expect[paths.host(host)], nodes[paths.host(host)]):
        now = "it is registered anew"
    if now:
        raise Conflict(f"{host} has gone on meanwhile, and this was not done: {now}", hint=f"deployd why {service} {host}")


def _written_since(before: Node | None, now: Node | None) -> bool:
    """Whether a node that is there was created or written since it was read before."""
    return now is not None and (before is None or before.stat.mzxid != now.stat.mzxid)


def _demand_absence(
    session: Session, transaction: Transaction, service: str, entry: HistoryEntry, nodes: Mapping[str, Node | None]
) -> None:
    """See that a host is as far away as an order takes it to be, and have the transaction hold only if that is still so.

    Raises:
        Conflict: Its agent lives; and, if it is to be retired, follows the service; or, if it is only to be excused, does not say
            that the host is down.
    """
    agent, down = layout.agent(entry.host), ServicePaths(service).down(entry.host)
    alive, says_down = nodes[agent], nodes[down]
    if alive is None:
        transaction.absent(agent)
    elif entry.verb is Verb.RETIRE and not _follows(session, alive, service):
        transaction.check(agent, alive.stat.version)
    elif entry.verb is not Verb.EXCUSE:
        out = f", or take {service} out of its agent.toml and reload it" if entry.verb is Verb.RETIRE else ""
        raise Conflict(
            f"the agent of {entry.host} is running: it is not gone",
            hint=f"stop it first{out}; to take its permit alone: deployd permits release {service} {entry.host} --why TEXT",
        )
    elif says_down is None:
        raise is_well(entry.host)
    else:
        transaction.check(down, says_down.stat.version)


def _follows(session: Session, agent: Node, service: str) -> bool:
    """Whether an agent that lives looks after a service; one that does not say after which ones may."""
    info = Problems(session).read(layout.decode_agent, "", agent, None)
    return info is None or not info.services or service in info.services


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
