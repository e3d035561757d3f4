"""Each rule finds the mistake that it is there for, planted in a copy of the code, and the printed command runs into it again."""

import re
import shlex
import sys
import types
from pathlib import Path

import pytest
from msgspec.structs import replace

from deployd_core import admission, cycle, planner
from deployd_core.cli.main import run as deployd
from deployd_core.model import Role
from deployd_core.plugins import Plugins
from deployd_core.simulate import host
from deployd_core.simulate.faults import parse_faults
from deployd_core.simulate.runner import Outcome, simulate
from deployd_core.simulate.scenario import Scenario, roster, spec_for
from deployd_core.spec import RolloutTable
from deployd_core.testing import coordination

SPEC = """
[service]
root = "/srv/web"
[source]
url = "https://builds.example.com/web/{build}.tar.gz"
[instances]
names = ["web@8001", "web@8002", "web@8003"]
manager = { use = "systemd", unit = "web@{port}" }
probe = { use = "tcp", stable_for = "5s" }
"""
USED = {admission: (coordination, "admit", "admit"), cycle: (planner, "cycle", ""), planner: (host, "plan_host", "plan_host")}
"""By module, where the simulator uses what of it."""


def plant(monkeypatch, module, *lines):
    """Have the simulator use a copy of a module in which lines are wrong."""
    text = Path(module.__file__).read_text(encoding="utf-8")
    for before, after in lines:
        assert 1 == text.count(before), f"{before!r} is no longer in {module.__name__}: plant it anew"
        text = text.replace(before, after)
    copy = types.ModuleType(f"{module.__name__}_wrong")
    monkeypatch.setitem(sys.modules, copy.__name__, copy)  # msgspec looks its annotations up there
    exec(compile(text, copy.__name__, "exec"), copy.__dict__)
    where, name, what = USED[module]
    monkeypatch.setattr(where, name, getattr(copy, what) if what else copy)


FROZEN = ("return _frozen(request) or ", "return ")
STOPPED = (" or _stopped(request)", "")
WINDOWS = (" or _outside_window(request)", "")
PROMOTED = (" _unpromoted,", "")
SPENT = (" _failed, _spent,", " _failed,")
DOWN = ("    out = {**request.down, **request.holders}\n", "    out = dict(request.holders)\n")
STAGGER = ("float(request.policy.stagger))", "float(request.policy.stagger) - 60)")
RAMP = ("if finished < before + size and", "if finished < before and")
OFFLINE = ('if seen.connected else ([], "ZooKeeper does not answer")', "")
OFFLINE_PERMIT = (
    "    if not seen.connected:\n        return _decide(seen, step, r",
    "    if not seen.now:\n        return _decide(seen, step, r",
)
QUIET = ("    if settled and facts.quiet >= _QUIET:", "    if settled:")
EARLY = (
    "seen.now >= _deadline(facts, view, seen.rules):\n        return Restart",
    "seen.now >= view.since + 5:\n        return Restart",
)
UNSTABLE = ("return max(0.0, facts.healthy_until - facts.healthy_since) >= rules.stable_for", "return True")
UNHEALTHY = (
    "    if not _healthy(facts, seen.rules):\n        return _close_again",
    "    if not facts.running:\n        return _close_again",
)
RENEWAL = ("    due = drain is not None and facts.gate_closed and (", "    due = False and (")

DRAIN, ROLLING = "iptables-drain", "concurrency"


