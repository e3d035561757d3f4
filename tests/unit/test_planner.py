"""The planner against a model of the world: whatever happens, the host converges, or fails with a reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployd_core.acts import (
    Act,
    CloseGate,
    CloseIdle,
    Fetch,
    Flip,
    InstanceAct,
    OpenGate,
    RecordFailure,
    Resolve,
    Restart,
    RunStep,
    Settle,
    TakePermit,
    Unpack,
    WarmUp,
)
from deployd_core.contracts import AtDeadline, Connections
from deployd_core.errors import PluginError
from deployd_core.model import Health, HostView, PermitView, Plan, State
from deployd_core.observation import Drain, InstanceFacts, Observation, Rules, Setback, Staging
from deployd_core.planner import Decision, HostStep, Remedy, plan_host
from deployd_core.units import Share

STEPS = ("01-pip-x", "02-command-y")
DIGEST = "sha256:" + "a" * 64


ENDS = (HostStep.CONVERGED, HostStep.REVERTED, HostStep.BROKEN, HostStep.FAILED)


def everything(view: HostView) -> Plan:
    return Plan(cycle=view.stale, why="all at once")


def one_by_one(view: HostView) -> Plan:
    return Plan(cycle=view.cycling or view.stale[:1], why="one by one")


@dataclass
class Process:
    """An instance of the model: what it serves, and when it was started."""

    serves: str | None
    started: float
    restarted_for: str = ""
    """The rollout of the flip before it was started."""
    closed: bool = False
    warm: bool = False
    busy: int = 0
    """Requests in flight; one ends with each tick, and leaves a pooled connection if clients pool."""
    idle: int = 0
    quiet: int = 0
    until: float = 0.0
    """When its lease runs out."""
    owner: int = 0
    """Which life of the agent closed it."""
    drains_since: float | None = None
    """When its gate was first closed for this restart: a lost lease gives no new time."""
    opened_at: float | None = None
    """When it was opened after a restart: clients come back some time after that."""


@dataclass
class World:
    """A host as it really is. The planner sees it through `observe`; an engine that crashes forgets `memory` only."""

    instances: dict[str, Process]
    fetched: bool = False
    unpacked: bool = False
    steps: set[str] = field(default_factory=set)
    current: str | None = "v1"
    good: str | None = "v1"
    permit: bool = False
    failure: str | None = None
    now: float = 0.0
    startup: float = 1.0
    sick: frozenset[str] = frozenset()
    """Instances that never get healthy on v2."""
    old_sick: frozenset[str] = frozenset()
    """Instances that do not get healthy on v1 any more."""
    revert: bool = True
    restart: str = ""
    """The rollout, when it asks for a restart."""
    flipped_for: str = ""
    rules: Rules = Rules(healthy_timeout=20, stable_for=0.5, healthy_after=2)
    digest_known: bool = True
    stuck: frozenset[str] = frozenset()
    """Instances whose requests never end."""
    pooled: bool = True
    """Whether clients keep their connections."""
    returns_after: float | None = 1.0
    """Seconds until clients trust an instance again; None: there are none."""
    lowest: int = 10**9
    trouble: int = 0
    """How many acts have failed, or were cut off."""
    life: int = 0
    """How often the agent has crashed."""
    cuts: dict[str, int] = field(default_factory=dict)
    lapses: list[str] = field(default_factory=list)
    """Instances whose lease ran out."""
    restarts: dict[str, int] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)

    def healthy(self, name: str) -> bool:
        process = self.instances[name]
        if process.serves is None or self.now - process.started < self.startup:
            return False
        return name not in (self.sick if process.serves == "v2" else self.old_sick)

    def back(self, name: str) -> bool:
        """Whether clients use it again, as far as anybody can wait for that."""
        opened_at = self.instances[name].opened_at
        if opened_at is None or self.rules.drain is None:
            return True
        used = self.returns_after is not None and self.now - opened_at >= self.returns_after
        return used or self.now - opened_at >= self.rules.drain.traffic_timeout

    @property
    def available(self) -> set[str]:
        return {name for name in self.instances if self.healthy(name) and not self.instances[name].closed and self.back(name)}

    def crash(self) -> None:
        self.memory.clear()
        self.life += 1

    def observe(self) -> Observation:
        self.lowest = min(self.lowest, len(self.available))
        return Observation(
            now=self.now,
            service="web",
            host="h1",
            build="v2",
            digest=DIGEST if self.digest_known else None,
            staging=Staging(
                fetched=self.fetched,
                unpacked=self.unpacked,
                steps_done=frozenset(self.steps),
                on_disk_digest=DIGEST if self.unpacked else None,
            ),
            steps=STEPS,
            current=self.current,
            restart=self.restart,
            flipped_for=self.flipped_for,
            good=self.good == "v2",
            last_good="v1" if self.good == "v1" else None,
            instances=tuple(self._facts(name) for name in self.instances),
            rules=msgspec.structs.replace(self.rules, revert=self.revert),
            permit=PermitView(held=self.permit),
            failure=self.failure,
            setbacks=self.memory.get("setbacks", {}),
            waits=self.memory.get("waits", {}),
        )

    def _facts(self, name: str) -> InstanceFacts:
        process = self.instances[name]
        healthy = self.healthy(name)
        opened = self.memory.setdefault("opened", {})
        closed = self.memory.setdefault("closed", {})
        lost = self.memory.setdefault("lost", set())
        if not process.closed and closed.get(name, True):
            opened[name] = self.now
            lost |= {name} if name in closed else set()
        closed[name] = process.closed
        lost -= {name} if process.closed else set()
        used = self.returns_after is not None and process.opened_at is not None
        return InstanceFacts(
            name=name,
            looked=True,
            state=State.RUNNING if process.serves else State.STOPPED,
            running=process.serves is not None,
            serves=process.serves,
            restarted_for=process.restarted_for,
            health=Health.HEALTHY if healthy else Health.UNHEALTHY,
            streak=9 if healthy else 0,
            healthy_since=process.started + self.startup if healthy else None,
            healthy_until=self.now,
            reason="503",
            ordered=name in self.memory.get("ordered", ()),
            warm=process.warm,
            gate_closed=process.closed,
            gate_lost=name in lost,
            gate_ours=not process.closed or process.owner == self.life,
            lease_left=max(0.0, process.until - self.now) if process.closed else 0.0,
            connections=Connections(busy=process.busy, idle=process.idle) if process.closed else None,
            quiet=process.quiet,
            opened_at=opened.get(name),
            traffic_back=used and self.back(name) and name in opened,
        )

    def remember(self, decision: Decision) -> None:
        waits = self.memory.get("waits", {})
        self.memory["waits"] = {key: waits.get(key, self.now) for key in decision.waits}

    def perform(self, act: Act) -> None:
        match act:
            case Resolve():
                self.digest_known = True
            case Fetch():
                self.fetched = True
            case Unpack():
                assert self.fetched
                self.unpacked = True
            case RunStep(marker=marker):
                assert self.unpacked
                self.steps.add(marker)
            case TakePermit():
                assert set(STEPS) == self.steps, "a permit is asked for only when everything is staged"
                assert self.failure is None, "a host that has failed asks for nothing"
                self.permit = True
            case Flip(build=build, rollout=rollout):
                assert self.permit, "never flipped without a permit"
                assert build == "v2" or self.failure, "nobody goes back without a reason that is on record"
                self.current, self.flipped_for = build, rollout
                self.memory.pop("ordered", None)
            case Settle():
                self._settle(act)
            case RecordFailure(reason=reason):
                self.failure = reason
                self.forget_orders()
            case InstanceAct():
                self._touch(act)

    def _settle(self, act: Settle) -> None:
        assert all(process.serves == act.build and self.healthy(name) for name, process in self.instances.items())
        assert bool(act.failed) == (act.build != "v2")
        self.good, self.permit = act.build, False
        self.failure = self.failure if act.failed else None

    def forget_orders(self) -> None:
        """What the engine does when a failure is recorded or cleared: another build is to be served."""
        for what in ("waits", "setbacks", "ordered"):
            self.memory.pop(what, None)

    def _touch(self, act: InstanceAct) -> None:
        name, process = act.instance, self.instances[act.instance]
        assert self.permit or process.closed, "nothing is disturbed without a permit"
        if isinstance(act, CloseGate | Restart) and name in self.available and len(self.instances) > 1:
            assert len(self.available) > self.rules.min_available.at_least(len(self.instances)), "the floor is never broken"
        match act:
            case CloseGate():
                assert self.rules.drain is not None
                if not process.closed:
                    process.drains_since = self.now if process.drains_since is None else process.drains_since
                    process.quiet = 0
                    process.busy = 3 if process.serves else 0
                process.closed, process.owner, process.until = True, self.life, self.now + self.rules.drain.lease
                process.opened_at = None
            case CloseIdle():
                process.idle = 0
            case OpenGate():
                process.closed, process.opened_at, process.drains_since = False, self.now, None
                self.memory.setdefault("opened", {})[name] = self.now
                self.memory.setdefault("closed", {})[name] = False
            case WarmUp():
                assert process.closed or self.rules.drain is None or self.lapses, "what is cold is not in front of its clients"
                process.warm = True
            case Restart():
                now_right = (process.serves, process.restarted_for) == (self.current, self.flipped_for)
                assert not now_right, "what is right is not restarted"
                assert self.permit, "nothing is restarted without a permit"
                if self.rules.drain is not None:
                    self._check_drained(act, process, self.rules.drain)
                self.restarts[name] = self.restarts.get(name, 0) + 1
                fresh = Process(serves=self.current, started=self.now, closed=process.closed, restarted_for=self.flipped_for)
                fresh.until, fresh.owner, fresh.drains_since = process.until, process.owner, process.drains_since
                self.instances[name] = fresh
                self.memory.setdefault("ordered", set()).add(name)
                self.memory.setdefault("opened", {}).pop(name, None)

    def _check_drained(self, act: Restart, process: Process, drain: Drain) -> None:
        down = process.serves is None
        assert process.closed or (down and self.lapses), "with a gate, nothing is restarted in front of its clients"
        assert not process.closed or process.owner == self.life, "nothing is restarted behind a gate that another one may open"
        if process.busy or process.idle:
            assert drain.at_deadline is AtDeadline.PROCEED, "nothing is restarted with requests in flight"
            assert self.now - (process.drains_since or 0) >= drain.timeout, "nor before its deadline"
            assert act.cut == process.busy, "and what is cut is reported"
            self.cuts[act.instance] = self.cuts.get(act.instance, 0) + act.cut

    def tick(self, seconds: float) -> None:
        self.now += seconds
        for name, process in self.instances.items():
            if process.closed and self.now >= process.until:
                process.closed, process.opened_at = False, self.now
                self.lapses.append(name)
            if not process.closed:
                process.quiet = 0
                continue
            if process.busy and name not in self.stuck:
                process.busy, process.idle = process.busy - 1, process.idle + self.pooled
            process.quiet = process.quiet + 1 if not process.busy and not process.idle else 0


def drive(world: World, strategy: Any, data: st.DataObject | None = None, rounds: int = 1500) -> Decision:
    """Go round until nothing more happens; with `data`, acts fail and the engine crashes at any moment."""
    decision = plan_host(world.observe(), strategy)
    for _ in range(rounds):
        decision = plan_host(world.observe(), strategy)
        assert decision == plan_host(world.observe(), strategy), "the planner is pure"
        world.remember(decision)
        pending = [found for found in world.memory.get("setbacks", {}).values() if found.retry_at > world.now]
        if decision.step in ENDS and not decision.acts and not pending:
            return decision
        for act in decision.acts:
            pending = world.memory.get("setbacks", {}).get(act.key)
            assert pending is None or pending.retry_at <= world.now, "what failed is not tried again before its time"
            mishap = (
                data.draw(st.sampled_from(["", "", "", "fails", "crash-before", "crash-after"]))
                if data and world.trouble < 12
                else ""
            )
            world.trouble += bool(mishap)
            setbacks = world.memory.setdefault("setbacks", {})
            if mishap == "fails":
                setbacks[act.key] = Setback(reason="it said no", retry_at=world.now + 2)
                if isinstance(act, Restart):
                    world.memory.setdefault("ordered", set()).add(act.instance)
                continue
            if mishap == "crash-before":
                world.crash()
                break
            setbacks.pop(act.key, None)
            world.perform(act)
            if mishap == "crash-after":
                world.crash()
                break
        world.tick(0.25)
    raise AssertionError(f"neither converged nor failed: {decision}")


def fresh_world(count: int, **changes: Any) -> World:
    return World(instances={f"web@{8000 + number}": Process(serves="v1", started=-100.0) for number in range(count)}, **changes)


def test_a_deploy_ends_converged_with_every_instance_restarted_once() -> None:
    """Nothing fails: every instance serves the new build after exactly one restart, and the permit is given back."""
    world = fresh_world(3, digest_known=False)

    decision = drive(world, everything)

    assert decision.step is HostStep.CONVERGED
    assert world.restarts == dict.fromkeys(world.instances, 1)
    assert not world.permit
    assert world.good == "v2"


def test_a_rolling_restart_keeps_the_others_up() -> None:
    """One by one, at most one instance is down at any moment."""
    world = fresh_world(4)

    drive(world, one_by_one)

    assert world.lowest == 3


def test_the_floor_holds_against_a_strategy_that_wants_everything() -> None:
    """min_available is the core's to keep, whatever a strategy returns."""
    world = fresh_world(4, rules=Rules(healthy_timeout=20, stable_for=0.5, min_available=Share("50%")))

    decision = drive(world, everything)

    assert decision.step is HostStep.CONVERGED
    assert world.lowest == 2


