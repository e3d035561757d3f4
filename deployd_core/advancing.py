"""PURE: what becomes of a rollout when it begins, when a host fails, and when all have finished. Any host may find out, and the
first to write it down has done it for all.

A rollout is complete when every host that is to be waited for serves the build and has given its permit back: 100 % are the
definition, stragglers are named. A build is promoted by itself when every canary has been healthy with it for the time it is to
bake. A rollout that began by itself, because another was over its budget, can only halt: nothing goes back and forth.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from msgspec import Struct
from msgspec.structs import replace

from deployd_core.admission import over_budget
from deployd_core.coordination import Enabled, Failure, HistoryEntry, HostStatus, Permit, Rollout, RolloutState, Verb
from deployd_core.model import Role
from deployd_core.spec import OnBudget, Promotion, RolloutTable

_DONE = "converged"
"""The step of a host that has nothing left to do: `deployd_core.planner.HostStep.CONVERGED`."""


class Standing(Struct, frozen=True, kw_only=True):
    """How one host stands."""

    host: str
    role: Role
    rollout_id: str
    """The rollout that it should be part of."""
    build: str
    alive: bool
    excused: bool
    status: HostStatus | None
    permit: Permit | None

    @property
    def finished(self) -> bool:
        """Whether it serves what it should, healthy, and has given its permit back.

        A report about an earlier rollout does not count: a restart leaves the build what it was.
        """
        status = self.status
        if status is None or self.permit is not None or status.rollout != self.rollout_id:
            return False
        return status.step == _DONE and status.served == self.build

    @property
    def given_up(self) -> bool:
        """Whether nobody waits for it: it is excused, and its agent is gone."""
        return self.excused and not self.alive and self.permit is None


class Bake(Struct, frozen=True, kw_only=True):
    """How far the canaries of a build are."""

    canaries: tuple[str, ...]
    lacking: tuple[str, ...]
    """Those that do not serve it, or are not healthy, or whose agent is gone."""
    since: datetime | None
    """Since when the last of them has been healthy; None while one is lacking."""

    def baked_at(self, policy: RolloutTable) -> datetime | None:
        """When it may be promoted by itself; None while a canary is lacking, or somebody is to decide."""
        if policy.promotion is not Promotion.AUTO or self.since is None:
            return None
        return self.since + timedelta(seconds=float(policy.bake))


class Now(Struct, frozen=True, kw_only=True):
    """What is enabled, and how far it is."""

    fleet: str
    """The id of the fleet's rollout."""
    canary: str
    """That of the canary hosts; empty while they follow the fleet."""
    enabled: Enabled | None
    """What the fleet is to serve."""
    hosts: int
    granted: int
    """Permits granted so far, ever."""


def begun(before: Rollout, entry: HistoryEntry, now: Now, *, needs_promotion: bool) -> Rollout:
    """The rollout that an order begins, open. Failures and progress of the other role's rollout still count.

    An order for the canary hosts does not end a stop of the fleet's.
    """
    why = entry.why or f"{entry.verb.value.rstrip('e')}ed {entry.build}"
    other = now.fleet if entry.role is Role.CANARY else now.canary
    failures = before.failed_in(other) if other else {}
    done = {other: before.done[other]} if other in before.done else {}
    completed = before.completed
    if entry.verb is Verb.ROLLBACK and completed is not None and now.enabled is not None and completed.build == now.enabled.build:
        completed = None  # what was rolled back from is nothing to go back to
    if entry.role is Role.CANARY:
        begins = replace(before, failures=failures, done=done, grants_before=now.granted)
        return begins if _stops_the_fleet(before, now) else replace(begins, state=RolloutState.OPEN, by=entry.by, why=why)
    return Rollout(
        by=entry.by,
        why=why,
        failures=failures,
        promoted="" if needs_promotion else entry.build,
        rollback_of=now.fleet if entry.verb is Verb.ROLLBACK else "",
        grants_before=now.granted,
        done=done,
        completed=completed,
    )


def waits_for_canaries(policy: RolloutTable, before: Rollout, entry: HistoryEntry) -> bool:
    """Whether the fleet has to wait with the build of an order until the canary hosts, if there are any, have tried it.

    A restart is of what is enabled: it promotes nothing that was not promoted.
    """
    if not policy.canary_first or entry.role is Role.CANARY:
        return False
    return entry.verb is Verb.ENABLE or (entry.verb is Verb.RESTART and before.promoted != entry.build)


def canaries_rejoin(policy: RolloutTable, entry: HistoryEntry) -> bool:
    """Whether the canary hosts follow the fleet again: when it gets their build, and to go first with the next one."""
    if entry.role is Role.CANARY or entry.verb is Verb.RESTART:
        return False
    return policy.canary_first or entry.verb is Verb.PROMOTE


