"""An instance as it really is, whatever its agent knows of it."""

from __future__ import annotations

import math

from deployd_core.api import ClosedGate, Connections, Verdict
from deployd_core.model import Instance, ProcessId, State
from deployd_core.sightings import Sighting

NEVER = math.inf

_STARTING = Verdict.unhealthy("does not answer yet")
_HEALTHY = Verdict.healthy("answers")
_DOWN = Verdict.unhealthy("does not run")
_EVIDENCE = "its process lives in that release"
_BUSY, _QUIET, _RECENT = Connections(busy=2), Connections(busy=0), Connections(busy=1, recent=1)


class VirtualInstance:
    """A process, its health over time, and its gate."""

    __slots__ = (
        "answers_from",
        "available",
        "back_at",
        "closed",
        "disturbed",
        "drained_at",
        "draining_since",
        "model",
        "name",
        "outage",
        "process",
        "serves",
        "starts",
        "state",
    )

    def __init__(self, model: Instance, serves: str | None) -> None:
        self.model = model
        self.name = model.name
        self.serves = serves
        """The build in whose release its process lives; None when there is no process."""
        self.state = State.RUNNING if serves is not None else State.STOPPED
        self.process = ProcessId(1, 1.0)
        self.starts = 0
        """How often it was started; a start that was ordered before the last one is none."""
        self.answers_from = 0.0 if serves is not None else NEVER
        """When it begins to answer its probe."""
        self.outage = (NEVER, NEVER)
        """A while in which it answers no more, from and to."""
        self.closed: ClosedGate | None = None
        """Its gate, while that is closed."""
        self.drained_at = 0.0
        """When its last request ends, once its gate is closed."""
        self.draining_since: float | None = None
        """When its traffic began to be turned off; None when it is not, or when it was restarted since."""
        self.back_at = 0.0
        """When clients use it again, once its gate is open."""
        self.available = serves is not None
        """As it was last counted."""
        self.disturbed = False
        """Deploying has taken it out, and it has not been open and healthy since."""

    @property
    def runs(self) -> bool:
        """Whether it has a process."""
        return self.serves is not None

    def healthy(self, now: float) -> bool:
        """Whether it answers its probe."""
        return self.serves is not None and self.answers_from <= now and not self.outage[0] <= now < self.outage[1]

    def healthy_since(self, now: float) -> float:
        """Since when it has answered its probe without a break, if it does."""
        return self.outage[1] if self.outage[1] <= now else self.answers_from

    def in_flight(self, now: float) -> int:
        """Requests that clients are waiting for."""
        if self.serves is None or now < self.answers_from:
            return 0
        busy = now < self.drained_at if self.closed is not None else now >= self.back_at
        return _BUSY.busy if busy else 0

    def can_serve(self, now: float) -> bool:
        """Whether a client gets an answer: it is open and healthy."""
        return self.closed is None and self.healthy(now)

    def stop(self, state: State = State.STOPPED) -> None:
        """Its process ends."""
        self.serves, self.state, self.draining_since = None, state, None
        self.answers_from, self.outage = NEVER, (NEVER, NEVER)

    def start(self, build: str | None, answers_from: float, outage: tuple[float, float]) -> None:
        """A new process runs, in the release that `current` points at; with none there is nothing to run."""
        self.process = ProcessId(self.process.pid + 1, self.process.started + 1.0)
        self.serves, self.state = build, State.RUNNING if build is not None else State.FAILED
        self.answers_from, self.outage = answers_from, outage

    def next_change(self, now: float) -> float:
        """When it begins or ends to answer its probe, if nobody does anything."""
        return min([moment for moment in (self.answers_from, *self.outage) if moment > now], default=NEVER)

    def next_healthy(self, now: float) -> float:
        """From when on it answers its probe, if nobody does anything; now when it does already."""
        return now if self.healthy(now) else self.next_change(now)

    def sighting(self, now: float, *, gated: bool) -> Sighting:
        """What a look finds now; with `gated`, its connections are counted."""
        if self.serves is None:
            return Sighting(state=self.state, verdict=_DOWN, closed=self.closed)
        connections, healthy = None, self.healthy(now)
        if self.closed is not None:
            connections = _BUSY if now < self.drained_at else _QUIET
        elif gated:
            connections = _RECENT if self.back_at <= now and healthy else _QUIET
        return Sighting(
            state=self.state,
            process=self.process,
            serves=self.serves,
            release=self.serves,
            evidence=_EVIDENCE,
            verdict=_HEALTHY if healthy else _STARTING,
            closed=self.closed,
            connections=connections,
        )
