"""The simulator finds nothing wrong with what ships, whatever goes wrong around it; and the same seed tells the same story."""

import os
import subprocess
import sys
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from deployd_core.model import Role
from deployd_core.plugins import Plugins, convert
from deployd_core.simulate import looks
from deployd_core.simulate.faults import Fault, FaultKind, parse_faults
from deployd_core.simulate.runner import Outcome, Summary, percentile, simulate
from deployd_core.simulate.scenario import Scenario, roster, spec_for
from deployd_core.simulate.world import World
from deployd_core.spec import RolloutTable
from deployd_core.units import Share

PLUGINS = Plugins.load()
DRAIN = "iptables-drain"
OPTIONS = {"all-at-once": {}, "concurrency": {"limit": 2}, DRAIN: {"limit": 2}}


def scenario(strategy="concurrency", *, hosts=8, zones=2, instances=2, faults="", **options):
    """A small fleet."""
    spec = spec_for(strategy, OPTIONS[strategy] | options, instances)
    return Scenario(spec=spec, hosts=roster(hosts, zones), faults=parse_faults(faults))


def run(*arguments, seed=1, **keywords):
    """One run, with everything that happened."""
    return simulate(scenario(*arguments, **keywords), PLUGINS, seed, full=True)


def acts(record, host):
    """What a host did, in order."""
    begun = [line.split(" ", 2)[1:] for line in record.trace.splitlines()]
    return [words.removeprefix("begins ") for name, words in begun if name == host and words.startswith("begins ")]


def test_a_host_does_what_an_agent_does():
    """From fetching to tidying up, in the order of the planner, and no act more."""
    _, record = run(DRAIN, hosts=1, zones=1)

    cycle = ["closegate", "restart", "opengate"]
    staged = ["fetch:v2", "unpack:v2", "takepermit", "flip"]
    assert staged + [f"{act}:web@{port}" for port in (8001, 8002) for act in cycle] + ["settle", "tidy", "advance"] == acts(
        record, "host-1"
    )


@pytest.mark.parametrize("strategy", OPTIONS)
def test_a_rollout_without_faults_converges(strategy):
    """Every host serves the new build in the end, no rule is broken, and nobody is out."""
    result, record = run(strategy)

    assert (Outcome.CONVERGED, "", 8, ()) == (result.outcome, result.reason, result.converged, result.broken)
    assert 16 == record.fleet.available


def test_capacity_is_what_the_limits_leave():
    """Two hosts of eight at a time are a quarter of the instances out, or half of that when each restarts one at a time."""
    hosts, half = run(limit=2)[0], run(limit=2, instances_at_once=1)[0]

    assert (4, 0.75, 2) == (hosts.most_out, hosts.lowest, hosts.most_permits)
    assert (2, 0.875) == (half.most_out, half.lowest)


def test_a_limit_for_each_zone_holds_in_each():
    """With one host of a zone at a time, three quarters of each zone of four are always there."""
    result, _ = run(limit="100%", limit_per_zone=1)

    assert {"zone-a": 0.75, "zone-b": 0.75} == result.lowest_by_zone


@pytest.mark.parametrize("strategy", OPTIONS)
@pytest.mark.parametrize("kind", FaultKind)
def test_no_fault_alone_breaks_a_rule(strategy, kind):
    """Whatever goes wrong, the rules hold and the rollout ends, and with what passes it converges."""
    for seed in range(2):
        result, _ = run(strategy, faults=kind.value, seed=seed)

        assert () == result.broken
        lasts = kind in (FaultKind.DEAD, FaultKind.BAD_BUILD)
        assert result.outcome in ((Outcome.HALTED, Outcome.WAITING, Outcome.CONVERGED) if lasts else (Outcome.CONVERGED,))


@pytest.mark.parametrize("strategy", OPTIONS)
@pytest.mark.parametrize("before", [True, False])
def test_an_agent_may_die_of_any_act(strategy, before):
    """Killed just before or just after each of its acts in turn, the agent goes on where it was, and no rule is broken."""
    begun = acts(run(strategy, hosts=3, zones=1)[1], "host-1")
    count = len([act for act, last in zip(begun, ["", *begun], strict=False) if act != last])  # one that is tried again counts once
    for act in range(1, count + 1):
        world = World(scenario(strategy, hosts=3, zones=1), PLUGINS, 1, full=True)
        world.hosts[0].dies_at = (act, before)
        world.run()

        assert "its agent dies" in world.record.trace
        assert (3, []) == (len(world.done), world.judge.broken), f"act {act}"


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("write", range(7))
def test_the_answer_to_any_write_may_be_lost(write, applied):
    """Carried out or not, a write whose answer was lost leaves nothing behind that the next look does not put right."""
    world = World(scenario(DRAIN, hosts=3, zones=1), PLUGINS, 1)
    world.hosts[0].loses = (write, applied)
    world.run()

    assert (3, []) == (len(world.done), world.judge.broken)


