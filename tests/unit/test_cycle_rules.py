"""What the planner makes of single situations that once went wrong, or easily could."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from deployd_core.acts import OpenGate, RecordFailure, Restart, Settle, TakePermit, Tidy
from deployd_core.model import Action, Health, HostView, Instance, PermitView, Plan, ProcessId, State
from deployd_core.observation import Drain, InstanceFacts, Observation, Rules, Setback, Staging
from deployd_core.planner import Decision, HostStep, plan_host
from deployd_core.sightings import Sighting, Verdict, Watch

DIGEST = "sha256:" + "a" * 64
SERVING = InstanceFacts(
    name="web",
    looked=True,
    running=True,
    serves="v2",
    state=State.RUNNING,
    health=Health.HEALTHY,
    streak=9,
    healthy_since=90.0,
    healthy_until=99.9,
)


def everything(view: HostView) -> Plan:
    return Plan(cycle=view.stale, why="all")


def decide(*instances: InstanceFacts, **changes: Any) -> Decision:
    seen = Observation(
        now=100.0,
        service="web",
        host="h1",
        build="v2",
        digest=DIGEST,
        staging=Staging(fetched=True, unpacked=True, on_disk_digest=DIGEST),
        current="v2",
        instances=instances,
        rules=Rules(healthy_timeout=20, stable_for=1.0),
        permit=PermitView(held=True),
    )
    return plan_host(msgspec.structs.replace(seen, **changes), everything)


def kinds(decision: Decision) -> list[type]:
    return [type(act) for act in decision.acts]


def test_silence_is_no_stability() -> None:
    """A process that answered twice and then hung is not stable a second later: nothing was heard since."""
    watch = Watch(Instance(service="web", name="web"))
    healthy = Sighting(state=State.RUNNING, process=ProcessId(pid=1, started=5.0), serves="v2", verdict=Verdict.healthy())
    watch.saw(healthy, started=99.0, ended=99.01)
    watch.saw(healthy, started=99.02, ended=99.03)

    assert Settle not in kinds(decide(watch.facts(0.0, "me"), now=101.0))

    watch.saw(healthy, started=100.02, ended=100.03)
    assert [Settle] == kinds(decide(watch.facts(0.0, "me"), now=101.0))


def test_what_nobody_knows_is_not_restarted() -> None:
    """A manager that misses one answer does not make an instance stale."""
    unknown = InstanceFacts(name="web", looked=True, state=State.UNKNOWN, reason="supervisor did not answer")

    assert Restart not in kinds(decide(unknown))


def test_an_instance_that_ends_after_its_restart_fails_and_is_not_restarted_again_and_again() -> None:
    """A process that exits, even with 0, has failed once it was down for a moment."""
    ended = InstanceFacts(name="web", looked=True, state=State.STOPPED, ordered=True, state_since=99.5, reason="EXITED")

    assert decide(ended).acts == ()
    assert decide(ended, now=102.0).acts == (RecordFailure(reason="web did not stay up after its restart: EXITED"),)


def test_a_crash_loop_fails_long_before_the_deadline() -> None:
    """A process that its manager starts again and again is counted by its lives."""
    dying = InstanceFacts(name="web", looked=True, running=True, serves="v2", state=State.STARTING, ordered=True, reason="refused")
    three, four = (msgspec.structs.replace(dying, lives=lives) for lives in (3, 4))

    assert decide(three).acts == ()
    assert decide(four).acts == (RecordFailure(reason="web died 3 times since its restart: refused"),)


def test_a_restart_that_did_not_happen_is_tried_again_after_its_setback() -> None:
    """A manager that was away is asked again; meanwhile the old process serves on."""
    old = InstanceFacts(name="web", looked=True, running=True, serves="v1", state=State.RUNNING, ordered=True)
    setback = Setback(reason="supervisor does not answer", retry_at=99.0)

    assert [Restart] == kinds(decide(old, setbacks={"restart:web": setback}))


AWAY = Setback(reason="supervisor does not answer", retry_at=1000.0, environment=True)


@pytest.mark.parametrize("failure", [None, "v2 did not start"], ids=["on the way there", "on the way back"])
@pytest.mark.parametrize(
    ("facts", "setbacks"),
    [
        ({"running": True, "serves": "v0", "state": State.RUNNING, "ordered": True}, {"restart:web": AWAY}),
        ({"state": State.STOPPED, "state_since": 10.0, "ordered": True}, {"restart:web": AWAY}),
        ({"state": State.UNKNOWN, "manager_away": True, "ordered": True}, {}),
        ({"state": State.UNKNOWN, "manager_away": True}, {}),
    ],
    ids=["restart refused", "stopped and not started", "not to be looked at", "before its restart"],
)
def test_a_manager_that_is_away_is_no_failure_of_the_build(failure: str | None, facts: Any, setbacks: Any) -> None:
    """However long it is away; and the time to get healthy begins when it is back."""
    web = InstanceFacts(name="web", looked=True, reason="supervisor does not answer", **facts)
    target = "v1" if failure else "v2"
    changes = {"failure": failure, "last_good": "v1", "current": target, "setbacks": setbacks}
    waits = {"warming:web": 10.0, "stalled": 10.0}

    away = decide(web, waits=waits, **changes)
    back = msgspec.structs.replace(SERVING, serves=target, health=Health.UNHEALTHY, ordered=True)
    soon = decide(back, waits={key: waits.get(key, 100.0) for key in away.waits}, **changes | {"setbacks": {}})

    for decision in (away, soon):
        assert (decision.step, decision.acts) == (HostStep.REVERTING if failure else HostStep.RESTARTING, ())
    assert "supervisor does not answer" in away.reason or "nobody knows whether it runs" in away.reason


def test_an_instance_that_is_sick_is_not_excused_by_an_earlier_setback_of_its_manager() -> None:
    """The restart was carried out though its answer was lost: from then on the build is judged."""
    sick = msgspec.structs.replace(SERVING, health=Health.UNHEALTHY, streak=0, reason="503", ordered=True)

    assert RecordFailure in kinds(decide(sick, setbacks={"restart:web": AWAY}, waits={"warming:web": 10.0}))


@pytest.mark.parametrize(
    ("changes", "step", "down"),
    [
        ({"permit": PermitView(), "good": True}, HostStep.DEGRADED, True),
        ({"failure": "503", "waits": {"warming:web": 10.0}}, HostStep.BROKEN, True),
        ({"failure": "503", "rules": Rules(revert=False)}, HostStep.FAILED, True),
        ({"failure": "503", "last_good": "v1", "current": "v1"}, HostStep.REVERTING, False),
        ({"permit": PermitView(), "current": "v1", "build": "v3"}, HostStep.WAITING, True),
        ({"staging": Staging()}, HostStep.FETCHING, True),
        ({}, HostStep.RESTARTING, False),
    ],
)
def test_a_host_is_down_when_an_instance_cannot_serve_and_no_restart_is_to_blame(changes: Any, step: HostStep, down: bool) -> None:
    """Others count it among the hosts that are out, beside those that hold permits."""
    sick = msgspec.structs.replace(SERVING, health=Health.UNHEALTHY, streak=0, reason="503")

    decision = decide(sick, **changes)

    assert (decision.step, decision.down) == (step, down)
    assert not decide(SERVING, **changes).down


def test_the_time_of_the_restart_is_not_taken_from_the_time_to_get_healthy() -> None:
    """A graceful stop may take long, and the process that follows still has its time."""
    starting = InstanceFacts(name="web", ordered=True, looked=True, running=True, serves="v2", state=State.RUNNING)
    rules = Rules(healthy_timeout=20, restart_timeout=60)

    assert decide(starting, now=170.0, waits={"restarting:web": 100.0}, rules=rules).acts == ()
    assert decide(starting, now=179.0, waits={"warming:web": 160.0}, rules=rules).acts == ()
    assert RecordFailure in kinds(decide(starting, now=180.0, waits={"warming:web": 160.0}, rules=rules))


def test_a_restart_that_is_tried_again_begins_no_new_wait_for_health() -> None:
    """The deadline of an instance that cannot be started runs on while its manager is asked again."""
    waits = {"warming:web": 100.0}
    old = InstanceFacts(name="web", looked=True, running=True, serves="v1", state=State.RUNNING, ordered=True)

    decision = decide(old, waits=waits, busy=frozenset({"restart:web"}), now=110.0)

    assert "warming:web" in decision.waits


def test_a_failed_host_gives_traffic_back_to_what_can_serve() -> None:
    """The gate of a healthy instance opens; that of the one that failed stays closed."""
    healthy = msgspec.structs.replace(SERVING, name="a", gate_closed=True, gate_ours=True, lease_left=100.0, ordered=True)
    broken = InstanceFacts(
        name="b", looked=True, state=State.FAILED, ordered=True, gate_closed=True, gate_ours=True, lease_left=100.0
    )

    decision = decide(healthy, broken, failure="b did not start", rules=Rules(drain=Drain(), revert=False))

    assert decision.step is HostStep.FAILED
    assert decision.acts == (OpenGate(instance="a"),)


def test_no_permit_is_taken_for_a_flip_that_is_refused_anyway() -> None:
    """A directory in the way of `current` is said before anybody has to wait for us."""
    decision = decide(
        msgspec.structs.replace(SERVING, serves="v1"),
        current=None,
        permit=PermitView(),
        flip_problem="current is a real directory: move it away",
    )

    assert decision.step is HostStep.BLOCKED
    assert TakePermit not in kinds(decision)


@pytest.mark.parametrize("key", ["settle", "tidy"])
def test_nothing_begins_while_a_permit_is_given_back_or_releases_are_removed(key: str) -> None:
    """Not even the staging of the next build: what is removed may be what it fetches."""
    assert decide(SERVING, build="v3", digest=DIGEST, staging=Staging(), busy=frozenset({key})).acts == ()


def test_old_releases_are_removed_when_the_permit_is_back() -> None:
    """Others wait for the permit, so that comes first."""
    at_rest = decide(SERVING, permit=PermitView(), good=True, tidy=False)

    assert at_rest.acts == (Tidy(),)


def test_a_strategy_that_asks_for_a_reload_is_refused_before_anything_is_disturbed() -> None:
    """What a reloaded process serves cannot be told, so such a deploy could never end."""
    seen = Observation(
        now=0.0,
        service="web",
        host="h1",
        build="v2",
        digest=DIGEST,
        staging=Staging(fetched=True, unpacked=True, on_disk_digest=DIGEST),
        instances=(msgspec.structs.replace(SERVING, serves="v1"),),
    )

    decision = plan_host(seen, lambda view: Plan(cycle=view.stale, why="", action=Action.RELOAD))

    assert decision.step is HostStep.BLOCKED
    assert decision.acts == ()


def test_what_a_person_must_mend_is_tried_again_now_and_then() -> None:
    """A directory without permission may be put right without a word to anybody."""
    blocked = Setback(reason="may not write", retry_at=160.0, blocking=True)
    waiting = decide(SERVING, staging=Staging(), setbacks={"fetch:v2": blocked})
    again = decide(SERVING, staging=Staging(), setbacks={"fetch:v2": blocked}, now=160.0)

    assert (waiting.step, waiting.acts) == (HostStep.BLOCKED, ())
    assert (again.step, len(again.acts)) == (HostStep.BLOCKED, 1)
