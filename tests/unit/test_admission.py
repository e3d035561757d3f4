"""Admission: the whole policy of who may begin to restart, without a server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from deployd_core.admission import Granted, Request, admit, impossible, limit_now, over_budget
from deployd_core.coordination import Denial, Denied, Failure, Freeze, Rollout, RolloutState
from deployd_core.model import FleetLimit, Role
from deployd_core.spec import RolloutTable, WindowsTable
from deployd_core.units import Duration, Share

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
FREE = Request(
    host="h1",
    zone="z1",
    rollout_id="v1-a",
    rollout=Rollout(),
    freeze=None,
    policy=RolloutTable(budget=Share(1)),
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


@settings(deadline=None)
@given(holders=_HOSTS, more=_HOSTS, limit=_LIMITS, hosts=st.integers(1, 30))
def test_another_holder_never_turns_a_no_into_a_yes(
    holders: dict[str, str], more: dict[str, str], limit: FleetLimit, hosts: int
) -> None:
    """Admission is monotone in the permits that others hold."""
    others = {host: zone for host, zone in more.items() if host != "h1"}
    before = code_of(replace(FREE, holders=holders, limit=limit, hosts=hosts))
    after = code_of(replace(FREE, holders={**others, **holders}, limit=limit, hosts=hosts))

    assert before is None or after is not None


@settings(deadline=None)
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


# Windows, canaries, ramps, and the time between two hosts


@pytest.mark.parametrize(
    ("policy", "changes", "code", "reason", "until"),
    [
        (
            RolloutTable(windows=WindowsTable(allow=("09:00-11:00",))),
            {},
            Denial.WINDOW,
            "outside the allowed windows; the next one opens Tue 2026-11-24 09:00 UTC",
            "2026-11-24T09:00:00+00:00",
        ),
        (RolloutTable(windows=WindowsTable(allow=("09:00-13:00",))), {}, None, "", None),
        (RolloutTable(windows=WindowsTable(allow=("09:00-11:00",))), {"rollout": Rollout(rollback_of="v0-1")}, None, "", None),
        (
            RolloutTable(canary_first=True),
            {"build": "v1"},
            Denial.PROMOTION,
            "v1 is for the canary hosts until it is promoted",
            None,
        ),
        (RolloutTable(canary_first=True), {"build": "v1", "rollout": Rollout(promoted="v0")}, Denial.PROMOTION, None, None),
        (RolloutTable(canary_first=True), {"build": "v1", "rollout": Rollout(promoted="v1")}, None, "", None),
        (RolloutTable(canary_first=True), {"build": "v1", "role": Role.CANARY}, None, "", None),
        (
            RolloutTable(stagger=Duration("30s")),
            {"last_grant": NOW - timedelta(seconds=29), "granted": 1},
            Denial.STAGGER,
            "30s must pass from one host to the next",
            "2026-11-23T12:00:01.000+00:00",
        ),
        (RolloutTable(stagger=Duration("30s")), {"last_grant": NOW - timedelta(seconds=30), "granted": 1}, None, "", None),
        (
            RolloutTable(stagger=Duration("30s")),
            {"last_grant": NOW - timedelta(seconds=10), "granted": 0},  # in the rollout before this one, or before a retry
            Denial.STAGGER,
            "30s must pass from one host to the next",
            "2026-11-23T12:00:20.000+00:00",
        ),
        (RolloutTable(stagger=Duration("30s")), {"last_grant": None, "granted": 0}, None, "", None),
    ],
)
def test_a_rollout_may_have_to_wait(
    policy: RolloutTable, changes: dict[str, object], code: Denial | None, reason: str | None, until: str | None
) -> None:
    """A window, a promotion and the time between two hosts each have their answer, with the time at which it ends by itself."""
    decision = admit(replace(FREE, policy=policy, **changes))
    denied = decision if isinstance(decision, Denied) else None

    assert code is (denied and denied.code)
    assert reason is None or reason == (denied.reason if denied else "")
    assert until == (denied and denied.until)


def test_what_failed_counts_although_the_rollout_is_open() -> None:
    """Over the budget nobody is admitted, whoever opened the rollout: a build for the canaries does, a budget may be lowered."""
    rollout = Rollout(failures={"h2": FAILED})

    assert Denial.HALTED is code_of(replace(FREE, rollout=rollout, policy=RolloutTable(budget=Share(0))))
    assert None is code_of(replace(FREE, rollout=rollout, policy=RolloutTable(budget=Share(1))))
    assert None is code_of(replace(FREE, rollout=rollout, policy=RolloutTable(budget=Share(0)), rollout_id="v2-c"))


@pytest.mark.parametrize(
    ("finished", "held", "most"),
    [(0, 0, 1), (0, 1, 1), (1, 0, 5), (1, 5, 5), (5, 0, 5), (6, 0, 10), (6, 10, 10), (40, 0, 10)],
)
def test_a_ramp_widens_with_the_hosts_that_finished(finished: int, held: int, most: int) -> None:
    """Step by step, as many hosts must have finished as a step lets begin at a time; then the limit counts."""
    request = replace(
        FREE,
        hosts=50,
        limit=FleetLimit(hosts=Share("20%")),
        policy=RolloutTable(ramp=(Share(1), Share("10%"))),
        granted=finished + held,
        holders={f"h{number}": "z1" for number in range(2, 2 + held)},
    )

    assert most == limit_now(request)[0]
    assert (Denial.SLOTS_FULL if held >= most else None) is code_of(request)


def test_a_ramp_does_not_count_what_failed_as_finished() -> None:
    """Three permits were given back, two by hosts that failed, in this rollout or the canaries' own: one host has finished."""
    request = replace(
        FREE,
        hosts=50,
        limit=FleetLimit(hosts=Share(10)),
        policy=RolloutTable(ramp=(Share(2),), budget=Share(2)),
        granted=3,
        rollout=Rollout(failures={"h2": FAILED, "h3": FAILED}),
    )

    for rollout_id in (FREE.rollout_id, "v2-c"):
        assert (2, "2 hosts (step 1 of the ramp, 1 finished)") == limit_now(replace(request, rollout_id=rollout_id))
    assert (10, "10 hosts") == limit_now(replace(request, granted=4))


