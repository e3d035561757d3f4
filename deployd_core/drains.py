"""Closed gates as people handle them: what is closed on this host, opening it, and trying a drain without a restart.

None of it needs an agent; reaping needs no ZooKeeper either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from msgspec import Struct

from deployd_core.api import ClosedGate, Connections, DrainOptions, Gate, GateCall, HostCall
from deployd_core.boundary import Bound
from deployd_core.errors import ConfigError, DeploydError
from deployd_core.plugins import Kind, Plugins
from deployd_core.processes import owner_lives, same_owner
from deployd_core.remembered import recall

_COUNTING = 0.1
"""Seconds between two counts of an instance's connections."""
_QUIET = 3
"""Counts in a row that find nothing, before an instance is taken for drained."""
_SHORTEST_LEASE = 30.0


class Lease(Enum):
    """What holds a gate closed."""

    HELD = "held"  # its owner lives
    ORPHANED = "orphaned"  # its owner is gone, and its time is not up
    EXPIRED = "expired"  # its time is up: it has left a trace


class Closed(Struct, frozen=True, kw_only=True):
    """A closed gate, and who can tell of it."""

    by: Bound[Gate[Any]]
    """The gate that told of it, and can open it."""
    lease: ClosedGate
    state: Lease

    @property
    def gate(self) -> str:
        """The name of the plugin."""
        return self.by.name


class Asked(Struct, frozen=True, kw_only=True):
    """The gates that can be asked about all of a host."""

    gates: tuple[Bound[Gate[Any]], ...]
    problems: tuple[str, ...] = ()
    """Gates on record that cannot be asked, and why."""


class Found(Struct, frozen=True, kw_only=True):
    """What the gates of this host say."""

    closed: tuple[Closed, ...]
    problems: tuple[str, ...]
    """Gates that could not be asked, and why."""


def gates(plugins: Plugins, state_directory: Path) -> Asked:
    """The gates to ask: those on record with the options of their services, then those that work without options and can tell."""
    found, problems = recall(state_directory, plugins)
    for implementation in plugins.of_kind(Kind.GATE):
        kind: Any = implementation.plugin
        if kind.closed_everywhere is Gate.closed_everywhere:
            continue
        try:
            found.append(plugins.make(Kind.GATE, kind.name, {}, where="deployd drains"))
        except ConfigError:
            continue  # it has to be told where its balancer is
    return Asked(gates=tuple(found), problems=tuple(problems))


def list_closed(asked: Asked) -> Found:
    """Ask every gate; one that cannot be asked does not hide what the others know.

    Raises:
        DeploydError: None could be asked.
    """
    known: dict[ClosedGate, Closed] = {}
    problems = list(asked.problems)
    errors: list[DeploydError] = []
    for gate in asked.gates:
        try:
            leases = gate.call("listing closed gates", lambda it: it.closed_everywhere())
        except DeploydError as error:
            problems.append(f"{gate.name}: {error.message}")
            errors.append(error)
            continue
        for lease in leases:
            # A gate that hands on to another tells of the same leases: the later one, which holds them, is named.
            known[lease] = Closed(by=gate, lease=lease, state=state_of(lease, time.time()))
    if asked.gates and len(errors) == len(asked.gates):
        raise errors[0]
    return Found(closed=tuple(sorted(known.values(), key=_order)), problems=tuple(dict.fromkeys(problems)))


def state_of(lease: ClosedGate, now: float) -> Lease:
    """What holds it at a moment, in seconds since the epoch."""
    if lease.until <= now:
        return Lease.EXPIRED
    return Lease.HELD if owner_lives(lease.owner) else Lease.ORPHANED


def clear(closed: Sequence[Closed]) -> tuple[list[Closed], list[DeploydError]]:
    """Open what is closed, each by the gate that told of it; what was opened, and what went wrong on the way."""
    opened: list[Closed] = []
    errors: list[DeploydError] = []
    for found in closed:
        service, instance = found.lease.service, found.lease.instance
        try:
            found.by.call(f"opening {instance}", lambda it, s=service, i=instance: it.clear(s, i))  # type: ignore[misc]
        except DeploydError as error:
            errors.append(error)
        else:
            opened.append(found)
    return opened, errors


