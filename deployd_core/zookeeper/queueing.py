"""The queue for permits: who is next in a zone, at a cost that does not grow with those who wait.

A waiter is an ephemeral, sequential node. It watches the one node before it, by name: numbers below one parent are consecutive, so
nobody lists the queue to join it. Whoever finds nobody before it is the head, and alone watches permits and rollout. The queue is
only order and wake-up: what keeps the limits is the transaction of a grant, so that a lost, doubled or stuck waiter costs time
and no more.

The name of a node begins with its class: hosts that are down wait before those of the canary role, these before the rest by
priority.

Failure: a node whose creation was not answered may be there; it is looked for by the session that owns it before another is made.
The death of a waiter takes its node with its session. One that stands still although there is room is passed after a while.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime

from msgspec.structs import replace

from deployd_core.coordination import PATIENCE, Permit, Waiter
from deployd_core.errors import DeploydError, Unavailable
from deployd_core.model import Role
from deployd_core.zookeeper import layout
from deployd_core.zookeeper.layout import ServicePaths
from deployd_core.zookeeper.services import Problems, ensure_scaffold
from deployd_core.zookeeper.session import DELETED, OutcomeUnknown, Refused, Session, Watch, WatchEvent

_PRIORITIES = 4999


def class_of(role: Role, *, down: bool, priority: int) -> str:
    """What the names of a waiter's nodes begin with: the lower, the earlier its turn."""
    if down:
        return "0"
    if role is Role.CANARY:
        return "1"
    return f"2{_PRIORITIES - max(-_PRIORITIES, min(_PRIORITIES, priority)):04d}"


def read_queue(session: Session, service: str) -> dict[str, tuple[Waiter, ...]]:
    """Who waits, by zone and in the order of their turns; a zone in which nobody does is left out."""
    paths, problems = ServicePaths(service), Problems(session)
    zones = session.children(paths.queue)
    names = {zone: paths.zone_queue(zone) for zone in (zones.names if zones else ())}
    listed = session.children_many(names.values())
    found: dict[str, tuple[Waiter, ...]] = {}
    for zone, parent in names.items():
        listing = listed[parent]
        nodes = session.get_many(f"{parent}/{name}" for name in (listing.names if listing else ()))
        waiters = (problems.read(layout.decode_waiter, path, node, None) for path, node in nodes.items() if node is not None)
        found[zone] = tuple(waiter for waiter in waiters if waiter is not None)
    return {zone: waiters for zone, waiters in found.items() if waiters}


