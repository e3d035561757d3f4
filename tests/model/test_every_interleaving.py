"""Every interleaving of a small fleet: no promise is broken, and from everywhere the rollout can still be brought to its end."""

from __future__ import annotations

import pytest

from deployd_core.spec import OnBudget, RolloutTable
from deployd_core.units import Share
from fleet_model.search import Search
from fleet_model.world import Rules

BUDGET_1 = RolloutTable(budget=Share(1))


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
}


def test_everything_does_happen() -> None:
    """What the model knows of comes about in some interleaving: else nothing would be proved of it."""
    things = rules("crash, reboot, rot, pause, freeze, retry, lost, release, supersede, by hand, fail", hosts=2)
    goes_back = rules("crash, retry, fail, goes back", hosts=2, policy=RolloutTable(on_budget=OnBudget.ROLLBACK))

    assert EVERYTHING == Search(things).run().seen | Search(goes_back).run().seen