def dead(asked: Asked, *, grace: float, wait: Callable[[float], object] = time.sleep) -> Found:
    """What no live process stands for: leases that have run out, and those whose owner is gone and stays gone.

    Args:
        asked: The gates to ask.
        grace: Seconds in which an agent that is being restarted may take over what it left.
        wait: Lets that time pass.
    """
    before = list_closed(asked)
    if not any(found.state is Lease.ORPHANED for found in before.closed):
        return Found(closed=tuple(found for found in before.closed if found.state is Lease.EXPIRED), problems=before.problems)
    wait(grace)
    now = list_closed(asked)
    orphans = {found.lease for found in before.closed}
    gone = [
        found for found in now.closed if found.state is Lease.EXPIRED or (found.state is Lease.ORPHANED and found.lease in orphans)
    ]
    return Found(closed=tuple(gone), problems=now.problems)


class Rehearsal(Struct, frozen=True, kw_only=True):
    """How one instance was drained, with no restart."""

    instance: str
    at_close: Connections
    """At the moment its gate closed."""
    drained_after: float | None
    """Seconds; None when it was not drained in time."""
    left: Connections
    """What was left at the end: a restart would have cut it."""
    idle_closed: int
    """Connections that clients kept open and did not use, closed by us."""
    clients_back_after: float | None = None
    """Seconds from opening the gate; None when nobody came in time."""


def rehearse(
    gate: Bound[Gate[Any]],
    call: Callable[[float], GateCall],
    drain: DrainOptions,
    *,
    wait: Callable[[float], object] = time.sleep,
) -> Rehearsal:
    """Close the gate of an instance, wait until it is drained, open it, and wait until its clients are back.

    The gate is open again however this ends; if this process is killed, at the end of a short lease.

    Args:
        gate: What turns the traffic off.
        call: What the gate is told, given the end of the lease.
        drain: How long to wait for what.
        wait: Lets time pass between two counts.
    """
    lease = max(_SHORTEST_LEASE, 2 * float(drain.drain_timeout))
    closing = call(time.time() + lease)
    name = closing.instance.name

    def count() -> Connections:
        return gate.call(f"counting the connections of {name}", lambda it: it.connections(closing))

    at_close = count()
    began = time.monotonic()
    try:
        gate.call(f"closing {name}", lambda it: it.close(closing))
        left, idle_closed, drained = _drain(gate, closing, drain, count, wait)
        took = time.monotonic() - began
    finally:
        _open(gate, closing)
    opened = time.monotonic()
    back = _clients_back(count, float(drain.traffic_timeout), wait) if at_close.busy + at_close.idle + at_close.recent else False
    return Rehearsal(
        instance=name,
        at_close=at_close,
        drained_after=took if drained else None,
        left=left,
        idle_closed=idle_closed,
        clients_back_after=time.monotonic() - opened if back else None,
    )


def _drain(
    gate: Bound[Gate[Any]], call: GateCall, drain: DrainOptions, count: Callable[[], Connections], wait: Callable[[float], object]
) -> tuple[Connections, int, bool]:
    """Wait as the agent does; what is left, how many idle connections were closed, and whether it was drained in time."""
    deadline, settled = time.monotonic() + drain.drain_timeout, time.monotonic() + drain.settle
    quiet = idle_closed = 0
    while True:
        found = count()
        quiet = quiet + 1 if not found.busy and not found.idle else 0
        if quiet >= _QUIET and time.monotonic() >= settled:
            return found, idle_closed, True
        if time.monotonic() >= deadline:
            return found, idle_closed, False
        if found.idle:
            idle_closed += gate.call(f"closing idle connections of {call.instance.name}", lambda it: it.close_idle(call))
        wait(_COUNTING)


def _clients_back(count: Callable[[], Connections], timeout: float, wait: Callable[[float], object]) -> bool:
    deadline = time.monotonic() + timeout
    while not count().recent:
        if time.monotonic() >= deadline:
            return False
        wait(_COUNTING)
    return True


def _open(gate: Bound[Gate[Any]], call: GateCall) -> None:
    """Open it, unless somebody else has taken it over: an agent that begins to deploy does."""
    name = call.instance.name
    closed = gate.call("listing closed gates", lambda it: it.closed(call))
    others = (found.owner for found in closed if found.instance == name and not same_owner(found.owner, call.owner))
    if not any(owner_lives(owner) for owner in others):
        gate.call(f"opening {name}", lambda it: it.open(call))


def _order(closed: Closed) -> tuple[str, str, str]:
    return closed.lease.service, closed.lease.instance, closed.gate


def in_the_way(gate: Bound[Gate[Any]], call: HostCall) -> str:
    """Why a rehearsal cannot begin: an instance of the service that is closed already. Empty: it can."""
    closed = gate.call("listing closed gates", lambda it: it.closed(call))
    return f"{closed[0].instance} is closed already, by {closed[0].owner}" if closed else ""
