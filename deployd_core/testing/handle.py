"""What one host uses of a `deployd_core.testing.coordination.MemoryEnsemble`, and what can go wrong between the two."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from deployd_core.coordination import Denied, HostStatus, Link, Permit, Snapshot
from deployd_core.errors import Unavailable
from deployd_core.model import FleetLimit

if TYPE_CHECKING:
    from deployd_core.testing.coordination import MemoryEnsemble

AnswerT = TypeVar("AnswerT")


class MemoryCoordination:
    """What one host uses of an ensemble; made by `MemoryEnsemble.coordination`. `link` can be set."""

    def __init__(self, ensemble: MemoryEnsemble, host: str, wake: Callable[[str], object]) -> None:
        self._ensemble = ensemble
        self._host = host
        self._wake = wake
        self._link = Link.CONNECTED
        self._zones: dict[str, str] = {}
        self._watched: set[str] = set()
        self._is_back: set[str] = set()
        self._lost_answers: list[bool] = []

    @property
    def link(self) -> Link:
        """The state of the connection. Setting it wakes the engine, as a broken or new connection does.

        With LOST the session is over: the agent counts as gone until the link is CONNECTED again.
        """
        return self._link

    @link.setter
    def link(self, link: Link) -> None:
        before, self._link = self._link, link
        with self._ensemble.lock:
            if link is Link.LOST:
                self.back()
                self._ensemble.went(self._host)
            elif link is Link.CONNECTED and before is Link.LOST:
                self._ensemble.came(self._host)
        for service in sorted({*self._zones, *self._watched}):
            self._wake(service)

    def lose_next_answer(self, *, applied: bool = True) -> None:
        """Have the next write raise `Unavailable`, although it was carried out (or, with `applied` false, was not)."""
        self._lost_answers.append(applied)

    def join(self, service: str, zone: str) -> None:
        """Make this host a member with the next `snapshot`."""
        self._zones[service] = zone
        self._is_back.add(service)

    def back(self) -> None:
        """This host is back: whoever has excused it meanwhile need not any more."""
        self._is_back.update(self._zones)

    def snapshot(self, service: str, *, afresh: bool = False) -> Snapshot:  # noqa: ARG002 - it always is
        """Read everything about a service; a later change wakes the engine once."""
        self._require_link()
        with self._ensemble.lock:
            if service in self._zones:
                self._ensemble.register(service, self._host, self._zones[service], is_back=service in self._is_back)
                self._is_back.discard(service)
            self._watched.add(service)
            return self._ensemble.read(service, self._host, self._zones.get(service, "default"))

    def take_permit(self, snapshot: Snapshot, limit: FleetLimit, *, priority: int = 0) -> Permit | Denied:
        """Ask for a permit under what the snapshot said; what a host then waits for wakes it, whatever has woken it before."""
        self._watched.add(snapshot.service)
        return self._write(lambda: self._ensemble.take(snapshot, limit, priority))

    def leave_queue(self, service: str) -> None:
        """Stand in the queue no longer."""
        self._write(lambda: self._ensemble.leave(service, self._host))

    def release_permit(self, snapshot: Snapshot, status: HostStatus, *, keep_failure: bool = False) -> None:
        """Give the permit back and report; clears this host's failure unless it is kept."""
        token = snapshot.permit.token if snapshot.permit else None
        self._write(lambda: self._ensemble.release(snapshot.service, self._host, status, token=token, keep_failure=keep_failure))

    def record_failure(self, snapshot: Snapshot, reason: str) -> None:
        """Enter this host's failure, with what follows from it."""
        self._write(lambda: self._ensemble.record_failure(snapshot, reason))

    def report(self, service: str, status: HostStatus) -> None:
        """Write this host's report."""
        self._write(lambda: self._ensemble.write_status(service, status))

    def advance(self, snapshot: Snapshot, may_promote: Callable[[str], str]) -> float | None:
        """Take the rollout further when it is time."""
        return self._write(lambda: self._ensemble.advance(snapshot, may_promote))

    def changed(self, service: str) -> None:
        """Be told that something of a service was written; wakes once until the next `snapshot`."""
        if service in self._watched:
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
