"""Membership: which hosts belong to a service, in which role and zone."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress

from msgspec import Struct
from msgspec.structs import replace

from deployd_core.coordination import Membership
from deployd_core.errors import NotFound
from deployd_core.model import Role
from deployd_core.zookeeper import layout
from deployd_core.zookeeper.cache import NodeCache
from deployd_core.zookeeper.layout import ServicePaths
from deployd_core.zookeeper.services import ATTEMPTS, Problems, ensure_scaffold, gave_up, no_such_service
from deployd_core.zookeeper.session import Refused, Session


def read_members(session: Session, service: str) -> dict[str, Membership]:
    """Who is registered for a service, by host."""
    paths, problems = ServicePaths(service), Problems(session)
    children = session.children(paths.hosts)
    names = children.names if children else ()
    nodes = session.get_many(paths.host(name) for name in names)
    return {
        name: problems.read(layout.decode_membership, paths.host(name), nodes[paths.host(name)], Membership(zone="?"))
        for name in names
    }


class Roll(Struct, frozen=True, kw_only=True):
    """Who there is of a service, as far as a grant asks."""

    hosts: int
    zone_hosts: int
    down: Mapping[str, str]
    """Host → zone of those that are known to be down and that nobody has excused."""


class RollCall:
    """Calls the roll of a service again and again: only what changed is read anew."""

    def __init__(self, session: Session, service: str, cache: NodeCache) -> None:
        self._session = session
        self._service = service
        self._cache = cache
        self._paths = ServicePaths(service)
        self.nodes = (self._paths.hosts, layout.AGENTS, self._paths.downs)
        """What it reads the children of, to be read together with others."""
        self._zones: tuple[tuple[str, ...], Counter[str]] = ((), Counter())

    def call(self, zone: str | None) -> Roll:
        """The roll, with the hosts of a zone counted when one is named.

        A host is down when its agent is gone, or says so itself. Both are hearsay, a moment old at best: what was granted stays
        exact.
        """
        cache, paths = self._cache, self._paths
        names, agents, reported = cache.children(self.nodes).values()
        registered = names.names if names else ()
        alive, sick = set(agents.names if agents else ()), set(reported.names if reported else ())
        suspects = [name for name in registered if name not in alive or name in sick]
        nodes = cache.read(paths.host(name) for name in suspects)
        problems, unknown = Problems(self._session), Membership(zone="")
        known = {name: problems.read(layout.decode_membership, "", nodes[paths.host(name)], unknown) for name in suspects}
        return Roll(
            hosts=len(registered) or 1,
            zone_hosts=self._zone_hosts(registered)[zone] if zone is not None else 0,
            down={name: member.zone for name, member in known.items() if member.excused is None},
        )

    def _zone_hosts(self, registered: tuple[str, ...]) -> Counter[str]:
        # Read anew when hosts come or go: that one moves to another zone shows with the next of them.
        if self._zones[0] != registered:
            members = read_members(self._session, self._service)
            self._zones = (registered, Counter(member.zone for member in members.values()))
        return self._zones[1]


def register(session: Session, service: str, host: str, zone: str, *, is_back: bool = False) -> None:
    """Make a host a member, or correct its zone; the role it has is kept. One that is back is excused no more.

    Nothing happens when the service is gone.
    """
    paths = ServicePaths(service)
    path = paths.host(host)
    with suppress(Refused):  # the service is gone, or not complete: then whoever waits first makes it
        # Now, so that not the whole fleet finds it missing at once when it asks for its first permits.
        session.create_if_missing(paths.zone_queue(zone))
    for _ in range(ATTEMPTS):
        node = session.get(path)
        try:
            if node is None:
                session.create(path, layout.encode(Membership(zone=zone)))
                return
            # One that cannot be read is left to a person: the role in it may have been canary.
            membership = layout.decode_membership(session.where(path), node.data)
            wanted = replace(membership, zone=zone, excused=None if is_back else membership.excused)
            if membership != wanted:
                session.set(path, layout.encode(wanted), node.stat.version)
        except Refused as error:
            if node is None and error.missing:
                ensure_scaffold(session, service)
            continue
        return
    raise gave_up(session, path)


def write_role(session: Session, service: str, host: str, role: Role) -> bool:
    """Set the role of a registered host; returns whether it changed.

    Raises:
        NotFound: No such service, or no such host in it.
    """
    paths = ServicePaths(service)
    path = paths.host(host)
    for _ in range(ATTEMPTS):
        node = session.get(path)
        if node is None:
            raise host_is_missing(session, service, host)
        membership = Problems(session).read(layout.decode_membership, path, node, Membership())
        if membership.role is role and node.data.strip():
            return False
        try:
            session.set(path, layout.encode(replace(membership, role=role)), node.stat.version)
        except Refused:
            continue
        return True
    raise gave_up(session, path)


def host_is_missing(session: Session, service: str, host: str) -> NotFound:
    """The error for a host that is not there: perhaps its whole service is not."""
    if session.stat(ServicePaths(service).spec) is None:
        return no_such_service(session, service)
    return no_such_host(service, host, read_members(session, service))


def no_such_host(service: str, host: str, registered: Iterable[str]) -> NotFound:
    """The error that says which hosts there are."""
    known = sorted(registered)
    close = difflib.get_close_matches(host, known, n=1)
    names = f"known: {', '.join(known[:20])}" if known else "none has registered yet"
    hint = f"did you mean {close[0]!r}?" if close else "a host registers itself when its agent starts"
    return NotFound(f"no host {host!r} in service {service!r}; {names}", hint=hint)