@pytest.mark.parametrize(
    ("rule", "module", "lines", "strategy", "rollout", "faults"),
    [
        pytest.param("stop", admission, [FROZEN], ROLLING, "", "freeze@40s", id="frozen"),
        pytest.param("stop", admission, [STOPPED], ROLLING, "", "pause@40s", id="paused"),
        pytest.param("stop", admission, [STOPPED, SPENT], ROLLING, "", "bad-build:2", id="over-budget"),
        pytest.param("stop", admission, [WINDOWS], ROLLING, 'windows = { allow = ["Fri 09:00-16:00"] }', "", id="window"),
        pytest.param("room", admission, [DOWN], ROLLING, "min_available = 7", "dead:1@5s", id="down"),
        pytest.param("room", admission, [DOWN], ROLLING, "", "dead:1@5s", id="down-within-limit"),
        pytest.param("pace", admission, [STAGGER], ROLLING, 'stagger = "2m"', "", id="stagger"),
        pytest.param("pace", admission, [RAMP], ROLLING, "ramp = [1, 2]", "", id="ramp"),
        pytest.param("session", cycle, [OFFLINE], DRAIN, "", "session:6", id="instance"),
        pytest.param("session", planner, [OFFLINE_PERMIT], ROLLING, "", "session:6", id="permit"),
        pytest.param("cut", cycle, [QUIET], DRAIN, "", "", id="not-drained"),
        pytest.param("cut", cycle, [EARLY], DRAIN, "", "slow-drain:3", id="deadline"),
        pytest.param("stable", cycle, [UNSTABLE], ROLLING, "", "flap:100%", id="unstable"),
        pytest.param("stable", cycle, [UNHEALTHY], DRAIN, "", "", id="unhealthy"),
        pytest.param("lease", cycle, [RENEWAL], DRAIN, "", "slow-start:3,crash:2", id="lease"),
    ],
)
def test_a_planted_mistake_is_found_and_found_again(monkeypatch, capsys, tmp_path, rule, module, lines, strategy, rollout, faults):
    """Without the mistake no rule is broken; with it this one is, and the printed command breaks it at the same moment."""
    (tmp_path / "web.toml").write_text(f"{SPEC}[rollout]\n{rollout}\n")
    command = ["strategies", "simulate", strategy, "--spec", str(tmp_path / "web.toml"), "--hosts", "8", "-o", "limit=2"]
    command += ["--faults", faults] if faults else []
    seeds = ["--seeds", "4", "--jobs", "1"]  # other processes would know nothing of what is planted
    assert 0 == deployd([*command, *seeds])
    capsys.readouterr()

    plant(monkeypatch, module, *lines)
    assert 1 == deployd([*command, *seeds])
    found = re.search(
        rf"BROKEN        {rule}: .*?; (seed \d+, [^:]*:).*?\n +again: (deployd .*?)\n", capsys.readouterr().out, re.DOTALL
    )
    assert 1 == deployd(shlex.split(found[2])[1:])

    assert found[1] in capsys.readouterr().out


def canaries(faults=""):
    """Eight hosts, two of which get a build before the others."""
    spec, hosts = spec_for(ROLLING, {"limit": 2}, 2), roster(8, 2)
    hosts = (*(replace(one, role=Role.CANARY) for one in hosts[:2]), *hosts[2:])
    return Scenario(spec=replace(spec, rollout=RolloutTable(canary_first=True)), hosts=hosts, faults=parse_faults(faults))


def test_a_fleet_that_does_not_wait_for_a_promotion_is_found(monkeypatch):
    """A permit of a host of the fleet for a build that nobody has promoted breaks a rule."""
    plugins = Plugins.load()
    assert () == simulate(canaries(), plugins, 1)[0].broken

    plant(monkeypatch, admission, PROMOTED)

    assert {"stop"} == {broken.rule for broken in simulate(canaries(), plugins, 1)[0].broken}


def test_somebody_promotes_what_the_canary_hosts_serve():
    """The fleet goes on within ten minutes after all of them serve it, or at the time that is written."""
    plugins = Plugins.load()
    later, soon = (simulate(canaries(faults), plugins, 1)[0] for faults in ("promote", "promote@5m"))

    assert [(Outcome.CONVERGED, 8, ())] * 2 == [(run.outcome, run.converged, run.broken) for run in (later, soon)]
    assert 300 < soon.seconds < 600
    assert later.seconds < 1200