def test_a_failed_host_that_keeps_its_permit_counts_once_on_a_ramp() -> None:
    """One finished, one failed within the budget and holds its permit: the next step has begun, and another host may begin."""
    request = replace(
        FREE,
        policy=RolloutTable(ramp=(Share(1), Share(2)), budget=Share(1)),
        rollout=Rollout(failures={"h2": FAILED}),
        holders={"h2": "z2"},
        granted=2,
    )

    assert (2, "2 hosts (step 2 of the ramp, 1 finished)") == limit_now(replace(request, limit=FleetLimit()))
    assert None is code_of(request)


def test_a_rollback_has_no_ramp() -> None:
    """What goes back goes as fast as the limit allows."""
    request = replace(FREE, policy=RolloutTable(ramp=(Share(1),)), rollout=Rollout(rollback_of="v0-1"))

    assert (2, "2 hosts (10% of 20 hosts)") == limit_now(request)


# Hosts that are down


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        (
            {"down": {"h2": "z2", "h3": "z2"}},
            Denial.CAPACITY,
            "2 of 2 hosts (10% of 20 hosts) are out already: h2, h3 down",
        ),
        (
            {"down": {"h2": "z2"}, "holders": {"h3": "z2"}},
            Denial.CAPACITY,
            "2 of 2 hosts (10% of 20 hosts) are out already: h3 restarting now; h2 down",
        ),
        ({"down": {"h2": "z2"}}, None, ""),
        ({"down": {"h3": "z2"}, "holders": {"h3": "z2"}}, None, ""),
        ({"down": {"h1": "z1", "h2": "z2", "h3": "z2"}}, None, ""),
        (
            {"down": {"h1": "z1"}, "holders": {"h2": "z2", "h3": "z2"}},
            Denial.SLOTS_FULL,
            "2 of 2 hosts (10% of 20 hosts) at a time: h2, h3 restarting now",
        ),
        ({"down": {"h2": "z1"}}, Denial.ZONE_FULL, "1 of 1 host in zone z1 is out already: h2 down"),
        ({"down": {"h2": ""}}, Denial.ZONE_FULL, "1 of 1 host in zone z1 is out already: h2 down"),
        ({"down": {"h1": "z1", "h2": "z1"}}, None, ""),
        (
            {"policy": RolloutTable(min_available=Share("95%")), "holders": {"h2": "z2"}},
            Denial.CAPACITY,
            "1 of 1 host (min_available 95% of 20 hosts) is out already: h2 restarting now",
        ),
        ({"policy": RolloutTable(min_available=Share("95%"))}, None, ""),
        ({"policy": RolloutTable(min_available=Share(20))}, Denial.CAPACITY, None),
        ({"policy": RolloutTable(min_available=Share(20)), "down": {"h1": "z1"}}, None, ""),
        ({"limit": FleetLimit(), "down": {f"h{number}": "z2" for number in range(2, 21)}}, None, ""),
    ],
)
def test_a_deploy_does_not_take_what_an_outage_has_left(
    changes: dict[str, object], code: Denial | None, reason: str | None
) -> None:
    """Hosts that are down count with those that restart, once each; who is down itself is held up by permits alone."""
    decision = admit(replace(FREE, **changes))
    denied = decision if isinstance(decision, Denied) else None

    assert code is (denied and denied.code)
    assert reason is None or reason == (denied.reason if denied else "")