def test_an_impossible_floor_is_refused_with_its_arithmetic_before_anything_is_disturbed() -> None:
    """A plan that can never be carried out blocks the host, and asks for no permit."""
    world = fresh_world(2, rules=Rules(min_available=Share("100%")))
    for _ in range(10):
        decision = plan_host(world.observe(), everything)
        for act in decision.acts:
            world.perform(act)

    assert (HostStep.BLOCKED, Remedy.SPEC) == (decision.step, decision.remedy)
    assert "keeps 2 of 2 instances up" in decision.reason
    assert not world.permit


def test_a_host_that_is_to_stay_stands_still_and_keeps_its_permit_and_the_rest() -> None:
    """The first instance that fails ends the roll: the others go on serving the old build."""
    world = fresh_world(3, sick=frozenset({"web@8000"}), revert=False)

    decision = drive(world, one_by_one)

    assert decision.step is HostStep.FAILED
    assert "web@8000 was not healthy 20 s after its restart: 503" in decision.reason
    assert decision.down
    assert world.permit
    assert world.instances["web@8001"].serves == "v1"
    assert world.instances["web@8002"].serves == "v1"


def test_an_instance_that_never_gets_healthy_brings_the_host_back_to_its_last_good_build() -> None:
    """Only what had left the old build is restarted again; the permit goes back, the failure stays on record."""
    world = fresh_world(3, sick=frozenset({"web@8000"}))

    decision = drive(world, one_by_one)

    failure = "web@8000 was not healthy 20 s after its restart: 503"
    assert (decision.step, decision.reason) == (HostStep.REVERTED, f"serves v1; v2 failed: {failure}")
    assert world.restarts == {"web@8000": 2}
    assert (world.current, world.good, world.permit, world.failure) == ("v1", "v1", False, failure)
    assert not decision.down


