"""One service of a `deployd_core.testing.coordination.MemoryEnsemble`: its nodes, its queue, and what is decided from them."""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from deployd_core.admission import Request
from deployd_core.advancing import Now, Standing, to_promote
from deployd_core.coordination import (
    PATIENCE,
    Enabled,
    Excuse,
    Freeze,
    HistoryEntry,
    HostStatus,
    Membership,
    Permit,
    Rollout,
    Snapshot,
    is_well,
)
from deployd_core.model import FleetLimit, Role
from deployd_core.spec import RolloutTable, ServiceSpec


class Waiting(NamedTuple):
    """A host in the queue of its zone, in the order of these."""

    rank: tuple[int, int]
    number: int
    host: str
    zone: str
    rollout_id: str


class MemoryService(Struct, kw_only=True):
    """The nodes of one service, each with the number of its last write."""

    spec: ServiceSpec | None = None
    enabled: dict[Role, Enabled] = field(default_factory=dict)
    rollout: Rollout = Rollout()
    members: dict[str, Membership] = field(default_factory=dict)
    zones: Counter[str] = field(default_factory=Counter)
    away: dict[str, None] = field(default_factory=dict)
    """Registered hosts whose agent is gone."""
    down: dict[str, None] = field(default_factory=dict)
    permits: dict[str, Permit] = field(default_factory=dict)
    holders: dict[str, str] = field(default_factory=dict)
    """Host → zone of every permit."""
    grants: int = 0
    granted_at: datetime | None = None
    queues: dict[str, list[Waiting]] = field(default_factory=dict)
    waiters: dict[str, Waiting] = field(default_factory=dict)
    behind: dict[str, tuple[str, datetime]] = field(default_factory=dict)
    """Host → the one right before it in the queue, and since when it has stood behind that one without being to blame itself."""
    unqueued: dict[str, None] = field(default_factory=dict)
    """Hosts that were denied a permit for which nobody queues: they watch the rollout."""
    statuses: dict[str, HostStatus] = field(default_factory=dict)
    history: list[HistoryEntry] = field(default_factory=list)
    versions: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def policy(self) -> RolloutTable:
        """What the spec says about rollouts."""
        return self.spec.rollout if self.spec else RolloutTable()

    def rollout_id(self, role: Role) -> str:
        """The id of the rollout that hosts of a role are part of."""
        decider = Role.CANARY if role is Role.CANARY and Role.CANARY in self.enabled else Role.FLEET
        enabled = self.enabled.get(decider)
        return f"{enabled.build}-{self.versions[f'enabled/{decider.value}']:x}" if enabled else ""

    @property
    def now(self) -> Now:
        """What is enabled, and how far it is."""
        return Now(
            fleet=self.rollout_id(Role.FLEET),
            canary=self.rollout_id(Role.CANARY) if Role.CANARY in self.enabled else "",
            enabled=self.enabled.get(Role.FLEET),
            hosts=len(self.members) or 1,
            granted=self.grants,
        )

    def leave(self, host: str) -> str | None:
        """Take a host out of the queue; returns the host whose turn it is by that."""
        waiter = self.waiters.pop(host, None)
        if waiter is None:
            return None
        queue = self.queues[waiter.zone]
        place = bisect.bisect_left(queue, waiter)
        del queue[place]
        return queue[0].host if place == 0 and queue else None

    def grant(self, permit: Permit) -> None:
        """Give a permit."""
        self.permits[permit.host] = permit
        self.holders[permit.host] = permit.zone

    def take_back(self, host: str) -> bool:
        """Take a permit back; whether there was one."""
        self.holders.pop(host, None)
        return self.permits.pop(host, None) is not None

    def excuse(self, host: str, excuse: Excuse) -> None:
        """Stop counting a host as down, until its agent comes back.

        Raises:
            Conflict: It is well.
        """
        if host not in self.away and host not in self.down:
            raise is_well(host)
        self.members[host] = replace(self.members[host], excused=excuse)

    @property
    def out(self) -> dict[str, str]:
        """Host → zone of every host that is down, or whose agent is gone, and that nobody has excused."""
        if not self.away and not self.down:
            return {}
        return {host: self.members[host].zone for host in (self.away | self.down) if self.members[host].excused is None}

    @property
    def watching(self) -> list[str]:
        """Hosts that a write of the rollout wakes: the heads, whoever has failed, waits for a promotion, or was denied unqueued."""
        unpromoted = [host for host in self.members if host not in self.waiters] if self.policy.canary_first else []
        return [*self.rollout.failures, *unpromoted, *self.unqueued, *self.heads]

    @property
    def heads(self) -> list[str]:
        """The first of every zone."""
        return [queue[0].host for queue in self.queues.values() if queue]

    def first(self, snapshot: Snapshot, priority: int, number: int) -> tuple[bool, str | None]:
        """Have a host stand in the queue: whether it is the first of its zone, and whose turn it is by that."""
        host, zone = snapshot.host, snapshot.membership.zone
        kind = 0 if host in self.down else 1 if snapshot.membership.role is Role.CANARY else 2
        rank = (kind, -priority if kind == 2 else 0)
        before, turn = self.waiters.get(host), None
        if before is None or (before.rank, before.zone, before.rollout_id) != (rank, zone, snapshot.rollout_id):
            turn = self.leave(host)
            waiter = self.waiters[host] = Waiting(rank, number, host, zone, snapshot.rollout_id)
            bisect.insort(self.queues.setdefault(zone, []), waiter)
        return self.queues[zone][0].host == host, turn

    def loses_patience(self, host: str, now: datetime) -> bool:
        """Whether the same host has stood before a waiter for so long that the waiter looks for itself whether there is room."""
        waiter = self.waiters[host]
        queue = self.queues[waiter.zone]
        before = queue[bisect.bisect_left(queue, waiter) - 1].host
        if self.behind.get(host, ("", now))[0] != before:
            self.behind[host] = (before, now)
        return now - self.behind[host][1] >= PATIENCE

    def request(self, snapshot: Snapshot, limit: FleetLimit, freeze: Freeze | None, now: datetime) -> Request:
        """Everything that decides whether a host may have a permit."""
        zone = snapshot.membership.zone
        return Request(
            host=snapshot.host,
            zone=zone,
            role=snapshot.membership.role,
            build=snapshot.enabled.build if snapshot.enabled else "",
            rollout_id=snapshot.rollout_id,
            rollout=self.rollout,
            freeze=freeze,
            policy=self.policy,
            holders=self.holders,
            down=self.out,
            hosts=len(self.members) or 1,
            zone_hosts=self.zones[zone],
            granted=self.grants - self.rollout.grants_before,
            last_grant=self.granted_at,
            limit=limit,
            now=now,
        )

    def unpromoted(self) -> Enabled | None:
        """The build that the canary hosts have and the fleet has not."""
        return to_promote(self.policy, self.rollout, self.enabled.get(Role.FLEET), self.enabled.get(Role.CANARY))

    def standings(self) -> Iterator[Standing]:
        """How every host stands, one after another."""
        fleet, canary = self.rollout_id(Role.FLEET), self.rollout_id(Role.CANARY)
        for host, member in self.members.items():
            rollout_id = canary if member.role is Role.CANARY else fleet
            yield Standing(
                host=host,
                role=member.role,
                rollout_id=rollout_id,
                build=rollout_id.rpartition("-")[0],
                alive=host not in self.away,
                excused=member.excused is not None,
                status=self.statuses.get(host),
                permit=self.permits.get(host),
            )
