"""`Coordination` in memory: the guarantees of ZooKeeper without a server, and switches for what goes wrong.

One `MemoryEnsemble` stands for ZooKeeper, with a `MemoryCoordination` per host. The verbs of people are those of
`deployd_core.rollouts`, as methods. Everything is deterministic: tokens and rollout ids count up, the clock is given.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from deployd_core.admission import Request, admit, halted_over_budget
from deployd_core.coordination import (
    Denial,
    Denied,
    Enabled,
    Failure,
    Freeze,
    HostStatus,
    Link,
    Membership,
    Permit,
    Rollout,
    RolloutState,
    Snapshot,
)
from deployd_core.errors import NotFound, Unavailable
from deployd_core.model import FleetLimit, Role
from deployd_core.spec import ServiceSpec
from deployd_core.units import Share

AnswerT = TypeVar("AnswerT")

_FULL = (Denial.SLOTS_FULL, Denial.ZONE_FULL)


class _Service(Struct, kw_only=True):
    """The nodes of one service, each with the number of its last write."""

    spec: ServiceSpec | None = None
    enabled: dict[Role, Enabled] = field(default_factory=dict)
    rollout: Rollout = Rollout()
    members: dict[str, Membership] = field(default_factory=dict)
    permits: dict[str, Permit] = field(default_factory=dict)
    statuses: dict[str, HostStatus] = field(default_factory=dict)
    versions: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))


class MemoryEnsemble:
    """What would be a ZooKeeper ensemble. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self.lock = threading.RLock()
        """Held by whoever calls the methods for hosts."""
        self._services: defaultdict[str, _Service] = defaultdict(_Service)
        self._freeze: Freeze | None = None
        self._writes = 0
        self._handles: list[MemoryCoordination] = []

    def coordination(self, host: str, wake: Callable[[str], object] = bool) -> MemoryCoordination:
        """What one host uses; `wake` may only set an event or fill a queue."""
        handle = MemoryCoordination(self, host, wake)
        self._handles.append(handle)
        return handle

    # What people do

    def apply_spec(self, service: str, spec: ServiceSpec) -> None:
        """Create a service, or change its spec."""
        with self.lock:
            if self._services[service].spec != spec:
                self._services[service].spec = spec
                self._wrote(service, "spec")

    def delete_service(self, service: str) -> None:
        """Delete a service and all that was known of it."""
        with self.lock:
            self._services.pop(service, None)
            self._wrote(service, "spec")

    def enable(self, service: str, build: str, digest: str | None, *, role: Role = Role.FLEET, by: str = "") -> str:
        """Have the hosts of a role serve a build; returns the id of the rollout that this begins."""
        with self.lock:
            found = self._existing(service)
            other = Role.FLEET if role is Role.CANARY else Role.CANARY
            kept = found.rollout.failed_in(self._rollout_id(found, other)) if other in found.enabled else {}
            found.enabled[role] = Enabled(build=build, digest=digest, by=by, at=self._clock().isoformat())
            found.rollout = Rollout(by=by, why=f"enabled {build}", failures=kept)
            self._wrote(service, f"enabled/{role.value}", "rollout")
            return self._rollout_id(found, role)

    def set_role(self, service: str, host: str, role: Role) -> None:
        """Have a host follow another role's build."""
        with self.lock:
            found = self._existing(service)
            found.members[host] = replace(found.members[host], role=role)
            self._wrote(service, f"hosts/{host}")

    def set_rollout(self, service: str, state: RolloutState, *, by: str = "", why: str = "") -> None:
        """Pause, halt or open the rollout."""
        with self.lock:
            found = self._existing(service)
            found.rollout = replace(found.rollout, state=state, by=by, why=why)
            self._wrote(service, "rollout")

    def set_freeze(self, freeze: Freeze | None) -> None:
        """Stop every service, or go on."""
        with self.lock:
            self._freeze = freeze
            for service in list(self._services):
                self._wrote(service, "freeze")

    def remove_permit(self, service: str, host: str) -> None:
        """Take a host's permit away, as a person would from a host that is gone for good."""
        with self.lock:
            if self._services[service].permits.pop(host, None) is not None:
                self._wrote(service, f"permits/{host}")

    def rollout(self, service: str) -> Rollout:
        """The rollout as it stands."""
        with self.lock:
            return self._services[service].rollout

    def permits(self, service: str) -> tuple[Permit, ...]:
        """Every permit held, by host."""
        with self.lock:
            return _by_host(self._services[service].permits)

    def statuses(self, service: str) -> dict[str, HostStatus | None]:
        """The last report of every registered host."""
        with self.lock:
            found = self._services[service]
            return {host: found.statuses.get(host) for host in sorted(found.members)}

    # What hosts do: called by their handles, which hold the lock

    def write_status(self, service: str, status: HostStatus) -> None:
        """Write a report."""
        self._existing(service).statuses[status.host] = status

    def _existing(self, service: str) -> _Service:
        found = self._services.get(service)
        if found is None or found.spec is None:
            raise NotFound(f"no service {service!r}")
        return found

    def _wrote(self, service: str, *nodes: str) -> None:
        """Count one write, and wake whoever watches one of the nodes."""
        self._writes += 1
        if service in self._services:
            self._services[service].versions.update(dict.fromkeys(nodes, self._writes))
        for handle in self._handles:
            handle.changed(service, nodes)

    def _rollout_id(self, found: _Service, role: Role) -> str:
        decider = Role.CANARY if role is Role.CANARY and Role.CANARY in found.enabled else Role.FLEET
        enabled = found.enabled.get(decider)
        return f"{enabled.build}-{found.versions[f'enabled/{decider.value}']:x}" if enabled else ""

    def register(self, service: str, host: str, zone: str) -> None:
        """Make a host a member, if the service exists."""
        found = self._services.get(service)
        if found is None or found.spec is None:
            return
        before = found.members.get(host)
        if before is None or before.zone != zone:
            found.members[host] = replace(before, zone=zone) if before else Membership(zone=zone)
            self._wrote(service, f"hosts/{host}")

    def read(self, service: str, host: str, zone: str) -> Snapshot:
        """What a host is told of a service."""
        found = self._services.get(service)
        if found is None or found.spec is None:
            return Snapshot(service=service, host=host, spec=None, membership=Membership(zone=zone), enabled=None)
        membership = found.members.get(host, Membership(zone=zone))
        canary = membership.role is Role.CANARY
        enabled = (found.enabled.get(Role.CANARY) if canary else None) or found.enabled.get(Role.FLEET)
        guards = ("spec", "enabled/fleet", *(("enabled/canary",) if canary else ()), "rollout", "freeze", f"hosts/{host}")
        return Snapshot(
            service=service,
            host=host,
            spec=found.spec,
            membership=membership,
            enabled=enabled,
            rollout_id=self._rollout_id(found, membership.role),
            rollout=found.rollout,
            freeze=self._freeze,
            permit=found.permits.get(host),
            permits=_by_host(found.permits),
            hosts=len(found.members) or 1,
            versions={node: found.versions[node] for node in guards},
        )

    def take(self, snapshot: Snapshot, limit: FleetLimit) -> Permit | Denied:
        """Grant a permit, under what the snapshot said, or say why not."""
        found = self._services[snapshot.service]
        held = found.permits.get(snapshot.host)
        if held is not None:
            return held
        now, zone = self._clock(), snapshot.membership.zone
        decision = admit(
            Request(
                host=snapshot.host,
                zone=zone,
                rollout_id=snapshot.rollout_id,
                rollout=snapshot.rollout,
                freeze=snapshot.freeze,
                holders={host: permit.zone for host, permit in found.permits.items()},
                hosts=len(found.members) or 1,
                zone_hosts=sum(member.zone == zone for member in found.members.values()),
                limit=limit,
                now=now,
            )
        )
        if isinstance(decision, Denied):
            return decision
        changed = sorted(node for node, version in snapshot.versions.items() if found.versions[node] != version)
        if changed or not snapshot.versions:
            return Denied(code=Denial.CHANGED, reason=f"changed meanwhile: {', '.join(changed)}")
        token = self._writes + 1
        permit = Permit(
            host=snapshot.host, zone=zone, rollout=snapshot.rollout_id, since=now.isoformat(), nonce=str(token), token=token
        )
        found.permits[snapshot.host] = permit
        self._wrote(snapshot.service, f"permits/{snapshot.host}")
        return permit

    def release(self, service: str, host: str, status: HostStatus, *, token: int | None, keep_failure: bool = False) -> None:
        """Take the permit of that token back, with the report."""
        found = self._existing(service)
        if host in found.permits and found.permits[host].token == token:
            del found.permits[host]
            self._wrote(service, f"permits/{host}")
        found.statuses[host] = status
        if host in found.rollout.failures and not keep_failure:
            kept = {other: failure for other, failure in found.rollout.failures.items() if other != host}
            found.rollout = replace(found.rollout, failures=kept)
            self._wrote(service, "rollout")

    def record_failure(self, snapshot: Snapshot, reason: str) -> None:
        """Enter a failure, and halt over the budget."""
        found = self._existing(snapshot.service)
        current = {self._rollout_id(found, role) for role in Role}
        rollout_id, before = snapshot.rollout_id, found.rollout
        if rollout_id not in current or snapshot.host in before.failed_in(rollout_id):
            return
        failure = Failure(rollout=rollout_id, reason=reason, at=self._clock().isoformat())
        kept = {host: entry for host, entry in before.failures.items() if entry.rollout in current}
        after = replace(before, failures={**kept, snapshot.host: failure})
        budget = snapshot.spec.rollout.budget if snapshot.spec else Share(0)
        found.rollout = halted_over_budget(after, rollout_id, budget, len(found.members) or 1, snapshot.host)
        self._wrote(snapshot.service, "rollout")