def test_the_report_that_goes_with_the_permit_says_why_the_host_went_back() -> None:
    """It is one transaction: who reads the report of a host without a permit reads the end of its story."""
    world = fresh_world(1, current="v1", permit=True, failure="503", unpacked=True, fetched=True, steps=set(STEPS))

    decision = plan_host(world.observe(), everything)

    assert decision.acts == (Settle("v1", "serves v1; v2 failed: 503"),)
    assert (decision.settled.step, decision.settled.reason) == (HostStep.REVERTED, "serves v1; v2 failed: 503")


def test_a_reverted_host_tries_again_when_a_person_clears_its_failure() -> None:
    """Until then it asks for nothing, whatever becomes of its instances."""
    world = fresh_world(2, sick=frozenset({"web@8000"}))
    drive(world, everything)
    assert plan_host(world.observe(), everything).acts == ()
    world.instances["web@8001"].serves = None
    decision = plan_host(world.observe(), everything)
    assert (decision.step, decision.acts, decision.down) == (HostStep.REVERTED, (), True)

    world.sick, world.failure = frozenset(), None
    world.forget_orders()

    assert drive(world, everything).step is HostStep.CONVERGED


@pytest.mark.parametrize("seconds", [0.25, 2, 5, 21, 22.5, 23, 30])
def test_a_retry_in_mid_revert_goes_straight_on_with_the_kept_permit(seconds: float) -> None:
    """Whatever the host is doing when the failure is cleared, it turns around and asks for no other permit."""
    world = fresh_world(2, sick=frozenset({"web@8000"}), startup=4.0, permit=True)
    while world.failure is None:
        go_on(world, one_by_one)
    since = world.now
    while world.now < since + seconds and world.permit:
        go_on(world, one_by_one)

    held = world.permit
    world.sick, world.failure = frozenset(), None
    world.forget_orders()
    asked = [act for act in plan_host(world.observe(), one_by_one).acts if isinstance(act, TakePermit)]

    assert bool(asked) is not held
    assert drive(world, one_by_one).step is HostStep.CONVERGED


