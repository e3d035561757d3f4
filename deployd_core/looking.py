"""Looks at the instances of a service, often while something is happening to them and seldom while nothing is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from deployd_core.api import HostCall, InstanceCall
from deployd_core.asking import FACTS_GRACE, FACTS_TIMEOUT, ask_facts
from deployd_core.config import ServiceSetup
from deployd_core.errors import DeploydError
from deployd_core.model import Flip, Instance, InstanceView, Phase
from deployd_core.observation import InstanceFacts
from deployd_core.planner import Decision, HostStep
from deployd_core.sightings import Lookout, Sighting, Watch
from deployd_core.tasks import Tasks

_FASTEST, _SLOWEST = 0.01, 0.25
"""Seconds between two looks at an instance in the cycle: a tenth of the time since something changed, within these."""
_COUNTING = 0.1
"""Seconds between two counts of an instance's connections."""
_DURING_DEPLOY = 1.0
_DEPLOYING = (
    HostStep.FLIPPING,
    HostStep.RESTARTING,
    HostStep.REVERTING,
    HostStep.CHECKING,
    HostStep.FAILED,
    HostStep.BROKEN,
)
_BEFORE_DEPLOY = 2.0
_PATIENCE = 60.0
"""Seconds after which an instance that nothing is done to, and nothing is learnt of, is looked at no more often than others."""
_SPARE = 10.0
"""Seconds that managers and gates get in a look, beside the probe."""
_FACTS_EVERY = 5.0


