"""Admission: the whole policy of who may begin to restart, without a server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from deployd_core.admission import Granted, Request, admit, over_budget
from deployd_core.coordination import Denial, Denied, Failure, Freeze, Rollout, RolloutState
from deployd_core.model import FleetLimit
from deployd_core.units import Share

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
FREE = Request(
    host="h1",
    zone="z1",
    rollout_id="v1-a",
    rollout=Rollout(),
    freeze=None,
    holders={},
    hosts=20,
    zone_hosts=10,
    limit=FleetLimit(hosts=Share("10%"), per_zone=Share(1)),
    now=NOW,
)
FAILED = Failure(rollout="v1-a", reason="will not start", at="2026-11-23T11:00:00+00:00")


def code_of(request: Request) -> Denial | None:
    """Why it is denied; None when it is granted."""
    decision = admit(request)
    return decision.code if isinstance(decision, Denied) else None


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, None),
        ({"holders": {"h2": "z2"}}, None),
        ({"holders": {"h2": "z1"}}, Denial.ZONE_FULL),
        ({"holders": {"h2": ""}}, Denial.ZONE_FULL),
        ({"holders": {"h2": "z2", "h3": "z3"}}, Denial.SLOTS_FULL),
        ({"holders": {"h2": "z2", "h3": "z3"}, "limit": FleetLimit()}, None),
        ({"limit": FleetLimit(hosts=Share("1%"))}, None),
        ({"rollout": Rollout(state=RolloutState.PAUSED)}, Denial.PAUSED),
        ({"rollout": Rollout(state=RolloutState.HALTED)}, Denial.HALTED),
        ({"rollout": Rollout(failures={"h1": FAILED})}, Denial.FAILED),
        ({"rollout": Rollout(failures={"h2": FAILED})}, None),
        ({"rollout": Rollout(failures={"h1": replace(FAILED, rollout="v0-9")})}, None),
        ({"freeze": Freeze()}, Denial.FROZEN),
        ({"freeze": Freeze(until=(NOW + timedelta(seconds=1)).isoformat())}, Denial.FROZEN),
        ({"freeze": Freeze(until=(NOW - timedelta(seconds=1)).isoformat())}, None),
        ({"freeze": Freeze(until="2026-11-23T11:59:59")}, None),
        ({"freeze": Freeze(until="tomorrow")}, Denial.FROZEN),
    ],
)
def test_each_rule_has_its_answer(changes: dict[str, object], code: Denial | None) -> None:
    """One rule at a time turns a yes into its own no."""
    assert code is code_of(replace(FREE, **changes))


def test_who_holds_a_permit_is_never_questioned() -> None:
    """A held permit is granted again under a freeze, a halt, a failure and a lower limit."""
    request = replace(
        FREE,
        holders={"h1": "z1", "h2": "z1", "h3": "z1"},
        freeze=Freeze(),
        rollout=Rollout(state=RolloutState.HALTED, failures={"h1": FAILED}),
    )

    assert Granted() == admit(request)


def test_a_denial_names_who_is_in_the_way_and_what_the_limit_is() -> None:
    """The reason holds the hosts, the limit as it was written, and what it comes to."""
    denied = admit(replace(FREE, holders={f"h{number}": "z9" for number in range(2, 9)}))

    assert isinstance(denied, Denied)
    assert "7 of 2 hosts (10% of 20 hosts) at a time: h2, h3, h4, h5, h6 and 2 more restarting now" == denied.reason


def test_a_stop_says_who_and_why() -> None:
    """The reason of a stop is the one a person gave."""
    denied = admit(replace(FREE, rollout=Rollout(state=RolloutState.PAUSED, by="ann", why="lunch")))

    assert isinstance(denied, Denied)
    assert "the rollout is paused by ann: lunch" == denied.reason


_HOSTS = st.dictionaries(st.sampled_from([f"h{number}" for number in range(8)]), st.sampled_from(["z1", "z2", ""]))
_SHARES = st.one_of(st.none(), st.integers(0, 5).map(Share), st.integers(0, 100).map(lambda percent: Share(f"{percent}%")))
_LIMITS = st.builds(FleetLimit, hosts=_SHARES, per_zone=_SHARES)


@given(holders=_HOSTS, more=_HOSTS, limit=_LIMITS, hosts=st.integers(1, 30))
def test_another_holder_never_turns_a_no_into_a_yes(
    holders: dict[str, str], more: dict[str, str], limit: FleetLimit, hosts: int
) -> None:
    """Admission is monotone in the permits that others hold."""
    others = {host: zone for host, zone in more.items() if host != "h1"}
    before = code_of(replace(FREE, holders=holders, limit=limit, hosts=hosts))
    after = code_of(replace(FREE, holders={**others, **holders}, limit=limit, hosts=hosts))

    assert before is None or after is not None


@given(limit=_LIMITS, hosts=st.integers(1, 30), zones=st.lists(st.sampled_from(["z1", "z2"]), max_size=30))
def test_granting_one_after_the_other_never_exceeds_a_limit(limit: FleetLimit, hosts: int, zones: list[str]) -> None:
    """Whoever asks, in whatever order: there are never more permits than each limit allows."""
    holders: dict[str, str] = {}
    for number, zone in enumerate(zones):
        request = replace(FREE, host=f"h{number}", zone=zone, holders=holders, hosts=hosts, zone_hosts=hosts, limit=limit)
        if admit(request) == Granted():
            holders[f"h{number}"] = zone

    assert limit.hosts is None or len(holders) <= limit.hosts.at_most(hosts)
    for zone in ("z1", "z2"):
        assert limit.per_zone is None or list(holders.values()).count(zone) <= limit.per_zone.at_most(hosts)


@pytest.mark.parametrize(
    ("budget", "hosts", "failed", "over"),
    [
        (Share(0), 5, 1, True),
        (Share(1), 5, 1, False),
        (Share(1), 5, 2, True),
        (Share("10%"), 20, 2, False),
        (Share("10%"), 19, 2, True),
        (Share("5%"), 19, 1, True),
    ],
)
def test_more_failures_than_the_budget_are_too_many(budget: Share, hosts: int, failed: int, over: bool) -> None:
    """A budget is how many may fail: a percentage of the hosts, rounded down, possibly to none."""
    rollout = Rollout(failures={f"h{number}": FAILED for number in range(failed)})

    assert over is bool(over_budget(rollout, "v1-a", budget, hosts))


def test_failures_of_other_rollouts_do_not_count() -> None:
    """Only this rollout's failures count against its budget."""
    rollout = Rollout(failures={"h1": replace(FAILED, rollout="v0-9")})

    assert over_budget(rollout, "v1-a", Share(0), 5) == ""
