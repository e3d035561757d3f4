"""What `strategies check` finds: nothing in what ships, and every planted fault by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployd_core.conformance.strategies import PROPERTIES, Subject, check_strategy
from deployd_core.plugins import Implementation, Kind, Plugins

BAD = Path(__file__).parent / "plugins.d"
SHIPPED = Plugins.load().of_kind(Kind.STRATEGY)
PLUGINS = Plugins.load(directory=BAD)

CAUGHT = {
    "at-once-under-a-limit": {"limits": "4 instances go at once, and its option instances_at_once says 1"},
    "many-hosts": {"limits": "of 2 hosts the plan lets them all go at once, and its option limit says 10%"},
    "never-finishes": {"finishes": "nothing stands in its way, and it ends broken"},
    "raises": {"plans": "failed planning: IndexError"},
    "sleeps": {"pure": "plan sleeps at "},
    "hangs": {"answers": "plan did not return within 2 s"},
    "changes-its-view": {"view": "it changes the view that it is given"},
    "changes-its-facts": {"view": "it changes the view that it is given"},
    "counts-its-calls": {"pure": "asked twice about one view, it answers differently"},
    "remembers-where-it-began": {"memory": "a new object of it answers differently"},
    "remembers-in-its-module": {"memory": "asked in another order, it answers differently"},
    "reads-the-clock": {"pure": "plan reads the clock at "},
    "reads-a-file": {"pure": "plan looks at the world ("},
    "reads-the-environment": {"pure": "plan reads the environment at "},
    "rolls-dice": {"pure": "plan rolls dice (random) at "},
    "starts-threads": {"pure": "plan starts a thread at "},
    "names-strangers": {"plans": "it names 'db@5432', which is no instance of the host"},
    "says-nothing": {"plans": "`why` must be one line"},
    "returns-nonsense": {"plans": "returned no Plan"},
    "begins-only-at-the-beginning": {"crashes": "crash after act "},
}


LOOK = {"looks-in-vain", "looks-for-ever", "finds-no-names"}
"""Their faults show on a real host alone."""
RARE = "falls-over-a-rare-host"
"""Shows its fault under few seeds alone."""


def subject(found: Implementation) -> Subject:
    return Subject(name=found.name, provider=found.provider, plugin=found.plugin, options=found.plugin.options_type())


@pytest.mark.parametrize("found", SHIPPED, ids=lambda found: found.name)
def test_what_ships_passes(found: Implementation) -> None:
    """A built-in strategy keeps to everything, with seeds that nobody has chosen for it."""
    findings = check_strategy(subject(found), seeds=60)

    assert list(PROPERTIES) == [check.name for check in findings.checks]
    assert [] == [(check.name, check.problem, check.seed) for check in findings.checks if not check.passed]
    assert all(check.cases > 15 for check in findings.checks)


@pytest.mark.parametrize("name", CAUGHT)
def test_a_bad_strategy_is_caught(name: str) -> None:
    """Each planted fault fails the check that is about it, with words that lead to it."""
    findings = check_strategy(subject(PLUGINS.get(Kind.STRATEGY, name)), seeds=5)

    problems = {check.name: check.problem for check in findings.checks}
    assert [] == [(check, problems[check]) for check, text in CAUGHT[name].items() if text not in problems[check]]


def test_every_bad_strategy_has_its_test() -> None:
    """No fault is planted without being looked for."""
    assert {found.name for found in PLUGINS.of_kind(Kind.STRATEGY)} - {found.name for found in SHIPPED} == {*CAUGHT, *LOOK, RARE}


def test_a_seed_shows_the_fault_again() -> None:
    """What chance has found, its seed alone finds again."""
    bad = subject(PLUGINS.get(Kind.STRATEGY, RARE))
    (found,) = [check for check in check_strategy(bad, seeds=60).checks if not check.passed]

    (again,) = [check for check in check_strategy(bad, seed=found.seed or 0, seeds=1).checks if not check.passed]

    assert (found.name, found.problem, found.seed) == (again.name, again.problem, again.seed)
    assert found.seed