@pytest.mark.parametrize("strategy", [everything, one_by_one])
def test_a_restart_restarts_every_instance_once_although_it_serves_the_build(strategy: Any) -> None:
    """The same permit, floor and cycle as for a new build; afterwards there is nothing left to do."""
    world = serving_v2(3, restart="r7", rules=Rules(healthy_timeout=20, stable_for=0.5, min_available=Share(2)))

    decision = drive(world, strategy)

    assert decision.step is HostStep.CONVERGED
    assert world.restarts == dict.fromkeys(world.instances, 1)
    assert (world.permit, world.flipped_for, world.lowest) == (False, "r7", 2)
    assert plan_host(world.observe(), strategy).acts == ()


def test_what_was_restarted_since_the_flip_is_not_restarted_again() -> None:
    """An agent that was killed in the middle finds who is done by when it was started."""
    world = serving_v2(3, restart="r7", flipped_for="r7", permit=True)
    world.instances["web@8001"].restarted_for = "r7"

    assert drive(world, everything).step is HostStep.CONVERGED
    assert world.restarts == {"web@8000": 1, "web@8002": 1}


def test_a_build_that_was_good_is_not_exchanged_for_another_when_it_fails_in_a_restart() -> None:
    """No other build was in play: the host keeps its permit, and what can serve is open."""
    world = serving_v2(2, restart="r7", sick=frozenset({"web@8000"}))

    decision = drive(world, one_by_one)

    assert (decision.step, world.current, world.permit) == (HostStep.BROKEN, "v2", True)


