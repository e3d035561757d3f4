"""A host's report: made from a decision, written to ZooKeeper when it says something new, and never more than is worth it."""

from __future__ import annotations

import msgspec

from deployd_core.clock import Clock, rfc3339
from deployd_core.coordination import Coordination, HostStatus, InstanceStatus, Snapshot
from deployd_core.errors import DeploydError
from deployd_core.observation import InstanceFacts
from deployd_core.planner import Decision, HostStep
from deployd_core.tasks import Tasks

_AT_MOST_EVERY = 1.0
"""Seconds between two reports that differ in detail only; a new step is reported at once."""
_KEY = "report"


class Report:
    """What ZooKeeper was last told, and what it should be told next."""

    def __init__(self, service: str, coordination: Coordination, clock: Clock, *, version: str) -> None:
        self._service = service
        self._coordination = coordination
        self._clock = clock
        self._version = version
        self._written: HostStatus | None = None
        self._writing: HostStatus | None = None
        self._since = rfc3339(clock.time())
        self._step: tuple[str, str | None] = ("", None)
        self._not_before = 0.0
        self._progress: tuple[int, int | None] | None = None

    def status(self, decision: Decision, snapshot: Snapshot, instances: list[InstanceFacts], *, last_error: str) -> HostStatus:
        """The report that a decision makes."""
        wanted = snapshot.enabled.build if snapshot.enabled else None
        served = {facts.serves for facts in instances}
        return HostStatus(
            host=snapshot.host,
            zone=snapshot.membership.zone,
            role=snapshot.membership.role,
            wanted=wanted,
            served=served.pop() if len(served) == 1 else None,
            step=decision.step.value,
            since=self._since if self._step == (decision.step.value, wanted) else rfc3339(self._clock.time()),
            rollout=snapshot.rollout_id,
            reason=decision.reason,
            remedy=decision.remedy.value if decision.remedy is not None else "",
            deadline=self._wall(decision.deadline),
            last_error=last_error,
            down=decision.down,
            instances=_instances(decision, instances),
            agent=self._version,
        )

    def progressed(self, done: int | None = None, total: int | None = None) -> None:
        """A fetch has come so far (bytes); without an argument it is over. May be called from any thread."""
        self._progress = None if done is None else (done, total)

    def with_progress(self, decision: Decision) -> Decision:
        """The decision, saying how far a fetch is."""
        if decision.step is not HostStep.FETCHING or self._progress is None:
            return decision
        return msgspec.structs.replace(decision, reason=progress_in_words(*self._progress))

    def tell(self, status: HostStatus, tasks: Tasks, epoch: int) -> bool:
        """Write the report when it is worth it. True when the step is a new one."""
        new_step = (status.step, status.wanted) != self._step
        if new_step:
            self._step, self._since = (status.step, status.wanted), status.since
        now = self._clock.monotonic()
        unchanged = _essence(status) == _essence(self._written) if self._written else False
        if unchanged or _KEY in tasks.busy or (now < self._not_before and not new_step):
            return new_step
        self._writing = status
        self._not_before = now + _AT_MOST_EVERY
        tasks.start(_KEY, lambda: self._coordination.report(self._service, status), timeout=30.0, epoch=epoch)
        return new_step

    def sent(self, error: DeploydError | None) -> None:
        """Learn how the write ended; a report that was lost is written again."""
        if error is None:
            self._written = self._writing

    def due(self, status: HostStatus, busy: frozenset[str]) -> float | None:
        """When there is something left to write; None while a write is under way, whose end wakes the loop."""
        if _KEY in busy:
            return None
        return self._not_before if self._written is None or _essence(status) != _essence(self._written) else None

    def _wall(self, moment: float | None) -> str | None:
        return None if moment is None else rfc3339(self._clock.time() + moment - self._clock.monotonic())


def progress_in_words(done: int, total: int | None) -> str:
    """How far a fetch is, in tenths: every change of these words is a write to ZooKeeper."""
    return f"fetched {done * 10 // total * 10} % of {total / 1e6:.0f} MB" if total else "fetching, size unknown"


def _essence(status: HostStatus | None) -> HostStatus | None:
    """A report without what moves by itself: nobody needs to read that a deadline was recomputed a millisecond later."""
    return msgspec.structs.replace(status, deadline=None, since="") if status else None


def _instances(decision: Decision, instances: list[InstanceFacts]) -> tuple[InstanceStatus, ...]:
    known = {facts.name: facts for facts in instances}
    return tuple(
        InstanceStatus(
            name=view.name,
            phase=view.phase.value,
            serves=view.serves,
            state=view.state.value,
            health=view.health.value,
            reason=known[view.name].reason if view.name in known else "",
        )
        for view in decision.instances
    )
