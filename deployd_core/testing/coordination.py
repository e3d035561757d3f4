"""`Coordination` in memory: the guarantees of ZooKeeper without a server, and switches for what goes wrong.

One `MemoryEnsemble` stands for ZooKeeper, with a `MemoryCoordination` per host. The verbs of people are those of
`deployd_core.rollouts`, as methods. Everything is deterministic: tokens and rollout ids count up, the clock is given.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from msgspec.structs import replace

from deployd_core.admission import admit
from deployd_core.advancing import begun, canaries_rejoin, completed_by, recorded, until_promoted, waits_for_canaries, with_failure
from deployd_core.coordination import (
    Denial,
    Denied,
    Enabled,
    Excuse,
    Failure,
    Freeze,
    HistoryEntry,
    HostStatus,
    Membership,
    Permit,
    Rollout,
    RolloutState,
    Snapshot,
    Verb,
)
from deployd_core.errors import NotFound
from deployd_core.model import FleetLimit, Role
from deployd_core.spec import Promotion, ServiceSpec
from deployd_core.testing.handle import MemoryCoordination
from deployd_core.testing.memory import MemoryService

__all__ = ["MemoryCoordination", "MemoryEnsemble"]

_LEAVES = (Denial.FAILED, Denial.PROMOTION, Denial.CHANGED)
_ASK_AGAIN = 60.0


class MemoryEnsemble:
    """What would be a ZooKeeper ensemble. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self.lock = threading.RLock()
        """Held by whoever calls the methods for hosts."""
        self._services: defaultdict[str, MemoryService] = defaultdict(MemoryService)
        self._freeze: Freeze | None = None
        self._writes = 0
        self._handles: dict[str, MemoryCoordination] = {}

    def coordination(self, host: str, wake: Callable[[str], object] = bool) -> MemoryCoordination:
        """What one host uses, in the place of what it used before; `wake` may only set an event or fill a queue."""
        with self.lock:
            handle = self._handles[host] = MemoryCoordination(self, host, wake)
            self.came(host)
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

    def enable(
        self,
        service: str,
        build: str,
        digest: str | None,
        *,
        role: Role = Role.FLEET,
        by: str = "",
        verb: Verb = Verb.ENABLE,
        why: str = "",
    ) -> str:
        """Have the hosts of a role serve a build; returns the id of the rollout that this begins."""
        with self.lock:
            found = self._existing(service)
            at = self._clock().isoformat()
            self._begin(service, HistoryEntry(verb=verb, build=build, digest=digest, role=role, by=by, at=at, why=why))
            return found.rollout_id(role)

    def _begin(self, service: str, entry: HistoryEntry) -> None:
        found, role = self._services[service], entry.role
        waits = waits_for_canaries(found.policy, found.rollout, entry)
        waits = waits and any(member.role is Role.CANARY for member in found.members.values())
        if canaries_rejoin(found.policy, entry):
            found.enabled.pop(Role.CANARY, None)  # its hosts follow the fleet again
        found.rollout = begun(found.rollout, entry, found.now, needs_promotion=waits)
        restart = entry.verb is Verb.RESTART
        found.enabled[role] = Enabled(build=entry.build, digest=entry.digest, by=entry.by, at=entry.at, restart=restart)
        found.history.append(entry)
        self._wrote(service, f"enabled/{role.value}", "rollout")

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

    def retry(self, service: str, *, by: str = "", why: str = "") -> None:
        """Forget the failures, and open the rollout."""
        with self.lock:
            found = self._existing(service)
            found.rollout = replace(found.rollout, state=RolloutState.OPEN, by=by, why=why, failures={}, grants_before=found.grants)
            self._wrote(service, "rollout")

    def promote(self, service: str, *, by: str = "") -> str:
        """Let the fleet have the build of the canary hosts; returns the id of the rollout."""
        with self.lock:
            found = self._existing(service)
            build = found.unpromoted()
            fleet = found.enabled.get(Role.FLEET)
            if build is not None and (fleet is None or fleet.build != build.build):
                self.enable(service, build.build, build.digest, by=by, verb=Verb.PROMOTE)
            elif build is not None:
                found.rollout = replace(found.rollout, promoted=build.build)
                found.history.append(HistoryEntry(verb=Verb.PROMOTE, build=build.build, by=by, at=self._clock().isoformat()))
                self._wrote(service, "rollout")
            return found.rollout_id(Role.FLEET)

    def set_freeze(self, freeze: Freeze | None) -> None:
        """Stop every service, or go on."""
        with self.lock:
            self._freeze = freeze
            for service in list(self._services):
                self._wrote(service, "freeze")

    def remove_permit(self, service: str, host: str) -> None:
        """Take a host's permit away, as a person would from a host that is gone for good."""
        with self.lock:
            if self._services[service].take_back(host):
                self._freed(service, host)

    def excuse(self, service: str, host: str, *, by: str = "", why: str = "") -> None:
        """Stop counting a host as down, until its agent comes back; refused while it is well."""
        with self.lock:
            found = self._existing(service)
            found.excuse(host, Excuse(by=by, why=why, at=self._clock().isoformat()))
            self._wrote(service, f"hosts/{host}")
            self._tell(service, found.heads)

    def rollout(self, service: str) -> Rollout:
        """The rollout as it stands."""
        with self.lock:
            return self._services[service].rollout

    def permits(self, service: str) -> tuple[Permit, ...]:
        """Every permit held, by host."""
        with self.lock:
            return tuple(permit for _, permit in sorted(self._services[service].permits.items()))

    def nodes(self, service: str) -> MemoryService:
        """The nodes of a service, as they stand and change: to be read, and not written."""
        with self.lock:
            return self._services[service]

    def statuses(self, service: str) -> dict[str, HostStatus | None]:
        """The last report of every registered host."""
        with self.lock:
            found = self._services[service]
            return {host: found.statuses.get(host) for host in sorted(found.members)}

    def history(self, service: str) -> tuple[HistoryEntry, ...]:
        """What was done, the oldest first."""
        with self.lock:
            return tuple(self._services[service].history)

    # What hosts do: called by their handles, which hold the lock

    def came(self, host: str) -> None:
        """The agent of a host is there."""
        for service, found in self._services.items():
            if host in found.away:
                del found.away[host]
                self._tell(service, found.heads)

    def went(self, host: str) -> None:
        """The agent of a host is gone, and with it its place in every queue."""
        for service, found in self._services.items():
            next_one = found.leave(host)
            if host in found.members:
                found.away[host] = None
            self._tell(service, [next_one] if next_one else [])

    def write_status(self, service: str, status: HostStatus) -> None:
        """Write a report."""
        found = self._existing(service)
        found.statuses[status.host] = status
        if status.down:
            found.down[status.host] = None
        elif status.host in found.down:
            del found.down[status.host]
            self._handles[status.host].back()
            self._tell(service, found.heads)

    def _existing(self, service: str) -> MemoryService:
        found = self._services.get(service)
        if found is None or found.spec is None:
            raise NotFound(f"no service {service!r}")
        return found

    def _wrote(self, service: str, *nodes: str) -> None:
        """Count one write, and wake whoever watches one of the nodes."""
        self._writes += 1
        found = self._services.get(service)
        if found is not None:
            found.versions.update(dict.fromkeys(nodes, self._writes))
        if found is None or any(not node.startswith(("hosts/", "permits/")) and node != "rollout" for node in nodes):
            self._tell(service, list(self._handles))
            return
        self._tell(service, [host for node in nodes if (host := node.partition("/")[2])])
        if "rollout" in nodes:
            self._tell(service, found.watching)
            found.unqueued.clear()

    def _freed(self, service: str, host: str) -> None:
        """A permit has come back: there may be room for whoever is first. (One that was granted leaves nobody more.)"""
        self._wrote(service, f"permits/{host}")
        self._tell(service, self._services[service].heads)

    def _tell(self, service: str, hosts: Iterable[str]) -> None:
        for host in dict.fromkeys(hosts):
            if host in self._handles:
                self._handles[host].changed(service)

    def register(self, service: str, host: str, zone: str, *, is_back: bool) -> None:
        """Make a host a member, if the service exists; one that comes back need not be excused any more."""
        found = self._services.get(service)
        if found is None or found.spec is None:
            return
        before = found.members.get(host)
        excuse = None if is_back or before is None else before.excused
        if before is None or before.zone != zone or before.excused != excuse:
            found.zones[before.zone if before else zone] -= before is not None
            found.zones[zone] += 1
            found.members[host] = replace(before, zone=zone, excused=excuse) if before else Membership(zone=zone)
            self._wrote(service, f"hosts/{host}")

    def read(self, service: str, host: str, zone: str) -> Snapshot:
        """What a host is told of a service."""
        found = self._services.get(service)
        if found is None or found.spec is None:
            return Snapshot(service=service, host=host, spec=None, membership=Membership(zone=zone), enabled=None)
        membership = found.members.get(host, Membership(zone=zone))
        canary = membership.role is Role.CANARY
        enabled = (found.enabled.get(Role.CANARY) if canary else None) or found.enabled.get(Role.FLEET)
        guards = ("spec", "enabled/fleet", *(("enabled/canary",) if canary else ()), "freeze", f"hosts/{host}")
        return Snapshot(
            service=service,
            host=host,
            spec=found.spec,
            membership=membership,
            enabled=enabled,
            rollout_id=found.rollout_id(membership.role),
            rollout=found.rollout,
            freeze=self._freeze,
            permit=found.permits.get(host),
            queued=host in found.waiters,
            permits=len(found.permits),
            hosts=len(found.members) or 1,
            versions={node: found.versions[node] for node in guards},
        )

    def take(self, snapshot: Snapshot, limit: FleetLimit, priority: int) -> Permit | Denied:
        """Grant a permit, under what the snapshot said, or say why not."""
        found, host = self._services[snapshot.service], snapshot.host
        held = found.permits.get(host)
        if held is not None:
            return held
        changed = sorted(node for node, version in snapshot.versions.items() if found.versions[node] != version)
        if changed or not snapshot.versions:
            self.leave(snapshot.service, host)
            return Denied(code=Denial.CHANGED, reason=f"changed meanwhile: {', '.join(changed)}")
        policy = found.policy
        counts = limit.hosts or limit.per_zone or policy.ramp or policy.stagger or policy.min_available.at_least(100)
        first = not counts or self._first(found, snapshot, priority)
        queued = Denied(code=Denial.QUEUED, reason=f"in the queue of zone {snapshot.membership.zone}: others asked first")
        if not first and not found.loses_patience(host, self._clock()):
            return queued
        decision = admit(found.request(snapshot, limit, self._freeze, self._clock()))
        if isinstance(decision, Denied):
            if not first:
                del found.behind[host]  # the one before it is not to blame
                return queued
            if decision.code in _LEAVES:
                self.leave(snapshot.service, host)
            if host not in found.waiters:
                found.unqueued[host] = None
            return decision
        return self._grant(found, snapshot)

    def _first(self, found: MemoryService, snapshot: Snapshot, priority: int) -> bool:
        self._writes += 1
        first, turn = found.first(snapshot, priority, self._writes)
        self._tell(snapshot.service, [turn] if turn else [])
        return first

    def leave(self, service: str, host: str) -> None:
        """Take a host out of the queue."""
        next_one = self._services[service].leave(host)
        self._tell(service, [next_one] if next_one else [])

    def _grant(self, found: MemoryService, snapshot: Snapshot) -> Permit:
        now, token = self._clock(), self._writes + 1
        permit = Permit(
            host=snapshot.host,
            zone=snapshot.membership.zone,
            rollout=snapshot.rollout_id,
            since=now.isoformat(),
            nonce=str(token),
            token=token,
        )
        found.grant(permit)
        found.grants += 1
        found.granted_at = now
        self.leave(snapshot.service, snapshot.host)
        self._wrote(snapshot.service, f"permits/{snapshot.host}")
        return permit

    def release(self, service: str, host: str, status: HostStatus, *, token: int | None, keep_failure: bool = False) -> None:
        """Take the permit of that token back, with the report."""
        found = self._existing(service)
        if host in found.permits and found.permits[host].token == token:
            found.take_back(host)
            self._freed(service, host)
        self.write_status(service, status)
        if host in found.rollout.failures and not keep_failure:
            kept = {other: failure for other, failure in found.rollout.failures.items() if other != host}
            found.rollout = replace(found.rollout, failures=kept)
            self._wrote(service, "rollout")

    def record_failure(self, snapshot: Snapshot, reason: str) -> None:
        """Enter a failure, with what follows from it."""
        found, now = self._existing(snapshot.service), self._clock().isoformat()
        rollout_id, before = snapshot.rollout_id, found.rollout
        current = {found.rollout_id(role) for role in Role}
        if rollout_id not in current or snapshot.host in before.failed_in(rollout_id):
            return
        failure = Failure(rollout=rollout_id, reason=reason, at=now)
        after, entry = with_failure(before, snapshot.host, failure, found.now, found.policy)
        if entry is not None:
            found.history.append(entry)
        if entry is not None and entry.verb is Verb.ROLLBACK:
            found.enabled[Role.FLEET] = Enabled(build=entry.build, digest=entry.digest, by=entry.by, at=now)
            found.rollout = after
            self._wrote(snapshot.service, "enabled/fleet", "rollout")
            return
        found.rollout = after
        self._wrote(snapshot.service, "rollout")

    def advance(self, snapshot: Snapshot, may_promote: Callable[[str], str]) -> float | None:
        """Take a rollout further."""
        found, rollout_id = self._existing(snapshot.service), snapshot.rollout_id
        promotes = snapshot.membership.role is Role.CANARY and found.policy.promotion is Promotion.AUTO
        if found.rollout.state is not RolloutState.OPEN or (found.permits and not promotes):
            return None if rollout_id in found.rollout.done and not promotes else _ASK_AGAIN
        if rollout_id not in {found.rollout_id(role) for role in Role}:
            return _ASK_AGAIN  # another one has begun meanwhile
        if rollout_id not in found.rollout.done and completed_by(rollout_id, found.standings()):
            role = Role.FLEET if rollout_id == found.rollout_id(Role.FLEET) else Role.CANARY
            at = self._clock().isoformat()
            found.rollout, entry = recorded(found.rollout, rollout_id, role, found.enabled[role], at)
            found.history.append(entry)
            self._wrote(snapshot.service, "rollout")
        build = found.unpromoted() if promotes else None
        if build is None:
            return None if rollout_id in found.rollout.done else _ASK_AGAIN
        left = until_promoted(build.build, found.standings(), found.policy, self._clock())
        if left:
            return left
        if left is None or may_promote(build.build):
            return _ASK_AGAIN
        self.promote(snapshot.service, by="deployd")
        return None
