"""Permits: who may be restarting. A grant, and a release, is one transaction.

A grant sets the node above the permits at the version it read, so that between two grants only releases happen and there are never
more permits than the limit. It also checks the versions of all it obeyed (spec, enabled, membership, freeze, rollout), so that none
commits after one of them has changed. A permit is a persistent node: it outlives the agent, its session and its host.

The head of a queue admits itself, and in the same transaction as many of those behind it as there is room for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from deployd_core.admission import Granted, Request, admit, closed_to_all, unpromoted
from deployd_core.clock import rfc3339
from deployd_core.coordination import Denial, Denied, HostStatus, Permit, Rollout, Snapshot, Waiter
from deployd_core.model import FleetLimit, Role
from deployd_core.spec import RolloutTable
from deployd_core.zookeeper import layout
from deployd_core.zookeeper.cache import NodeCache
from deployd_core.zookeeper.layout import ServicePaths
from deployd_core.zookeeper.members import Roll, RollCall
from deployd_core.zookeeper.queueing import Place, class_of
from deployd_core.zookeeper.services import (
    ATTEMPTS,
    Problems,
    commit,
    commit_or_look_again,
    ensure_scaffold,
    gave_up,
    read_rollout,
)
from deployd_core.zookeeper.session import Node, Refused, Session, Transaction
from deployd_core.zookeeper.status import add_report

_BATCH = 32
"""Hosts that one transaction admits at most."""
_LEAVES = (Denial.FAILED, Denial.PROMOTION, Denial.CHANGED)
"""Answers that are about this host alone: it must not stand in the way of those behind it."""
_NOBODY = Roll(hosts=1, zone_hosts=1, down={})
"""Stands for a roll that nobody has called."""


class Asking(Struct, frozen=True, kw_only=True):
    """What a host asks for."""

    snapshot: Snapshot
    limit: FleetLimit
    priority: int
    down: bool
    """It says itself that it is down."""
    now: datetime

    @property
    def policy(self) -> RolloutTable:
        """What the spec says about rollouts."""
        return self.snapshot.spec.rollout if self.snapshot.spec else RolloutTable()

    @property
    def counts(self) -> bool:
        """Whether the answer depends on how many others hold a permit."""
        policy = self.policy
        bounded = self.limit.hosts is not None or self.limit.per_zone is not None or bool(policy.ramp) or bool(policy.stagger)
        return bounded or policy.min_available.at_least(100) > 0

    def waiter(self, nonce: str) -> Waiter:
        """As it stands in the queue."""
        snapshot = self.snapshot
        own = ServicePaths(snapshot.service).host(snapshot.host)
        return Waiter(
            host=snapshot.host,
            role=snapshot.membership.role,
            rollout=snapshot.rollout_id,
            limit=self.limit,
            nonce=nonce,
            membership=snapshot.versions.get(own, 0),
        )


class _Scene(Struct, frozen=True, kw_only=True):
    """What a head has read."""

    rollout: Rollout
    rollout_version: int
    holders: dict[str, str]
    admission: int
    """Version of the node above the permits."""
    granted_at: float
    """When it was last written, which is a grant unless that version is 0: then it was only created."""
    roll: Roll


def read_permits(session: Session, service: str, hosts: tuple[str, ...] | None = None) -> tuple[Permit, ...]:
    """The permits of these hosts, or of all; one that was released meanwhile is left out."""
    paths = ServicePaths(service)
    if hosts is None:
        children = session.children(paths.permits)
        hosts = children.names if children else ()
    nodes = session.get_many(paths.permit(host) for host in hosts)
    return tuple(layout.decode_permit(path, node.data, node.stat) for path, node in nodes.items() if node is not None)


def guards(paths: ServicePaths, role: Role) -> tuple[str, ...]:
    """The nodes that a grant to a host of this role obeys, beside the rollout."""
    canary = (paths.canary,) if role is Role.CANARY else ()
    return (paths.spec, paths.enabled, *canary, layout.FREEZE)


class Desk:
    """Where one host asks for permits of one service."""

    def __init__(self, session: Session, service: str, host: str, cache: NodeCache) -> None:
        self._session = session
        self._service = service
        self._host = host
        self._cache = cache
        self._paths = ServicePaths(service)
        self.place = Place(session, service, cache.fired)
        self._roll_call = RollCall(session, service, cache)
        self._holding: dict[str, datetime] = {}
        self._outdated: set[Waiter] = set()
        """Waiters that stand there as what they are no more, until they say so themselves."""
        self.held = 0
        """Permits held by anybody, as of the last time that it was this host's turn to look."""
        self.hosts = 0
        """Hosts of the service as of then; 0 before."""

    def take(self, asking: Asking) -> Permit | Denied:
        """Ask for a permit.

        Raises:
            Unavailable: ZooKeeper cannot be asked; after a lost answer the permit may be held.
        """
        for _ in range(ATTEMPTS):
            # What we hold is not counted against us, and this is how a lost answer is found, and a grant by another.
            held = self._own()
            if held is not None:
                self._outdated.clear()
                self.place.admitted(held)
                if self.place.waits:
                    self.place.leave()
                return held
            answer = self._try(asking)
            if answer is None or self._own() is not None:  # another admitted us while we took a place in the queue
                continue
            if answer.code in _LEAVES:
                self.place.leave()
            return answer
        return Denied(code=Denial.CHANGED, reason=f"others were granted permits {ATTEMPTS} times while this host asked")

    def _own(self) -> Permit | None:
        path = self._paths.permit(self._host)
        node = self._cache.read((path,))[path]
        return None if node is None else layout.decode_permit(path, node.data, node.stat)

    def _try(self, asking: Asking) -> Denied | None:
        """One attempt. None means look again: it was granted, its answer was lost, or somebody else was faster."""
        snapshot = asking.snapshot
        if not set(guards(self._paths, snapshot.membership.role)) <= set(snapshot.versions):
            # A node that is not there has no version to check: make it, and let the host look at it first.
            ensure_scaffold(self._session, self._service)
            return Denied(code=Denial.CHANGED, reason="the service was not complete in ZooKeeper: look again")
        not_yet = self._unpromoted(asking)
        if not_yet is not None:
            return not_yet
        if self._stands_behind(asking):
            if not self.place.loses_patience(asking.now) or self._all_wait(asking):
                return _queued(asking)
            # Nothing of it is watched: all may lose patience, and must not all be woken then.
            return self._ask(asking, NodeCache(self._session, bool, watching=False))
        return self._ask(asking, self._cache)

    def _stands_behind(self, asking: Asking) -> bool:
        """Stand in the queue, if it matters who comes first; whether another one's turn comes before ours."""
        if not asking.counts:
            return False
        member = asking.snapshot.membership
        rank = class_of(member.role, down=asking.down, priority=asking.priority)
        self.place.join(member.zone, rank, asking.waiter(self.place.nonce))
        return self.place.stands_behind(asking.now)

    def _all_wait(self, asking: Asking) -> bool:
        """Whether everybody waits, for room or for the end of a stop, and not for the one before them."""
        most = asking.limit.hosts.at_most(asking.snapshot.hosts) if asking.limit.hosts else None
        permits = self._session.stat(self._paths.permits)
        full = most is not None and permits is not None and permits.children >= most
        if full or self._closed_to_all(asking):
            self.place.be_patient(asking.now)
            return True
        return False

    def _closed_to_all(self, asking: Asking) -> bool:
        rollout = read_rollout(self._paths, self._session.get_many((self._paths.rollout,)), Problems(self._session))
        scene = _Scene(rollout=rollout, rollout_version=0, holders={}, admission=0, granted_at=0.0, roll=_NOBODY)
        return closed_to_all(_request(asking, scene, asking.snapshot.host)) is not None

    def _ask(self, asking: Asking, cache: NodeCache) -> Denied | None:
        """Look whether there is room, through a cache that watches or not; take it, for those behind us, too."""
        behind = self.place.ask_behind_us() if asking.counts else None  # in one round with the rest
        scene = self._look(asking, cache)
        if scene is None:
            ensure_scaffold(self._session, self._service)
            return None
        self.held, self.hosts = len(scene.holders), scene.roll.hosts
        decision = admit(_request(asking, scene, asking.snapshot.host))
        if isinstance(decision, Denied):
            self.place.be_patient(asking.now)
            return replace(decision, stuck=self._stuck(asking, scene)) if cache is self._cache else _queued(asking)
        next_ones = behind() if behind else ()
        if next_ones is None or (asking.counts and self.place.path is None):
            return None
        return self._grant(asking, scene, self._also(asking, scene, next_ones))

    def _unpromoted(self, asking: Asking) -> Denied | None:
        """A host of the fleet does not even queue before the canaries are done, and watches nothing but the rollout."""
        snapshot, path = asking.snapshot, self._paths.rollout
        if not asking.policy.canary_first or snapshot.membership.role is Role.CANARY:
            return None
        rollout = read_rollout(self._paths, self._cache.read((path,)), Problems(self._session))
        return unpromoted(asking.policy, snapshot.membership.role, rollout, snapshot.enabled.build if snapshot.enabled else "")

    def _look(self, asking: Asking, cache: NodeCache) -> _Scene | None:
        """Read what the decision depends on; None when it is not all there."""
        paths = self._paths
        roll_call = self._roll_call if cache is self._cache else RollCall(self._session, self._service, cache)
        # In one round, on the way from a release to the next start.
        rollout_read = cache.ask(paths.rollout)
        permits = cache.children((paths.permits, *roll_call.nodes))[paths.permits]
        rollout_read()
        gate = cache.read((paths.rollout,))[paths.rollout]
        if gate is None or permits is None:
            return None
        rollout = read_rollout(paths, {paths.rollout: gate}, Problems(self._session))
        zones = dict.fromkeys(permits.names, "")
        if asking.limit.per_zone is not None:
            zones |= {permit.host: permit.zone for permit in read_permits(self._session, self._service, permits.names)}
        return _Scene(
            rollout=rollout,
            rollout_version=gate.stat.version,
            holders=zones,
            admission=permits.stat.version,
            granted_at=permits.stat.mtime,
            roll=roll_call.call(_percent_zone(asking)),
        )

    def _stuck(self, asking: Asking, scene: _Scene) -> tuple[str, ...]:
        """Those that have held a permit for too long; only from their names, so that looking costs nothing."""
        self._holding = {host: self._holding.get(host, asking.now) for host in scene.holders}
        latest = asking.now - timedelta(seconds=float(asking.policy.permit_alarm))
        return tuple(sorted(host for host, since in self._holding.items() if since <= latest))

    def _also(self, asking: Asking, scene: _Scene, behind: Sequence[str]) -> list[tuple[str, Waiter]]:
        """Those behind us that there is room for, in their order and up to the first that there is none for."""
        most = asking.limit.hosts.at_most(scene.roll.hosts) if asking.limit.hosts else 0
        room = min(most - len(scene.holders) - 1, _BATCH)
        if room < 1 or asking.policy.stagger:
            return []
        chosen: list[tuple[str, Waiter]] = []
        holders = scene.holders | {asking.snapshot.host: asking.snapshot.membership.zone}
        mine = asking.waiter(self.place.nonce)
        for path, node in self._session.get_many(behind[:room]).items():
            waiter = Problems(self._session).read(layout.decode_waiter, path, node, None) if node else None
            if waiter in self._outdated:
                continue
            same = waiter is not None and (waiter.rollout, waiter.limit, waiter.role) == (mine.rollout, mine.limit, mine.role)
            if waiter is None or not same or waiter.host in holders:
                break
            if not isinstance(admit(_request(asking, replace(scene, holders=holders), waiter.host)), Granted):
                break
            holders = holders | {waiter.host: asking.snapshot.membership.zone}
            chosen.append((path, waiter))
        return chosen

    def _grant(self, asking: Asking, scene: _Scene, also: Sequence[tuple[str, Waiter]]) -> Denied | None:
        snapshot, paths, own = asking.snapshot, self._paths, self.place.path
        transaction = self._session.transaction()
        for guard, version in snapshot.versions.items():
            transaction.check(guard, version)
        transaction.check(paths.rollout, scene.rollout_version)
        admission = scene.admission if asking.counts else -1
        admitted: list[tuple[str | None, Waiter]] = [(own, asking.waiter(self.place.nonce)), *also]
        for number, (_, waiter) in enumerate(admitted):
            if number:
                transaction.check(paths.host(waiter.host), waiter.membership)
            # Once for each, so that the version counts permits.
            transaction.set(paths.permits, b"", admission + number if asking.counts else -1)
            transaction.create(paths.permit(waiter.host), layout.encode(_permit(asking, waiter)))
        # After every permit: a host hears of its own before it hears that the one before it is gone, and need not ask.
        for path, _ in admitted:
            if path is not None:
                transaction.delete(path)
        try:
            commit(self._session, partial(self._send, transaction))
        except Refused as error:
            if error.path in snapshot.versions:
                return Denied(code=Denial.CHANGED, reason=str(error))
            self._outdated.update(waiter for _, waiter in also if paths.host(waiter.host) == error.path)
            # Permits, rollout, a waiter: whichever it was is read again, though its watch may still be on the way.
            self._cache.forget(error.path)
        return None

    def _send(self, transaction: Transaction) -> None:
        """Commit it, and read our own permit right behind it: what it says is needed at once."""
        granted = transaction.send()
        read = self._cache.ask(self._paths.permit(self._host))
        granted()
        read()