def test_the_way_back_from_a_restart_that_was_a_deploy_here_restarts_only_what_had_left() -> None:
    """A host that had yet to get the build goes back to its own last good one, of which nobody asked a restart."""
    world = fresh_world(3, restart="r7", sick=frozenset({"web@8000"}))

    assert drive(world, one_by_one).step is HostStep.REVERTED
    assert world.restarts == {"web@8000": 2}


def serving_v2(count: int, **changes: Any) -> World:
    world = fresh_world(count, **{"current": "v2", "good": "v2", "fetched": True, "unpacked": True, "steps": set(STEPS)} | changes)
    for process in world.instances.values():
        process.serves = "v2"
    return world


def go_on(world: World, strategy: Any) -> Decision:
    """One round in which nothing fails."""
    decision = plan_host(world.observe(), strategy)
    world.remember(decision)
    for act in decision.acts:
        world.perform(act)
    world.tick(0.25)
    return decision


def test_a_host_on_which_both_builds_are_bad_is_broken_and_keeps_its_permit() -> None:
    """Both reasons are told, and what can serve is open; when the old build recovers, the host is reverted after all."""
    world = fresh_world(2, sick=frozenset({"web@8000"}), old_sick=frozenset({"web@8000"}))

    decision = drive(world, everything)

    failure = "web@8000 was not healthy 20 s after its restart: 503"
    assert (decision.step, decision.down) == (HostStep.BROKEN, True)
    assert decision.reason == f"v2 failed: {failure}; going back to v1 failed too: {failure}"
    assert world.permit
    assert world.available == {"web@8001"}

    world.old_sick = frozenset()
    assert drive(world, everything).step is HostStep.REVERTED
    assert world.restarts["web@8000"] == 2


