"""What becomes of a rollout: it begins, halts, goes back, bakes, completes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from deployd_core.advancing import Now, Standing, bake_of, begun, lacking, recorded, to_promote, until_promoted, with_failure
from deployd_core.coordination import Enabled, Failure, HistoryEntry, HostStatus, Permit, Rollout, RolloutState, Verb
from deployd_core.model import Role
from deployd_core.spec import OnBudget, Promotion, RolloutTable
from deployd_core.units import Duration, Share

AT = "2026-11-23T12:00:00+00:00"
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
FLEET = Failure(rollout="v2-b", reason="not healthy", at=AT)
CANARY = Failure(rollout="v3-c", reason="not healthy", at=AT)
OLD = Failure(rollout="v1-a", reason="not healthy", at=AT)
NOW = Now(fleet="v2-b", canary="v3-c", enabled=Enabled(build="v2"), hosts=10, granted=17)
ENABLE = HistoryEntry(verb=Verb.ENABLE, build="v4", by="ann", at=AT)
COMPLETED = Enabled(build="v1", digest="sha256:01")
GOES_BACK = RolloutTable(on_budget=OnBudget.ROLLBACK)


# Beginning


def test_a_rollout_begins_open_with_a_clean_slate() -> None:
    """Failures and stops of the last one count no more; what the fleet completed and what the canaries did stay known."""
    before = Rollout(
        state=RolloutState.HALTED,
        by="h1",
        why="1 host failed",
        failures={"h1": FLEET, "c1": CANARY},
        promoted="v2",
        rollback_of="v1-a",
        done={"v2-b": AT, "v3-c": AT},
        completed=COMPLETED,
    )
    after = Rollout(
        by="ann",
        why="enabled v4",
        failures={"c1": CANARY},
        promoted="v4",
        grants_before=17,
        done={"v3-c": AT},
        completed=COMPLETED,
    )

    assert after == begun(before, ENABLE, NOW, needs_promotion=False)
    assert replace(after, promoted="") == begun(before, ENABLE, NOW, needs_promotion=True)


def test_a_build_for_the_canaries_leaves_the_rollout_of_the_fleet_as_it_was() -> None:
    """It forgets what failed of the canaries' last build alone, opens what that had halted, and leaves the fleet stopped."""
    before = Rollout(
        state=RolloutState.HALTED,
        failures={"h1": FLEET, "c1": CANARY},
        promoted="v2",
        rollback_of="v1-a",
        done={"v2-b": AT, "v3-c": AT},
    )
    order = replace(ENABLE, role=Role.CANARY, why="try it")
    stopped = replace(before, failures={"h1": FLEET}, done={"v2-b": AT}, grants_before=17)
    own = replace(before, failures={"c1": CANARY})
    paused = replace(own, state=RolloutState.PAUSED, by="bob", why="quiet")

    assert stopped == begun(before, order, NOW, needs_promotion=False)
    opened = begun(own, order, NOW, needs_promotion=False)
    assert (RolloutState.OPEN, "ann", "try it", {}) == (opened.state, opened.by, opened.why, opened.failures)
    still = begun(paused, order, NOW, needs_promotion=False)
    assert (RolloutState.PAUSED, "bob", "quiet") == (still.state, still.by, still.why)


def test_without_a_canary_build_there_is_none_to_remember() -> None:
    """A failure of a rollout that is neither the fleet's nor the canaries' is dropped."""
    assert {} == begun(Rollout(failures={"h1": OLD}), ENABLE, replace(NOW, canary=""), needs_promotion=False).failures


@pytest.mark.parametrize(("verb", "of"), [(Verb.ROLLBACK, "v2-b"), (Verb.RESTART, ""), (Verb.PROMOTE, ""), (Verb.ENABLE, "")])
def test_only_a_rollback_says_what_it_takes_back(verb: Verb, of: str) -> None:
    """A rollback names the rollout that it takes back."""
    assert of == begun(Rollout(), replace(ENABLE, verb=verb), NOW, needs_promotion=False).rollback_of


# Failing


def failed(before: Rollout, policy: RolloutTable, now: Now = NOW, failure: Failure = FLEET) -> tuple[Rollout, Verb | None]:
    """The rollout after h1 failed, and what followed."""
    after, entry = with_failure(before, "h1", failure, now, policy)
    return after, entry and entry.verb


