"""A host's turn: what it makes of the answers when it asks for a permit, what it says of permits that are held for too long, and
when it looks whether the rollout has been completed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from deployd_core.acts import LeaveQueue
from deployd_core.clock import Clock, until
from deployd_core.coordination import Coordination, Denial, Denied, Link, Permit, Snapshot
from deployd_core.model import Role, Veto
from deployd_core.setbacks import Setbacks
from deployd_core.spec import Promotion
from deployd_core.tasks import Tasks

ASK_AGAIN = 60.0
"""Seconds after which a host asks for a permit again without being told that anything has changed: a net under missed watches."""
_SOON = 0.01
_VETO_AGAIN = 1.0
"""Seconds that pass at least before a plugin that had a veto is asked again, which is a line in the log."""
_LEAVE_WITHIN = 60.0
_LOOK_COSTS = 0.001
"""Seconds for each host that is looked at, in which no other host looks whether all have finished: however many there are,
ZooKeeper has as much to answer."""

_ASKING, _ADVANCING = "takepermit", "advance"


class Turn:
    """What it keeps makes a host patient, and an alarm sound once; lose it, and nothing goes wrong."""

    def __init__(self, setbacks: Setbacks, clock: Clock, rng: random.Random) -> None:
        self._setbacks = setbacks
        self._clock = clock
        self._random = rng
        self._said: tuple[object, ...] = ()
        self._looks = 0
        self._between_looks = 0.0
        self.advanced = False
        """There is nothing left that this host could do for the rollout as a whole."""

    def begin(self, snapshot: Snapshot | None) -> None:
        """Another rollout has begun."""
        self.advanced, self._looks = False, 0
        hosts = snapshot.hosts if snapshot else 1
        # Many may find at once that there is nothing to do: one that looks round is enough. Only a canary may have to promote.
        self._between_looks = hosts * _LOOK_COSTS * (1 if _promotes(snapshot) else hosts)
        self._setbacks.postpone(_ADVANCING, self._clock.monotonic() + self._random.uniform(0.0, self._between_looks))

    def finished(self) -> None:
        """The permit of this host has been given back: whoever is the last completes the rollout."""
        self._setbacks.lift(_ADVANCING)

    def looked(self, again_in: float | None, now: float) -> None:
        """Whether it is worth to look at the rollout again, and after how long at most."""
        self.advanced = again_in is None
        if again_in is not None:
            self._looks += 1
            wait = max(self._between_looks, min(again_in, 2.0 ** min(self._looks - 1, 10)))
            self._setbacks.postpone(_ADVANCING, now + wait * self._random.uniform(0.8, 1.2))

    def answered(self, answer: Permit | Denied | Veto, now: float) -> bool:
        """Take the answer to a request. True when ZooKeeper must be looked at again: a permit shows in the next snapshot."""
        if isinstance(answer, Veto):
            again = max(answer.retry_after, _VETO_AGAIN)
            self._setbacks.refused(_ASKING, f"vetoed by {answer.reason}", now, retry_after=again)
            return False
        if not isinstance(answer, Denied) or answer.code is Denial.CHANGED:
            return True
        ends_in = ASK_AGAIN if answer.until is None else until(answer.until, self._clock.time())
        self._setbacks.refused(_ASKING, answer.reason, now, retry_after=min(ASK_AGAIN, max(ends_in, _SOON)))
        return False

    def stand_aside(self, snapshot: Snapshot, coordination: Coordination, tasks: Tasks, epoch: int) -> None:
        """Leave the queue: a host that cannot begin must not be waited for, nor be granted a permit by whoever is the first."""
        key = LeaveQueue().key
        setback = self._setbacks.by_key.get(key)
        ready = key not in tasks.busy and (setback is None or setback.retry_at <= self._clock.monotonic())
        if snapshot.queued and ready and coordination.link is Link.CONNECTED:
            tasks.start(key, lambda: coordination.leave_queue(snapshot.service), timeout=_LEAVE_WITHIN, epoch=epoch)

    def alarm(self, snapshot: Snapshot, answer: object = None) -> Mapping[str, object] | None:
        """What is to be said of permits that are held for too long; None when there is nothing new to say."""
        if isinstance(answer, Denied) and answer.stuck:
            return self._once(answer.stuck, {"hosts": answer.stuck, "reason": answer.reason})
        permit, spec = snapshot.permit, snapshot.spec
        if permit is None or spec is None or not permit.since:
            return None
        held = -until(permit.since, self._clock.time())
        if held < spec.rollout.permit_alarm:
            return None
        return self._once((permit.host, permit.token), {"hosts": (permit.host,), "since": permit.since, "seconds": round(held)})

    def _once(self, key: tuple[object, ...], detail: Mapping[str, object]) -> Mapping[str, object] | None:
        if key == self._said:
            return None
        self._said = key
        return detail


def _promotes(snapshot: Snapshot | None) -> bool:
    """Whether this host may have to take a build from the canaries to the fleet: then it must not be late."""
    if snapshot is None or snapshot.spec is None:
        return False
    return snapshot.membership.role is Role.CANARY and snapshot.spec.rollout.promotion is Promotion.AUTO
