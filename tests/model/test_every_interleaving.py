"""Every interleaving of a small fleet: no promise is broken, and from everywhere the rollout can still be brought to its end."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from deployd_core.spec import OnBudget, Promotion, RolloutTable
from deployd_core.units import Duration, Share
from fleet_model.search import Search
from fleet_model.world import Rules

BUDGET_1 = RolloutTable(budget=Share(1))
STAGGER = Duration("30s")
CAREFUL = RolloutTable(
    budget=Share(1), canary_first=True, promotion=Promotion.AUTO, ramp=(Share(1),), stagger=STAGGER, on_budget=OnBudget.ROLLBACK
)
"""Canaries first and promoted by themselves, then a ramp, and time between any two hosts."""


def rules(may: str, **changes: object) -> Rules:
    """Rules under which these things may happen."""
    return Rules(may=frozenset(may.split(", ")), **changes)


SCOPES = {
    "3 hosts, limit 1, budget 0: everything": rules(
        "crash, reboot, rot, pause, freeze, retry, lost, release, supersede, by hand, fail, batch"
    ),
    "3 hosts, limit 2, budget 1: agents and services die": rules(
        "crash, rot, retry, lost, supersede, fail, batch", limit=2, policy=BUDGET_1
    ),
    "3 hosts, limit 2, budget 0: people stop and go on": rules(
        "crash, pause, freeze, retry, release, supersede, fail, batch", limit=2
    ),
    "3 hosts, limit 2, two to be kept": rules(
        "crash, rot, retry, lost, fail, batch", limit=2, policy=RolloutTable(min_available=Share(2), budget=Share(1))
    ),
    "3 hosts, limit 2: over budget it goes back": rules(
        "crash, pause, goes back, retry, supersede, fail", limit=2, policy=RolloutTable(on_budget=OnBudget.ROLLBACK)
    ),
    "4 hosts, limit 1, budget 1": rules("crash, retry, lost, supersede, fail", hosts=4, policy=BUDGET_1),
    "4 hosts in 2 zones, limit 2, 1 per zone": rules(
        "crash, retry, supersede, fail, batch", hosts=4, zones=2, limit=2, per_zone=1, policy=BUDGET_1
    ),
    "3 hosts, limit 2, a stagger: people stop and go on": rules(
        "crash, pause, freeze, retry, release, supersede, by hand, fail, batch", limit=2, policy=RolloutTable(stagger=STAGGER)
    ),
    "4 hosts, limit 3, a ramp of two steps": rules(
        "crash, retry, supersede, fail, batch", hosts=4, limit=3, policy=RolloutTable(ramp=(Share(1), Share(2)), budget=Share(1))
    ),
    "3 hosts, limit 1, two canaries first, promoted by themselves": rules(
        "crash, rot, pause, retry, supersede, fail", canaries=2, policy=RolloutTable(canary_first=True, promotion=Promotion.AUTO)
    ),
    "3 hosts, limit 2, a canary first, a ramp and a stagger": rules(
        "crash, retry, supersede, fail", limit=2, canaries=1, policy=CAREFUL
    ),
    "3 hosts, limit 2, all of these, and over budget it goes back": rules(
        "pause, goes back, retry, supersede, fail", limit=2, canaries=1, policy=replace(CAREFUL, budget=Share(0))
    ),
    "4 hosts, limit 2, budget 1": rules("crash, pause, retry, supersede, fail, batch", hosts=4, limit=2, policy=BUDGET_1),
}


@pytest.mark.parametrize("scope", SCOPES)
def test_no_interleaving_breaks_a_promise(scope: str) -> None:
    """Whatever happens in whatever order, every promise is kept, and a good end can be reached without a newer build."""
    found = Search(SCOPES[scope]).run()
    print(f"\n{scope}: {found}")

    assert (None, []) == (found.violation, found.trace)
    assert found.states > 1000


EVERYTHING = {
    *("reads", "is granted a permit", "restarts", "gets healthy", "gives its permit back, healthy", "completes"),
    *("fails", "fails, and halts the rollout", "fails, and all go back", "reverts", "gives its permit back, reverted", "is broken"),
    *("agent crashes", "agent comes back", "machine goes down", "service dies", "manager mends it"),
    *("a newer build is enabled", "a newer build is written by hand", "pause", "resume", "freeze", "unfreeze", "retry"),
    *("permit is released", "is given up as lost"),
    *("promote", "bakes", "promotes it", "the stagger has passed"),
}


def test_everything_does_happen() -> None:
    """What the model knows of comes about in some interleaving: else nothing would be proved of it."""
    things = rules("crash, reboot, rot, pause, freeze, retry, lost, release, supersede, by hand, fail", hosts=2)
    goes_back = rules("crash, retry, fail, goes back", hosts=2, policy=RolloutTable(on_budget=OnBudget.ROLLBACK))
    careful = rules("promote", hosts=2, canaries=1, policy=CAREFUL)

    assert EVERYTHING == Search(things).run().seen | Search(goes_back).run().seen | Search(careful).run().seen
