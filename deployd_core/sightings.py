"""What the engine knows of an instance: the last look at it, and how long it has been healthy.

A look asks the manager for the main process, the kernel what that process really serves, and the probe for its health. Counting
starts again whenever the process changes, so that a service that keeps dying never adds up to a healthy one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from deployd_core import processes
from deployd_core.api import ClosedGate, Connections, Gate, InstanceCall, Manager, Probe, Status, Verdict
from deployd_core.boundary import Bound
from deployd_core.errors import DeploydError, Unavailable
from deployd_core.model import Flip, Health, Instance, ProcessId, State
from deployd_core.observation import InstanceFacts

_STEADY_COUNTS, _STEADY_SECONDS = 5, 1.5
"""Clients are back when at least so many counts, over at least so many seconds, found some. A gate counts a connection as recent
for a second, so that one request shows in counts over one second: only a second request makes them span more."""
_HEALTHY = Health.HEALTHY  # looked up once, since it is slow to find on its class
_NO_PROCESS = "says that it runs, but not as which process: have it tell the pid (pid_file, pid), or name the instance NAME@PORT"


class Sighting(Struct, frozen=True, kw_only=True):
    """One look at an instance."""

    state: State
    process: ProcessId | None = None
    serves: str | None = None
    evidence: str = ""
    """Why it is said to serve that build, or none."""
    release: str | None = None
    """The build in whose release it lives, whatever it serves."""
    restarted_for: str = ""
    """The rollout that the last flip before it started was for, when that was a restart."""
    verdict: Verdict
    manager_away: bool = False
    """The manager could not be asked."""
    closed: ClosedGate | None = None
    """None when its gate is open."""
    held: bool = False
    """It was closed by another process, which lives."""
    gate_problem: str = ""
    """Why the gate could not be looked at: nothing is known of it then."""
    connections: Connections | None = None


_NOT_LOOKED = Sighting(state=State.UNKNOWN, verdict=Verdict.unknown(""))
"""What is known of an instance that has not been looked at since something was done to it."""


def unseen(error: DeploydError) -> Sighting:
    """A look that came to nothing: it is no evidence of anything, of the gate as little as of the process."""
    return Sighting(state=State.UNKNOWN, verdict=Verdict.unknown(error.message), gate_problem=error.message)


class Lookout(Struct, frozen=True, kw_only=True):
    """What it takes to look at the instances of a service."""

    manager: Bound[Manager[Any]]
    probe: Bound[Probe[Any]] | None
    gate: Bound[Gate[Any]] | None
    probe_timeout: float
    owner: str
    """Who we are, in the gates that we close."""

    def look(self, call: InstanceCall, root: Path, flips: Sequence[Flip], *, returning: bool = False) -> Sighting:
        """Look once. What a manager, a probe or a gate raises is what was seen.

        Args:
            call: The instance.
            root: The directory of its service.
            flips: When `current` was pointed where.
            returning: Its gate was opened a moment ago: its clients are counted.
        """
        sighting = self._look_at_process(call, root, flips)
        return sighting if self.gate is None else self._look_at_gate(self.gate, call, sighting, returning=returning)

    def _look_at_process(self, call: InstanceCall, root: Path, flips: Sequence[Flip]) -> Sighting:
        try:
            status = self.manager.ask(Status, f"asking for {call.instance.name}", lambda manager: manager.state(call))
        except DeploydError as error:
            away = isinstance(error, Unavailable)
            return Sighting(state=State.UNKNOWN, verdict=Verdict.unknown(error.message), manager_away=away)
        pid = status.pid
        if pid is None and status.state is State.RUNNING and call.instance.port is not None:
            pid = processes.listener(call.instance.port)
        if pid is None and status.state is State.RUNNING:
            return Sighting(state=status.state, verdict=Verdict.unknown(f"manager {self.manager.name} {_NO_PROCESS}"))
        running = processes.inspect(pid, root, flips) if pid is not None else None
        if running is None:
            return Sighting(state=status.state, verdict=Verdict.unhealthy(_words(status)))
        return Sighting(
            state=status.state,
            process=running.process,
            serves=running.serves,
            evidence=running.why,
            release=running.release,
            restarted_for=running.restarted_for,
            verdict=self._check(call, status),
        )

    def _check(self, call: InstanceCall, status: Status) -> Verdict:
        if self.probe is None:
            return Verdict.healthy(_words(status)) if status.state is State.RUNNING else Verdict.unknown(_words(status))
        checked = msgspec.structs.replace(call, timeout=self.probe_timeout)
        try:
            return self.probe.ask(Verdict, f"checking {call.instance.name}", lambda probe: probe.check(checked))
        except DeploydError as error:
            return Verdict.unknown(error.message)

    def _look_at_gate(self, gate: Bound[Gate[Any]], call: InstanceCall, sighting: Sighting, *, returning: bool) -> Sighting:
        name = call.instance.name
        try:
            gates = gate.ask(tuple[ClosedGate, ...], "listing closed gates", lambda it: tuple(it.closed(call)))
        except DeploydError as error:
            return msgspec.structs.replace(sighting, gate_problem=_problem(error))
        closed = next((found for found in gates if found.instance == name), None)
        held = closed is not None and not processes.same_owner(closed.owner, self.owner) and processes.owner_lives(closed.owner)
        seen = msgspec.structs.replace(sighting, closed=closed, held=held)
        if closed is None and not returning:
            return seen
        try:
            counted = gate.ask(Connections, f"counting the connections of {name}", lambda it: it.connections(call))
        except DeploydError as error:
            return msgspec.structs.replace(seen, gate_problem=_problem(error))
        return msgspec.structs.replace(seen, connections=counted)


class Watch:
    """Follows one instance from look to look. Lost on a crash, and then learnt again."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.ordered = False
        self.next_look = 0.0
        self.changed_at = 0.0
        """When what is seen last changed: looks get rarer the longer nothing happens."""
        self._sighting: Sighting | None = None
        self._streak = 0
        self._healthy_since: float | None = None
        self._healthy_until: float | None = None
        self._state_since = 0.0
        self._last_process: ProcessId | None = None
        self._lives = 0
        self._warmed: ProcessId | None = None
        self._not_before = 0.0
        # Of the gate more is known than from the last look: what we did to it ourselves, even while the process is being restarted.
        self._closed: ClosedGate | None = None
        self._held = False
        self._lost = False
        self._first = True
        self._quiet = 0
        self._traffic: list[float] = []
        self._in_rotation = False
        self.opened_at: float | None = None
        """When its gate was opened, or first seen open: its clients are coming back from then on."""

    def saw(self, sighting: Sighting, *, started: float, ended: float) -> None:
        """Take a look that was begun at `started`; one begun before the last act shows the past and is dropped."""
        if started < self._not_before:
            return
        before, process, health = self._sighting, sighting.process, sighting.verdict.health
        if before is None or before.process != process:
            self._streak, self._healthy_since = 0, None
            self.changed_at, self._state_since = ended, started
        else:
            if before.verdict.health is not health:
                self.changed_at = ended
            if before.state is not sighting.state:
                self._state_since = started
        if process is not None and process != self._last_process:
            self._last_process = process
            self._lives += 1
        if health is _HEALTHY:
            self._streak += 1
            self._healthy_since = ended if self._healthy_since is None else self._healthy_since
            self._healthy_until = started
        else:
            self._streak, self._healthy_since = 0, None
        if not sighting.gate_problem:
            self._see_gate(sighting, ended)
        self._count(sighting, ended)
        self._sighting = sighting

    def _see_gate(self, sighting: Sighting, now: float) -> None:
        """Follow its gate, which others can change too."""
        if sighting.closed is None and (self._first or self._closed is not None):
            # Found open. An agent that was restarted in mid-rollout does not know whether the one before it had just opened it.
            self._lost = self._closed is not None
            self._wait_for_clients(now)
        self._first = False
        self._closed, self._held = sighting.closed, sighting.held

    def _count(self, sighting: Sighting, now: float) -> None:
        """Follow its connections: none at all for a while means drained, some for a second means that clients are back."""
        found = sighting.connections
        nothing = found is not None and found.busy == 0 and found.idle == 0
        self._quiet = self._quiet + 1 if nothing and sighting.closed is not None else 0
        if self.opened_at is not None and found is not None and found.recent and not self.traffic_back:
            self._traffic.append(now)
            self._in_rotation = found.in_rotation

    def _wait_for_clients(self, since: float | None) -> None:
        self.opened_at, self._traffic, self._in_rotation = since, [], False

    @property
    def traffic_back(self) -> bool:
        """Its clients have used it for a while since its gate was opened, or at all where the balancer says that it trusts it."""
        # One request may be a balancer's cautious try: only steady use says that it trusts the instance again.
        seen = self._traffic
        return self._in_rotation or (len(seen) >= _STEADY_COUNTS and seen[-1] - seen[0] >= _STEADY_SECONDS)

    def gate_opened(self, now: float) -> None:
        """Its gate was opened: from now on it must show that it stays healthy, and its clients are waited for."""
        self._closed, self._held, self._lost = None, False, False
        self._wait_for_clients(now)
        self._streak, self._healthy_since = 0, None
        self._not_before = self.next_look = self.changed_at = now
        if self._sighting is not None:
            self._sighting = msgspec.structs.replace(self._sighting, connections=None)

    def gate_closed(self, now: float, closed: ClosedGate) -> None:
        """Its gate was closed, or its lease moved. Counts of an open gate say nothing now; those of a closed one still do."""
        self._not_before = self.next_look = now
        seen = self._sighting
        if seen is not None:
            self._sighting = msgspec.structs.replace(seen, connections=seen.connections if self._closed else None, gate_problem="")
        if self._closed is None:
            self._quiet = 0
        self._closed, self._held, self._lost = closed, False, False

    def idle_closed(self, now: float) -> None:
        """Idle connections were closed: counts that were begun before still hold them, and are dropped."""
        self._not_before = now
        seen = self._sighting
        if seen is not None and seen.connections is not None:
            # Else they would be closed again at once, and each closing would make the count that is under way too old to be taken.
            counted = msgspec.structs.replace(seen.connections, idle=0)
            self._sighting = msgspec.structs.replace(seen, connections=counted)

    def restarting(self, now: float) -> None:
        """It is about to be restarted for the wanted build."""
        self.ordered = True
        self._lives = 0
        self._wait_for_clients(None)
        self.touched(now)

    def touched(self, now: float) -> None:
        """Something was done to the instance: what was seen before no longer counts."""
        self._sighting = None
        self._streak, self._healthy_since = 0, None
        self._not_before = self.next_look = self.changed_at = now

    def warmed(self) -> None:
        """The warm-up requests have been sent to the process that was last seen."""
        self._warmed = self._sighting.process if self._sighting else None

    def forget_orders(self) -> None:
        """Another build is wanted: what was ordered for the last one says nothing."""
        self.ordered = False
        self._warmed = None

    @property
    def release(self) -> str | None:
        """The build in whose release it lived when last looked at."""
        return (self._sighting.serves or self._sighting.release) if self._sighting else None

    @property
    def healthy_since(self) -> float | None:
        """Since when every look found it healthy."""
        return self._healthy_since

    def facts(self, wall: float, owner: str) -> InstanceFacts:
        """What the planner is told; `wall` is the time now, in seconds since the epoch, `owner` who we are."""
        looked, closed, seen = self._sighting is not None, self._closed, self._sighting or _NOT_LOOKED
        return InstanceFacts(
            name=self.instance.name,
            port=self.instance.port,
            looked=looked,
            state=seen.state,
            running=seen.process is not None,
            serves=seen.serves,
            restarted_for=seen.restarted_for,
            health=seen.verdict.health,
            streak=self._streak,
            healthy_since=self._healthy_since,
            healthy_until=self._healthy_until if looked else None,
            lives=self._lives if looked else 0,
            state_since=self._state_since if looked else 0.0,
            manager_away=seen.manager_away,
            reason=seen.verdict.reason,
            evidence=seen.evidence,
            ordered=self.ordered,
            warm=seen.process is not None and seen.process == self._warmed,
            gate_closed=closed is not None,
            gate_ours=closed is None or processes.same_owner(closed.owner, owner),
            gate_held=self._held,
            gate_lost=self._lost,
            gate_problem=seen.gate_problem,
            lease_left=max(0.0, closed.until - wall) if closed is not None else 0.0,
            connections=seen.connections,
            quiet=self._quiet if looked else 0,
            opened_at=self.opened_at,
            traffic_back=self.traffic_back,
        )


def _problem(error: DeploydError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message


def _words(status: Status) -> str:
    return f"{status.state.value}: {status.detail}" if status.detail else status.state.value
