"""PURE: what a rollout looks like to a person, from what ZooKeeper holds: every host's state, and whether it is over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING

from deployd_core.coordination import HistoryEntry, RolloutState
from deployd_core.model import Role

if TYPE_CHECKING:
    from deployd_core.zookeeper.services import ServiceRecord
    from deployd_core.zookeeper.status import FleetStatus, HostEntry


class HostState(Enum):
    """What a host is doing about the build it should serve, coarse enough to be counted; in the order of a bar."""

    CONVERGED = "converged"
    RESTARTING = "restarting"
    WAITING = "waiting"
    STAGING = "staging"
    UNAWARE = "unaware"  # its last report is about something else
    DEGRADED = "degraded"
    BLOCKED = "blocked"
    FAILED = "failed"
    DEAD = "dead"  # not done, and its agent is not running
    IDLE = "idle"  # nothing is enabled for it

    @property
    def trouble(self) -> bool:
        """Whether nothing will happen by itself."""
        return self in (HostState.BLOCKED, HostState.FAILED, HostState.DEAD)


_STEPS = {
    "fetching": HostState.STAGING,
    "unpacking": HostState.STAGING,
    "preparing": HostState.STAGING,
    "waiting": HostState.WAITING,
    "flipping": HostState.RESTARTING,
    "restarting": HostState.RESTARTING,
    "checking": HostState.RESTARTING,
    "degraded": HostState.DEGRADED,
    "converged": HostState.CONVERGED,
    "reverting": HostState.RESTARTING,
    "reverted": HostState.FAILED,
    "broken": HostState.FAILED,
    "failed": HostState.FAILED,
    "blocked": HostState.BLOCKED,
}


def state_of(entry: HostEntry) -> HostState:
    """What a host is doing about the build it should serve."""
    if entry.wanted is None:
        return HostState.IDLE
    status = entry.status
    aware = status is not None and status.rollout == entry.rollout_id
    state = _STEPS.get(status.step, HostState.UNAWARE) if status is not None and aware else HostState.UNAWARE
    return state if entry.alive or state in (HostState.CONVERGED, HostState.FAILED) else HostState.DEAD


def step_of(entry: HostEntry) -> str:
    """The same, in the agent's own words where they are of use."""
    state = state_of(entry)
    if entry.status is None or state in (HostState.UNAWARE, HostState.DEAD, HostState.IDLE):
        return state.value
    return entry.status.step if entry.alive else f"{entry.status.step}, agent dead"


def reason_of(entry: HostEntry) -> str:
    """Why a host is not done, in one line; empty when it is."""
    status, state = entry.status, state_of(entry)
    if state is HostState.UNAWARE:
        return "has not reported on this rollout yet"
    if state is HostState.DEAD:
        last = f"; it last said: {status.step} {status.wanted or ''}".rstrip() if status is not None else ""
        return f"its agent is not running{last}"
    if status is None or state in (HostState.CONVERGED, HostState.IDLE):
        return ""
    return " ".join((status.reason or status.last_error).split())


def ready_of(entry: HostEntry) -> str:
    """How many instances of a host serve the wanted build, healthy and open: ``1/2``."""
    instances = entry.status.instances if entry.status is not None else ()
    return f"{sum(instance.phase == 'ready' for instance in instances)}/{len(instances)}" if instances else ""


class Verdict(Enum):
    """How a rollout stands."""

    GOING = "going"
    DONE = "done"
    HELD = "held"  # paused, halted, frozen, or another build was enabled
    STUCK = "stuck"  # nobody left who could get further


def entries_of(fleet: FleetStatus, rollout: str) -> list[HostEntry]:
    """The hosts that take part in a rollout."""
    return [entry for entry in fleet.hosts if entry.rollout_id == rollout]


def stopped(record: ServiceRecord, now: datetime | None = None) -> str:
    """Why no host may begin to restart: who stopped it and why; empty when nobody did."""
    freeze, rollout = record.freeze, record.rollout
    if freeze is not None and freeze.active(now or datetime.now(UTC)):
        until = f" until {freeze.until}" if freeze.until else ""
        return f"every service is frozen{_by(freeze.by)}{until}: {freeze.why or 'no reason given'}"
    if rollout.state is not RolloutState.OPEN:
        return f"the rollout is {rollout.state.value}{_by(rollout.by)}: {rollout.why or 'no reason given'}"
    return ""


def verdict_of(fleet: FleetStatus, rollout: str, role: Role) -> Verdict:
    """How a rollout that was begun for a role stands."""
    states = [state_of(entry) for entry in entries_of(fleet, rollout)]
    if fleet.record.rollout_for(role) != rollout:
        return Verdict.HELD
    if states and all(state is HostState.CONVERGED for state in states):
        return Verdict.DONE
    if stopped(fleet.record):
        return Verdict.HELD
    lacking = [state for state in states if state is not HostState.CONVERGED]
    return Verdict.STUCK if lacking and all(state.trouble for state in lacking) else Verdict.GOING


def count(entries: Iterable[HostEntry]) -> dict[HostState, int]:
    """How many hosts are in each state; states without any are left out."""
    found = Counter(map(state_of, entries))
    return {state: found[state] for state in HostState if found[state]}


def ago(moment: str, now: datetime | None = None) -> str:
    """How long ago a stored moment was, in one unit: ``12s``, ``3m``, ``2h``, ``5d``; the text itself when it is no moment."""
    try:
        seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(moment)).total_seconds()
    except (ValueError, TypeError):
        return moment
    return in_words(max(0.0, seconds))


def in_words(seconds: float) -> str:
    """A length of time in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(seconds)}s"


def previous_build(history: Sequence[HistoryEntry], record: ServiceRecord, role: Role) -> str:
    """What a role was to serve before; ``BUILD`` when that is not known."""
    enabled = record.enabled_for(role)
    others = [entry.build for entry in history if entry.role in (role, Role.FLEET) and enabled and entry.build != enabled.build]
    return others[-1] if others else "BUILD"


def advice(service: str, entry: HostEntry, previous: str) -> str:
    """What to type next about a host that is not done; `previous` is the build to go back to."""
    state = state_of(entry)
    build = entry.wanted.build if entry.wanted else "BUILD"
    canary = " --canary" if entry.role is Role.CANARY else ""
    if state is HostState.DEAD:
        return f"on {entry.host}: systemctl status deployd-agent, journalctl -u deployd-agent"
    if state is HostState.FAILED:
        return f"mend {entry.host}, or go back: deployd enable {service} {previous}{canary}"
    if state is HostState.BLOCKED:
        return f"mend what the reason names; then deployd enable {service} {build}{canary} again, or another build"
    if state is HostState.DEGRADED:
        return f"look at that instance on {entry.host}"
    return "" if state in (HostState.CONVERGED, HostState.IDLE) else "nothing: it goes on by itself"


def stop_advice(record: ServiceRecord, previous: str) -> str:
    """What to type next about a stop."""
    if record.rollout.state is RolloutState.OPEN:
        return "whoever froze the services lifts it; it stops nothing that serves"
    build = record.enabled.build if record.enabled else "BUILD"
    return f"go on: deployd enable {record.service} {build}; or go back: deployd enable {record.service} {previous}"


def _by(name: str) -> str:
    return f" by {name}" if name else ""