def test_a_host_without_another_good_release_is_broken_until_the_wanted_one_gets_healthy() -> None:
    """There is nothing to go back to, and a failure is over when everything serves the wanted build."""
    world = fresh_world(1, sick=frozenset({"web@8000"}), good=None)

    decision = drive(world, everything)

    assert decision.step is HostStep.BROKEN
    assert decision.reason.endswith("; there is no other good build to go back to")
    assert (world.permit, world.current) == (True, "v2")
    world.sick = frozenset()
    assert drive(world, everything).step is HostStep.CONVERGED
    assert world.failure is None


def test_a_host_whose_permit_was_taken_away_in_mid_revert_disturbs_nothing() -> None:
    """A person has decided: it says what it left undone."""
    world = fresh_world(1, sick=frozenset({"web@8000"}))
    while world.failure is None:
        go_on(world, everything)

    world.permit = False
    decision = plan_host(world.observe(), everything)

    assert (decision.step, decision.acts, decision.down) == (HostStep.FAILED, (), True)
    assert "its permit was taken away before it was back on v1" in decision.reason


def test_a_failed_host_that_gets_healthy_settles() -> None:
    """A failure is over when everything serves the wanted build: the permit goes back and the failure is cleared."""
    world = fresh_world(1, sick=frozenset({"web@8000"}), revert=False)
    drive(world, everything)

    world.sick = frozenset()
    decision = drive(world, everything)

    assert decision.step is HostStep.CONVERGED
    assert world.failure is None
    assert not world.permit


def test_what_is_right_already_needs_no_permit_and_no_restart() -> None:
    """A host that serves the enabled build is left alone."""
    world = fresh_world(2, current="v2", fetched=True, unpacked=True, steps=set(STEPS))
    for process in world.instances.values():
        process.serves = "v2"

    decision = drive(world, everything)

    assert decision.step is HostStep.CONVERGED
    assert world.restarts == {}


def test_an_instance_that_dies_after_the_deploy_is_its_managers_business() -> None:
    """A converged host with a stopped instance is degraded; the agent asks for no permit and starts nothing."""
    world = fresh_world(2, current="v2", good="v2", fetched=True, unpacked=True, steps=set(STEPS))
    world.instances["web@8000"] = Process(serves="v2", started=-100.0)
    world.instances["web@8001"] = Process(serves=None, started=-100.0)

    decision = plan_host(world.observe(), everything)

    assert decision.step is HostStep.DEGRADED
    assert decision.acts == ()


def test_a_host_without_instances_is_flipped_under_a_permit() -> None:
    """A service of files alone converges."""
    world = fresh_world(0)

    assert drive(world, everything).step is HostStep.CONVERGED
    assert world.current == "v2"


def test_nothing_is_restarted_before_a_flip_is_over() -> None:
    """The link may be there before its outcome is, which ends every earlier order: an instance would be restarted twice."""
    world = fresh_world(2, fetched=True, unpacked=True, permit=True, current="v2")
    world.steps = set(STEPS)
    seen = world.observe()
    assert any(isinstance(act, Restart) for act in plan_host(seen, everything).acts)

    decision = plan_host(msgspec.structs.replace(seen, busy=frozenset({"flip"})), everything)

    assert (HostStep.FLIPPING, ()) == (decision.step, decision.acts)


