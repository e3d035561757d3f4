"""Specs, what is enabled, membership, the rollout and the freeze: reading and writing their nodes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

from msgspec import Struct

from deployd_core.advancing import Now
from deployd_core.coordination import Enabled, Freeze, HistoryEntry, Rollout, RolloutState
from deployd_core.errors import ConfigError, Conflict, NotFound
from deployd_core.model import Role
from deployd_core.spec import ServiceSpec
from deployd_core.zookeeper import layout
from deployd_core.zookeeper.chroot import ensure_chroot
from deployd_core.zookeeper.layout import ServicePaths
from deployd_core.zookeeper.session import Node, OutcomeUnknown, Refused, Session

ATTEMPTS = 50
"""How often a compare-and-swap is tried before it gives up on a node that others keep changing."""
HISTORY_LIMIT = 200

ValueT = TypeVar("ValueT")


class Applied(Struct, frozen=True):
    """What applying a spec did: ``created``, ``changed`` or ``unchanged``."""

    outcome: str


class ServiceRecord(Struct, frozen=True, kw_only=True):
    """What ZooKeeper says of one service."""

    service: str
    spec: ServiceSpec | None
    enabled: Enabled | None
    canary: Enabled | None
    """None while canary hosts follow the fleet."""
    fleet_rollout: str
    canary_rollout: str
    """The rollout of canary hosts: that of the fleet while they follow it."""
    rollout: Rollout
    freeze: Freeze | None
    hosts: int
    grants: int = 0
    """Permits granted so far, ever."""
    problem: str = ""

    def enabled_for(self, role: Role) -> Enabled | None:
        """The build that hosts of a role should serve."""
        return self.canary if role is Role.CANARY and self.canary else self.enabled

    def rollout_for(self, role: Role) -> str:
        """The id of the rollout that hosts of a role are part of."""
        return self.canary_rollout if role is Role.CANARY else self.fleet_rollout

    @property
    def now(self) -> Now:
        """What is enabled, and how far it is."""
        return Now(
            fleet=self.fleet_rollout,
            canary=self.canary_rollout if self.canary else "",
            enabled=self.enabled,
            hosts=self.hosts or 1,
            granted=self.grants,
        )


class Wanted(NamedTuple):
    """What a role should serve, and which nodes say so."""

    enabled: Enabled | None
    rollout_id: str
    deciders: tuple[str, ...]


class Problems:
    """Reads nodes and collects what is wrong with them, instead of stopping at the first."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._found: list[str] = []

    def read(self, decode: Callable[[str, bytes], ValueT], path: str, node: Node | None, otherwise: ValueT) -> ValueT:
        """What the node holds; `otherwise` when it holds nonsense."""
        if node is None:
            return decode(path, b"")
        try:
            return decode(self._session.where(path), node.data)
        except ConfigError as error:
            self._found.append(f"{error} ({error.hint})" if error.hint else str(error))
            return otherwise

    def __str__(self) -> str:
        return "; ".join(self._found)


def known_services(session: Session) -> tuple[str, ...]:
    """The names of all services."""
    children = session.children(layout.SERVICES)
    return children.names if children else ()


def no_such_service(session: Session, service: str) -> NotFound:
    """The error that says which services there are."""
    known = known_services(session)
    close = difflib.get_close_matches(service, known, n=1)
    names = f"known: {', '.join(known[:20])}" if known else "there is none yet"
    return NotFound(
        f"no service {service!r}; {names}",
        hint=f"did you mean {close[0]!r}?" if close else f"deployd services apply {service}.toml",
    )


def wanted(paths: ServicePaths, nodes: Mapping[str, Node | None], role: Role, problems: Problems) -> Wanted:
    """What a role should serve. Canary hosts follow the fleet while their own node is absent or empty."""
    deciders: tuple[str, ...] = (paths.enabled,)
    node = nodes[paths.enabled]
    if role is Role.CANARY:
        canary = nodes[paths.canary]
        deciders = (paths.canary, paths.enabled)
        if canary is not None and canary.data.strip():
            deciders, node = (paths.canary,), canary
    enabled = problems.read(layout.decode_enabled, deciders[-1], node, None)
    if enabled is None or node is None:
        return Wanted(None, "", deciders)
    return Wanted(enabled, layout.rollout_id(enabled.build, node.stat.mzxid), deciders)


def read_rollout(paths: ServicePaths, nodes: Mapping[str, Node | None], problems: Problems) -> Rollout:
    """The rollout; one that cannot be read counts as paused."""
    unreadable = Rollout(state=RolloutState.PAUSED, why="its node cannot be read")
    return problems.read(layout.decode_rollout, paths.rollout, nodes[paths.rollout], unreadable)


def read_freeze(nodes: Mapping[str, Node | None], problems: Problems) -> Freeze | None:
    """The freeze; one that cannot be read counts."""
    unreadable: Freeze | None = Freeze(why="its node cannot be read")
    return problems.read(layout.decode_freeze, layout.FREEZE, nodes[layout.FREEZE], unreadable)


def record_paths(paths: ServicePaths) -> tuple[str, ...]:
    """The nodes that `assemble` needs."""
    return (paths.spec, paths.enabled, paths.canary, paths.rollout, paths.permits, paths.hosts, layout.FREEZE)


