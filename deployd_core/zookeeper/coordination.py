"""`deployd_core.coordination.Coordination`, on ZooKeeper: what one agent reads of its services and writes about its host.

Failure: nothing here waits for a lost connection. When the link breaks every engine is woken; what was read before no longer holds,
and the next `snapshot` reads everything again. The agent's ephemeral node is made again after each lost session.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from msgspec.structs import replace

from deployd_core.coordination import AgentInfo, Denial, Denied, HostStatus, Link, Membership, Permit, Rollout, Snapshot
from deployd_core.errors import Conflict, DeploydError, Unavailable
from deployd_core.model import FleetLimit, Role
from deployd_core.zookeeper import layout, permits, services
from deployd_core.zookeeper.cache import NodeCache
from deployd_core.zookeeper.failing import record_failure
from deployd_core.zookeeper.layout import ServicePaths
from deployd_core.zookeeper.members import register
from deployd_core.zookeeper.permits import Asking, Desk
from deployd_core.zookeeper.progress import advance
from deployd_core.zookeeper.services import Problems
from deployd_core.zookeeper.session import Node, Session, WatchEvent
from deployd_core.zookeeper.status import announce, write_status

_log = logging.getLogger(__name__)


class ZooKeeperCoordination:
    """What one host and its engines need of ZooKeeper. An engine's loop and its tasks may use it at the same time."""

    def __init__(
        self,
        session: Session,
        host: str,
        wake: Callable[[str], object],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Use a session, not yet started or started.

        Args:
            session: The connection.
            host: The name of this host.
            wake: Told the name of a service when something of it changed. Called on ZooKeeper's threads: it may set an event
                or fill a queue, and nothing else.
            clock: The time of day, for what is stored and for the end of a freeze.
        """
        self._session = session
        self._host = host
        self._wake = wake
        self._clock = clock
        self._lock = threading.Lock()
        self._services: dict[str, _Service] = {}
        self._info: AgentInfo | None = None
        self._duplicate = ""
        self._announced_in = 0
        """The session in which it was said that this agent is alive; 0 is none."""
        self._removed = threading.Event()
        """Somebody has touched what was said, or may have."""
        self._on_removed = self._touched  # one object, so that arming it twice is arming it once
        session.listen(self._on_link)

    @property
    def link(self) -> Link:
        """The state of the connection now."""
        return self._session.link

    @property
    def announced(self) -> bool:
        """Whether ZooKeeper knows that this agent is alive. When it does not, that must be said again."""
        said = self._announced_in != 0 and self._announced_in == self._session.session_id
        return said and not self._removed.is_set() and not self._duplicate

    def announce(self, info: AgentInfo) -> None:
        """Say that this agent is alive, now and after each lost session.

        Raises:
            Conflict: Another live agent calls itself by this host's name; until it is gone, `take_permit` is denied.
            Unavailable: ZooKeeper does not answer; it is said as soon as it does.
        """
        self._info = info
        before, session_id = self._duplicate, self._session.session_id
        self._removed.set()  # until it is known not to be
        try:
            announce(self._session, info, again=self._announced_in == session_id)
            self._duplicate, self._announced_in = "", session_id
            self._removed.clear()
            if self._session.stat(layout.agent(info.host), self._on_removed) is None:
                self._removed.set()
            if before:
                self._back()
        except Conflict as error:
            self._duplicate = str(error)
            raise
        finally:
            if before != self._duplicate:
                self._wake_all()

    def join(self, service: str, zone: str) -> None:
        """Make this host a member of the service, with the next `snapshot` and if the service exists. It keeps its role."""
        self._service(service).join(zone)

    def snapshot(self, service: str, *, afresh: bool = False) -> Snapshot:
        """Read what changed of a service (or, `afresh`, all of it), and watch it; a later change wakes the engine once."""
        snapshot = self._service(service).snapshot(afresh=afresh, register=not self._duplicate)
        if self._duplicate:
            # The place and the permit that lie there under our name may be the other's: do nothing at all.
            return replace(snapshot, permit=None, problem=self._duplicate)
        return snapshot

    def take_permit(self, snapshot: Snapshot, limit: FleetLimit, *, priority: int = 0) -> Permit | Denied:
        """Ask for a permit under what `snapshot` said; a host that waits is woken when it is its turn, and when there is room."""
        if self._duplicate and self._info is not None:
            try:
                self.announce(self._info)
            except Conflict as error:
                return Denied(code=Denial.DUPLICATE, reason=str(error))
        return self._service(snapshot.service).take(snapshot, limit, priority, self._clock())

    def leave_queue(self, service: str) -> None:
        """Stand in the queue no longer."""
        self._service(service).desk.place.leave()

    def release_permit(self, snapshot: Snapshot, status: HostStatus, *, keep_failure: bool = False) -> None:
        """Give the permit back, report, and clear this host's failure unless it is kept, in one transaction."""
        self._service(snapshot.service).release(snapshot, status, keep_failure=keep_failure)

    def record_failure(self, snapshot: Snapshot, reason: str) -> None:
        """Enter this host's failure, with what follows from it for the rollout in the same write."""
        self._service(snapshot.service).fail(snapshot, reason, self._clock())

    def report(self, service: str, status: HostStatus) -> None:
        """Write this host's report, and whether it is down; another agent of its name reports for itself."""
        if not self._duplicate:
            self._service(service).report(status)

    def advance(self, snapshot: Snapshot, may_promote: Callable[[str], str]) -> float | None:
        """Take the rollout further when it is time."""
        return advance(self._session, snapshot, may_promote, self._clock())

    def _service(self, name: str) -> _Service:
        with self._lock:
            if name not in self._services:
                self._services[name] = _Service(self._session, name, self._host, self._wake)
            return self._services[name]

    def _on_link(self, link: Link) -> None:
        if link is Link.LOST:
            self._back()
        if link is Link.CONNECTED and self._info is not None:
            try:
                self.announce(self._info)
            except Conflict as error:
                _log.error("%s; no permit is taken until it is gone", error)
            except Unavailable:
                pass  # gone again: the next CONNECTED comes back here
            except DeploydError as error:
                _log.error("%s", error)
        self._wake_all()

    def _touched(self, event: WatchEvent) -> None:
        if event.path is not None:  # or else the connection broke
            self._removed.set()

    def _back(self) -> None:
        with self._lock:
            known = list(self._services.values())
        for service in known:
            service.back()

    def _wake_all(self) -> None:
        with self._lock:
            known = list(self._services)
        for name in known:
            self._wake(name)


class _Service:
    """What one host knows of one service."""

    def __init__(self, session: Session, name: str, host: str, wake: Callable[[str], object]) -> None:
        self._session = session
        self._name = name
        self._host = host
        self._wake = wake
        self._paths = ServicePaths(name)
        self._zone: str | None = None
        self._is_back = False
        self._last: Snapshot | None = None
        self._readings = -1
        self._woken = threading.Event()
        self._rollout: Rollout | None = None
        self._last_hosts: int | None = None
        self._down: bool | None = None
        """What ZooKeeper says of this host; None while that is not known, as while it is being written."""
        self._said_down = False
        """What this host has said last."""
        self._reporting = threading.Lock()
        """Of saying whether the host is down: what is remembered of it must be what was written last."""
        self._cache = NodeCache(session, self._changed)
        self.desk = Desk(session, name, host, self._cache)

    def join(self, zone: str) -> None:
        self._zone = zone
        self.back()

    def back(self) -> None:
        """This host is back: whoever has excused it meanwhile need not any more."""
        self._is_back = True
        self._readings = -1

    def snapshot(self, *, afresh: bool, register: bool) -> Snapshot:
        self._woken.clear()  # before reading: a change during it wakes again
        if afresh:
            self._cache.forget()
        readings, last = self._cache.readings, self._last
        if last is None or self._cache.stale or readings != self._readings:
            self._last = last = self._read(register=register)
            # As it was before: what somebody else reads meanwhile, when he asks for a permit, is looked at once more.
            self._readings = readings
        if last.permit is not None:
            self.desk.place.admitted(last.permit)  # be it by another host
        return replace(last, queued=self.desk.place.waits)

    def take(self, snapshot: Snapshot, limit: FleetLimit, priority: int, now: datetime) -> Permit | Denied:
        self._woken.clear()  # before asking: the end of what we are about to wait for may come before the next snapshot
        asking = Asking(snapshot=snapshot, limit=limit, priority=priority, down=self._said_down, now=now)
        answer = self.desk.take(asking)
        if isinstance(answer, Denied) and answer.code is Denial.CHANGED:
            self._cache.forget()  # the watch that says so may still be on its way
        return answer

    def release(self, snapshot: Snapshot, status: HostStatus, *, keep_failure: bool) -> None:
        path = self._paths.permit(self._host)
        node = self._cache.read((path,))[path]
        # One that was granted later, after somebody has taken ours away, is not what is given back.
        held = node is not None and snapshot.permit is not None and node.stat.czxid == snapshot.permit.token
        failed = not keep_failure and (self._rollout is None or self._host in self._rollout.failures)
        with self._reporting:
            before, self._down = self._down, None
            permits.release(self._session, self._name, self._host, status, held=held, failed=failed, was_down=before)
            self._down = self._said_down = status.down
        self._cache.deleted(path)

    def fail(self, snapshot: Snapshot, reason: str, now: datetime) -> None:
        record_failure(self._session, snapshot, reason, now)
        self._rollout, self._readings = None, -1  # it holds our failure: from now on its changes concern us

    def report(self, status: HostStatus) -> None:
        with self._reporting:
            before, self._down = self._down, None  # until it is known to be written
            write_status(self._session, self._name, status, was_down=before)
            was_down, self._down, self._said_down = self._said_down, status.down, status.down
        if was_down and not status.down:
            self.back()
        if was_down is not status.down:
            self._changed()  # one that is down has another place in the queue, and asks for it

    def _changed(self) -> None:
        if not self._woken.is_set():
            self._woken.set()
            self._wake(self._name)

    def _read(self, *, register: bool) -> Snapshot:
        paths, problems = self._paths, Problems(self._session)
        own, permit = paths.host(self._host), paths.permit(self._host)
        watched = (paths.spec, paths.enabled, paths.canary, layout.FREEZE, own, permit)
        nodes = self._cache.read(watched)
        if register and nodes[paths.spec] is not None and self._register(nodes[own]):
            nodes = self._cache.read(watched)
        spec = problems.read(layout.decode_spec, paths.spec, nodes[paths.spec], None)
        if nodes[paths.spec] is None:
            membership = Membership(zone=self._zone or "default")
            return Snapshot(service=self._name, host=self._host, spec=None, membership=membership, enabled=None)
        # A host whose role cannot be read does not know what to serve: it is not guessed.
        membership = problems.read(layout.decode_membership, own, nodes[own], None) or Membership(zone=self._zone or "default")
        unsure = str(problems)
        wanted = services.wanted(paths, nodes, membership.role, problems)
        rollout = self._read_rollout(problems)
        return Snapshot(
            service=self._name,
            host=self._host,
            spec=spec,
            membership=membership,
            enabled=None if unsure else wanted.enabled,
            rollout_id="" if unsure else wanted.rollout_id,
            rollout=rollout,
            freeze=services.read_freeze(nodes, problems),
            permit=_own(permit, nodes[permit]),
            permits=self.desk.held,
            hosts=self._hosts(),
            problem=str(problems),
            versions=self._versions(nodes, membership.role),
        )

    def _read_rollout(self, problems: Problems) -> Rollout:
        """The rollout as far as it concerns this host: watched while it holds a failure of ours, and else read once.

        A host that asks for a permit reads it anew, and whoever is the first to be admitted watches it.
        """
        path = self._paths.rollout
        if self._rollout is None:
            node = self._session.get(path)
            self._rollout = services.read_rollout(self._paths, {path: node}, problems)
        if self._host in self._rollout.failures:
            self._rollout = services.read_rollout(self._paths, self._cache.read((path,)), problems)
        return self._rollout

    def _hosts(self) -> int:
        if self._last_hosts is None:
            stat = self._session.stat(self._paths.hosts)
            self._last_hosts = stat.children if stat else 1
        return self.desk.hosts or self._last_hosts

    def _register(self, node: Node | None) -> bool:
        """Join as asked; returns whether anything was written."""
        if self._zone is None:
            return False
        path = self._paths.host(self._host)
        known = Problems(self._session).read(layout.decode_membership, path, node, None) if node else None
        excused = self._is_back and known is not None and known.excused is not None
        missing = node is None or (known is not None and (known.zone != self._zone or excused))
        if missing:
            register(self._session, self._name, self._host, self._zone, is_back=excused)
            self._cache.forget(path)  # our own write: do not wait for its watch
        self._is_back = False
        return missing

    def _versions(self, nodes: Mapping[str, Node | None], role: Role) -> dict[str, int]:
        guards = (*permits.guards(self._paths, role), self._paths.host(self._host))
        return {path: node.stat.version for path in guards if (node := nodes[path]) is not None}


def _own(path: str, node: Node | None) -> Permit | None:
    return None if node is None else layout.decode_permit(path, node.data, node.stat)