def release(
    session: Session, service: str, host: str, status: HostStatus, *, held: bool, failed: bool, was_down: bool | None
) -> None:
    """Give the permit back, report, and clear the host's failure if it is to go, in one transaction.

    Args:
        session: The connection.
        service: The service.
        host: This host.
        status: The report.
        held: Whether it holds a permit that is to go.
        failed: Whether there may be a failure of it on record that is to go.
        was_down: What was last said of its being down; None when nobody remembers.
    """
    paths = ServicePaths(service)
    for _ in range(ATTEMPTS):
        transaction = session.transaction()
        if held:
            transaction.delete(paths.permit(host))
        add_report(session, transaction, service, status, was_down)
        if failed:
            nodes = session.get_many((paths.rollout,))
            gate, cleared = nodes[paths.rollout], _without(session, paths, nodes, host)
            if gate is not None and cleared is not None:
                transaction.set(paths.rollout, layout.encode(cleared), gate.stat.version)
        if commit_or_look_again(session, transaction.commit):
            return
        # Somebody took the permit away meanwhile, this is the first report, or the answer was lost: see what is left to do.
        held, was_down = held and session.stat(paths.permit(host)) is not None, None
    raise gave_up(session, paths.permit(host))


def _without(session: Session, paths: ServicePaths, nodes: Mapping[str, Node | None], host: str) -> Rollout | None:
    """The rollout without the host's failure; None when there is none to clear, or the node cannot be read."""
    rollout = read_rollout(paths, nodes, Problems(session))
    if host not in rollout.failures:
        return None
    return replace(rollout, failures={other: failure for other, failure in rollout.failures.items() if other != host})


