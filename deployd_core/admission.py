"""Who may begin to restart: the whole policy, pure. `deployd_core.zookeeper.permits` makes it hold by one transaction.

The order of the rules is the order of the answers: a permit that is held is never questioned, a stop comes before a count. Two
counts bound a rollout. Permits held may not exceed the limit, and neither may permits together with the hosts that are down
without us: a deploy must not take what an outage has left. A host that is down itself takes nothing away by restarting, so the
second bound does not hold it up: otherwise one rotten host would stop the fleet, its own repair included.

Percentages are resolved by integers and to the safe side (`deployd_core.units.Share`): a limit rounds down but is at least 1,
what must stay available rounds up, a budget rounds down to 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from msgspec import Struct

from deployd_core.coordination import Denial, Denied, Freeze, Rollout, RolloutState
from deployd_core.errors import some_of
from deployd_core.model import FleetLimit, Role
from deployd_core.spec import RolloutTable
from deployd_core.units import Share
from deployd_core.windows import closed


class Granted(Struct, frozen=True):
    """Yes."""


class Request(Struct, frozen=True, kw_only=True):
    """Everything the decision depends on."""

    host: str
    zone: str
    role: Role = Role.FLEET
    build: str = ""
    rollout_id: str
    rollout: Rollout
    freeze: Freeze | None
    policy: RolloutTable = RolloutTable()
    holders: Mapping[str, str]
    """Host → zone of every permit held."""
    down: Mapping[str, str] = {}
    """Host → zone of every host known to be down that nobody has excused; one that holds a permit may be among them."""
    hosts: int
    """Hosts registered for the service."""
    zone_hosts: int
    """Those of this host's zone; only looked at when the limit per zone is a percentage."""
    granted: int = 0
    """Permits granted since the rollout began."""
    last_grant: datetime | None = None
    """When the last permit was granted, in whatever rollout; None when none ever was."""
    limit: FleetLimit
    now: datetime


def admit(request: Request) -> Granted | Denied:
    """Decide whether the host may hold a permit beside those who hold one. Adding a holder, a failure or a host that is down never
    turns a no into a yes.
    """
    if request.host in request.holders:
        return Granted()
    rules = (closed_to_all, _unpromoted, _failed, _spent, _full, _too_few, _zone_full, _staggered)
    return next((denied for rule in rules if (denied := rule(request)) is not None), Granted())


def closed_to_all(request: Request) -> Denied | None:
    """The answer to every host while none may begin: frozen, halted, paused, or outside the windows. None when it depends."""
    return _frozen(request) or _stopped(request) or _outside_window(request)


def unpromoted(policy: RolloutTable, role: Role, rollout: Rollout, build: str) -> Denied | None:
    """The answer to a host whose build is for the canary hosts alone for now; None when it may have it."""
    if not policy.canary_first or role is Role.CANARY or rollout.promoted == build:
        return None
    return Denied(code=Denial.PROMOTION, reason=f"{build} is for the canary hosts until it is promoted")


def over_budget(rollout: Rollout, rollout_id: str, budget: Share, hosts: int) -> str:
    """Why a rollout must not go on: more of its hosts failed than the budget allows. Empty while it may."""
    failed = rollout.failed_in(rollout_id)
    allowed = budget.part_of(hosts)
    if len(failed) <= allowed:
        return ""
    named = "; ".join(f"{host}: {failure.reason[:200]}" for host, failure in sorted(failed.items())[:5])
    of = f"{allowed} ({budget} of {hosts} hosts)" if budget.is_percentage else str(allowed)
    count = "1 host" if len(failed) == 1 else f"{len(failed)} hosts"
    return f"{count} failed in {rollout_id}, the budget is {of}: {named}"


def impossible(policy: RolloutTable, hosts: int) -> str:
    """Why no host could ever be admitted, with the arithmetic; empty when one could."""
    floor = policy.min_available.at_least(hosts)
    if hosts == 0 or floor < hosts:
        return ""
    rounded = f" is {floor}, rounded up, which" if policy.min_available.is_percentage else ""
    return f"min_available {policy.min_available} of {_hosts(hosts)}{rounded} leaves none to restart: lower it, or add hosts"


def limit_now(request: Request) -> tuple[int | None, str]:
    """How many hosts may hold a permit now, and in words where that comes from; None is no limit.

    On a ramp the smallest step counts that is not behind us: step by step as many hosts must have finished as it lets begin at a
    time.
    """
    limit = request.limit.hosts
    most = None if limit is None else limit.at_most(request.hosts)
    words = "" if limit is None or most is None else _in_words(limit, most, _hosts(request.hosts))
    # Permits are counted whatever they were granted for, so that a failure of the other role's rollout counts here, too.
    finished = max(0, request.granted - len({*request.holders, *request.rollout.failures}))
    before = 0
    for number, step in enumerate(() if request.rollout.rollback_of else request.policy.ramp, start=1):
        size = step.at_most(request.hosts)
        if finished < before + size and (most is None or size < most):
            most, words = size, f"{_hosts(size)} (step {number} of the ramp, {finished} finished)"
        before += size
    return most, words


def _frozen(request: Request) -> Denied | None:
    freeze = request.freeze
    if freeze is None or not freeze.active(request.now):
        return None
    until = f" until {freeze.until}" if freeze.until else ""
    return Denied(code=Denial.FROZEN, reason=f"everything is frozen{until}{_by_whom(freeze.by, freeze.why)}", until=freeze.until)