class Looking:
    """The watches of one service, and when each is due."""

    def __init__(self, tasks: Tasks, *, observe_every: float, owner: str) -> None:
        self._tasks = tasks
        self._owner = owner
        self._observe_every = observe_every
        self._watches: dict[str, Watch] = {}
        self._lookout: Lookout | None = None
        self._stable_for = 0.0
        self._facts: dict[str, object] | None = {}
        self.facts_problem = ""
        """Why the strategy could not find out about the host; empty when it could."""
        self._next_facts = 0.0

    def follow(self, setup: ServiceSetup) -> None:
        """Follow the instances of a spec; what is known of those that stay is kept."""
        self._watches = {instance.name: self._watches.get(instance.name) or Watch(instance) for instance in setup.instances}
        if setup.manager is not None:
            options = setup.probe_options
            self._stable_for = float(options.stable_for)
            self._lookout = Lookout(
                manager=setup.manager, probe=setup.probe, gate=setup.gate, probe_timeout=float(options.timeout), owner=self._owner
            )
        self._facts, self.facts_problem = None if setup.looks_at_the_world else {}, ""

    def facts(self, wall: float) -> list[InstanceFacts]:
        """What is known of each instance, in the order of the spec, at a moment in seconds since the epoch."""
        return [watch.facts(wall, self._owner) for watch in self._watches.values()]

    @property
    def strategy_facts(self) -> dict[str, object] | None:
        """What the strategy found out about the host; None until it has looked for the first time."""
        return self._facts

    @property
    def served(self) -> frozenset[str]:
        """Builds in whose releases instances live."""
        return frozenset(watch.release for watch in self._watches.values() if watch.release)

    def forget_orders(self) -> None:
        """Another build is wanted: look at everything now, with fresh eyes."""
        for watch in self._watches.values():
            watch.forget_orders()
            watch.next_look = 0.0

    def restarting(self, name: str, now: float) -> None:
        """An instance is about to be restarted: what was seen of it is over."""
        self._watches[name].restarting(now)

    def restarted(self, name: str, now: float) -> None:
        """Its restart has ended, well or not: looks that were begun before show the past."""
        if name in self._watches:
            self._watches[name].touched(now)

    def warmed(self, name: str) -> None:
        """The warm-up requests have been sent."""
        if name in self._watches:
            self._watches[name].warmed()

    def take_gate(self, kind: str, name: str, value: Any, now: float) -> None:
        """What was done to a gate is so, whichever build it was done for; `kind` is the act, in lower case."""
        watch = self._watches.get(name)
        if watch is None:
            return
        match kind:
            case "closegate":
                watch.gate_closed(now, value)
            case "opengate":
                watch.gate_opened(now)
            case "closeidle":
                watch.idle_closed(now)

    def saw(self, name: str, sighting: Sighting, *, started: float, ended: float) -> None:
        """Take the outcome of a look."""
        if name in self._watches:
            self._watches[name].saw(sighting, started=started, ended=ended)

    def learnt(self, facts: dict[str, object] | None, error: DeploydError | None) -> None:
        """Take what the strategy found out, or why it could not."""
        self._facts, self.facts_problem = facts or {}, error.message if error is not None else ""

    def start(
        self,
        decision: Decision,
        make_call: Callable[[Instance, float], InstanceCall],
        flips: Sequence[Flip],
        *,
        epoch: int,
        now: float,
    ) -> None:
        """Begin the looks that are due."""
        lookout = self._lookout
        if lookout is None:
            return
        timeout = lookout.probe_timeout + _SPARE
        for view in decision.instances:
            watch = self._watches[view.name]
            key = f"look:{view.name}"
            if now < watch.next_look or key in self._tasks.busy or view.phase is Phase.RESTARTING:
                continue
            returning = _returning(decision.step, view, watch)
            watch.next_look = now + _COUNTING if returning else self._next_look(decision.step, view, watch, now)

            def look(instance: Instance = watch.instance, back: bool = returning) -> Sighting:
                call = make_call(instance, timeout)
                return lookout.look(call, call.root, flips, returning=back)

            self._tasks.start(key, look, timeout=timeout + _SPARE, epoch=epoch)

    def start_facts(self, setup: ServiceSetup, make_call: Callable[[float], HostCall], *, epoch: int, now: float) -> None:
        """Have the strategy look at the world, when it is one that does and it is time."""
        if not setup.looks_at_the_world or "facts" in self._tasks.busy or now < self._next_facts:
            return
        self._next_facts = now + _FACTS_EVERY
        call = make_call(FACTS_TIMEOUT)
        self._tasks.start(
            "facts",
            lambda: ask_facts(setup.strategy, call, within=None),
            timeout=FACTS_TIMEOUT + FACTS_GRACE,
            epoch=epoch,
        )

    def next_due(self, instances: Iterable[InstanceView]) -> float | None:
        """When the next look is due."""
        busy = self._tasks.busy
        return min(
            (
                watch.next_look
                for view in instances
                if (watch := self._watches.get(view.name))
                and view.phase is not Phase.RESTARTING
                and f"look:{view.name}" not in busy
            ),
            default=None,
        )

    def _next_look(self, step: HostStep, view: InstanceView, watch: Watch, now: float) -> float:
        """When to look at an instance again: at the latest when it may have been healthy for the stability window."""
        regular = now + self._pace(step, view, now - watch.changed_at)
        stable_at = watch.healthy_since + self._stable_for if watch.healthy_since is not None else regular
        return min(regular, stable_at) if stable_at > now else regular

    def _pace(self, step: HostStep, view: InstanceView, quiet: float) -> float:
        """Seconds until the next look at an instance, after `quiet` seconds without a change."""
        if view.phase is Phase.DRAINING:
            return _COUNTING
        if step is HostStep.CHECKING and quiet > _PATIENCE:
            return self._observe_every
        if step in (HostStep.RESTARTING, HostStep.REVERTING, HostStep.CHECKING) and view.phase.in_cycle:
            return min(_SLOWEST, max(_FASTEST, quiet / 10))
        if step in _DEPLOYING:
            return _DURING_DEPLOY
        return min(_BEFORE_DEPLOY if step is HostStep.WAITING else self._observe_every, self._observe_every)


def _returning(step: HostStep, view: InstanceView, watch: Watch) -> bool:
    """Whether clients are waited for, so that they have to be counted."""
    if step not in (HostStep.RESTARTING, HostStep.REVERTING) or view.gate_closed or watch.opened_at is None:
        return False
    return view.phase is Phase.RETURNING or (view.phase in (Phase.STALE, Phase.WARMING) and not watch.traffic_back)