def assemble(session: Session, service: str, nodes: Mapping[str, Node | None]) -> ServiceRecord:
    """Make a record of a service's nodes."""
    paths, problems = ServicePaths(service), Problems(session)
    fleet = wanted(paths, nodes, Role.FLEET, problems)
    canary = wanted(paths, nodes, Role.CANARY, problems)
    hosts, permits = nodes[paths.hosts], nodes[paths.permits]
    return ServiceRecord(
        service=service,
        spec=problems.read(layout.decode_spec, paths.spec, nodes[paths.spec], None),
        enabled=fleet.enabled,
        canary=canary.enabled if canary.deciders == (paths.canary,) else None,
        fleet_rollout=fleet.rollout_id,
        canary_rollout=canary.rollout_id,
        rollout=read_rollout(paths, nodes, problems),
        freeze=read_freeze(nodes, problems),
        hosts=hosts.stat.children if hosts else 0,
        grants=permits.stat.version if permits else 0,
        problem=str(problems),
    )


def read_services(session: Session, services: Iterable[str]) -> tuple[ServiceRecord, ...]:
    """Read several services in one round; one that does not exist is left out."""
    names = list(services)
    nodes = session.get_many(path for service in names for path in record_paths(ServicePaths(service)))
    return tuple(assemble(session, service, nodes) for service in names if nodes[ServicePaths(service).spec] is not None)


def ensure_scaffold(session: Session, service: str) -> None:
    """Create what is missing of the nodes beside the spec, so that their versions can be checked."""
    paths = ServicePaths(service)
    for path, stat in session.stat_many((*layout.COMMON_NODES, *paths.scaffold)).items():
        if stat is None:
            session.create_if_missing(path)


def write_spec(session: Session, service: str, spec: ServiceSpec) -> Applied:
    """Create a service or change its spec; an equal spec is not written again."""
    ensure_chroot(session)
    paths, data = ServicePaths(service), layout.encode(spec)
    for path in layout.COMMON_NODES:
        session.create_if_missing(path)
    for _ in range(ATTEMPTS):
        node = session.get(paths.spec)
        try:
            if node is None:
                _create_service(session, paths, data)
                return Applied("created")
            ensure_scaffold(session, service)
            if node.data == data:
                return Applied("unchanged")
            session.set(paths.spec, data, node.stat.version)
        except Refused:
            continue
        return Applied("changed")
    raise gave_up(session, paths.spec)


def _create_service(session: Session, paths: ServicePaths, spec: bytes) -> None:
    # In one transaction, so that no agent sees half a service. Leftovers of a hand-made one are kept.
    missing = [path for path, stat in session.stat_many((paths.root, *paths.scaffold)).items() if stat is None]
    transaction = session.transaction()
    for path in missing:
        transaction.create(path)
    transaction.create(paths.spec, spec).commit()


def delete_tree(session: Session, service: str) -> None:
    """Delete a service and everything below it: its spec first, so that agents let go of it at once."""
    paths = ServicePaths(service)
    if session.stat(paths.spec) is not None:
        session.delete(paths.spec)
    for _ in range(ATTEMPTS):
        try:
            _delete_below(session, paths.root)
        except Refused:  # somebody wrote below it meanwhile
            continue
        return
    raise gave_up(session, paths.root)


def _delete_below(session: Session, root: str) -> None:
    level, found = [root], [root]
    while level:
        listed = session.children_many(level)
        level = [f"{parent}/{name}" for parent, children in listed.items() if children for name in children.names]
        found += level
    found.reverse()
    for begin in range(0, len(found), 200):
        transaction = session.transaction()
        for path in found[begin : begin + 200]:
            transaction.delete(path)
        transaction.commit()


def prune_history(session: Session, paths: ServicePaths) -> None:
    """Delete the oldest entries beyond the limit."""
    children = session.children(paths.history)
    for name in (children.names if children else ())[:-HISTORY_LIMIT]:
        try:
            session.delete(paths.history_child(name))
        except Refused:  # somebody else pruned it
            continue


def read_history(session: Session, service: str) -> tuple[HistoryEntry, ...]:
    """What was enabled, the oldest first; entries that hold nonsense are left out."""
    paths = ServicePaths(service)
    children, problems = session.children(paths.history), Problems(session)
    nodes = session.get_many(paths.history_child(name) for name in (children.names if children else ()))
    entries = (problems.read(layout.decode_history, path, node, None) for path, node in nodes.items())
    return tuple(entry for entry in entries if entry is not None)


def write_freeze(session: Session, freeze: Freeze | None) -> Freeze | None:
    """Stop every service, or (None) lift the stop; returns the stop that was there."""
    ensure_chroot(session)
    before = read_freeze({layout.FREEZE: session.get(layout.FREEZE)}, Problems(session))
    if before is not None or freeze is not None:
        session.create_if_missing(layout.FREEZE)
        session.set(layout.FREEZE, layout.encode(freeze) if freeze else b"")
    return before


def commit(session: Session, send: Callable[[], None]) -> bool:
    """Commit; False when its answer was lost and the caller must look at what is there now.

    Raises:
        Refused: Nothing of it happened.
        Unavailable: The connection is gone and does not come back within the time of an operation, or it never broke and there was
            no answer all the same: then asking again at once would only take as long again.
    """
    generation = session.generation
    try:
        send()
    except OutcomeUnknown:
        if session.generation == generation or not session.wait_connected(session.operation_timeout):
            raise
        return False
    return True


def commit_or_look_again(session: Session, send: Callable[[], None]) -> bool:
    """Commit; False also when it was refused.

    Raises:
        Unavailable: As `commit` says.
    """
    try:
        return commit(session, send)
    except Refused:
        return False


def gave_up(session: Session, path: str) -> Conflict:
    """The error of a compare-and-swap that never came first."""
    return Conflict(
        f"{session.where(path)} was changed by others {ATTEMPTS} times in a row while we tried to write it", hint="try again"
    )
