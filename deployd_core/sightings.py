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
from deployd_core.api import Gate, InstanceCall, Manager, Probe, Status, Verdict
from deployd_core.boundary import Bound
from deployd_core.errors import DeploydError
from deployd_core.model import Flip, Health, Instance, ProcessId, State
from deployd_core.observation import InstanceFacts

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
    verdict: Verdict
    gate_closed: bool = False
    in_flight: int | None = None


class Lookout(Struct, frozen=True, kw_only=True):
    """What it takes to look at the instances of a service."""

    manager: Bound[Manager[Any]]
    probe: Bound[Probe[Any]] | None
    gate: Bound[Gate[Any]] | None
    probe_timeout: float

    def look(self, call: InstanceCall, root: Path, flips: Sequence[Flip]) -> Sighting:
        """Look once. Whatever goes wrong is what was seen: it never raises what a plugin raised."""
        try:
            status = self.manager.call(f"asking for {call.instance.name}", lambda manager: manager.state(call))
        except DeploydError as error:
            return Sighting(state=State.UNKNOWN, verdict=Verdict.unknown(error.message))
        pid = status.pid
        if pid is None and status.state is State.RUNNING and call.instance.port is not None:
            pid = processes.listener(call.instance.port)
        if pid is None and status.state is State.RUNNING:
            return Sighting(state=status.state, verdict=Verdict.unknown(f"manager {self.manager.name} {_NO_PROCESS}"))
        running = processes.inspect(pid, root, flips) if pid is not None else None
        if running is None:
            return Sighting(state=status.state, verdict=Verdict.unhealthy(_words(status)))
        sighting = Sighting(
            state=status.state,
            process=running.process,
            serves=running.serves,
            evidence=running.why,
            release=running.release,
            verdict=self._check(call, status),
        )
        return self._look_at_gate(call, sighting)

    def _check(self, call: InstanceCall, status: Status) -> Verdict:
        if self.probe is None:
            return Verdict.healthy(_words(status)) if status.state is State.RUNNING else Verdict.unknown(_words(status))
        checked = msgspec.structs.replace(call, timeout=self.probe_timeout)
        try:
            return self.probe.call(f"checking {call.instance.name}", lambda probe: probe.check(checked))
        except DeploydError as error:
            return Verdict.unknown(error.message)

    def _look_at_gate(self, call: InstanceCall, sighting: Sighting) -> Sighting:
        if self.gate is None:
            return sighting
        closed = self.gate.call("listing closed gates", lambda gate: gate.closed(call))
        if all(found.instance != call.instance.name for found in closed):
            return sighting
        in_flight = self.gate.call("counting connections", lambda gate: gate.in_flight(call))
        return msgspec.structs.replace(sighting, gate_closed=True, in_flight=in_flight)


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

    def saw(self, sighting: Sighting, *, started: float, ended: float) -> None:
        """Take a look that was begun at `started`; one begun before the last act shows the past and is dropped."""
        if started < self._not_before:
            return
        before = self._sighting
        if before is None or (before.process, before.verdict.health) != (sighting.process, sighting.verdict.health):
            self.changed_at = ended
        if before is None or before.process != sighting.process:
            self._streak, self._healthy_since = 0, None
        if sighting.process is not None and sighting.process != self._last_process:
            self._last_process = sighting.process
            self._lives += 1
        if before is None or (before.process, before.state) != (sighting.process, sighting.state):
            self._state_since = started
        if sighting.verdict.health is Health.HEALTHY:
            self._streak += 1
            self._healthy_since = ended if self._healthy_since is None else self._healthy_since
            self._healthy_until = started
        else:
            self._streak, self._healthy_since = 0, None
        self._sighting = sighting

    def restarting(self, now: float) -> None:
        """It is about to be restarted for the wanted build."""
        self.ordered = True
        self._lives = 0
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

    def facts(self) -> InstanceFacts:
        """What the planner is told."""
        known = InstanceFacts(name=self.instance.name, port=self.instance.port, ordered=self.ordered)
        seen = self._sighting
        if seen is None:
            return known
        return msgspec.structs.replace(
            known,
            looked=True,
            state=seen.state,
            running=seen.process is not None,
            serves=seen.serves,
            health=seen.verdict.health,
            streak=self._streak,
            healthy_since=self._healthy_since,
            healthy_until=self._healthy_until,
            state_since=self._state_since,
            lives=self._lives,
            reason=seen.verdict.reason,
            evidence=seen.evidence,
            warm=seen.process is not None and seen.process == self._warmed,
            gate_closed=seen.gate_closed,
            in_flight=seen.in_flight,
        )


def _words(status: Status) -> str:
    return f"{status.state.value}: {status.detail}" if status.detail else status.state.value
