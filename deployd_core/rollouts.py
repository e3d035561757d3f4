"""What people do: apply a spec, enable a build, promote it, go back, look at the hosts, decide about them, stop and go on.

Each verb is one transaction, and complete when it returns; `deployd_core.zookeeper.orders` says when it is tried again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from msgspec.structs import replace

from deployd_core.admission import impossible
from deployd_core.advancing import bake_of
from deployd_core.chronicle import last_completed
from deployd_core.clock import to_the_second
from deployd_core.coordination import Freeze, HistoryEntry, Permit, Rollout, RolloutState, Verb, Waiter
from deployd_core.errors import ConfigError, Conflict, NotFound
from deployd_core.model import Role, check_build_id, check_digest, check_name
from deployd_core.spec import ServiceSpec
from deployd_core.zookeeper import members, orders, permits, progress, queueing, services, status
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
    "excuse",
    "fleet_status",
    "freeze",
    "history",
    "list_permits",
    "list_services",
    "lose",
    "pause",
    "promote",
    "read_queue",
    "read_service",
    "release_permit",
    "restart",
    "resume",
    "retire",
    "retry",
    "rollback",
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
    why: str = "",
    now: datetime | None = None,
) -> str:
    """Have the hosts of a role serve a build; returns the id of the rollout that this begins. Permits that are held are kept.

    Raises:
        ConfigError: The build or digest is malformed, or the spec's limits let no host restart, ever.
        NotFound: No such service.
        Unavailable: ZooKeeper does not answer; whether the build is enabled must be looked up.
    """
    check_build_id(build)
    if digest is not None:
        check_digest(digest)
    record = read_service(session, service)
    obstacle = (impossible(record.spec.rollout, record.hosts) or record.spec.obstacle(service)) if record.spec else ""
    if obstacle:
        raise ConfigError(f"{service}: {obstacle}", hint=f"deployd services show {service} --toml (apply it with other limits)")
    entry = HistoryEntry(build=build, digest=digest, role=role, by=by, why=why, at=_at(now))
    return orders.write_enabled(session, service, entry)


def promote(session: Session, service: str, *, by: str, why: str = "", force: bool = False, now: datetime | None = None) -> str:
    """Let the fleet have the build that the canary hosts have; returns the id of the rollout.

    Raises:
        NotFound: No such service.
        Conflict: There is nothing to promote, or a canary is not healthy with it and `force` is not set.
        ConfigError: It is forced, and nobody says why.
    """
    fleet = fleet_status(session, service)
    build = progress.unpromoted(fleet.record)
    if build is None:
        raise Conflict(
            f"{service} has no build that waits to be promoted",
            hint=f"deployd enable {service} BUILD --canary (begins with the canaries)",
        )
    bake = bake_of(build.build, progress.standings(fleet))
    if force and not why:
        raise ConfigError(f"promoting {build.build} by force needs a reason", hint="say why: --why TEXT")
    if not force and (bake.lacking or not bake.canaries):
        lacking = f"{', '.join(bake.lacking[:10])} {'is' if len(bake.lacking) == 1 else 'are'} not healthy with it"
        raise Conflict(
            f"{build.build} cannot be promoted: {lacking if bake.canaries else f'{service} has no canary host'}",
            hint=f"deployd why {service}; or deployd promote {service} --force --why TEXT (promotes it all the same)",
        )
    return progress.promote(session, fleet.record, build, by=by, why=why, at=_at(now))


def rollback(session: Session, service: str, *, by: str, why: str = "", to: str | None = None, now: datetime | None = None) -> str:
    """Have the fleet serve the build that it completed last before this one, or the one that is named; returns the rollout's id.

    It needs no promotion and waits for no window, and a failure in it only halts it. A build that was rolled back from must be
    named, unless it was completed again.

    Raises:
        NotFound: No such service, or the named build was never enabled.
        Conflict: There is no such build, or nothing is enabled that one could go back from.
    """
    record = read_service(session, service)
    if record.enabled is None and to is None:
        raise Conflict(f"nothing is enabled for {service}", hint=f"deployd enable {service} BUILD")
    current = record.enabled.build if record.enabled else ""
    told, known = history(session, service), record.rollout.completed
    to = to or last_completed(told, current, known)
    if not to:
        raise Conflict(
            f"{service} has completed no build before {current} that was not rolled back from",
            hint=f"deployd rollback {service} --to BUILD (a certain one); or deployd history {service} (names them)",
        )
    digests = [entry.digest for entry in told if entry.role is Role.FLEET and entry.build == to != current and entry.verb.begins]
    if not digests and known is not None and known.build == to:
        digests = [known.digest]
    if not digests:
        raise NotFound(
            f"{service} was never told to serve {to!r}", hint=f"deployd history {service}; or deployd enable {service} {to}"
        )
    entry = HistoryEntry(verb=Verb.ROLLBACK, build=to, digest=digests[-1], by=by, why=why, at=_at(now))
    return orders.write_enabled(session, service, entry, expect=record)


def restart(session: Session, service: str, *, role: Role = Role.FLEET, by: str, why: str = "", now: datetime | None = None) -> str:
    """Have every instance restarted with the build it serves, by the same strategy and limits; returns the rollout's id.

    Raises:
        NotFound: No such service.
        Conflict: Nothing is enabled.
    """
    record = read_service(session, service)
    enabled = record.canary if role is Role.CANARY else record.enabled
    if enabled is None:
        whom, flag = (f"the canary hosts of {service} alone", " --canary") if role is Role.CANARY else (service, "")
        raise Conflict(f"nothing is enabled for {whom}", hint=f"deployd enable {service} BUILD{flag}")
    entry = HistoryEntry(verb=Verb.RESTART, build=enabled.build, digest=enabled.digest, role=role, by=by, why=why, at=_at(now))
    return orders.write_enabled(session, service, entry, expect=record)


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


def pause(session: Session, service: str, *, by: str, why: str = "", now: datetime | None = None) -> Rollout:
    """Hand out no more permits; hosts that hold one finish. One that is halted stays halted.

    Raises:
        NotFound: No such service.
    """

    def change(rollout: Rollout, _record: ServiceRecord) -> Rollout:
        if rollout.state is not RolloutState.OPEN:
            return rollout
        return replace(rollout, state=RolloutState.PAUSED, by=by, why=why)

    return orders.change_rollout(session, service, HistoryEntry(verb=Verb.PAUSE, by=by, why=why, at=_at(now)), change)


def resume(session: Session, service: str, *, by: str, why: str = "", now: datetime | None = None) -> Rollout:
    """Hand out permits again after a pause. Failures stay on record.

    Raises:
        NotFound: No such service.
        Conflict: It is halted: going on needs a decision about the hosts that failed.
    """

    def change(rollout: Rollout, _record: ServiceRecord) -> Rollout:
        if rollout.state is RolloutState.HALTED:
            raise Conflict(
                f"{service} is not paused but halted: {rollout.why}",
                hint=f"deployd retry {service} (tries the failed hosts again); or deployd rollback {service} (goes back)",
            )
        if rollout.state is RolloutState.OPEN:
            return rollout
        return replace(rollout, state=RolloutState.OPEN, by=by, why=why)

    return orders.change_rollout(session, service, HistoryEntry(verb=Verb.RESUME, by=by, why=why, at=_at(now)), change)


def retry(session: Session, service: str, *, by: str, why: str = "", now: datetime | None = None) -> Rollout:
    """Forget the failures and hand out permits again: hosts that failed try again, with the permits that they hold.

    Raises:
        NotFound: No such service.
    """

    def change(rollout: Rollout, record: ServiceRecord) -> Rollout:
        if rollout.state is RolloutState.OPEN and not rollout.failures:
            return rollout
        again = replace(rollout, state=RolloutState.OPEN, by=by, why=why or "tried again", failures={})
        return replace(again, grants_before=record.grants)  # a ramp begins anew: whoever failed has not finished

    return orders.change_rollout(session, service, HistoryEntry(verb=Verb.RETRY, by=by, why=why, at=_at(now)), change)


def list_permits(session: Session, service: str) -> tuple[Permit, ...]:
    """Every permit held, by host.

    Raises:
        NotFound: No such service.
    """
    read_service(session, service)
    return permits.read_permits(session, service)


def read_queue(session: Session, service: str) -> Mapping[str, Sequence[Waiter]]:
    """Who waits for a permit, by zone and in the order of their turns.

    Raises:
        NotFound: No such service.
    """
    read_service(session, service)
    return queueing.read_queue(session, service)


def release_permit(session: Session, service: str, host: str, *, by: str, why: str, now: datetime | None = None) -> bool:
    """Take a host's permit away. Should the host be down, it still counts as that. Returns whether it held one.

    Raises:
        NotFound: No such service or host.
        ConfigError: Nobody says why.
    """
    return _about_host(session, service, host, Verb.RELEASE, by=by, why=why, now=now)


def excuse(session: Session, service: str, host: str, *, by: str, why: str, now: datetime | None = None) -> bool:
    """Stop counting a host as down, and waiting for it, until its agent comes back. Returns whether that is news.

    Raises:
        NotFound: No such service or host.
        Conflict: It is well: its agent lives, and does not say that the host is down.
        ConfigError: Nobody says why.
    """
    return _about_host(session, service, host, Verb.EXCUSE, by=by, why=why, now=now)


def lose(session: Session, service: str, host: str, *, by: str, why: str, now: datetime | None = None) -> bool:
    """Give a host up whose agent is gone: take its permit away and excuse it. Returns whether that is news.

    Raises:
        NotFound: No such service or host.
        Conflict: Its agent lives.
        ConfigError: Nobody says why.
    """
    return _about_host(session, service, host, Verb.LOST, by=by, why=why, now=now)


def retire(session: Session, service: str, host: str, *, by: str, why: str, now: datetime | None = None) -> bool:
    """Take a host out of a service for good. Returns whether it was in it.

    Raises:
        NotFound: No such service or host.
        Conflict: Its agent lives, and follows the service.
        ConfigError: Nobody says why.
    """
    return _about_host(session, service, host, Verb.RETIRE, by=by, why=why, now=now)


def _about_host(session: Session, service: str, host: str, verb: Verb, *, by: str, why: str, now: datetime | None) -> bool:
    if not why.strip():
        raise ConfigError(f"{verb.value} needs a reason: it is kept in the history", hint="say why: --why TEXT")
    news = orders.about_host(session, service, host, HistoryEntry(verb=verb, by=by, why=why, at=_at(now)))
    # What was waited for may be all that was missing, and there may be no other host left to notice.
    fleet = fleet_status(session, service)
    for rollout_id in {fleet.record.fleet_rollout, fleet.record.canary_rollout} - {""}:
        progress.complete(session, service, rollout_id, progress.standings(fleet), now or datetime.now(UTC))
    return news


def freeze(session: Session, *, by: str, why: str = "", until: datetime | None = None) -> Freeze | None:
    """Hand out no more permits for any service, until a time or until `unfreeze`; returns the freeze whose place this one takes."""
    return services.write_freeze(session, Freeze(by=by, why=why, until=to_the_second(until) if until else None))


def unfreeze(session: Session) -> Freeze | None:
    """Lift the freeze; returns what it said, None when there was none."""
    return services.write_freeze(session, None)


def _at(now: datetime | None) -> str:
    return (now or datetime.now(UTC)).isoformat(timespec="microseconds")