def test_a_failure_within_the_budget_is_put_on_record_and_no_more() -> None:
    """The rollout goes on, and failures of rollouts that are over are dropped."""
    before = Rollout(failures={"h2": OLD, "c1": CANARY})

    assert (replace(before, failures={"c1": CANARY, "h1": FLEET}), None) == failed(before, RolloutTable(budget=Share(1)))


@pytest.mark.parametrize("policy", [RolloutTable(), GOES_BACK])
def test_the_failure_that_exceeds_the_budget_halts_in_the_same_breath(policy: RolloutTable) -> None:
    """What is to be written holds the failure and the halt, with who failed and why; nothing to go back to is a halt, too."""
    after, entry = with_failure(Rollout(), "h1", FLEET, NOW, policy)
    why = "1 host failed in v2-b, the budget is 0: h1: not healthy"

    assert Rollout(state=RolloutState.HALTED, by="h1", why=why, failures={"h1": FLEET}) == after
    assert HistoryEntry(verb=Verb.HALT, by="h1", at=AT, why=why, rollout="v2-b") == entry


def test_over_budget_it_goes_back_to_what_was_completed() -> None:
    """The rollout that begins is open, promoted, remembers what it takes back, and forgets what failed."""
    before = Rollout(completed=COMPLETED, failures={"c1": CANARY})
    after, entry = with_failure(before, "h1", FLEET, NOW, GOES_BACK)

    assert entry is not None
    assert (Verb.ROLLBACK, "v1", "sha256:01", "v2-b", Role.FLEET) == (
        entry.verb,
        entry.build,
        entry.digest,
        entry.rollout,
        entry.role,
    )
    assert (RolloutState.OPEN, "v2-b", "v1", {"c1": CANARY}) == (after.state, after.rollback_of, after.promoted, after.failures)
    assert "1 host failed in v2-b, the budget is 0: h1: not healthy" == after.why


@pytest.mark.parametrize(
    ("before", "now", "failure"),
    [
        (Rollout(completed=COMPLETED, rollback_of="v0-9"), NOW, FLEET),  # it began by itself
        (Rollout(completed=Enabled(build="v2")), NOW, FLEET),  # that is what fails
        (Rollout(), NOW, FLEET),  # nothing was completed
        (Rollout(completed=COMPLETED), NOW, CANARY),  # a canary build
        (Rollout(completed=COMPLETED), replace(NOW, enabled=None), FLEET),
        (Rollout(completed=COMPLETED, state=RolloutState.PAUSED), NOW, FLEET),  # a person paused it
    ],
)
def test_where_it_cannot_go_back_it_halts(before: Rollout, now: Now, failure: Failure) -> None:
    """A rollback never causes another, and never overrules a person."""
    after, verb = failed(before, GOES_BACK, now, failure)

    assert (RolloutState.HALTED, Verb.HALT) == (after.state, verb)


def test_what_is_halted_is_not_halted_again() -> None:
    """Who was in flight is put on record; why it was halted stays."""
    before = Rollout(state=RolloutState.HALTED, by="h2", why="because", failures={"h2": FLEET}, completed=COMPLETED)

    assert (replace(before, failures={"h2": FLEET, "h1": FLEET}), None) == failed(before, GOES_BACK)


def test_a_failing_canary_build_is_the_canaries_halt() -> None:
    """The history says whose rollout it was."""
    _, entry = with_failure(Rollout(), "c1", CANARY, NOW, RolloutTable())

    assert entry is not None
    assert (Role.CANARY, "v3-c") == (entry.role, entry.rollout)


# Completing and baking

STATUS = HostStatus(host="h1", zone="z1", role=Role.FLEET, served="v2", step="converged", since=AT, rollout="v2-b")
DONE = Standing(host="h1", role=Role.FLEET, rollout_id="v2-b", build="v2", alive=True, excused=False, status=STATUS, permit=None)
PERMIT = Permit(host="h1", zone="z1", rollout="v2-b", since=AT, nonce="n")


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({}, False),
        ({"alive": False}, False),
        ({"permit": PERMIT}, True),
        ({"status": None}, True),
        ({"status": replace(STATUS, served="v1")}, True),
        ({"status": replace(STATUS, served=None)}, True),
        ({"status": replace(STATUS, step="restarting")}, True),
        ({"status": replace(STATUS, step="degraded")}, True),
        ({"status": replace(STATUS, rollout="v2-a")}, True),  # of before a restart: it serves the build all along
        ({"status": None, "rollout_id": "v3-c"}, False),
        ({"status": None, "excused": True}, True),
        ({"status": None, "excused": True, "alive": False}, False),
        ({"status": None, "excused": True, "alive": False, "permit": PERMIT}, True),
    ],
)
def test_a_rollout_lacks_every_host_that_is_not_known_to_be_done(changes: dict[str, object], missing: bool) -> None:
    """A host is done when its report on this very rollout says so and it holds no permit; or excused, and gone."""
    host = replace(DONE, **changes)

    assert (("h1",) if missing else ()) == lacking("v2-b", [host])


