"""The simulator finds mistakes that are planted in copies of the code, and the command that it prints runs into them again."""

import re
import shlex
import sys
import types
from pathlib import Path

import pytest

from deployd_core import admission, cycle, planner
from deployd_core.cli.main import run as deployd
from deployd_core.model import Phase
from deployd_core.plugins import Plugins
from deployd_core.simulate.faults import parse_faults
from deployd_core.simulate.runner import simulate
from deployd_core.simulate.scenario import Scenario, roster, spec_for
from deployd_core.testing import coordination
from deployd_core.testing.memory import MemoryService

GREEDY = '''
from deployd_core.api import FleetLimit, FleetOptions, HostView, Plan, Share, Strategy, hookimpl


class Greedy(Strategy[FleetOptions]):
    """Take one host more than the limit."""

    name = "greedy"

    def plan(self, view: HostView) -> Plan:
        most = self.options.limit.at_most(view.fleet.hosts) + 1
        return Plan(cycle=view.stale, limit=FleetLimit(hosts=Share(most)), why="one more cannot hurt")


@hookimpl
def deployd_strategies():
    return [Greedy]
'''

RASH = '''
from typing import Annotated

from deployd_core.api import FleetOptions, HostView, Meta, Plan, Share, Strategy, hookimpl


class RashOptions(FleetOptions, frozen=True, kw_only=True):
    min_available: Annotated[Share, Meta(description="instances to leave")] = Share(1)


class Rash(Strategy[RashOptions]):
    """Forget the floor."""

    name = "rash"

    def plan(self, view: HostView) -> Plan:
        return Plan(cycle=view.stale, limit=self.options.fleet_limit, why="what floor?")


@hookimpl
def deployd_strategies():
    return [Rash]
'''


def mutant(module, before, after):
    """A copy of a module with one line of it wrong."""
    text = Path(module.__file__).read_text(encoding="utf-8")
    assert 1 == text.count(before), f"{before!r} is no longer in {module.__name__}: plant it anew"
    copy = types.ModuleType(f"{module.__name__}_mutant")
    sys.modules[copy.__name__] = copy  # msgspec looks its annotations up there
    exec(compile(text.replace(before, after), copy.__name__, "exec"), copy.__dict__)
    return copy


PLUGINS = Plugins.load()


def rules(faults="", seeds=6, strategy="concurrency", **options):
    """The rules that some seed breaks."""
    options = {name: value for name, value in ({"limit": 2} | options).items() if value is not None}
    spec = spec_for(strategy, options, 2)
    made = Scenario(spec=spec, hosts=roster(8, 2), faults=parse_faults(faults))
    return {broken.rule for seed in range(seeds) for broken in simulate(made, PLUGINS, seed)[0].broken}


@pytest.mark.parametrize(
    ("before", "after", "options"),
    [
        (
            "    if most is None or len(request.holders) < most:",
            "    if most is None or len(request.holders) <= most:",
            {},
        ),
        ("    if len(within) >= most:", "    if len(within) > most:", {"limit": "100%", "limit_per_zone": 1}),
    ],
    ids=["fleet", "zone"],
)
def test_an_admission_that_grants_one_too_many_is_found(monkeypatch, before, after, options):
    """One permit more than the limit, in the fleet or in a zone, breaks the limit."""
    copy = mutant(admission, before, after)
    # The second bound, permits together with hosts that are down, would hold what the first lets through.
    assert callable(copy._too_few)
    copy._too_few = lambda request: None
    if "limit_per_zone" in options:
        copy._zone_full = _without_down(copy)
    monkeypatch.setattr(coordination, "admit", copy.admit)

    assert "limit" in rules(**options)


def _without_down(copy):
    """The mutant's rule for zones, without its own second bound."""
    inner = copy._zone_full

    def zone_full(request):
        denied = inner(request)
        return None if denied is not None and "out already" in denied.reason else denied

    return zone_full


def test_a_planner_that_gives_permits_back_too_early_is_found(monkeypatch):
    """Putting a deploy on record before its instances are healthy is seen in the world as it is."""
    monkeypatch.setattr(planner, "views_ready", lambda views: all(view.phase in (Phase.WARMING, Phase.READY) for view in views))

    assert "whole" in rules(instances_at_once="100%")


def test_a_cycle_that_is_off_by_one_is_found(monkeypatch):
    """Letting an instance in that the floor holds back breaks the floor."""
    copy = mutant(cycle, "len(available - {name}) < floor", "len(available) < floor")
    monkeypatch.setattr(planner, "cycle", copy)

    assert "floor" in rules(min_available=1, instances_at_once="100%")


def test_instances_that_cannot_serve_are_restarted_together():
    """After a reboot all of them still start, so that restarting several takes nobody away: the floor is about who can serve."""
    spec = spec_for("concurrency", {"min_available": 3}, 4)
    made = Scenario(spec=spec, hosts=roster(20, 3), faults=parse_faults("reboot:2"))

    assert [()] * 9 == [simulate(made, PLUGINS, seed)[0].broken for seed in range(1, 10)]


def test_a_permit_that_dies_with_its_agent_is_found(monkeypatch):
    """If the end of a session took the permit along, as an ephemeral node would, hosts would restart without one."""
    inner = coordination.MemoryEnsemble.went

    def went(self, host):
        inner(self, host)
        self.remove_permit("web", host)

    monkeypatch.setattr(coordination.MemoryEnsemble, "went", went)

    found = rules("session:4,crash:4", strategy="iptables-drain")

    assert found & {"permit", "limit"}


def test_a_queue_that_forgets_to_wake_the_next_is_found(monkeypatch):
    """When nobody tells the first of a zone that there is room, it is noticed that it got on only by asking again."""
    monkeypatch.setattr(MemoryService, "heads", ())

    assert "woken" in rules(limit=1)


def test_a_pause_whose_end_wakes_nobody_is_found(monkeypatch):
    """Hosts under no limit stand in no queue; when nobody tells them that the rollout goes on, that is noticed, too."""
    assert set() == rules("pause@5s", strategy="all-at-once", limit=None)

    monkeypatch.setattr(MemoryService, "watching", ())

    assert {"woken"} == rules("pause@5s", strategy="all-at-once", limit=None)


def test_nothing_is_found_where_nothing_is_wrong():
    """The same runs without a mistake break no rule."""
    assert set() == rules("session:4,crash:4", strategy="iptables-drain")
    assert set() == rules(min_available=1, instances_at_once="100%", limit="100%", limit_per_zone=1)


@pytest.mark.parametrize(("source", "name", "rule"), [(GREEDY, "greedy", "limit"), (RASH, "rash", "floor")])
def test_the_command_that_is_printed_replays_the_fault(capsys, tmp_path, source, name, rule):
    """A strategy that breaks a rule is found with its seed, and the one command printed runs into it again at the same moment."""
    (tmp_path / f"{name}.py").write_text(source)
    command = ["strategies", "simulate", name, "--hosts", "6", "--seeds", "3", "--faults", "crash:2"]

    assert 1 == deployd([*command, "--plugins-dir", str(tmp_path)])
    shown = capsys.readouterr().out
    again = re.search(rf"BROKEN        {rule}: .*?; (seed \d+, .*?)\n +again: (deployd .*?)\n", shown, re.DOTALL)
    assert 1 == deployd(shlex.split(again[2])[1:])

    assert again[1] in capsys.readouterr().out