def test_a_host_settles_on_nothing_while_current_is_moved() -> None:
    """A build is wanted again while the flip to another is under way: what is still served is not what will be."""
    world = fresh_world(1, permit=True, good="v0", fetched=True, unpacked=True)
    world.steps = set(STEPS)
    right = {"serves": "v1", "running": True, "health": Health.HEALTHY, "streak": 9, "healthy_since": 1.0, "healthy_until": 98.0}
    facts = tuple(msgspec.structs.replace(one, **right) for one in world.observe().instances)
    seen = msgspec.structs.replace(world.observe(), build="v1", instances=facts, now=99.0)
    assert Settle(build="v1") in plan_host(seen, everything).acts

    decision = plan_host(msgspec.structs.replace(seen, busy=frozenset({"flip"})), everything)

    assert (HostStep.FLIPPING, ()) == (decision.step, decision.acts)


def test_no_step_is_run_beside_one_of_an_earlier_spec() -> None:
    """They would write to one release; the changed one runs when the other has ended. One of another build is in nobody's way."""
    seen = fresh_world(1, fetched=True, unpacked=True).observe()
    first = RunStep(build="v2", number=0, marker=STEPS[0])
    old = [RunStep(build=build, number=0, marker="01-pip-old").key for build in ("v2", "v20")]

    acts = [plan_host(msgspec.structs.replace(seen, busy=frozenset({key})), everything).acts for key in old]

    assert [(), (first,)] == acts


def test_a_broken_strategy_blocks_the_host_before_the_permit() -> None:
    """A strategy that raises is shown, and nothing is disturbed."""

    def broken(view: HostView) -> Plan:
        raise PluginError("plugin x failed planning: ValueError: boom")

    world = fresh_world(1, fetched=True, unpacked=True, steps=set(STEPS))
    decision = plan_host(world.observe(), broken)

    assert (HostStep.BLOCKED, Remedy.PLUGIN) == (decision.step, decision.remedy)
    assert "boom" in decision.reason


def test_a_strategy_that_names_nothing_fails_in_the_end_with_its_own_words() -> None:
    """Nothing waits for ever: a permit that is not used is a failure with a reason, and comes back without a restart."""
    world = fresh_world(2)

    decision = drive(world, lambda view: Plan(cycle=(), why="waiting for Godot"))

    assert (decision.step, world.restarts) == (HostStep.REVERTED, {})
    assert "waiting for Godot" in decision.reason


@pytest.mark.parametrize("away", [HostStep.WAITING, HostStep.FLIPPING, HostStep.RESTARTING])
def test_nothing_new_begins_while_zookeeper_is_away(away: HostStep) -> None:
    """SUSPENDED means act on nothing new: no permit, no flip, no instance enters the cycle."""
    world = fresh_world(2)
    while plan_host(world.observe(), one_by_one).step is not away:
        for act in plan_host(world.observe(), one_by_one).acts:
            world.perform(act)
        world.tick(0.25)

    decision = plan_host(msgspec.structs.replace(world.observe(), connected=False), one_by_one)

    assert decision.acts == ()
    assert "ZooKeeper does not answer" in decision.reason