def _stopped(request: Request) -> Denied | None:
    rollout = request.rollout
    if rollout.state is RolloutState.HALTED:
        failed = tuple(sorted(rollout.failed_in(request.rollout_id)))
        reason = f"the rollout is halted{_by_whom(rollout.by, rollout.why)}"
        return Denied(code=Denial.HALTED, reason=reason, blockers=failed)
    if rollout.state is RolloutState.PAUSED:
        return Denied(code=Denial.PAUSED, reason=f"the rollout is paused{_by_whom(rollout.by, rollout.why)}")
    return None


def _outside_window(request: Request) -> Denied | None:
    # What is taken back must not wait for office hours.
    if request.policy.windows is None or request.rollout.rollback_of:
        return None
    found = closed(request.policy.windows, request.now)
    if found is None:
        return None
    until = found.until.isoformat(timespec="seconds") if found.until else None
    return Denied(code=Denial.WINDOW, reason=found.reason, until=until)


def _unpromoted(request: Request) -> Denied | None:
    return unpromoted(request.policy, request.role, request.rollout, request.build)


def _failed(request: Request) -> Denied | None:
    failure = request.rollout.failed_in(request.rollout_id).get(request.host)
    if failure is None:
        return None
    return Denied(code=Denial.FAILED, reason=f"this host failed in rollout {request.rollout_id} at {failure.at}: {failure.reason}")


def _spent(request: Request) -> Denied | None:
    # Who enables a build for the canaries opens the node that both roles share, and a spec may lower the budget: what is on record
    # counts all the same.
    over = over_budget(request.rollout, request.rollout_id, request.policy.budget, request.hosts)
    if not over:
        return None
    return Denied(code=Denial.HALTED, reason=over, blockers=tuple(sorted(request.rollout.failed_in(request.rollout_id))))


def _full(request: Request) -> Denied | None:
    most, words = limit_now(request)
    if most is None or len(request.holders) < most:
        return None
    holders = tuple(sorted(request.holders))
    held = f"{len(holders)} of {words} at a time: {_names(holders)} restarting now"
    return Denied(code=Denial.SLOTS_FULL, reason=held, blockers=holders)


def _too_few(request: Request) -> Denied | None:
    if request.host in request.down:
        return None
    most, words = limit_now(request)
    room = request.hosts - request.policy.min_available.at_least(request.hosts)
    if most is None or room < most:
        most, words = room, f"{_hosts(room)} (min_available {request.policy.min_available} of {_hosts(request.hosts)})"
    out = {**request.down, **request.holders}
    if len(out) < most:
        return None
    return Denied(code=Denial.CAPACITY, reason=_out(request, out, words, ""), blockers=tuple(sorted(out)))


def _zone_full(request: Request) -> Denied | None:
    if request.limit.per_zone is None:
        return None
    most = request.limit.per_zone.at_most(request.zone_hosts)
    words = _in_words(request.limit.per_zone, most, f"{_hosts(request.zone_hosts)} of the zone")
    # A permit that does not say its zone counts in every zone: the safe side.
    within = [host for host, zone in request.holders.items() if zone in (request.zone, "")]
    out = {*within, *(host for host, zone in request.down.items() if zone in (request.zone, ""))}
    if len(within) >= most:
        reason = f"{len(within)} of {words} at a time in zone {request.zone}: {_names(within)} restarting now"
        return Denied(code=Denial.ZONE_FULL, reason=reason, blockers=tuple(sorted(within)))
    if len(out) >= most and request.host not in request.down:
        return Denied(
            code=Denial.ZONE_FULL, reason=_out(request, out, words, f" in zone {request.zone}"), blockers=tuple(sorted(out))
        )
    return None


def _staggered(request: Request) -> Denied | None:
    # A bound on how fast hosts restart, whatever for: a newer build or a retry in mid-rollout is no reason to have two at once.
    if not request.policy.stagger or request.last_grant is None:
        return None
    until = request.last_grant + timedelta(seconds=float(request.policy.stagger))
    if request.now >= until:
        return None
    reason = f"{request.policy.stagger} must pass from one host to the next"
    return Denied(code=Denial.STAGGER, reason=reason, until=until.astimezone(UTC).isoformat(timespec="milliseconds"))


def _out(request: Request, out: Iterable[str], words: str, where: str) -> str:
    """Who is out, and why: restarting, or down without us."""
    hosts = sorted(out)
    down = [host for host in hosts if host not in request.holders]
    restarting = [host for host in hosts if host in request.holders]
    parts = [f"{_names(restarting)} restarting now" if restarting else "", f"{_names(down)} down" if down else ""]
    verb = "is" if len(hosts) == 1 else "are"
    return f"{len(hosts)} of {words}{where} {verb} out already: {'; '.join(part for part in parts if part)}"


def _in_words(limit: Share, most: int, of: str) -> str:
    return f"{_hosts(most)} ({limit} of {of})" if limit.is_percentage else _hosts(most)


def _hosts(count: int) -> str:
    return "1 host" if count == 1 else f"{count} hosts"


def _names(hosts: Iterable[str]) -> str:
    return some_of(sorted(hosts))


def _by_whom(by: str, why: str) -> str:
    return (f" by {by}" if by else "") + (f": {why}" if why else "")