def _request(asking: Asking, scene: _Scene, host: str) -> Request:
    snapshot = asking.snapshot
    return Request(
        host=host,
        zone=snapshot.membership.zone,
        role=snapshot.membership.role,
        build=snapshot.enabled.build if snapshot.enabled else "",
        rollout_id=snapshot.rollout_id,
        rollout=scene.rollout,
        freeze=snapshot.freeze,
        policy=asking.policy,
        holders=scene.holders,
        down=scene.roll.down,
        hosts=scene.roll.hosts,
        zone_hosts=scene.roll.zone_hosts,
        granted=scene.admission - scene.rollout.grants_before,
        last_grant=datetime.fromtimestamp(scene.granted_at, UTC) if scene.admission else None,
        limit=asking.limit,
        now=asking.now,
    )


def _permit(asking: Asking, waiter: Waiter) -> Permit:
    return Permit(
        host=waiter.host,
        zone=asking.snapshot.membership.zone,
        rollout=waiter.rollout,
        since=rfc3339(asking.now.timestamp()),
        nonce=waiter.nonce,
    )


def _queued(asking: Asking) -> Denied:
    return Denied(code=Denial.QUEUED, reason=f"in the queue of zone {asking.snapshot.membership.zone}: others asked first")


def _percent_zone(asking: Asking) -> str | None:
    """The zone whose hosts must be counted; None when nothing is a percentage of them."""
    share = asking.limit.per_zone
    return asking.snapshot.membership.zone if share is not None and share.is_percentage else None