def test_a_build_id_with_another_digest_is_refused() -> None:
    """A build id names one artifact for ever."""
    world = fresh_world(1, unpacked=True)
    seen = msgspec.structs.replace(world.observe(), digest="sha256:" + "b" * 64)

    decision = plan_host(seen, everything)

    assert (HostStep.BLOCKED, Remedy.BUILD) == (decision.step, decision.remedy)
    assert decision.acts == ()


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_from_every_state_whatever_fails_it_converges_reverts_or_is_broken_as_the_truth_demands(data: st.DataObject) -> None:
    """Any starting point, builds that are bad here or there, any mishap at any act, a crash at any moment: the end is the same."""
    count = data.draw(st.integers(0, 4), label="instances")
    gate = data.draw(st.booleans(), label="gate")
    policy = data.draw(st.sampled_from(AtDeadline), label="at deadline")
    lease = data.draw(st.sampled_from([6.0, 60.0]), label="lease")
    drain = Drain(settle=0.3, timeout=5, at_deadline=policy, traffic_timeout=4, lease=lease) if gate else None
    floor = data.draw(st.integers(0, max(0, count - 1)), label="floor")
    world = fresh_world(
        count,
        fetched=data.draw(st.booleans()),
        unpacked=data.draw(st.booleans()),
        permit=data.draw(st.booleans()),
        current=data.draw(st.sampled_from(["v1", "v2", None])),
        digest_known=data.draw(st.booleans()),
        sick=frozenset(name for name in (f"web@{8000 + n}" for n in range(count)) if data.draw(st.integers(0, 3)) == 0),
        old_sick=frozenset(name for name in (f"web@{8000 + n}" for n in range(count)) if data.draw(st.integers(0, 7)) == 0),
        good=data.draw(st.sampled_from(["v1", "v1", "v1", None, "v2"]), label="last good"),
        restart=data.draw(st.sampled_from(["", "", "r7"]), label="restart"),
        stuck=frozenset(name for name in (f"web@{8000 + n}" for n in range(count)) if data.draw(st.integers(0, 5)) == 0),
        pooled=data.draw(st.booleans(), label="pooled"),
        returns_after=data.draw(st.sampled_from([0.0, 1.0, 3.0, None]), label="clients come back after"),
        rules=Rules(
            drain=drain,
            warmup=data.draw(st.booleans()),
            healthy_timeout=20,
            stable_for=0.5,
            min_available=Share(floor),
        ),
    )
    if world.current == "v2":
        world.unpacked, world.fetched, world.steps = True, True, set(STEPS)
        world.flipped_for = data.draw(st.sampled_from(["", world.restart]), label="flipped for")
        world.permit = world.permit or world.flipped_for == world.restart
    for process in world.instances.values():
        if world.current == "v2":
            process.serves = data.draw(st.sampled_from(["v1", "v2", None]))
            process.restarted_for = data.draw(st.sampled_from(["", world.flipped_for])) if process.serves == "v2" else ""
        process.closed = gate and data.draw(st.booleans())
        process.until, process.drains_since = data.draw(st.sampled_from([0.5, 30.0])), 0.0 if process.closed else None

    no_way_back = world.good != "v1"
    decision = drive(world, data.draw(st.sampled_from([everything, one_by_one])), data)

    may_not_drain = gate and policy is not AtDeadline.PROCEED and (world.stuck or world.trouble)
    check_the_end(world, decision)
    if world.sick or not may_not_drain:
        both_bad = world.old_sick or no_way_back
        expected = HostStep.CONVERGED if not world.sick else HostStep.BROKEN if both_bad else HostStep.REVERTED
        assert decision.step is expected or (may_not_drain and decision.step is HostStep.BROKEN)


def check_the_end(world: World, decision: Decision) -> None:
    """What a host says of itself in the end is true."""
    serving = {process.serves for process in world.instances.values()}
    shut = [name for name, process in world.instances.items() if process.closed]
    match decision.step:
        case HostStep.CONVERGED:
            assert (world.current, world.permit, world.failure, shut) == ("v2", False, None, [])
            assert serving <= {"v2"}
            assert {process.restarted_for for process in world.instances.values()} <= {world.restart}
        case HostStep.REVERTED:
            assert (world.current, world.permit, shut) == ("v1", False, [])
            assert serving <= {"v1"}
            assert world.failure
        case _:
            assert decision.step is HostStep.BROKEN
            assert world.permit
            assert world.failure
            assert not any(world.healthy(name) for name in shut), "what can serve is open"


@given(st.integers(0, 6), st.integers(0, 6))
def test_a_gate_that_was_left_closed_opens_when_there_is_no_deploy(count: int, closed: int) -> None:
    """A closed gate outside the cycle is a leftover: the next plan opens it."""
    world = fresh_world(count, current="v2", good="v2", fetched=True, unpacked=True, steps=set(STEPS))
    for number, process in enumerate(world.instances.values()):
        process.serves = "v2"
        process.closed, process.until = number < closed, 100.0

    decision = plan_host(world.observe(), everything)

    opened = {act.instance for act in decision.acts if isinstance(act, OpenGate)}
    assert {name for name, process in world.instances.items() if process.closed} == opened
