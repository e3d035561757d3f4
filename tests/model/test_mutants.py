"""Wrong variants of the protocol, each of which the model must catch: what it cannot tell from the protocol it proves nothing of.

`pytest -s` shows the shortest counterexample of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from deployd_core import admission, advancing
from deployd_core.admission import Granted, Request, admit, limit_now
from deployd_core.advancing import Bake, Standing
from deployd_core.coordination import Denied, Enabled, Rollout, RolloutState
from deployd_core.model import Role
from deployd_core.spec import OnBudget, Promotion, RolloutTable
from deployd_core.units import Duration, Share
from fleet_model import protocol
from fleet_model.search import Found, Search
from fleet_model.world import CHECKED, Read, Rules, Violation

STAGGERED = {"limit": 2, "policy": RolloutTable(stagger=Duration("30s"))}
RAMPED = {"limit": 2, "policy": RolloutTable(ramp=(Share(1),), budget=Share(1))}
CANARIES_FIRST = {"canaries": 2, "policy": RolloutTable(canary_first=True, promotion=Promotion.AUTO)}
ALL = "crash, rot, pause, freeze, retry, lost, release, supersede, by hand, fail, batch"
Change = Callable[..., Any]


def found(may: str = ALL, **changes: Any) -> Found:
    """What the search finds under changed rules; printed."""
    result = Search(Rules(may=frozenset(may.split(", ")), **changes)).run()
    print(f"\n{result}")
    return result


def one_more(request: Request) -> Granted | Denied:
    """Counts everybody who is out and one more, whether that one is out already or not."""
    down = {f"{host} itself" if host == request.host else host: zone for host, zone in request.down.items()}
    return admit(replace(request, down=down))


PROTOCOL: dict[str, tuple[dict[str, Any], Violation, list[str]]] = {
    "a permit dies with its agent": (
        {"ephemeral": True},
        Violation.PERMIT_VANISHED,
        ["h0 reads", "h0 is granted a permit", "h0 agent crashes"],
    ),
    "a permit expires": (
        {"expires": True},
        Violation.PERMIT_VANISHED,
        ["h0 reads", "h0 is granted a permit", "h0 agent crashes", "h0 permit expires"],
    ),
    "the rollout is looked at, but not checked by the transaction": (
        {"checks": CHECKED & ~Read.ROLLOUT},
        Violation.GRANTED_WHILE_STOPPED,
        ["h0 reads", "pause", "h0 is granted a permit"],
    ),
    "the freeze is looked at, but not checked": (
        {"checks": CHECKED & ~Read.FREEZE},
        Violation.GRANTED_WHILE_STOPPED,
        ["h0 reads", "freeze", "h0 is granted a permit"],
    ),
    "what is enabled is looked at, but not checked": (
        {"checks": CHECKED & ~Read.ENABLED},
        Violation.GRANTED_FOR_OLDER,
        ["h0 reads", "a newer build is written by hand", "h0 is granted a permit"],
    ),
    "the version of the permits is not checked": (
        {"checks": CHECKED & ~Read.PERMITS},
        Violation.TOO_MANY_PERMITS,
        ["h0 reads", "h1 reads", "h0 is granted a permit", "h1 is granted a permit"],
    ),
    "each rollout counts its own permits": (
        {"counts_older": False},
        Violation.TOO_MANY_PERMITS,
        ["h0 reads", "h0 is granted a permit", "a newer build is enabled", "h1 reads", "h1 is granted a permit"],
    ),
    "a permit is given back before the host is healthy": (
        {"releases_early": True},
        Violation.PERMIT_VANISHED,
        ["h0 reads", "h0 is granted a permit", "h0 restarts", "h0 gives its permit back, healthy"],
    ),
    "who is admitted with the head of the queue is not counted with it": (
        {"batch_counts_all": False},
        Violation.TOO_MANY_PERMITS,
        ["h0 reads", "h0 and h1 are granted permits at once"],
    ),
    "hosts are admitted with the head of the queue whatever the stagger": (
        {"batches_staggered": True, **STAGGERED},
        Violation.TOO_SOON,
        ["h0 reads", "h0 and h1 are granted permits at once"],
    ),
    "the version of the permits is not checked, and two read before the stagger begins": (
        {"checks": CHECKED & ~Read.PERMITS, **STAGGERED},
        Violation.TOO_SOON,
        ["h0 reads", "h1 reads", "h0 is granted a permit", "h1 is granted a permit"],
    ),
}
"""What differs around the decisions."""


@pytest.mark.parametrize("name", PROTOCOL)
def test_a_wrong_protocol_is_caught(name: str) -> None:
    """A variant of the transactions around the real decisions breaks a promise."""
    changes, violation, trace = PROTOCOL[name]

    caught = found(**changes)

    assert violation is caught.violation
    assert not trace or trace == caught.trace


def test_a_broken_host_that_cannot_take_the_fix_is_stuck_for_ever() -> None:
    """Waiting for a broken host to get healthy before it may have a newer build leaves no way out."""
    caught = found("retry, supersede, fail", retargets=False)

    assert Violation.STUCK is caught.violation
    assert ["h0 reads", "h0 is granted a permit", "h0 restarts", "h0 fails, and halts the rollout", "h0 is broken"] == caught.trace


def test_counting_one_more_than_who_is_out_is_stuck_after_one_event() -> None:
    """A host that is down could never be repaired."""
    caught = found("rot, retry, supersede, fail", decide=one_more)

    assert (Violation.STUCK, ["h0 service dies"]) == (caught.violation, caught.trace)


def no_rule(_request: Request) -> Denied | None:
    """A rule that never says no."""
    return None


def not_for_who_is_down(rule: Callable[[Request], Denied | None]) -> Callable[[Request], Denied | None]:
    """A rule that does not hold up a host that is down."""
    return lambda request: None if request.host in request.down else rule(request)


def only_for_a_pause(rule: Callable[[Request], Denied | None]) -> Callable[[Request], Denied | None]:
    """A rule that knows nothing of a halt."""
    return lambda request: None if request.rollout.state is RolloutState.HALTED else rule(request)


def within_one_rollout(rule: Callable[[Request], Denied | None]) -> Callable[[Request], Denied | None]:
    """A rule that knows nothing of what was granted before this rollout."""
    return lambda request: rule(request) if request.granted else None


def whoever_began(request: Request) -> tuple[int | None, str]:
    """A ramp that is behind us when as many hosts have begun as it lets begin, finished or not."""
    return limit_now(replace(request, granted=request.granted + len(request.holders)))


def whoever_failed(request: Request) -> tuple[int | None, str]:
    """A ramp that takes a host that failed for one that has finished."""
    return limit_now(replace(request, granted=request.granted + len(request.rollout.failed_in(request.rollout_id))))


DECISIONS: dict[str, tuple[str, Change, dict[str, Any], Violation]] = {
    "the limit is not counted": ("_full", no_rule, {}, Violation.TOO_MANY_PERMITS),
    "hosts that are down do not count": ("_too_few", no_rule, {}, Violation.TOO_FEW_LEFT),
    "what is to be kept does not count": (
        "_too_few",
        no_rule,
        {"limit": 2, "policy": RolloutTable(min_available=Share(2))},
        Violation.TOO_FEW_LEFT,
    ),
    "a host that is down is repaired beyond the limit": (
        "_full",
        not_for_who_is_down(admission._full),
        {},
        Violation.TOO_MANY_PERMITS,
    ),
    "a zone does not count": (
        "_zone_full",
        no_rule,
        {"hosts": 4, "zones": 2, "limit": 2, "per_zone": 1},
        Violation.TOO_MANY_PERMITS,
    ),
    "a halt stops nobody": ("_stopped", only_for_a_pause(admission._stopped), {}, Violation.GRANTED_WHILE_STOPPED),
    "a freeze stops nobody": ("_frozen", no_rule, {}, Violation.GRANTED_WHILE_STOPPED),
    "there is no stagger": ("_staggered", no_rule, STAGGERED, Violation.TOO_SOON),
    "the stagger is forgotten with each newer build": (
        "_staggered",
        within_one_rollout(admission._staggered),
        STAGGERED,
        Violation.TOO_SOON,
    ),
    "the fleet does not wait for the canaries": ("_unpromoted", no_rule, CANARIES_FIRST, Violation.NOT_PROMOTED),
    "a ramp counts who has begun": ("limit_now", whoever_began, RAMPED, Violation.BEYOND_THE_RAMP),
    "a ramp counts who has failed": ("limit_now", whoever_failed, RAMPED, Violation.BEYOND_THE_RAMP),
    "who failed tries again": ("_failed", no_rule, {"policy": RolloutTable(budget=Share(1))}, Violation.FAILED_AGAIN),
}
"""What differs in `deployd_core.admission` itself: the rule, what stands in for it, the scope."""


@pytest.mark.parametrize("name", DECISIONS)
def test_a_wrong_admission_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rule of the real admission is needed: without it, or with a hole in it, a promise is broken."""
    rule, stand_in, changes, violation = DECISIONS[name]
    monkeypatch.setattr(admission, rule, stand_in)

    caught = found(**changes)

    assert violation is caught.violation


