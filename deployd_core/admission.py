"""Who may begin to restart: the whole policy, pure. `deployd_core.zookeeper.permits` makes it hold by one transaction.

The order of the rules is the order of the answers: a permit that is held is never questioned, a stop comes before a count.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from deployd_core.coordination import Denial, Denied, Freeze, Rollout, RolloutState
from deployd_core.model import FleetLimit
from deployd_core.units import Share


class Granted(Struct, frozen=True):
    """Yes."""


class Request(Struct, frozen=True, kw_only=True):
    """Everything the decision depends on."""

    host: str
    zone: str
    rollout_id: str
    rollout: Rollout
    freeze: Freeze | None
    holders: Mapping[str, str]
    """Host → zone of every permit held."""
    hosts: int
    """Hosts registered for the service."""
    zone_hosts: int
    """Those of this host's zone; only looked at when the limit per zone is a percentage."""
    limit: FleetLimit
    now: datetime


def admit(request: Request) -> Granted | Denied:
    """Decide whether the host may hold a permit beside those who hold one. Adding a holder never turns a no into a yes."""
    if request.host in request.holders:
        return Granted()
    return _stopped(request) or _failed(request) or _full(request) or _zone_full(request) or Granted()


def halted_over_budget(rollout: Rollout, rollout_id: str, budget: Share, hosts: int, by: str) -> Rollout:
    """The rollout, halted when more of its hosts failed than the budget allows."""
    failed = rollout.failed_in(rollout_id)
    allowed = budget.part_of(hosts)
    if len(failed) <= allowed or rollout.state is RolloutState.HALTED:
        return rollout
    named = "; ".join(f"{host}: {failure.reason[:200]}" for host, failure in sorted(failed.items())[:5])
    of = f"{allowed} ({budget} of {hosts} hosts)" if budget.is_percentage else str(allowed)
    count = "1 host" if len(failed) == 1 else f"{len(failed)} hosts"
    return replace(rollout, state=RolloutState.HALTED, by=by, why=f"{count} failed in {rollout_id}, the budget is {of}: {named}")


def _stopped(request: Request) -> Denied | None:
    freeze, rollout = request.freeze, request.rollout
    if freeze is not None and freeze.active(request.now):
        until = f" until {freeze.until}" if freeze.until else ""
        return Denied(code=Denial.FROZEN, reason=f"everything is frozen{until}{_by_whom(freeze.by, freeze.why)}")
    if rollout.state is RolloutState.HALTED:
        return Denied(code=Denial.HALTED, reason=f"the rollout is halted{_by_whom(rollout.by, rollout.why)}")
    if rollout.state is RolloutState.PAUSED:
        return Denied(code=Denial.PAUSED, reason=f"the rollout is paused{_by_whom(rollout.by, rollout.why)}")
    return None


def _failed(request: Request) -> Denied | None:
    failure = request.rollout.failed_in(request.rollout_id).get(request.host)
    if failure is None:
        return None
    return Denied(code=Denial.FAILED, reason=f"this host failed in rollout {request.rollout_id} at {failure.at}: {failure.reason}")


def _full(request: Request) -> Denied | None:
    if request.limit.hosts is None:
        return None
    most = request.limit.hosts.at_most(request.hosts)
    if len(request.holders) < most:
        return None
    limit = _in_words(request.limit.hosts, most, f"{request.hosts} hosts")
    return Denied(code=Denial.SLOTS_FULL, reason=f"{len(request.holders)} of {limit} at a time: {_names(request.holders)}")


def _zone_full(request: Request) -> Denied | None:
    if request.limit.per_zone is None:
        return None
    most = request.limit.per_zone.at_most(request.zone_hosts)
    # A permit that does not say its zone counts in every zone: the safe side.
    within = [host for host, zone in request.holders.items() if zone in (request.zone, "")]
    if len(within) < most:
        return None
    limit = _in_words(request.limit.per_zone, most, f"{request.zone_hosts} hosts of the zone")
    return Denied(code=Denial.ZONE_FULL, reason=f"{len(within)} of {limit} at a time in zone {request.zone}: {_names(within)}")


def _in_words(limit: Share, most: int, of: str) -> str:
    hosts = "1 host" if most == 1 else f"{most} hosts"
    return f"{hosts} ({limit} of {of})" if limit.is_percentage else hosts


def _names(hosts: Mapping[str, str] | list[str]) -> str:
    names = sorted(hosts)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more} restarting now"


def _by_whom(by: str, why: str) -> str:
    return (f" by {by}" if by else "") + (f": {why}" if why else "")