class MemoryCoordination:
    """What one host uses of an ensemble; made by `MemoryEnsemble.coordination`. `link` can be set."""

    def __init__(self, ensemble: MemoryEnsemble, host: str, wake: Callable[[str], object]) -> None:
        self._ensemble = ensemble
        self._host = host
        self._wake = wake
        self._link = Link.CONNECTED
        self._zones: dict[str, str] = {}
        self._watched: set[str] = set()
        self._waiting: set[str] = set()
        self._lost_answers: list[bool] = []

    @property
    def link(self) -> Link:
        """The state of the connection. Setting it wakes the engine, as a broken or new connection does."""
        return self._link

    @link.setter
    def link(self, link: Link) -> None:
        self._link = link
        for service in sorted({*self._zones, *self._watched}):
            self._wake(service)

    def lose_next_answer(self, *, applied: bool = True) -> None:
        """Have the next write raise `Unavailable`, although it was carried out (or, with `applied` false, was not)."""
        self._lost_answers.append(applied)

    def join(self, service: str, zone: str) -> None:
        """Make this host a member with the next `snapshot`."""
        self._zones[service] = zone

    def snapshot(self, service: str) -> Snapshot:
        """Read everything about a service; a later change wakes the engine once."""
        self._require_link()
        with self._ensemble.lock:
            if service in self._zones:
                self._ensemble.register(service, self._host, self._zones[service])
            self._watched.add(service)
            return self._ensemble.read(service, self._host, self._zones.get(service, "default"))

    def take_permit(self, snapshot: Snapshot, limit: FleetLimit) -> Permit | Denied:
        """Ask for a permit under what the snapshot said."""
        answer = self._write(lambda: self._ensemble.take(snapshot, limit))
        full = isinstance(answer, Denied) and answer.code in _FULL
        (self._waiting.add if full else self._waiting.discard)(snapshot.service)
        return answer

    def release_permit(self, snapshot: Snapshot, status: HostStatus, *, keep_failure: bool = False) -> None:
        """Give the permit back and report; clears this host's failure unless it is kept."""
        token = snapshot.permit.token if snapshot.permit else None
        self._write(lambda: self._ensemble.release(snapshot.service, self._host, status, token=token, keep_failure=keep_failure))

    def record_failure(self, snapshot: Snapshot, reason: str) -> None:
        """Enter this host's failure, and halt over the budget."""
        self._write(lambda: self._ensemble.record_failure(snapshot, reason))

    def report(self, service: str, status: HostStatus) -> None:
        """Write this host's report."""
        self._write(lambda: self._ensemble.write_status(service, status))

    def changed(self, service: str, nodes: tuple[str, ...]) -> None:
        """Be told what was written; wakes once until the next `snapshot`, and only for what matters to this host."""
        mine = (f"hosts/{self._host}", f"permits/{self._host}")
        others = all(node.startswith(("hosts/", "permits/")) and node not in mine for node in nodes)
        room = service in self._waiting and any(node.startswith("permits/") for node in nodes)
        if service in self._watched and (room or not others):
            self._watched.discard(service)
            self._wake(service)

    def _write(self, write: Callable[[], AnswerT]) -> AnswerT:
        self._require_link()
        applied = self._lost_answers.pop(0) if self._lost_answers else None
        if applied is False:
            raise Unavailable("the connection broke before the write was sent")
        with self._ensemble.lock:
            answer = write()
        if applied:
            raise Unavailable("the connection broke before the answer came")
        return answer

    def _require_link(self) -> None:
        if self._link is not Link.CONNECTED:
            raise Unavailable("the connection to the ensemble is not there")


def _by_host(permits: dict[str, Permit]) -> tuple[Permit, ...]:
    return tuple(permit for _, permit in sorted(permits.items()))
