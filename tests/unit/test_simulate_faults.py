"""How faults are written, and when they happen."""

import random
import re
from collections import Counter
from pathlib import Path

import pytest

from deployd_core.errors import ConfigError
from deployd_core.plugins import Plugins
from deployd_core.simulate.faults import Fault, FaultKind, moments, parse_faults
from deployd_core.simulate.invariants import RULES
from deployd_core.simulate.runner import Outcome, simulate
from deployd_core.simulate.scenario import Scenario, roster, spec_for
from deployd_core.simulate.world import World
from deployd_core.units import Share

PAGE = Path(__file__).parents[2] / "docs/simulate.md"
PLUGINS = Plugins.load()


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", ()),
        ("crash", (Fault(kind=FaultKind.CRASH),)),
        ("crash:2@rand", (Fault(kind=FaultKind.CRASH, share=Share(2)),)),
        ("bad-build:5%", (Fault(kind=FaultKind.BAD_BUILD, share=Share("5%")),)),
        ("newer-build@50%", (Fault(kind=FaultKind.NEWER_BUILD, progress=0.5),)),
        ("dead:1@1m30s, pause", (Fault(kind=FaultKind.DEAD, at=90.0), Fault(kind=FaultKind.PAUSE))),
    ],
)
def test_a_list_is_read_as_it_is_written(text, faults):
    """Kind, number and moment are taken from the text."""
    assert faults == parse_faults(text)


@pytest.mark.parametrize("kind", FaultKind)
def test_what_is_written_back_is_read_the_same(kind):
    """The words of a fault, as a replay prints them, mean that fault."""
    fault = Fault(kind=kind, share=Share("5%") if kind.of_hosts else Share(1), at=None if kind.lasting else 90.0)

    assert (fault,) == parse_faults(str(fault))


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("reboots", "there is no fault 'reboots'", "did you mean 'reboot'?"),
        ("reboot:x", "'reboot:x' is no fault", "NAME:COUNT@WHEN"),
        ("pause:2", "happens to the service", "pause@50%"),
        ("flap:1@50%", "flap has no moment of its own", "flap:COUNT"),
        ("reboot@150%", "'150%' is neither a count", "reboot:2@50%"),
        ("reboot@soon", "'soon' is not a duration", "reboot:2@50%"),
        ("crash:2,,reboot", "'crash:2,,reboot' has nothing before or behind a comma", "crash:2,reboot:1"),
        ("crash:2, ", "'crash:2, ' has nothing before or behind a comma", "crash:2,reboot:1"),
        (",crash:2", "',crash:2' has nothing before or behind a comma", "crash:2,reboot:1"),
    ],
)
def test_a_mistake_is_named_with_the_fix(text, message, hint):
    """Whoever mistypes a fault is told what would be right."""
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        parse_faults(text)

    assert hint in caught.value.hint


def test_a_percentage_of_a_small_fleet_is_one_host_at_least():
    """One percent of twenty hosts is a host, and nothing is more than all of them."""
    (fault,) = parse_faults("reboot:1%")
    (many,) = parse_faults("reboot:50")

    assert [1, 2, 20] == [fault.count(20), fault.count(101), many.count(20)]


def test_moments_come_from_the_seed():
    """Each of several faults has a moment of its own, and the same seed gives the same ones."""
    (fault,) = parse_faults("reboot:3")

    drawn = [moments(fault, 10, random.Random(4)) for _ in range(2)]

    assert drawn[0] == drawn[1]
    assert 3 == len({one.progress for one in drawn[0]})


def test_every_fault_is_documented():
    """The page has a row for each kind of fault, with its meaning."""
    text = PAGE.read_text(encoding="utf-8")

    assert [] == [kind.value for kind in FaultKind if f"| `{kind.value}` | {kind.meaning} |" not in text]


def test_every_rule_is_documented():
    """The page has a row for each rule, with what it says."""
    text = PAGE.read_text(encoding="utf-8")

    assert [] == [rule for rule, what in RULES.items() if f"| `{rule}` | {what} |" not in text]


def worlds(faults, seeds=20, strategy="concurrency", **options):
    """What happened in runs from several seeds."""
    spec = spec_for(strategy, {"limit": 2} | options, 2)
    for seed in range(seeds):
        world = World(Scenario(spec=spec, hosts=roster(8, 2), faults=parse_faults(faults)), PLUGINS, seed, full=True)
        world.run()
        yield world


def test_an_agent_dies_of_any_of_its_acts():
    """No act is hit much more often than another, however often it is tried again, and none is left out."""
    died = Counter(
        line.split()[-1].partition(":")[0]
        for world in worlds("crash:100%", strategy="iptables-drain")
        for line in world.record.trace.splitlines()
        if "its agent dies" in line
    )

    assert {"fetch", "unpack", "takepermit", "flip", "closegate", "restart", "opengate", "settle", "tidy"} <= set(died)
    assert max(died["takepermit"], died["settle"], died["tidy"]) < died.total() / 6


def test_half_of_the_sessions_that_expire_are_of_hosts_that_wait(monkeypatch):
    """What a session carries is the place in the queue, so that hosts without a permit are hit as often as those with one."""
    hit = []
    inner = World.expire
    monkeypatch.setattr(World, "expire", lambda world, host: (hit.append(host.name in world.nodes.holders), inner(world, host)))
    for _ in worlds("session:4@30%"):
        pass

    assert 80 == len(hit)
    assert 25 < sum(hit) < 55


@pytest.mark.parametrize(
    ("at_deadline", "outcome", "cut"),
    [("proceed", Outcome.CONVERGED, 2 * 2 * 2), ("wait", Outcome.CONVERGED, 0), ("abort", Outcome.HALTED, 0)],
)
def test_a_drain_may_run_into_its_deadline(at_deadline, outcome, cut):
    """The requests that outlast it are cut and counted where the options say so: two of each instance of two hosts."""
    options = {"limit": 2, "at_deadline": at_deadline}
    made = Scenario(spec=spec_for("iptables-drain", options, 2), hosts=roster(8, 2), faults=parse_faults("slow-drain:2"))
    result, _ = simulate(made, PLUGINS, 1)

    assert (outcome, cut, ()) == (result.outcome, result.cut, result.broken)
