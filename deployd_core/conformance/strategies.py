"""The conformance of a strategy: run through the real planner on a small model of a host, hundreds of times from one seed.

Everything runs in a child process, where what a strategy may not do can be caught, and one that hangs can be ended.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

from msgspec import Struct

from deployd_core.acts import Act
from deployd_core.api import HostView, Options, Plan, Role, Share, Strategy
from deployd_core.boundary import Bound, Provider, call_plugin
from deployd_core.conformance import SEEDS
from deployd_core.conformance.cases import drain_of, hostile_views, varied
from deployd_core.conformance.elsewhere import differing
from deployd_core.conformance.findings import Check, Fault, Findings
from deployd_core.conformance.guard import ANSWERS, PURE, Guard
from deployd_core.conformance.looking import FACTS, Look, look
from deployd_core.conformance.questions import LIMITS, MEMORY, PLANS, VIEW, Questions, about
from deployd_core.conformance.width import is_unlimited
from deployd_core.conformance.world import NEW, RULES, TICK, Running, World
from deployd_core.errors import DeploydError, Unavailable
from deployd_core.model import Phase
from deployd_core.observation import Rules, Setback
from deployd_core.planner import Decision, HostStep, plan_host
from deployd_core.testing.child import run_in_child
from deployd_core.testing.views import host_view

FINISHES, CRASHES = "finishes", "crashes"

PROPERTIES = {
    PLANS: "Whatever the view (no instance, one, all failed, two of one name), it returns a valid Plan or a DeploydError.",
    PURE: "The same view gives the same plan, in any process and at any time; it reads no file, network or clock, rolls no dice.",
    MEMORY: "A new object answers like an old one, and in whatever order it is asked: nothing is lost in a crash.",
    VIEW: "It does not change the view that it is given.",
    ANSWERS: "It answers at once.",
    LIMITS: "Its plans are no wider than its own options say, and what is in the cycle already counts.",
    FINISHES: "Every instance comes to serve the build by one restart; with things failing, it converges, or fails with a reason.",
    FACTS: "Its look at a host returns in time, finds values by name that JSON can say, or raises a DeploydError.",
    CRASHES: "With a crash before or after any one act, it converges all the same.",
    RULES: "Rules hold: permit before restart, the floor, nothing right restarted, no request cut early, gates open in the end.",
}

"""What is checked; `FACTS` only of a strategy that looks at the world."""

_MANY = (12, 40)
"""Instances of large hosts."""
_ROUNDS = 1500
_TIMEOUT = 600.0
"""Seconds for everything: only code that cannot be interrupted comes to it."""
_MEND = "in the end every stale instance has to be named, those that are down first: view.stale begins with them"
_FAILED = (HostStep.FAILED, HostStep.REVERTED, HostStep.BROKEN)


class Subject(Struct, frozen=True, kw_only=True):
    """The strategy under test."""

    name: str
    provider: Provider
    plugin: type[Strategy[Any]]
    options: Options
    facts: Callable[[Sequence[str]], Mapping[str, object]] = lambda _: {}
    """What `HostView.facts` holds, given the names of the instances; without any, it is what its own look at a host finds."""

    @property
    def looks(self) -> bool:
        """Whether it has facts of its own."""
        return self.plugin.facts is not Strategy.facts

    def make(self, guard: Guard, options: Options) -> Bound[Strategy[Any]]:
        """A new object of it.

        Raises:
            DeploydError: It does not accept the options.
            Fault: It does more than keep them.
        """
        plugin = call_plugin(
            self.provider, f"making strategy {self.name}", lambda: guard.watch(lambda: self.plugin(options), "__init__")
        )
        return Bound(plugin, self.name, self.provider)


class Mishap(Enum):
    """What happens to an act."""

    NONE = "succeeds"
    FAILS = "fails"
    CRASH_BEFORE = "crash before"
    CRASH_AFTER = "crash after"


def check_strategy(subject: Subject, *, seed: int = 0, seeds: int = SEEDS) -> Findings:
    """Try a strategy in every way that `PROPERTIES` names.

    Args:
        subject: The strategy.
        seed: The first seed.
        seeds: How many.
    """
    try:
        return run_in_child(lambda: _Trial(subject).run(range(seed, seed + seeds)), timeout=_TIMEOUT)
    except Unavailable as error:
        return Findings(checks=(Check(name=ANSWERS, promise=PROPERTIES[ANSWERS], problem=error.message),))


class _Trial:
    """All the cases, and what came of them."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._guard = Guard()
        self._cases = dict.fromkeys(PROPERTIES, 0)
        self._problems: dict[str, tuple[str, int | None]] = {}
        self._unlimited = False
        self._asked: list[tuple[HostView, Plan]] = []
        """What another process is asked once more."""
        self._look = Look()

    def run(self, seeds: Sequence[int]) -> Findings:
        if self._subject.looks:
            self._case(FACTS, None, self._on_its_look)
        self._case(FINISHES, None, self._on_one_host)
        for label, view in hostile_views(self._facts):
            self._case(PLANS, None, lambda view=view: self._on_view(view), about=label)  # type: ignore[misc]
        self._case(PURE, None, self._in_another_process)
        self._case(CRASHES, None, self._with_every_crash)
        for count in _MANY:
            self._case(FINISHES, None, lambda count=count: self._on_one_host(count))  # type: ignore[misc]
        for seed in seeds:
            dice = random.Random(seed)  # noqa: S311 - no secret
            self._case(FINISHES, seed, lambda dice=dice: self._on_any_host(dice))  # type: ignore[misc]
        return Findings(
            checks=tuple(
                Check(name=name, promise=text, cases=self._cases[name], problem=problem, seed=seed)
                for name, text in PROPERTIES.items()
                if name != FACTS or self._subject.looks
                for problem, seed in [self._problems.get(name, ("", None))]
            ),
            unlimited=self._unlimited,
        )

    def _case(self, check: str, seed: int | None, case: Callable[[], None], *, about: str = "") -> None:
        """Run one case; the first problem of each property is kept."""
        if ANSWERS in self._problems or FACTS in self._problems:
            return  # each of the others would take as long, or know nothing
        try:
            case()
            self._cases[check] += 1
        except Fault as fault:
            self._cases[fault.check] += 1
            self._problems.setdefault(fault.check, (f"{about}: {fault.message}" if about else fault.message, seed))

    def _questions(self, options: Options | None = None) -> Questions:
        chosen = self._subject.options if options is None else options
        try:
            self._subject.make(self._guard, chosen)
        except DeploydError as error:
            raise Fault(PLANS, error.message) from error
        return Questions(lambda: self._subject.make(self._guard, chosen), self._guard, self._count)

    def _count(self) -> None:
        """One more question, whose answer is held to all of these."""
        for check in (PLANS, PURE, MEMORY, VIEW, ANSWERS, LIMITS):
            self._cases[check] += 1

    def _facts(self, names: Sequence[str]) -> Mapping[str, object]:
        return self._subject.facts(names) or self._look.found

    def _on_its_look(self) -> None:
        """It looks at a host, and plans with what it has found as a new object would."""
        ask = self._questions()
        self._look = ask.use(look)
        with contextlib.suppress(DeploydError):  # it may say on purpose that it cannot
            ask(host_view(*[Phase.STALE] * 3, facts=self._look.found))

    def _on_view(self, view: HostView) -> None:
        ask = self._questions()
        try:
            ask(view)
        except DeploydError:
            return  # it may say on purpose that it cannot
        self._asked += ask.asked
        ask.ask_again()

    def _in_another_process(self) -> None:
        """The same questions, where nothing is as it was here but the strategy and the views."""
        found = differing(self._subject.plugin, self._subject.options, self._asked)
        if found is not None:
            view, here, there = found
            raise Fault(
                PURE,
                f"another process plans {list(there.cycle)} where this one plans {list(here.cycle)}, about the same view: the "
                f"order of a set is another in each, so sort it by the order of view.stale: {about(view)}",
            )

    def _world(self, count: int, options: Options, **changes: Any) -> World:
        names = [f"web@{8001 + number}" for number in range(count)]
        rules = Rules(drain=drain_of(options), healthy_timeout=20, stable_for=0.5)
        return World({name: Running() for name in names}, **{"rules": rules, "facts": self._facts(names), **changes})

    def _on_one_host(self, count: int = 4) -> None:
        """So many instances, nothing goes wrong."""
        ask, world = self._questions(), self._world(count, self._subject.options)
        decision = self._live(world, ask)
        self._asked += ask.asked
        self._unlimited |= any(is_unlimited(view, plan) for view, plan in ask.asked)
        if decision.step is HostStep.BLOCKED and self._look.refused:
            hint = "say what it would find, with --facts JSON or `facts` of its contract"
            raise Fault(FINISHES, f"it could not look at the model of a host, and is blocked: {self._look.refused}; {hint}")
        _expect_converged(world, decision)
        ask.ask_again()

    def _with_every_crash(self) -> None:
        """Three instances, and a crash at every place where there can be one."""
        acts: list[Act] = []

        def note(act: Act) -> Mishap:
            acts.append(act)
            return Mishap.NONE

        self._live(self._world(3, self._subject.options), self._questions(), note)
        for number, act in enumerate(acts):
            for crash in (Mishap.CRASH_BEFORE, Mishap.CRASH_AFTER):
                self._cases[CRASHES] += 1
                world = self._world(3, self._subject.options)
                decision = self._live(world, self._questions(), _once(number, crash))
                if decision.step is not HostStep.CONVERGED:
                    what = f"{crash.value} act {number + 1}, {act.doing}"
                    raise Fault(CRASHES, f"{what}: it ends {decision.step.value}, {decision.reason}")

    def _on_any_host(self, rng: random.Random) -> None:
        """Any number of instances, options, health and mishaps."""
        options = varied(self._subject.options, rng)
        try:
            self._subject.make(self._guard, options)
        except DeploydError:
            options = self._subject.options  # it refuses such options, which it may
        count = rng.choice([0, 1, 1, 2, 2, 3, 4, 4, 6])
        names = [f"web@{8001 + number}" for number in range(count)]
        rough = rng.random() < 0.7
        world = self._world(
            count,
            options,
            rules=Rules(
                drain=drain_of(options),
                warmup=rng.random() < 0.5,
                healthy_timeout=20,
                stable_for=0.5,
                min_available=Share(rng.choice([0, 0, 0, max(0, count - 1)])),
            ),
            sick=frozenset(name for name in names if rough and rng.random() < 0.15),
            stuck=frozenset(name for name in names if rough and rng.random() < 0.15),
            clients=rng.choice([0.0, 1.0, 3.0, None]),
            role=rng.choice([Role.FLEET, Role.FLEET, Role.CANARY]),
        )
        for running in world.instances.values():
            running.serves = running.serves if rng.random() < 0.9 else None
        ask = self._questions(options)
        decision = self._live(world, ask, _dice(rng) if rough else None)
        if decision.step in _FAILED and rough:
            _expect_left_well(world)
        elif not (decision.step is HostStep.BLOCKED and decision.plan is not None and not world.permit):
            _expect_converged(world, decision, once=not rough)
        ask.ask_again()

    def _live(self, world: World, ask: Questions, mishap: Callable[[Act], Mishap] | None = None) -> Decision:
        """Observe, plan and act until nothing more happens."""
        self._cases[RULES] += 1
        decision = Decision(step=HostStep.IDLE)
        for _ in range(_ROUNDS):
            decision = plan_host(world.observe(), ask)
            world.remember(decision)
            waits = any(setback.retry_at > world.now for setback in world.memory.setbacks.values())
            if not decision.acts and not waits and decision.step in (HostStep.CONVERGED, HostStep.BLOCKED, *_FAILED):
                return decision
            for act in decision.acts:
                what = mishap(act) if mishap else Mishap.NONE
                if what is Mishap.FAILS:
                    world.memory.setbacks[act.key] = Setback(reason="it said no", retry_at=world.now + 2)
                    continue
                if what is not Mishap.CRASH_BEFORE:
                    world.memory.setbacks.pop(act.key, None)
                    world.perform(act)
                if what is not Mishap.NONE:
                    world.crash()
                    ask.crash()
                    break
            world.tick()
        raise Fault(
            FINISHES, f"neither done nor failed after {_ROUNDS * TICK:g} s: {decision.step.value}, {decision.reason}; {_MEND}"
        )