@pytest.mark.parametrize(("seed", "moment"), [(2, "11s"), (8, "13s"), (28, "12s"), (31, "14s")])
def test_a_host_asks_again_when_a_spec_is_written_while_it_asks(seed, moment):
    """The answer was for the old spec, and nobody wakes the host again."""
    result, _ = run("all-at-once", hosts=16, faults=f"new-spec@{moment}", seed=seed)

    assert (Outcome.CONVERGED, ()) == (result.outcome, result.broken)


def test_an_agent_is_not_blamed_for_what_the_one_before_it_asked():
    """One that has just been started asks by itself, and nobody has to wake it."""
    made = scenario(hosts=4, zones=1, limit=1)
    world = World(made, PLUGINS, 1)
    last = simulate(made, PLUGINS, 1)[0].order[-1]
    host = next(host for host in world.hosts if host.name == last)

    def ask_in_vain_and_go_down():
        host.asked_again = True
        world.go_down(host, for_good=False)

    world.agenda.after(60.0, ask_in_vain_and_go_down)
    world.run()

    assert (4, []) == (len(world.done), world.judge.broken)


FAULTS = st.lists(
    st.builds(
        lambda kind, count, progress: Fault(
            kind=kind, share=Share(count if kind.of_hosts else 1), progress=None if kind.lasting else progress
        ),
        st.sampled_from(FaultKind),
        st.integers(1, 3),
        st.floats(0, 1) | st.none(),
    ),
    max_size=5,
)


@settings(max_examples=30, deadline=None)
@given(
    strategy=st.sampled_from(sorted(OPTIONS)),
    faults=FAULTS,
    seed=st.integers(0, 2**32),
    instances=st.integers(1, 4),
    data=st.data(),
)
def test_no_mixture_of_faults_breaks_a_rule(strategy, faults, seed, instances, data):
    """Any faults at any moments: the rules hold, and the rollout ends in a way that can be explained."""
    hosts = data.draw(st.integers(1, 8))
    floor = {"min_available": 0} if strategy == DRAIN and instances == 1 else {}
    mixed = scenario(strategy, hosts=hosts, zones=data.draw(st.integers(1, hosts)), instances=instances, **floor)
    mixed = Scenario(spec=mixed.spec, hosts=mixed.hosts, faults=tuple(faults))

    result, _ = simulate(mixed, PLUGINS, seed)

    assert () == result.broken
    assert result.outcome is not Outcome.STUCK
    assert bool(result.reason) == (result.outcome is not Outcome.CONVERGED)


def test_a_bad_build_costs_no_more_than_budget_and_limit():
    """With a build that never gets healthy two hosts fail, the rollout halts by itself, and these go back to the old build."""
    result, record = run(faults="bad-build:100%")

    assert (Outcome.HALTED, 0, 2) == (result.outcome, result.converged, result.most_permits)
    assert "the budget is 0" in result.reason
    assert (2 * 2, 16) == (result.most_out, record.fleet.available)


def test_a_dead_host_keeps_its_permit_and_is_named():
    """When hosts that hold every permit are gone for good, the rollout waits for a person and says for which."""
    result, _ = run(faults="dead:1@1%", limit=1)

    assert Outcome.WAITING is result.outcome
    assert "is down for good" in result.reason


def test_hosts_that_had_finished_before_they_died_are_named():
    """They take up all the room that the limit leaves, so that the others wait for a person, too."""
    faults = "crash:1,crash:1,crash:1,dead:2@75%,reboot:3@75%"
    runs = [run(DRAIN, hosts=6, zones=4, instances=1, min_available=0, faults=faults, seed=seed)[0] for seed in range(20)]

    assert [()] * len(runs) == [result.broken for result in runs]
    late = [result for result in runs if result.outcome is Outcome.WAITING and result.converged > 2]
    assert late
    assert all(2 == result.reason.count("is down for good") for result in late)


@pytest.mark.parametrize(
    ("table", "outcome", "reason"),
    [
        ({"promotion": "manual"}, Outcome.WAITING, "v2 is for the canary hosts until it is promoted"),
        ({"promotion": "auto", "bake": "5m"}, Outcome.CONVERGED, ""),
    ],
)
def test_canaries_go_first(table, outcome, reason):
    """The fleet waits until somebody promotes what the canary serves, or until it has baked and is promoted by itself."""
    made = scenario(hosts=4)
    rollout = convert({"canary_first": True, **table}, RolloutTable, where="test")
    hosts = (replace(made.hosts[0], role=Role.CANARY), *made.hosts[1:])
    result, _ = simulate(replace(made, spec=replace(made.spec, rollout=rollout), hosts=hosts), PLUGINS, 1)

    assert (outcome, "host-1", ()) == (result.outcome, result.order[0], result.broken)
    assert reason in result.reason
    assert (result.seconds > 300) == (outcome is Outcome.CONVERGED)


def windows(*allow, began="2026-01-01T00:00:00+00:00", **options):
    """A run that may only begin in windows, from a Thursday on or from another day."""
    made = scenario(hosts=4, **options)
    rollout = convert({"windows": {"allow": allow}}, RolloutTable, where="test")
    began_at = datetime.fromisoformat(began).timestamp()
    return simulate(replace(made, spec=replace(made.spec, rollout=rollout), began=began_at), PLUGINS, 1, full=True)


