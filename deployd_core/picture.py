"""PURE: what a rollout looks like to a person, from what ZooKeeper holds: every host's state, and whether it is over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING

from deployd_core.coordination import RolloutState
from deployd_core.model import Health, Phase, Role
from deployd_core.spec import Promotion

if TYPE_CHECKING:
    from deployd_core.coordination import Freeze
    from deployd_core.zookeeper.services import ServiceRecord
    from deployd_core.zookeeper.status import FleetStatus, HostEntry


class HostState(Enum):
    """What a host is doing about the build it should serve, coarse enough to be counted; in the order of a bar."""

    CONVERGED = "converged"
    RESTARTING = "restarting"
    CHECKING = "checking"  # serves the build, and finds out whether it is healthy: nothing is restarted
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
    "checking": HostState.CHECKING,
    "degraded": HostState.DEGRADED,
    "converged": HostState.CONVERGED,
    "reverting": HostState.RESTARTING,
    "reverted": HostState.FAILED,
    "broken": HostState.FAILED,
    "failed": HostState.FAILED,
    "blocked": HostState.BLOCKED,
}

_SERVING = (Phase.STALE.value, Phase.RETURNING.value, Phase.READY.value)
"""Where an instance that is healthy gets requests."""


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


def excuse_of(entry: HostEntry) -> str:
    """That a host is not waited for, by whose word and why; empty when nobody has excused it."""
    return f"excused{_by(entry.excused.by)}: {entry.excused.why}" if entry.excused is not None else ""


def ready_of(entry: HostEntry) -> str:
    """How many instances of a host can serve now, whichever build: healthy, open and not being restarted: ``1/2``."""
    instances = entry.status.instances if entry.status is not None else ()
    able = sum(instance.health == Health.HEALTHY.value and instance.phase in _SERVING for instance in instances)
    return f"{able}/{len(instances)}" if instances else ""


class Verdict(Enum):
    """How a rollout stands."""

    GOING = "going"
    DONE = "done"
    HELD = "held"  # paused, halted, frozen, to be promoted by somebody, or another build was enabled
    STUCK = "stuck"  # nobody left who could get further


def entries_of(fleet: FleetStatus, rollout: str) -> list[HostEntry]:
    """The hosts that take part in a rollout."""
    return [entry for entry in fleet.hosts if entry.rollout_id == rollout]


def stopped(record: ServiceRecord, now: datetime | None = None) -> str:
    """Why no host may begin to restart: who stopped it and why; empty when nobody did."""
    freeze, rollout = record.freeze, record.rollout
    if freeze is not None and freeze.active(now or datetime.now(UTC)):
        return f"every service is {in_force(freeze)}"
    if rollout.state is not RolloutState.OPEN:
        return f"the rollout is {rollout.state.value}{_by(rollout.by)}: {rollout.why or 'no reason given'}"
    return ""


def in_force(freeze: Freeze) -> str:
    """Who froze every service, until when and why."""
    until = f" until {freeze.until}" if freeze.until else ""
    return f"frozen{_by(freeze.by)}{until}: {freeze.why or 'no reason given'}"


def verdict_of(fleet: FleetStatus, rollout: str, role: Role) -> Verdict:
    """How a rollout that was begun for a role stands."""
    states = [state_of(entry) for entry in entries_of(fleet, rollout)]
    if fleet.record.rollout_for(role) != rollout:
        return Verdict.HELD
    # That it is complete is on record a moment after its last host is done; a host that was excused is never done.
    if rollout in fleet.record.rollout.done or (states and all(state is HostState.CONVERGED for state in states)):
        return Verdict.DONE
    if stopped(fleet.record) or _waits_for_a_person(fleet, rollout):
        return Verdict.HELD
    lacking = [state for state in states if state is not HostState.CONVERGED]
    return Verdict.STUCK if lacking and all(state.trouble for state in lacking) else Verdict.GOING


def _waits_for_a_person(fleet: FleetStatus, rollout: str) -> bool:
    """Whether the canary hosts are done and somebody has to promote what they serve."""
    record = fleet.record
    policy = record.spec.rollout if record.spec is not None else None
    if record.canary is not None or policy is None or policy.promotion is not Promotion.MANUAL or not policy.canary_first:
        return False
    canaries = [state_of(entry) for entry in entries_of(fleet, rollout) if entry.role is Role.CANARY]
    promoted = record.enabled is not None and record.rollout.promoted == record.enabled.build
    return not promoted and bool(canaries) and all(state is HostState.CONVERGED for state in canaries)


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


def _by(name: str) -> str:
    return f" by {name}" if name else ""