def _stops_the_fleet(rollout: Rollout, now: Now) -> bool:
    """Whether a stop is about more than the canary hosts: a build for them must not let the fleet go on."""
    if rollout.state is RolloutState.HALTED:
        return bool(rollout.failed_in(now.fleet))
    return rollout.state is RolloutState.PAUSED


def with_failure(
    before: Rollout, host: str, failure: Failure, now: Now, policy: RolloutTable
) -> tuple[Rollout, HistoryEntry | None]:
    """The rollout with a failure entered, and what follows from it: an entry that halts it, or one that takes it back.

    Of an entry that takes it back the rollout is the one that it begins; whoever writes it enables the build of the entry with it.
    """
    current = {now.fleet, now.canary} - {""}
    kept = {other: entry for other, entry in before.failures.items() if entry.rollout in current}
    after = replace(before, failures={**kept, host: failure})
    why = over_budget(after, failure.rollout, policy.budget, now.hosts)
    if not why or after.state is RolloutState.HALTED:
        return after, None
    entry = HistoryEntry(
        verb=Verb.HALT,
        role=Role.CANARY if failure.rollout == now.canary else Role.FLEET,
        by=host,
        at=failure.at,
        why=why,
        rollout=failure.rollout,
    )
    target = _goes_back_to(after, policy, now, failure.rollout)
    if target is None:
        return replace(after, state=RolloutState.HALTED, by=host, why=why), entry
    entry = replace(entry, verb=Verb.ROLLBACK, build=target.build, digest=target.digest)
    return begun(after, entry, now, needs_promotion=False), entry


def _goes_back_to(rollout: Rollout, policy: RolloutTable, now: Now, rollout_id: str) -> Enabled | None:
    """The build to go back to by ourselves; None when the rollout is to halt."""
    # A canary build has no place to go back to that its hosts had completed, a rollback must not cause another, and who paused a
    # rollout does not expect that hosts are restarted.
    if rollout.state is not RolloutState.OPEN:
        return None
    if policy.on_budget is not OnBudget.ROLLBACK or rollout.rollback_of or rollout_id != now.fleet:
        return None
    target = rollout.completed
    return None if target is None or now.enabled is None or target.build == now.enabled.build else target


def lacking(rollout_id: str, standings: Iterable[Standing]) -> tuple[str, ...]:
    """The hosts for which a rollout is not complete yet."""
    mine = (host for host in standings if host.rollout_id == rollout_id)
    return tuple(host.host for host in mine if not host.finished and not host.given_up)


def completed_by(rollout_id: str, standings: Iterable[Standing]) -> bool:
    """Whether a rollout is complete: nobody is lacking, and somebody is there. The first that lacks ends the search."""
    anybody = False
    for host in standings:
        if host.rollout_id != rollout_id:
            continue
        if host.finished:
            anybody = True
        elif not host.given_up:
            return False
    return anybody


def recorded(before: Rollout, rollout_id: str, role: Role, enabled: Enabled, at: str) -> tuple[Rollout, HistoryEntry]:
    """The rollout with it on record that every host has completed that one, and the entry that tells so."""
    completed = enabled if role is Role.FLEET else before.completed
    entry = HistoryEntry(verb=Verb.COMPLETE, build=enabled.build, role=role, at=at, rollout=rollout_id)
    return replace(before, done={**before.done, rollout_id: at}, completed=completed), entry


def to_promote(policy: RolloutTable, rollout: Rollout, fleet: Enabled | None, canary: Enabled | None) -> Enabled | None:
    """The build that the canary hosts have and the fleet has not yet; None when there is none.

    Args:
        policy: What the spec says.
        rollout: What is on record.
        fleet: The build of the fleet.
        canary: The canary hosts' own; None while they follow the fleet.
    """
    if canary is not None and (fleet is None or canary.build != fleet.build):
        return canary
    return fleet if fleet is not None and policy.canary_first and rollout.promoted != fleet.build else None


def until_promoted(build: str, standings: Iterable[Standing], policy: RolloutTable, now: datetime) -> float | None:
    """Seconds until a build may be promoted by itself, 0 when it may; None while nobody can say."""
    baked = bake_of(build, standings).baked_at(policy)
    return None if baked is None else max(0.0, (baked - now).total_seconds())


def bake_of(build: str, standings: Iterable[Standing]) -> Bake:
    """How far the canary hosts are with a build."""
    canaries = [host for host in standings if host.role is Role.CANARY]
    missing = [host.host for host in canaries if host.build != build or not host.finished or not host.alive]
    since = [moment for host in canaries if host.status is not None and (moment := _moment(host.status.since)) is not None]
    complete = bool(canaries) and not missing and len(since) == len(canaries)
    names = tuple(host.host for host in canaries)
    return Bake(canaries=names, lacking=tuple(missing), since=max(since) if complete else None)


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
