"""What a host would do, told in advance: the real planner over a copy of the host."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from deployd_core.acts import CloseGate, CloseIdle, Flip, OpenGate, Restart, Settle, TakePermit, WarmUp
from deployd_core.contracts import AtDeadline, Connections
from deployd_core.dry_run import Assumptions, tell
from deployd_core.model import Health, PermitView, Plan, State
from deployd_core.observation import Drain, InstanceFacts, Observation, Rules, Staging
from deployd_core.planner import HostStep
from deployd_core.units import Share

DIGEST = "sha256:" + "a" * 64


def host(count, **rules):
    """A host on v1 that has v2 unpacked, and should serve it."""
    instances = tuple(
        InstanceFacts(
            name=f"web@{8001 + n}",
            looked=True,
            state=State.RUNNING,
            running=True,
            serves="v1",
            health=Health.HEALTHY,
            streak=9,
            healthy_since=0.0,
            healthy_until=1000.0,
        )
        for n in range(count)
    )
    return Observation(
        now=1000.0,
        service="web",
        host="h1",
        build="v2",
        digest=DIGEST,
        staging=Staging(fetched=True, unpacked=True, on_disk_digest=DIGEST),
        current="v1",
        instances=instances,
        rules=Rules(**{"drain": Drain(), "stable_for": 0.5, "restart_timeout": 60.0, **rules}),
    )


def one_by_one(view):
    """One instance after the other."""
    return Plan(cycle=view.cycling or view.stale[:1], why="one by one")


def everything(view):
    """All of them."""
    return Plan(cycle=view.stale, why="all at once")


def test_a_roll_is_told_move_by_move():
    """Permit, flip, then each instance through its cycle, and the record."""
    story = tell(host(2, warmup=True), one_by_one)

    each = [[CloseGate(name), Restart(name), WarmUp(name), OpenGate(name)] for name in ("web@8001", "web@8002")]
    assert [Flip("v2"), *each[0], *each[1], Settle("v2")] == [move.act for move in story.moves[1:]]
    assert isinstance(story.moves[0].act, TakePermit)
    assert HostStep.CONVERGED is story.ended
    assert 1 == story.fewest_available


def test_times_are_what_was_assumed():
    """Drain, start and the way back of clients, one after the other for each instance."""
    story = tell(host(2), one_by_one, Assumptions(drain=2.0, start=3.0, clients=4.0))

    at = {type(move.act): move.at for move in reversed(story.moves)}
    assert (0.0, 2.3, 5.3) == (at[CloseGate], round(at[Restart], 3), round(at[OpenGate], 3))
    assert round(2 * (2.3 + 3.0 + 4.0), 3) == round(story.seconds, 3)


def test_a_drain_that_has_begun_comes_to_its_end():
    """An instance that the agent has closed, with requests under way, is restarted when they have ended, not at its deadline."""
    seen = host(2)
    first, second = seen.instances
    changes = {"gate_closed": True, "gate_held": True, "gate_ours": False, "lease_left": 60.0, "connections": Connections(busy=1)}
    closed = msgspec.structs.replace(first, **changes)
    permit = PermitView(held=True)

    story = tell(msgspec.structs.replace(seen, instances=(closed, second), current="v2", permit=permit), one_by_one)

    at = {type(move.act): move.at for move in reversed(story.moves)}
    assert 1.3 == round(at[Restart], 3)
    assert HostStep.CONVERGED is story.ended


def test_deadlines_are_those_of_the_spec():
    """Each move says by when what follows it must have happened."""
    drain = Drain(timeout=30.0, traffic_timeout=15.0, at_deadline=AtDeadline.WAIT)
    story = tell(host(1, drain=drain, healthy_timeout=300.0), one_by_one)

    waits = {type(move.act): round(move.deadline - move.at, 3) for move in story.moves if move.deadline is not None}
    assert {CloseGate: 330.0, Restart: 360.0, OpenGate: 15.0} == waits


def test_what_stands_in_the_way_is_told():
    """A plan that cannot be carried out ends before its first move."""
    story = tell(host(2, min_available=Share("100%")), everything)

    assert (HostStep.BLOCKED, ()) == (story.ended, story.moves)
    assert "keeps 2 of 2 instances up" in story.reason


def test_a_strategy_that_lets_nobody_go_fails_in_its_own_words():
    """Virtual time goes on to the deadline: the dry run ends as the host would."""
    story = tell(host(1, healthy_timeout=60.0), lambda view: Plan(cycle=(), why="waiting for Godot"))

    assert HostStep.BROKEN is story.ended
    assert "waiting for Godot" in story.reason
    assert 60.0 == story.seconds


def test_long_starts_renew_their_leases():
    """An instance that takes ten minutes to start stays behind its gate all the time."""
    story = tell(host(1, healthy_timeout=900.0, drain=Drain(lease=120.0)), one_by_one, Assumptions(start=600.0))

    assert 600.0 / 60 - 1 <= len([move for move in story.moves if isinstance(move.act, CloseGate)]) <= 600.0 / 60 + 1
    assert HostStep.CONVERGED is story.ended


def test_nothing_is_told_of_a_host_that_is_right():
    """It has nothing to do."""
    seen = host(1)
    right = msgspec.structs.replace(seen.instances[0], serves="v2")

    assert () == tell(msgspec.structs.replace(seen, instances=(right,), current="v2", good=True), one_by_one).moves


@given(st.integers(0, 12), st.integers(0, 4), st.booleans(), st.sampled_from([one_by_one, everything]))
def test_every_story_converges_and_keeps_the_floor(count, floor, gated, strategy):
    """Whatever the strategy wants: each instance is restarted once, and behind its gate where there is one."""
    drain = Drain() if gated else None
    story = tell(host(count, drain=drain, min_available=Share(min(floor, max(0, count - 1)))), strategy)

    acts = [move.act for move in story.moves]
    assert HostStep.CONVERGED is story.ended
    assert count == len([act for act in acts if isinstance(act, Restart)])
    assert (count if gated else 0) == len([act for act in acts if isinstance(act, OpenGate)])
    assert not any(isinstance(act, CloseIdle) for act in acts)
    assert story.fewest_available >= (min(floor, count - 1) if count > 1 else 0)
