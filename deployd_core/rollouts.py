"""What people do: apply a spec, enable a build, look at the hosts, set a role, stop and go on.

Each verb is complete when it returns: one transaction, tried again when somebody else was faster. Who did it and when is stored.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime

from msgspec.structs import replace

from deployd_core.coordination import Freeze, HistoryEntry, Rollout, RolloutState
from deployd_core.errors import Conflict
from deployd_core.model import Role, check_build_id, check_digest, check_name
from deployd_core.spec import ServiceSpec
from deployd_core.zookeeper import members, services, status
from deployd_core.zookeeper.services import Applied, ServiceRecord
from deployd_core.zookeeper.session import Session
from deployd_core.zookeeper.status import FleetStatus, HostEntry

__all__ = [
    "Applied",
    "FleetStatus",
    "HostEntry",
    "ServiceRecord",
    "apply_spec",
    "delete_service",
    "enable",
    "fleet_status",
    "freeze",
    "history",
    "list_services",
    "pause",
    "read_service",
    "resume",
    "set_role",
    "statuses",
    "unfreeze",
    "watch_statuses",
]


def apply_spec(session: Session, service: str, spec: ServiceSpec) -> Applied:
    """Create a service, or change its spec; the chroot too is made when it is missing. An equal spec changes nothing.

    The spec's tables for plugins are taken as they are: check them first, with `deployd_core.config`.

    Raises:
        ConfigError: The service cannot be called that.
        Unavailable: ZooKeeper does not answer.
    """
    return services.write_spec(session, check_name(service, "service"), spec)


def list_services(session: Session) -> tuple[ServiceRecord, ...]:
    """Every service, by name."""
    return services.read_services(session, services.known_services(session))


def read_service(session: Session, service: str) -> ServiceRecord:
    """One service.

    Raises:
        NotFound: No such service; the message names those there are.
    """
    found = services.read_services(session, [service])
    if not found:
        raise services.no_such_service(session, service)
    return found[0]


def delete_service(session: Session, service: str, *, force: bool = False) -> None:
    """Delete a service with its history. What its hosts run is left running.

    Raises:
        NotFound: No such service.
        Conflict: Hosts are registered for it, and `force` is not set.
    """
    registered = members.read_members(session, service)
    if service not in services.known_services(session):
        raise services.no_such_service(session, service)
    if registered and not force:
        alive = sorted(set(status.read_agents(session)) & set(registered))
        named = ", ".join(sorted(registered)[:10])
        running = f"; agents are running on {', '.join(alive[:10])}" if alive else ""
        raise Conflict(
            f"service {service!r} has {len(registered)} registered hosts: {named}{running}",
            hint="take it out of their agent.toml first, or force it: what they run goes on, without an agent that looks after it",
        )
    services.delete_tree(session, service)


def enable(
    session: Session,
    service: str,
    build: str,
    digest: str | None,
    *,
    role: Role = Role.FLEET,
    by: str = "",
    now: datetime | None = None,
) -> str:
    """Have the hosts of a role serve a build; a halted or paused rollout is opened again.

    Returns:
        The id of the rollout that this begins.

    Raises:
        ConfigError: The build or digest is malformed.
        NotFound: No such service.
        Unavailable: ZooKeeper does not answer; whether the build is enabled must be looked up.
    """
    check_build_id(build)
    if digest is not None:
        check_digest(digest)
    at = (now or datetime.now(UTC)).isoformat(timespec="microseconds")
    return services.write_enabled(session, service, role, HistoryEntry(build=build, digest=digest, role=role, by=by, at=at))


def history(session: Session, service: str) -> tuple[HistoryEntry, ...]:
    """What was enabled, the oldest first.

    Raises:
        NotFound: No such service.
    """
    read_service(session, service)
    return services.read_history(session, service)


def fleet_status(session: Session, service: str) -> FleetStatus:
    """A service and all its hosts, now.

    Raises:
        NotFound: No such service.
    """
    return status.Roster(session, service).read()


def statuses(session: Session, service: str) -> tuple[HostEntry, ...]:
    """The hosts of a service, by name: role, zone, whether the agent is alive, the last report.

    Raises:
        NotFound: No such service.
    """
    return fleet_status(session, service).hosts


def watch_statuses(session: Session, service: str, stop: threading.Event, *, every: float | None = None) -> Iterator[FleetStatus]:
    """The service and its hosts now, and again with each change, until `stop` is set.

    Changes that come close together are one. With `every`, it is also yielded after so many seconds without a change. While
    ZooKeeper is away nothing is; the first thing after it came back is what is true then.

    Raises:
        NotFound: No such service, or it was deleted.
    """
    return status.watch(session, service, stop, every=every)


def set_role(session: Session, service: str, host: str, role: Role) -> bool:
    """Have a host follow another `enabled` node; returns whether that is news.

    Raises:
        NotFound: No such service, or the host is not registered for it.
    """
    return members.write_role(session, service, host, role)


def pause(session: Session, service: str, *, by: str, why: str = "") -> Rollout:
    """Hand out no more permits; hosts that hold one finish. One that is halted stays halted.

    Raises:
        NotFound: No such service.
    """

    def change(rollout: Rollout) -> Rollout:
        if rollout.state is RolloutState.HALTED:
            return rollout
        return replace(rollout, state=RolloutState.PAUSED, by=by, why=why)

    return services.change_rollout(session, service, change)


def resume(session: Session, service: str, *, by: str, why: str = "") -> Rollout:
    """Hand out permits again, and forget the failures: hosts that failed try again.

    Raises:
        NotFound: No such service.
    """
    return services.change_rollout(session, service, lambda _: Rollout(state=RolloutState.OPEN, by=by, why=why))


def freeze(session: Session, *, by: str, why: str = "", until: datetime | None = None) -> None:
    """Hand out no more permits for any service, until a time or until `unfreeze`."""
    services.write_freeze(session, Freeze(by=by, why=why, until=until.isoformat(timespec="seconds") if until else None))


def unfreeze(session: Session) -> None:
    """Lift the freeze."""
    services.write_freeze(session, None)