@pytest.mark.parametrize(
    ("window", "began", "hours"),
    [
        ("Mon 09:00-16:00", "2026-01-01T00:00:00+00:00", 4 * 24 + 9),
        ("Mon 09:00-16:00", "2026-01-05T08:30:00+00:00", 0.5),
        ("Mon 09:00-16:00", "2026-01-05T12:00:00+00:00", 0),
        ("2026-01-07 12:00/2026-01-07 14:00", "2026-01-01T00:00:00+00:00", 6 * 24 + 12),
    ],
)
def test_a_window_is_waited_for(window, began, hours):
    """Time goes on to the opening, whenever the run begins, and then every host converges; few plans are made for the wait."""
    result, record = windows(window, began=began)

    assert (Outcome.CONVERGED, 4, ()) == (result.outcome, result.converged, result.broken)
    assert hours * 3600 <= record.permits[0][0] < hours * 3600 + 60
    assert result.rounds < 200


def test_a_rollout_goes_on_in_the_next_window():
    """Where not all hosts fit into a window the others wait for the next one, a day later."""
    result, _ = windows("00:00-00:16", limit=1)

    assert (Outcome.CONVERGED, ()) == (result.outcome, result.broken)
    assert 24 * 3600 < result.seconds < 48 * 3600


def test_a_window_that_opens_in_more_than_a_week_is_not_waited_for():
    """That is no mistake either: the run ends waiting, and says for what."""
    result, _ = windows("2026-01-09 12:00/2026-01-09 14:00")

    assert (Outcome.WAITING, 0, ()) == (result.outcome, result.most_permits, result.broken)
    assert "the next one opens Fri 2026-01-09 12:00 UTC" in result.reason


CODE = """
from deployd_core.plugins import Plugins
from deployd_core.simulate.runner import simulate
from deployd_core.simulate.scenario import Scenario, roster, spec_for
from deployd_core.simulate.faults import parse_faults
faults = "crash:3,reboot:1,session:1,lost-answer:2,double-watch:2,newer-build,new-spec,pause,join:2,flap:1"
made = Scenario(spec=spec_for("iptables-drain", {"limit": 3}, 3), hosts=roster(12, 3), faults=parse_faults(faults))
print(simulate(made, Plugins.load(), 7, full=True)[1].trace)
"""


def test_the_same_seed_gives_the_same_trace_byte_for_byte():
    """In another process, with other hashes, a run is the same to the last byte; another seed gives another one."""
    traces = [
        subprocess.run(
            [sys.executable, "-P", "-c", CODE], env={**os.environ, "PYTHONHASHSEED": hashes}, check=True, capture_output=True
        ).stdout
        for hashes in ("1", "2")
    ]

    assert traces[0] == traces[1]
    assert traces[0].count(b"\n") > 100
    assert run(seed=1)[0].trace != run(seed=2)[0].trace


@pytest.mark.parametrize("faults", ["", "flap:3,crash:3,session:2", "reboot:1,slow-probe:2,failed-start:2,late-watch:2,pause"])
@pytest.mark.parametrize("strategy", OPTIONS)
def test_it_makes_no_difference_when_looks_are_counted(strategy, faults):
    """Looks that show nothing new are counted when somebody wants to know: the run is the same as when each is counted at once."""
    made = scenario(strategy, instances=3, faults=faults)
    late, once = (World(made, PLUGINS, 5, full=True) for _ in range(2))
    step = once.agenda.step

    def count_and_step():
        once.clock.now = once.agenda.next_at()
        for host in once.hosts:
            for number in range(len(host.instances) if host.alive else 0):
                looks.catch_up(host, number)
        step()

    once.agenda.step = count_and_step
    for world in (late, once):
        world.run()

    assert late.record.trace == once.record.trace


def test_a_full_record_changes_nothing():
    """A run that is looked at is the run that was not."""
    made = scenario(faults="crash:2,reboot:1")

    assert simulate(made, PLUGINS, 3, full=True)[0] == simulate(made, PLUGINS, 3)[0]


def test_a_summary_speaks_for_the_worst_run():
    """Capacity is the lowest and the blast radius the largest of all runs; durations are percentiles."""
    runs = tuple(simulate(scenario(faults="reboot:1"), PLUGINS, seed)[0] for seed in range(6))
    summary = Summary(runs=runs)

    assert (min(run.lowest for run in runs), max(run.most_out for run in runs)) == (summary.lowest, summary.most_out)
    assert sorted(run.seconds for run in runs)[2] == summary.duration(50)
    assert {Outcome.CONVERGED: 6} == summary.outcomes


def test_percentiles_are_values_that_there_were():
    """The p50 of four values is the second, the p95 the last; of one value it is that one."""
    assert (2, 4, 7) == (percentile([4, 1, 3, 2], 50), percentile([4, 1, 3, 2], 95), percentile([7], 50))
