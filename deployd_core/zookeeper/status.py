"""What hosts report, and which agents are alive: reading and writing their nodes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime

from msgspec import Struct
from msgspec.structs import replace

from deployd_core.coordination import AgentInfo, Enabled, Excuse, HostStatus, Membership, Permit
from deployd_core.errors import Conflict, Unavailable
from deployd_core.model import Role
from deployd_core.zookeeper import layout
from deployd_core.zookeeper.cache import NodeCache
from deployd_core.zookeeper.layout import ServicePaths
from deployd_core.zookeeper.services import (
    ATTEMPTS,
    Problems,
    ServiceRecord,
    assemble,
    commit_or_look_again,
    ensure_scaffold,
    gave_up,
    no_such_service,
    record_paths,
)
from deployd_core.zookeeper.session import Children, Node, Refused, Session, Transaction


class HostEntry(Struct, frozen=True, kw_only=True):
    """One host of a service: what it was told, what it last said, and whether its agent lives."""

    host: str
    role: Role
    zone: str
    alive: bool
    status: HostStatus | None
    """None before its first report."""
    permit: Permit | None
    excused: Excuse | None = None
    down: bool = False
    """It says itself that it cannot serve."""
    wanted: Enabled | None
    """The build its role should serve."""
    rollout_id: str

    @property
    def converged(self) -> bool:
        """Whether it said that it serves what it should and has no permit left."""
        return bool(self.wanted and self.status and self.status.served == self.wanted.build and self.permit is None)


class FleetStatus(Struct, frozen=True, kw_only=True):
    """A service and all its hosts, as of one reading."""

    record: ServiceRecord
    hosts: tuple[HostEntry, ...]
    """Sorted by name."""
    permits: tuple[Permit, ...] = ()
    """Every permit that is held, also by hosts that are no longer registered."""
    granted_at: datetime | None = None
    """When the last one was granted, ever."""
    problem: str = ""
    """Nodes that hold nonsense."""


def write_status(session: Session, service: str, status: HostStatus, *, was_down: bool | None = None) -> None:
    """Write a host's report, and with it whether the host is down.

    Args:
        session: The connection.
        service: The service.
        status: The report.
        was_down: What was last said of that; None when nobody remembers.

    Raises:
        NotFound: The service is gone.
    """
    path = ServicePaths(service).status(status.host)
    try:
        if was_down is status.down:
            session.set(path, layout.encode_status(status))
            return
    except Refused:
        pass  # its first report
    for _ in range(ATTEMPTS):
        transaction = session.transaction()
        add_report(session, transaction, service, status, None)
        if commit_or_look_again(session, transaction.commit):
            return
        if session.stat(ServicePaths(service).spec) is None:
            raise no_such_service(session, service)
        ensure_scaffold(session, service)
    raise gave_up(session, path)


def add_report(session: Session, transaction: Transaction, service: str, status: HostStatus, was_down: bool | None) -> None:
    """Make a host's report part of a transaction; with `was_down` None it looks at what is there."""
    paths, data = ServicePaths(service), layout.encode_status(status)
    path, down = paths.status(status.host), paths.down(status.host)
    if was_down is status.down:
        transaction.set(path, data)
        return
    there = session.stat_many((path, down))
    if there[path] is None:
        transaction.create(path, data)
    else:
        transaction.set(path, data)
    if status.down and there[down] is None:
        transaction.create(down)
    elif not status.down and there[down] is not None:
        transaction.delete(down)


def announce(session: Session, info: AgentInfo, *, again: bool = False) -> None:
    """Say that this host's agent is alive, for as long as the session lives.

    A dead predecessor on the same machine, whose session has not run out yet, is replaced.

    Args:
        session: The connection.
        info: What there is to say.
        again: It has been said in this session: another that stands there by now is no predecessor, but a copy of this machine.

    Raises:
        Conflict: Another live agent calls itself by this host's name.
    """
    path, data = layout.agent(info.host), layout.encode(info)
    for _ in range(ATTEMPTS):
        try:
            session.create(path, data, ephemeral=True)
        except Refused as refusal:
            if refusal.missing:
                session.create_if_missing(layout.AGENTS)
                continue
        else:
            return
        node = session.get(path)
        if node is not None and _settled(session, path, node, info, again=again):
            return
    raise Conflict(f"{session.where(path)} keeps changing: two agents seem to call themselves {info.host!r}")


def _settled(session: Session, path: str, node: Node, info: AgentInfo, *, again: bool) -> bool:
    """Make the existing node ours; False when it must be tried again."""
    data = layout.encode(info)
    try:
        if node.stat.owner == session.session_id:
            if node.data != data:
                session.set(path, data, node.stat.version)
            return True
        other = Problems(session).read(layout.decode_agent, path, node, None)
        if other is None or again or other.instance != info.instance:
            raise Conflict(
                f"another agent calls itself {info.host!r}: {_describe(other)}",
                hint="stop it, or give one of the two another `host` in agent.toml",
            )
        session.delete(path, node.stat.version)
    except Refused:
        return False
    return False


