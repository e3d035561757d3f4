"""PURE: why hosts wait or have failed, in words and with what to type next, from what ZooKeeper holds.

A host that waits is put before `deployd_core.admission.admit`, the function that grants permits, as it would stand there now: what
people read is what the machine decides, and no second opinion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from msgspec import Struct

from deployd_core.admission import Request, admit
from deployd_core.coordination import Denial, Denied, Waiter
from deployd_core.errors import some_of
from deployd_core.model import FleetLimit, Health, Role
from deployd_core.noticing import (
    BY_ITSELF,
    Blocker,
    blocker_of,
    permits_of,
    policy_of,
    promotion_notices,
    unblock,
    way_back,
    ways_on,
)
from deployd_core.picture import HostState, excuse_of, reason_of, state_of, step_of
from deployd_core.planner import HostStep, Remedy
from deployd_core.zookeeper.status import FleetStatus, HostEntry


class Probed(Struct, frozen=True, kw_only=True):
    """The last word on an instance that is not healthy."""

    instance: str
    phase: str
    health: str
    reason: str
    """In one line."""

    @property
    def text(self) -> str:
        """All of it."""
        return f"{self.instance} {self.phase}, {self.health}: {self.reason}"


class Explanation(Struct, frozen=True, kw_only=True):
    """Why one host does not serve what it should."""

    host: str
    zone: str
    wanted: str
    """The build."""
    step: str
    code: Denial | None = None
    """Why it would be granted no permit now; None when it would be, or holds one."""
    reason: str
    blockers: tuple[Blocker, ...] = ()
    since: str = ""
    """Since when it has been in this step, RFC 3339."""
    until: str | None = None
    """When the reason ends by itself, RFC 3339; or the deadline of the step."""
    place: int | None = None
    """Its place in the queue of its zone, from 1; None when it does not stand there."""
    queue: int = 0
    """How many stand in that queue."""
    permit_since: str | None = None
    last_error: str = ""
    probes: tuple[Probed, ...] = ()
    """What is wrong with its instances."""
    waits: bool = False
    """It is ready to begin, and waits for a permit."""
    next: str
    """What to type, or to do."""


def explain(
    fleet: FleetStatus,
    now: datetime,
    *,
    queue: Mapping[str, Sequence[Waiter]],
    limit: FleetLimit | None = None,
    previous: str = "",
    host: str | None = None,
) -> tuple[Explanation, ...]:
    """Explain every host that does not serve what it should.

    Args:
        fleet: How things stand.
        now: The time of day, which must know its time zone.
        queue: Who waits, by zone and in the order of their turns. A waiter says under which limit it asks.
        limit: The limit of the service's strategy, for hosts that wait but do not stand there; None when it is not known.
        previous: The build that a rollback would go to; empty when there is none.
        host: Only this one, whether or not it is done.
    """
    desk = _Desk(fleet, now, queue, limit, previous)
    done = (HostState.CONVERGED, HostState.IDLE)
    chosen = [entry for entry in fleet.hosts if (entry.host == host if host is not None else state_of(entry) not in done)]
    return tuple(desk.explain(entry) for entry in chosen)


class _Desk:
    """Where hosts would ask for a permit now."""

    def __init__(
        self,
        fleet: FleetStatus,
        now: datetime,
        queue: Mapping[str, Sequence[Waiter]],
        limit: FleetLimit | None,
        previous: str,
    ) -> None:
        self._fleet = fleet
        self._record = fleet.record
        self._now = now
        self._queue = queue
        self._limit = limit
        self._previous = previous
        self._holders = {permit.host: permit for permit in permits_of(fleet)}

    def explain(self, entry: HostEntry) -> Explanation:
        """Explain one host."""
        status, state = entry.status, state_of(entry)
        waiters = self._queue.get(entry.zone, ())
        place = next((number for number, waiter in enumerate(waiters, start=1) if waiter.host == entry.host), None)
        asks = entry.permit is None and entry.wanted is not None and state in (HostState.WAITING, HostState.FAILED)
        denied = self._answer(entry, waiters, place) if asks else None
        waits = state is HostState.WAITING
        reason = denied.reason if waits and denied is not None else reason_of(entry)
        if waits and denied is None and self._limit_of(entry, waiters) is None:
            reason = f"{reason}; the limit of its strategy is not known here" if reason else "its limit is not known here"
        reason = "; ".join(filter(None, (reason, excuse_of(entry))))
        blockers = (
            tuple(blocker_of(self._fleet, name, denied.code) for name in denied.blockers) if waits and denied is not None else ()
        )
        deadline = status.deadline if status is not None else None
        error = " ".join(status.last_error.split()) if status is not None else ""
        return Explanation(
            host=entry.host,
            zone=entry.zone,
            wanted=entry.wanted.build if entry.wanted is not None else "",
            step=step_of(entry),
            code=denied.code if denied is not None else None,
            reason=reason,
            blockers=blockers,
            since=status.since if status is not None else "",
            until=denied.until if waits and denied is not None and denied.until is not None else deadline,
            place=place,
            queue=len(waiters),
            permit_since=entry.permit.since if entry.permit is not None else None,
            last_error="" if error == reason else error,
            probes=_probes(entry),
            waits=waits,
            next=self._next_of_waiter(denied, blockers) if waits else self._next(entry, state),
        )

    def _answer(self, entry: HostEntry, waiters: Sequence[Waiter], place: int | None) -> Denied | None:
        """What the host would be told now; None is yes."""
        answer = admit(self._request(entry, self._limit_of(entry, waiters) or FleetLimit()))
        if isinstance(answer, Denied):
            return answer
        if place is None or place == 1:
            return None
        before = tuple(waiter.host for waiter in waiters[: place - 1])
        return Denied(code=Denial.QUEUED, reason=f"asked later than {some_of(before)}", blockers=before[:5])

    def _limit_of(self, entry: HostEntry, waiters: Sequence[Waiter]) -> FleetLimit | None:
        return next((waiter.limit for waiter in waiters if waiter.host == entry.host), self._limit)

    def _request(self, entry: HostEntry, limit: FleetLimit) -> Request:
        record, hosts = self._record, self._fleet.hosts
        return Request(
            host=entry.host,
            zone=entry.zone,
            role=entry.role,
            build=entry.wanted.build if entry.wanted is not None else "",
            rollout_id=entry.rollout_id,
            rollout=record.rollout,
            freeze=record.freeze,
            policy=policy_of(record),
            holders={name: permit.zone for name, permit in self._holders.items()},
            down={other.host: other.zone for other in hosts if (other.down or not other.alive) and other.excused is None},
            hosts=len(hosts) or 1,
            zone_hosts=sum(other.zone == entry.zone for other in hosts),
            granted=record.grants - record.rollout.grants_before,
            last_grant=self._fleet.granted_at,
            limit=limit,
            now=self._now,
        )

    def _next_of_waiter(self, denied: Denied | None, blockers: Sequence[Blocker]) -> str:
        """What to type about a host that waits."""
        service = self._record.service
        if denied is None:
            return BY_ITSELF
        if denied.code in (Denial.FROZEN, Denial.PAUSED, Denial.HALTED, Denial.FAILED):
            return ways_on(self._record, denied.code, self._previous)
        if denied.code is Denial.WINDOW:
            return f"nothing: it goes on when the window opens; deployd services show {service} has the windows"
        if denied.code is Denial.PROMOTION:
            waits = list(promotion_notices(self._fleet, self._now))
            return waits[0].next if waits else f"deployd promote {service}"
        return next((told for blocker in blockers if (told := unblock(service, blocker))), BY_ITSELF)

    def _next(self, entry: HostEntry, state: HostState) -> str:
        """What to type about a host that does not wait."""
        service, host = self._record.service, entry.host
        canary = " --canary" if entry.role is Role.CANARY and self._record.canary is not None else ""
        if state is HostState.DEAD:
            gone = f"should it never come back: deployd hosts {'lost' if entry.permit else 'retire'} {service} {host} --why TEXT"
            return f"on {host}: systemctl status deployd-agent, journalctl -u deployd-agent; {gone}"
        if entry.status is not None and entry.status.step == HostStep.BROKEN.value and state is HostState.FAILED:
            return f"mend {host}, it goes on when it is healthy; or {way_back(self._record, self._previous, canary)}"
        if state is HostState.FAILED:
            return f"mend {host}, then deployd retry {service}; or {way_back(self._record, self._previous, canary)}"
        if state is HostState.BLOCKED:
            return self._unblock(entry, canary)
        if state is HostState.DEGRADED:
            return f"look at that instance on {host}"
        return "" if state in (HostState.CONVERGED, HostState.IDLE) else BY_ITSELF

    def _unblock(self, entry: HostEntry, canary: str) -> str:
        """What to type about a host that is blocked. Nothing is to be enabled again: it goes on when the cause is gone.

        It names no host, for what blocks one blocks most of them, and they are told together.
        """
        service = self._record.service
        match entry.status.remedy if entry.status is not None else "":
            case Remedy.INSTALL.value:
                return "install it there and reload the agent: systemctl reload deployd-agent (SIGHUP)"
            case Remedy.PLUGIN.value:
                return "install a mended plugin there and restart the agent: systemctl restart deployd-agent"
            case Remedy.SPEC.value:
                return f"mend the spec: deployd services apply FILE --name {service}; it goes on by itself then"
            case Remedy.BUILD.value:
                return way_back(self._record, self._previous, canary)
            case Remedy.HOST.value:
                return "mend that there; it goes on by itself then"
        return "mend what the reason names"


def _probes(entry: HostEntry) -> tuple[Probed, ...]:
    instances = entry.status.instances if entry.status is not None else ()
    return tuple(
        Probed(instance=instance.name, phase=instance.phase, health=instance.health, reason=" ".join(instance.reason.split()))
        for instance in instances
        if instance.reason and instance.health != Health.HEALTHY.value
    )
