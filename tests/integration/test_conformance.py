"""What `strategies check` finds: nothing in what ships, and every planted fault by its name."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from deployd_core.api import FleetOptions, HostCall, HostView, Phase, Plan, Strategy
from deployd_core.boundary import Provider
from deployd_core.conformance.looking import FACTS
from deployd_core.conformance.strategies import PROPERTIES, Subject, check_strategy
from deployd_core.plugins import Implementation, Kind, Plugins

BAD = Path(__file__).parent / "plugins.d"
SHIPPED = Plugins.load().of_kind(Kind.STRATEGY)
PLUGINS = Plugins.load(directory=BAD)

CAUGHT = {
    "at-once-under-a-limit": {"limits": "4 instances go at once, and its option instances_at_once says 1"},
    "many-hosts": {"limits": "of 2 hosts the plan lets them all go at once, and its option limit says 10%"},
    "never-finishes": {"finishes": "in the end every stale instance has to be named, those that are down first"},
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
    "forgets-what-is-under-way": {"limits": "2 instances go at once, and it begins with 1: what is in view.cycling is"},
    "forgets-its-batch": {"limits": "4 instances go at once, and it begins with 2: what is in view.cycling is"},
    "canary-then-all-too-soon": {"limits": "4 instances go at once, and it begins with 1: what is in view.cycling is"},
    "takes-the-first-of-a-set": {"pure": "another process plans ["},
    "knows-where-it-was-made": {"pure": "__init__ looks at the world (posix.uname) at "},
    "all-canaries-at-once": {"limits": "a canary host: of 2 hosts the plan lets them all go at once"},
    "half-of-each-hour": {"pure": "it answers differently 1800 s later, when nothing else has changed"},
    "stuck-on-large-hosts": {"finishes": "in the end every stale instance has to be named"},
    "looks-in-vain": {"facts": "failed gathering facts: FileNotFoundError"},
    "looks-for-ever": {"facts": "failed gathering facts: no answer within 10 s"},
    "finds-no-names": {"facts": "returned no facts, which are values by name: ['web@1']"},
    "finds-an-object": {"facts": "it finds what JSON cannot say"},
    "keeps-what-it-finds": {"memory": "a new object of it answers differently"},
    "cannot-look": {"finishes": "could not look at the model of a host, and is blocked: nobody is there to ask; say what"},
}


RARE = "falls-over-a-rare-host"
"""Shows its fault under few seeds alone."""


class OneThenTheRest(Strategy[FleetOptions]):
    """Let one go first; when it is ready, all the others."""

    name = "one-then-the-rest"

    def plan(self, view: HostView) -> Plan:
        ready = any(found.phase is Phase.READY for found in view.instances)
        return Plan(
            cycle=view.cycling or (view.stale if ready else view.stale[:1]), limit=self.options.fleet_limit, why="one first"
        )


class Growing(Strategy[FleetOptions]):
    """Let one more go at a time for each that is ready: a window that slides and widens."""

    name = "growing"

    def plan(self, view: HostView) -> Plan:
        window = 1 + sum(found.phase is Phase.READY for found in view.instances)
        return Plan(
            cycle=view.cycling + view.stale[: max(0, window - len(view.cycling))],
            limit=self.options.fleet_limit,
            why="more and more",
        )


class Shrinking(Strategy[FleetOptions]):
    """Let half of those that are stale go, then half of the rest."""

    name = "shrinking"

    def plan(self, view: HostView) -> Plan:
        return Plan(cycle=view.cycling or view.stale[: (len(view.stale) + 1) // 2], limit=self.options.fleet_limit, why="halves")


class DownAtOnce(Strategy[FleetOptions]):
    """Let one that serves go at a time, and whatever is down at once: that costs nobody anything."""

    name = "down-at-once"

    def plan(self, view: HostView) -> Plan:
        down = tuple(found.name for found in view.instances if found.name in view.stale and not found.available)
        return Plan(
            cycle=down + (view.cycling or view.stale[:1]), limit=self.options.fleet_limit, why="one by one, and what is down"
        )


class OneOfEachHalf(Strategy[FleetOptions]):
    """Let one go at a time of those with an even number, and one of the others."""

    name = "one-of-each-half"

    def plan(self, view: HostView) -> Plan:
        going: list[str] = []
        for odd in (0, 1):
            half = {found.name for found in view.instances if (found.port or 0) % 2 == odd}
            going += [name for name in view.cycling if name in half] or [name for name in view.stale if name in half][:1]
        return Plan(cycle=tuple(going), limit=self.options.fleet_limit, why="one of each half")


class ImpatientAfterAMinute(Strategy[FleetOptions]):
    """Wait for one that warms up, and say for how long it has: what `now` and `since` are for."""

    name = "impatient-after-a-minute"

    def plan(self, view: HostView) -> Plan:
        longest = max((view.now - found.since for found in view.instances if found.name in view.cycling), default=0.0)
        why = "one by one" if longest < 60 else f"the last one takes long: {longest:.0f} s"
        return Plan(cycle=view.cycling or view.stale[:1], limit=self.options.fleet_limit, why=why)


GOOD = (OneThenTheRest, Growing, Shrinking, DownAtOnce, OneOfEachHalf, ImpatientAfterAMinute)


@pytest.mark.parametrize("plugin", GOOD, ids=lambda plugin: plugin.name)
def test_a_width_that_is_meant_is_no_fault(plugin: type[Strategy[FleetOptions]]) -> None:
    """A strategy may widen, narrow, and take what is down at once, as long as it counts what is under way."""
    provider = Provider(entry=plugin.name, distribution="test", version="", origin=__file__)
    findings = check_strategy(Subject(name=plugin.name, provider=provider, plugin=plugin, options=FleetOptions()), seeds=40)

    assert [] == [(check.name, check.problem, check.seed) for check in findings.checks if not check.passed]


def subject(found: Implementation) -> Subject:
    return Subject(name=found.name, provider=found.provider, plugin=found.plugin, options=found.plugin.options_type())


@pytest.mark.parametrize("found", SHIPPED, ids=lambda found: found.name)
def test_what_ships_passes(found: Implementation) -> None:
    """A built-in strategy keeps to everything, with seeds that nobody has chosen for it."""
    findings = check_strategy(subject(found), seeds=60)

    assert [name for name in PROPERTIES if name != FACTS] == [check.name for check in findings.checks]
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
    assert {found.name for found in PLUGINS.of_kind(Kind.STRATEGY)} - {found.name for found in SHIPPED} == {*CAUGHT, RARE}


def test_a_seed_shows_the_fault_again() -> None:
    """What chance has found, its seed alone finds again."""
    bad = subject(PLUGINS.get(Kind.STRATEGY, RARE))
    (found,) = [check for check in check_strategy(bad, seeds=60).checks if not check.passed]

    (again,) = [check for check in check_strategy(bad, seed=found.seed or 0, seeds=1).checks if not check.passed]

    assert (found.name, found.problem, found.seed) == (again.name, again.problem, again.seed)
    assert found.seed


class OnlyHere(Strategy[FleetOptions]):
    """Restart what its look at the host has found to be here."""

    name = "only-here"

    def facts(self, host: HostCall) -> dict[str, object]:
        assert threading.current_thread() is not threading.main_thread()
        assert host.timeout > 0
        return {"here": sorted(path.name for path in (host.root / "releases").iterdir())}

    def plan(self, view: HostView) -> Plan:
        unknown = "" if view.facts.get("here") == ["v1"] else "nobody knows what is here"
        return Plan(cycle=() if unknown else view.stale, limit=self.options.fleet_limit, why="all of it", impossible=unknown)


def test_what_a_strategy_finds_itself_is_what_it_plans_with() -> None:
    """It looks as the engine has it look, on a thread of its own and told how long it has; facts that are given stand instead."""
    provider = Provider(entry="only-here", distribution="test", version="", origin=__file__)
    found = Subject(name="only-here", provider=provider, plugin=OnlyHere, options=FleetOptions())
    told = msgspec.structs.replace(found, facts=lambda _: {"here": ["v7"]})

    findings, otherwise = (check_strategy(one, seeds=20) for one in (found, told))

    assert list(PROPERTIES) == [check.name for check in findings.checks]
    assert [] == [(check.name, check.problem) for check in findings.checks if not check.passed]
    assert ["finishes", "crashes"] == [check.name for check in otherwise.checks if not check.passed]