def test_every_straggler_is_named() -> None:
    """All are named, in the order of the hosts."""
    hosts = [replace(DONE, host="h2", status=None), DONE, replace(DONE, host="h3", permit=PERMIT)]

    assert ("h2", "h3") == lacking("v2-b", hosts)


@pytest.mark.parametrize(("role", "completed"), [(Role.FLEET, Enabled(build="v3")), (Role.CANARY, COMPLETED)])
def test_what_the_fleet_has_completed_is_what_can_be_gone_back_to(role: Role, completed: Enabled) -> None:
    """What is complete is added to what is on record; a build that only the canaries have completed is not gone back to."""
    before = Rollout(done={"v2-b": AT}, completed=COMPLETED)

    after, entry = recorded(before, "v3-c", role, Enabled(build="v3"), "later")

    assert Rollout(done={"v2-b": AT, "v3-c": "later"}, completed=completed) == after
    assert HistoryEntry(verb=Verb.COMPLETE, build="v3", role=role, at="later", rollout="v3-c") == entry


@pytest.mark.parametrize(
    ("canary_first", "promoted", "fleet", "own", "waits"),
    [
        (False, "", "v2", None, None),
        (False, "", "v2", "v2", None),
        (False, "", "v2", "v3", "v3"),
        (False, "", None, "v3", "v3"),
        (True, "v1", "v2", None, "v2"),
        (True, "v2", "v2", None, None),
        (True, "v1", None, None, None),
    ],
)
def test_a_build_waits_while_the_canaries_alone_may_have_it(
    canary_first: bool, promoted: str, fleet: str | None, own: str | None, waits: str | None
) -> None:
    """One of their own waits, and with `canary_first` every build of the fleet that nobody has promoted."""
    builds = [Enabled(build=build) if build else None for build in (fleet, own)]
    found = to_promote(RolloutTable(canary_first=canary_first), Rollout(promoted=promoted), *builds)

    assert waits == (found and found.build)


def canary(name: str, since: str = AT, **changes: object) -> Standing:
    """A canary host that is done with v3."""
    status = replace(STATUS, host=name, served="v3", since=since, rollout="v3-c")
    return replace(replace(DONE, host=name, role=Role.CANARY, rollout_id="v3-c", build="v3", status=status), **changes)


def test_a_build_bakes_from_when_the_last_canary_got_healthy() -> None:
    """The time that counts is that of the last; one whose report knows no zone is taken for UTC."""
    bake = bake_of("v3", [DONE, canary("c1"), canary("c2", since="2026-11-23T12:05:00")])
    auto = RolloutTable(promotion=Promotion.AUTO, bake=Duration("10m"))

    assert (("c1", "c2"), (), NOON + timedelta(minutes=5)) == (bake.canaries, bake.lacking, bake.since)
    assert NOON + timedelta(minutes=15) == bake.baked_at(auto)
    assert None is bake.baked_at(replace(auto, promotion=Promotion.MANUAL))
    assert [60.0, 0.0, 0.0] == [
        until_promoted("v3", [canary("c1")], auto, NOON + timedelta(minutes=minutes)) for minutes in (9, 10, 11)
    ]


@pytest.mark.parametrize(
    "lacks",
    [
        {"alive": False},
        {"permit": PERMIT},
        {"status": None},
        {"build": "v2"},
        {"status": replace(STATUS, served="v3", rollout="v2-b")},
    ],
)
def test_a_build_does_not_bake_while_a_canary_is_lacking(lacks: dict[str, object]) -> None:
    """One canary that is gone, busy, silent, or elsewhere stops the clock, and is named."""
    bake = bake_of("v3", [canary("c1"), canary("c2", **lacks)])

    assert (("c2",), None) == (bake.lacking, bake.since)
    assert None is bake.baked_at(RolloutTable(promotion=Promotion.AUTO))


@pytest.mark.parametrize("hosts", [[DONE], [canary("c1", since="yesterday")]])
def test_without_a_canary_that_says_since_when_nothing_bakes(hosts: list[Standing]) -> None:
    """No canary, or a report with no time in it, is no proof of health."""
    assert None is bake_of("v3", hosts).since