def _once(number: int, mishap: Mishap) -> Callable[[Act], Mishap]:
    """One mishap, to the act of that number."""
    coming = iter([*[Mishap.NONE] * number, mishap])
    return lambda _: next(coming, Mishap.NONE)


def _dice(rng: random.Random) -> Callable[[Act], Mishap]:
    """A few mishaps, then none: the world gets better in the end."""
    left = rng.randint(1, 8)

    def roll(_: Act) -> Mishap:
        nonlocal left
        if left == 0 or rng.random() < 0.7:
            return Mishap.NONE
        left -= 1
        return rng.choice([Mishap.FAILS, Mishap.CRASH_BEFORE, Mishap.CRASH_AFTER])

    return roll


def _expect_converged(world: World, decision: Decision, *, once: bool = True) -> None:
    if decision.step is not HostStep.CONVERGED:
        raise Fault(FINISHES, f"nothing stands in its way, and it ends {decision.step.value}: {decision.reason}; {_MEND}")
    stale = [name for name, found in world.instances.items() if found.serves != NEW]
    shut = [name for name, found in world.instances.items() if found.closed]
    again = [name for name, times in world.restarts.items() if times > 1]
    if stale or shut or world.permit:
        raise Fault(RULES, f"at the end stale {stale}, closed {shut}, permit {'held' if world.permit else 'given back'}")
    if once and again:
        raise Fault(FINISHES, f"{again[0]} was restarted {world.restarts[again[0]]} times, and once was enough")


def _expect_left_well(world: World) -> None:
    """A host that has failed says why, keeps its permit, and leaves nobody shut out of what can serve."""
    shut = [name for name, found in world.instances.items() if found.closed and world.can_serve(name)]
    if shut:
        raise Fault(RULES, f"the host has failed, and {shut[0]} could serve behind its closed gate")
    if not world.permit or not world.failure:
        raise Fault(RULES, "a host that fails keeps its permit and says why")