_FAILURES = st.sets(st.sampled_from([f"h{number}" for number in range(1, 8)]))
_POLICIES = st.builds(
    RolloutTable,
    budget=st.sampled_from([Share(0), Share(2), Share("20%")]),
    min_available=st.sampled_from([Share(0), Share(3), Share("60%")]),
    ramp=st.sampled_from([(), (Share(1),), (Share(1), Share("30%"))]),
)


@settings(deadline=None)
@given(
    policy=_POLICIES,
    limit=_LIMITS,
    hosts=st.integers(1, 30),
    granted=st.integers(0, 30),
    before=st.tuples(_HOSTS, _HOSTS, _FAILURES),
    more=st.tuples(_HOSTS, _HOSTS, _FAILURES),
)
def test_nothing_bad_about_others_turns_a_no_into_a_yes(
    policy: RolloutTable,
    limit: FleetLimit,
    hosts: int,
    granted: int,
    before: tuple[dict[str, str], dict[str, str], set[str]],
    more: tuple[dict[str, str], dict[str, str], set[str]],
) -> None:
    """Admission is monotone in the permits, the failures and the hosts that are down of others."""

    def decided(*found: tuple[dict[str, str], dict[str, str], set[str]]) -> Denial | None:
        holders, down, failed = ({}, {}, set())
        for some_held, some_down, some_failed in found:
            holders, down, failed = {**some_held, **holders}, {**some_down, **down}, failed | some_failed
        rollout = Rollout(failures=dict.fromkeys(failed, FAILED))
        others = {host: zone for host, zone in holders.items() if host != "h1"}
        return code_of(
            replace(FREE, policy=policy, limit=limit, hosts=hosts, granted=granted, rollout=rollout, holders=others, down=down)
        )

    without_us = (more[0], {host: zone for host, zone in more[1].items() if host != "h1"}, more[2])
    assert decided(before) is None or decided(before, without_us) is not None


# Arithmetic


@pytest.mark.parametrize(
    ("share", "hosts", "at_most", "at_least", "budget"),
    [
        ("0%", 10, 1, 0, 0),
        ("1%", 10, 1, 1, 0),
        ("10%", 1, 1, 1, 0),
        ("10%", 10, 1, 1, 1),
        ("10%", 19, 1, 2, 1),
        ("10%", 20, 2, 2, 2),
        ("33%", 10, 3, 4, 3),
        ("75%", 1, 1, 1, 0),
        ("75%", 4, 3, 3, 3),
        ("100%", 7, 7, 7, 7),
        ("0", 10, 1, 0, 0),
        ("3", 2, 3, 3, 3),
        ("7%", 100, 7, 7, 7),
        ("29%", 100, 29, 29, 29),
    ],
)
def test_shares_round_to_the_safe_side(share: str, hosts: int, at_most: int, at_least: int, budget: int) -> None:
    """A limit rounds down but is at least 1, what must stay rounds up, a budget rounds down to 0; by integers."""
    found = Share(share)

    assert (at_most, at_least, budget) == (found.at_most(hosts), found.at_least(hosts), found.part_of(hosts))


@pytest.mark.parametrize(
    ("min_available", "hosts", "message"),
    [
        (Share(0), 1, ""),
        (Share("75%"), 4, ""),
        (Share(3), 4, ""),
        (Share(5), 0, ""),
        (Share(4), 4, "min_available 4 of 4 hosts leaves none to restart: lower it, or add hosts"),
        (Share("75%"), 1, "min_available 75% of 1 host is 1, rounded up, which leaves none to restart: lower it, or add hosts"),
        (Share("91%"), 10, "min_available 91% of 10 hosts is 10, rounded up, which leaves none to restart: lower it, or add hosts"),
    ],
)
def test_what_leaves_no_host_to_restart_is_told_with_its_arithmetic(min_available: Share, hosts: int, message: str) -> None:
    """A policy under which nobody could ever begin is refused, and the message computes it."""
    policy = RolloutTable(min_available=min_available)

    assert message == impossible(policy, hosts)


@settings(deadline=None)
@given(
    min_available=st.one_of(st.integers(0, 12).map(Share), st.integers(0, 100).map(lambda percent: Share(f"{percent}%"))),
    hosts=st.integers(1, 12),
)
def test_impossible_is_exactly_when_the_first_host_is_denied(min_available: Share, hosts: int) -> None:
    """With nobody out and no other bound the first host begins, unless it was said that none ever can."""
    policy = RolloutTable(min_available=min_available)
    first = replace(FREE, policy=policy, hosts=hosts, limit=FleetLimit())

    assert bool(impossible(policy, hosts)) is (code_of(first) is not None)