class Place:
    """One host's place in the queue of one service."""

    def __init__(self, session: Session, service: str, wake: Watch) -> None:
        """Have `wake` called when the waiter before us goes."""
        self._session = session
        self._service = service
        self._paths = ServicePaths(service)
        self._wake = wake
        self._watch = self._fired  # one object, so that arming it twice is arming it once
        self._zone = ""
        self._class = ""
        self._waiter: Waiter | None = None
        self._admitted = ""
        """The nonce of the permit that we hold: the engine's loop may hear of it while a task is asking for it."""
        self._owner = 0
        self._before: str | None = None
        self._before_since: datetime | None = None
        self._armed: str | None = None
        """The waiter that is watched; what it was when its watch fired may not hold."""
        self._gone: str | None = None
        """One that has gone, by the word of its watch."""
        self._unsure = False
        self.nonce = secrets.token_hex(8)
        """Names our node, and the permit that it is granted."""
        self.path: str | None = None
        """Our node; None while we do not wait."""

    def join(self, zone: str, rank: str, waiter: Waiter) -> None:
        """Wait with this waiter. One that waits already keeps its place, unless what it waits for has changed.

        Raises:
            Unavailable: ZooKeeper does not answer; whether we wait is found out with the next call.
        """
        if self._owner != self._session.session_id:
            self.path, self._unsure = None, False  # whatever there was went with its session
        if self._went_with_a_grant:
            self.path = None
        if self._unsure:
            self._remove_all()
        if self.path is not None and waiter != self._waiter:
            self._changed(zone, rank, waiter)
        elif self.path is not None and (zone, rank) != (self._zone, self._class):
            self.leave()
        if self.path is None:
            self.nonce = secrets.token_hex(8)
            self._zone, self._class, self._waiter = zone, rank, replace(waiter, nonce=self.nonce)
            self._owner = self._session.session_id
            self.path = self._create(layout.encode(self._waiter))
            number = int(self.path[-10:])
            self._stand_behind(f"{self.path[:-10]}{number - 1:010d}" if number else None)

    def _changed(self, zone: str, rank: str, waiter: Waiter) -> None:
        """Say anew what we wait for; for another rollout, or in another class, we wait from the end."""
        before, self._waiter = self._waiter, waiter
        if before is None or before.rollout != waiter.rollout or (zone, rank) != (self._zone, self._class) or self.path is None:
            self.leave()
            return
        try:
            self._session.set(self.path, layout.encode(waiter))
        except Refused:
            self.path = None  # it went with a grant

    def leave(self) -> None:
        """Wait no longer.

        Raises:
            Unavailable: ZooKeeper does not answer; we wait until it is known that we do not.
        """
        path, self.path = self.path, None
        if self._owner != self._session.session_id:
            self._unsure = False  # whatever there was went with its session
        elif self._unsure:
            self._remove_all()
        elif path is not None and not self._went_with_a_grant:
            self._delete(path)

    @property
    def waits(self) -> bool:
        """Whether a node of ours is there, or may be."""
        return (self.path is not None and not self._went_with_a_grant) or self._unsure

    @property
    def _went_with_a_grant(self) -> bool:
        return self._admitted == self.nonce

    def _delete(self, path: str) -> None:
        try:
            self._session.delete(path)
        except Refused:
            pass  # it went with a grant
        except Unavailable:
            self._unsure = True
            raise

    def admitted(self, permit: Permit) -> None:
        """This permit was granted to us, and the node that asked for it went with the grant. A later one is still there."""
        self._admitted = permit.nonce

    def stands_behind(self, now: datetime) -> bool:
        """Whether there is a waiter right before us, which is watched then."""
        if self._before is None:
            return False
        if self._before == self._gone or not self._look_before(self._before):
            # Its turn came, nearly always. Should it have died in the middle of the queue, we are one head too many until we are
            # about to admit somebody, and look at the whole queue.
            self._before = None
            return False
        self._before_since = self._before_since or now
        return True

    def loses_patience(self, now: datetime) -> bool:
        """Whether the same waiter has stood before us for so long that we look for ourselves whether it leaves room unused."""
        return self._before is not None and self._before_since is not None and now - self._before_since >= PATIENCE

    def be_patient(self, now: datetime) -> None:
        """Whoever is before us is not to blame: begin to wait anew."""
        self._before_since = now

    def ask_behind_us(self) -> Callable[[], tuple[str, ...] | None]:
        """Ask for the nodes that wait behind ours, and wait for the answer by calling what is returned.

        They are in their order; None when somebody is before us: we stand behind them now.
        """
        parent = self._paths.zone_queue(self._zone)
        listing = self._session.children_later(parent)

        def behind_us() -> tuple[str, ...] | None:
            found = listing()
            paths = [f"{parent}/{name}" for name in (found.names if found is not None else ())]
            if self.path not in paths:
                self.path = None
                return ()
            place = paths.index(self.path)
            if place and paths[place - 1] != self._before:  # the one that we know, we have lost patience with
                self._stand_behind(paths[place - 1])
                return None
            return tuple(paths[place + 1 :])

        return behind_us

    def _look_before(self, path: str) -> bool:
        """Whether a waiter is there, and watched."""
        if self._armed == path:
            return True
        self._armed = path  # before looking, so that a watch which fires at once is not forgotten
        try:
            return self._session.stat(path, self._watch) is not None
        except DeploydError:
            self._armed = None
            raise

    def _fired(self, event: WatchEvent) -> None:
        if event.type == DELETED:
            self._gone = event.path
        self._armed = None
        self._wake(event)

    def _stand_behind(self, path: str | None) -> None:
        self._before, self._before_since = path, None

    def _create(self, data: bytes) -> str:
        queue = self._paths.zone_queue(self._zone)
        prefix = f"{queue}/{self._class}-"
        try:
            try:
                return self._session.create_sequential(prefix, data)
            except Refused:
                # The first of its zone. Nearly always that is all that is missing, and a whole fleet may find out at once.
                self._make(queue)
                return self._session.create_sequential(prefix, data)
        except OutcomeUnknown:
            self._unsure = True
            raise

    def _make(self, queue: str) -> None:
        try:
            self._session.create_if_missing(queue)
        except Refused:
            ensure_scaffold(self._session, self._service)
            self._session.create_if_missing(queue)

    def _remove_all(self) -> None:
        """Delete what this session may have left in the queue: a second node of ours would be waited for by others."""
        parent = self._paths.zone_queue(self._zone)
        listing = self._session.children(parent)
        found = self._session.stat_many(f"{parent}/{name}" for name in (listing.names if listing else ()))
        for path, stat in found.items():
            if stat is not None and stat.owner == self._owner:
                self._session.delete(path)
        self.path, self._unsure = None, False
