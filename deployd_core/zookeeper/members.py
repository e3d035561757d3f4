"""Membership: which hosts belong to a service, in which role and zone."""

from __future__ import annotations

import difflib

from msgspec.structs import replace

from deployd_core.coordination import Membership
from deployd_core.errors import NotFound
from deployd_core.model import Role
from deployd_core.zookeeper import layout
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


def register(session: Session, service: str, host: str, zone: str) -> None:
    """Make a host a member, or correct its zone; the role it has is kept. Nothing happens when the service is gone."""
    path = ServicePaths(service).host(host)
    for _ in range(ATTEMPTS):
        node = session.get(path)
        try:
            if node is None:
                session.create(path, layout.encode(Membership(zone=zone)))
                return
            # One that cannot be read is left to a person: the role in it may have been canary.
            membership = layout.decode_membership(session.where(path), node.data)
            if membership.zone != zone:
                session.set(path, layout.encode(replace(membership, zone=zone)), node.stat.version)
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
            raise _no_such_host(session, service, host)
        membership = Problems(session).read(layout.decode_membership, path, node, Membership())
        if membership.role is role and node.data.strip():
            return False
        try:
            session.set(path, layout.encode(replace(membership, role=role)), node.stat.version)
        except Refused:
            continue
        return True
    raise gave_up(session, path)


def _no_such_host(session: Session, service: str, host: str) -> NotFound:
    if session.stat(ServicePaths(service).spec) is None:
        return no_such_service(session, service)
    known = sorted(read_members(session, service))
    close = difflib.get_close_matches(host, known, n=1)
    names = f"known: {', '.join(known[:20])}" if known else "none has registered yet"
    hint = f"did you mean {close[0]!r}?" if close else "a host registers itself when its agent starts"
    return NotFound(f"no host {host!r} in service {service!r}; {names}", hint=hint)