@pytest.mark.parametrize("change", [{"halts_at_once": False}, {"resumes_halted": True}])
def test_a_halt_that_comes_late_or_is_lifted_is_caught(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure halts the rollout in its own write, and beside that admission counts what failed: without both, too many fail."""
    may = "crash, pause, retry, release, fail"
    assert None is found(may, **change).violation

    monkeypatch.setattr(admission, "_spent", no_rule)

    assert Violation.TOO_MANY_FAILED is found(may, **change).violation


def test_going_back_under_a_pause_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a person stopped goes on when a person says so."""
    real = advancing._goes_back_to

    def whatever_the_state(rollout: Rollout, *rest: Any) -> Enabled | None:
        return real(replace(rollout, state=RolloutState.OPEN), *rest)

    monkeypatch.setattr(advancing, "_goes_back_to", whatever_the_state)

    caught = found("pause, goes back, retry, fail", policy=RolloutTable(on_budget=OnBudget.ROLLBACK))

    assert Violation.OPENED_BY_ITSELF is caught.violation


def test_a_budget_of_one_too_many_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rollout must halt with the first failure beyond the budget, not with the second."""
    real = admission.over_budget

    def late(rollout: Rollout, rollout_id: str, budget: Share, hosts: int) -> str:
        return real(rollout, rollout_id, Share(budget.part_of(hosts) + 1), hosts)

    monkeypatch.setattr(advancing, "over_budget", late)
    monkeypatch.setattr(admission, "over_budget", late)

    assert Violation.TOO_MANY_FAILED is found().violation


def test_a_newer_build_that_keeps_what_the_last_one_earned_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ramp begins anew with every build, and so does the wait for the canaries."""
    real = advancing.begun

    def goes_on(before: Rollout, *rest: Any, **more: Any) -> Rollout:
        return replace(real(before, *rest, **more), grants_before=before.grants_before)

    def for_all(before: Rollout, *rest: Any, **_: Any) -> Rollout:
        return real(before, *rest, needs_promotion=False)

    may = "retry, supersede, fail"
    monkeypatch.setattr(protocol, "begun", goes_on)
    assert Violation.BEYOND_THE_RAMP is found(may, **RAMPED).violation

    monkeypatch.setattr(protocol, "begun", for_all)
    assert Violation.NOT_PROMOTED is found(may, **CANARIES_FIRST).violation


BAKES: dict[str, Change] = {
    "the first canary decides": lambda canaries: canaries[:1],
    "a canary whose agent is gone has not been heard to be sick": lambda canaries: [
        replace(canary, alive=True) for canary in canaries
    ],
    "a canary bakes from when the first of them is healthy": lambda canaries: [
        replace(canary, status=canary.status and replace(canary.status, since=min(found.status.since for found in canaries)))
        for canary in canaries
    ],
}


@pytest.mark.parametrize("name", BAKES)
def test_a_build_that_is_promoted_too_soon_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every canary must have been healthy with it for the time to bake, and be there to say so."""
    real, change = advancing.bake_of, BAKES[name]

    def bake_of(build: str, standings: list[Standing]) -> Bake:
        return real(build, change([standing for standing in standings if standing.role is Role.CANARY]))

    monkeypatch.setattr(advancing, "bake_of", bake_of)

    assert Violation.NOT_BAKED is found("crash, rot, fail, retry", **CANARIES_FIRST).violation


def test_going_back_twice_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollout that began by itself must not begin another, whatever was completed."""

    def always(rollout: Rollout, *_: object) -> Enabled | None:
        return rollout.completed

    monkeypatch.setattr(advancing, "_goes_back_to", always)

    caught = found("goes back, retry, supersede, fail", policy=RolloutTable(on_budget=OnBudget.ROLLBACK))

    assert Violation.WENT_BACK_TWICE is caught.violation