def _describe(other: AgentInfo | None) -> str:
    return f"{other.instance}, pid {other.pid}, since {other.since}" if other else "its node says nothing of it"


def read_agents(session: Session) -> dict[str, AgentInfo | None]:
    """The agents that are alive, by host."""
    children, problems = session.children(layout.AGENTS), Problems(session)
    names = children.names if children else ()
    nodes = session.get_many(layout.agent(name) for name in names)
    found = {name: nodes[layout.agent(name)] for name in names}
    return {name: problems.read(layout.decode_agent, name, node, None) for name, node in found.items() if node is not None}


class Roster:
    """Reads a service and all its hosts, again and again: only what changed is read anew."""

    def __init__(self, session: Session, service: str, changed: Callable[[], object] = bool, *, watching: bool = True) -> None:
        self._session = session
        self._service = service
        self._paths = ServicePaths(service)
        self._cache = NodeCache(session, changed, watching=watching)

    def read(self) -> FleetStatus:
        """The service and its hosts as they are now.

        Raises:
            NotFound: No such service.
            Unavailable: ZooKeeper does not answer.
        """
        paths, cache = self._paths, self._cache
        nodes = cache.read(record_paths(paths))
        if nodes[paths.spec] is None:
            raise no_such_service(self._session, self._service)
        below = (paths.hosts, paths.permits, layout.AGENTS, paths.downs)
        members, permits, alive, down = (_names(children) for children in cache.children(below).values())
        wanted = [*(paths.host(name) for name in members), *(paths.status(name) for name in members)]
        details = cache.read([*wanted, *(paths.permit(name) for name in permits)])
        # Registration does not change the data of `hosts`, so what was read of it may count fewer.
        record = replace(assemble(self._session, self._service, nodes), hosts=len(members))
        problems = Problems(self._session)
        living, sick = set(alive), set(down)
        hosts = tuple(self._entry(name, record, details, problems, alive=name in living, down=name in sick) for name in members)
        told = "; ".join(text for text in (record.problem, str(problems)) if text)
        held = {name: node for name in permits if (node := details[paths.permit(name)]) is not None}
        above = nodes[paths.permits]
        return FleetStatus(
            record=record,
            hosts=hosts,
            permits=tuple(layout.decode_permit(paths.permit(name), node.data, node.stat) for name, node in held.items()),
            granted_at=datetime.fromtimestamp(above.stat.mtime, UTC) if above is not None and above.stat.version else None,
            problem=told,
        )

    def _entry(
        self, name: str, record: ServiceRecord, details: Mapping[str, Node | None], problems: Problems, *, alive: bool, down: bool
    ) -> HostEntry:
        paths = self._paths
        permit = details.get(paths.permit(name))
        membership = problems.read(layout.decode_membership, paths.host(name), details[paths.host(name)], Membership(zone="?"))
        return HostEntry(
            host=name,
            role=membership.role,
            zone=membership.zone,
            alive=alive,
            status=problems.read(layout.decode_status, paths.status(name), details[paths.status(name)], None),
            permit=layout.decode_permit(paths.permit(name), permit.data, permit.stat) if permit else None,
            excused=membership.excused,
            down=down,
            wanted=record.enabled_for(membership.role),
            rollout_id=record.rollout_for(membership.role),
        )


def watch(session: Session, service: str, stop: threading.Event, *, every: float | None = None) -> Iterator[FleetStatus]:
    """Yield the service and its hosts now, and again whenever something of it changes, until `stop` is set.

    Changes that come close together are one. With `every`, it also yields after so many seconds without a change. While ZooKeeper
    is away nothing is yielded; the first thing after it came back is what is true then.

    Raises:
        NotFound: No such service, or it was deleted.
    """
    changes: queue.SimpleQueue[None] = queue.SimpleQueue()
    roster = Roster(session, service, lambda: changes.put(None))
    while not stop.is_set():
        try:
            yield roster.read()
        except Unavailable:
            # Watches died with the connection, so nothing will tell us: look again when it is back.
            session.wait_connected(0.25)
            stop.wait(0.05)
            continue
        if not _wait_for_change(changes, stop, every):
            return


def _wait_for_change(changes: queue.SimpleQueue[None], stop: threading.Event, every: float | None) -> bool:
    waited = 0.0
    while not stop.is_set():
        try:
            changes.get(timeout=0.2)  # in slices: there is no waiting for a queue and an event at once
        except queue.Empty:
            waited += 0.2
            if every is not None and waited >= every:
                return True
            continue
        while not changes.empty():
            changes.get()
        return True
    return False


def _names(children: Children | None) -> tuple[str, ...]:
    return children.names if children else ()
