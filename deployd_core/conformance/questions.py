"""Asks a strategy as the engine does, and holds every answer to what a strategy may and may not do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from deployd_core.api import FleetOptions, Health, HostView, Phase, Plan, Share, State, Strategy
from deployd_core.asking import check_plan
from deployd_core.boundary import Bound
from deployd_core.conformance.findings import Fault
from deployd_core.conformance.guard import PURE, Guard
from deployd_core.conformance.world import OLD
from deployd_core.errors import DeploydError, PluginError

R = TypeVar("R")

PLANS = "plans"
VIEW = "view"
MEMORY = "memory"
LIMITS = "limits"
_FLEETS = (2, 3, 10, 100, 1000)
_LATER = (1800.0, 43_200.0, 259_200.0, 7_862_400.0)
"""Seconds after which a host is looked at once more, exactly as it was: half an hour, half a day, three days, a quarter."""


class Questions:
    """One strategy with its options."""

    def __init__(self, make: Callable[[], Bound[Strategy[Any]]], guard: Guard, count: Callable[[], None]) -> None:
        self._make = make
        self._guard = guard
        self._count = count
        """Called for every question."""
        self._strategy = make()
        self._widest = 0
        """The most instances that it has named at once while none was in the cycle."""
        self.asked: list[tuple[HostView, Plan]] = []
        """What was asked and answered, in order."""

    def __call__(self, view: HostView) -> Plan:
        """The plan for a view.

        Raises:
            Fault: The strategy did what it may not do.
            DeploydError: The strategy raised it, which it may.
        """
        self._count()
        plan = self._ask(self._strategy, view)
        if plan != self._ask(self._strategy, view):
            raise Fault(PURE, f"asked twice about one view, it answers differently: {about(view)}")
        if plan != self._ask(self._make(), view):
            raise Fault(MEMORY, f"a new object of it answers differently about the same view, as after a crash: {about(view)}")
        seconds = _LATER[len(self.asked) % len(_LATER)]
        if plan != self._ask(self._strategy, _later(view, seconds)):
            raise Fault(
                PURE,
                f"it answers differently {seconds:g} s later, when nothing else has changed: view.now is no time of day, and only "
                f"what it is after a `since` means anything: {about(view)}",
            )
        self._check(view, plan)
        if not plan.impossible:
            self._check_batch(view, plan)
        self.asked.append((view, plan))
        return plan

    def use(self, function: Callable[[Bound[Strategy[Any]]], R]) -> R:
        """Do something else with the object that is asked."""
        return function(self._strategy)

    def crash(self) -> None:
        """Go on with a new object."""
        self._strategy = self._make()

    def ask_again(self) -> None:
        """Ask everything once more, the last first.

        Raises:
            Fault: An answer depends on what was asked before.
        """
        strategy = self._make()
        for view, plan in reversed(self.asked):
            if plan != self._ask(strategy, view):
                raise Fault(MEMORY, f"asked in another order, it answers differently about the same view: {about(view)}")

    def _ask(self, strategy: Bound[Strategy[Any]], view: HostView) -> Plan:
        before = repr(view)
        try:
            plan = strategy.call("planning", lambda plugin: self._guard.watch(lambda: plugin.plan(view)))
            checked = check_plan(strategy, plan)
        except PluginError as error:
            raise Fault(PLANS, f"{error.message}; asked about {before if len(before) < 200 else about(view)}") from error
        finally:
            if repr(view) != before:
                raise Fault(VIEW, f"it changes the view that it is given: {about(view)}")
        return checked

    def _check_batch(self, view: HostView, plan: Plan) -> None:
        """Hold a plan to the strategy's own width: no more go while some are in the cycle than it names when none is yet.

        However a strategy counts, that is true of each that knows what is under way: one that takes everything, batches, a window
        that slides, one that grows. An instance that is down anyway may join at any time: that costs nobody anything.
        """
        cycling = set(view.cycling)
        if not cycling:
            self._widest = max(self._widest, len(set(plan.cycle)))
            return
        up = {found.name for found in view.instances if found.phase is Phase.STALE and found.available}
        going = len(cycling) + len(up.intersection(plan.cycle) - cycling)
        if going <= max(self._widest, len(cycling)):
            return
        try:
            begun = self._ask(self._strategy, _before(view))
        except DeploydError:
            return  # it may say on purpose that it does not begin so
        first = len(set(begun.cycle))
        if going > first:
            raise Fault(
                LIMITS,
                f"{going} instances go at once, and it begins with {first}: what is in view.cycling is no longer in view.stale, "
                f"but still counts (cycle=view.cycling or view.stale[:{first}]): {about(view)}",
            )

    def _check(self, view: HostView, plan: Plan) -> None:
        known = {instance.name for instance in view.instances}
        strangers = [name for name in plan.cycle if name not in known]
        if strangers:
            raise Fault(PLANS, f"it names {strangers[0]!r}, which is no instance of the host: {about(view)}")
        if not plan.why.strip() or "\n" in plan.why:
            raise Fault(PLANS, f"`why` must be one line, and is {plan.why!r}")
        if plan.impossible:
            return  # nothing will be done, however wide it is
        options = self._strategy.plugin.options
        count = len(view.instances)
        window, floor = getattr(options, "instances_at_once", None), getattr(options, "min_available", None)
        going = set(plan.cycle) | set(view.cycling)
        if isinstance(window, Share) and len(going) > max(window.at_most(count), len(view.cycling)):
            raise Fault(LIMITS, f"{len(going)} instances go at once, and its option instances_at_once says {window}: {about(view)}")
        if isinstance(floor, Share) and plan.min_available.at_least(count) < floor.at_least(count):
            raise Fault(LIMITS, f"the plan keeps {plan.min_available} instances, and its option min_available says {floor}")
        if isinstance(options, FleetOptions):
            _check_limit("limit", options.limit, plan.limit.hosts)
            _check_limit("limit_per_zone", options.limit_per_zone, plan.limit.per_zone)


def _check_limit(name: str, option: Share | None, planned: Share | None) -> None:
    for hosts in _FLEETS:
        if option is not None and (planned is None or planned.at_most(hosts) > option.at_most(hosts)):
            wide = "them all" if planned is None else str(planned.at_most(hosts))
            raise Fault(LIMITS, f"of {hosts} hosts the plan lets {wide} go at once, and its option {name} says {option}")


def about(view: HostView) -> str:
    """A view in a line: its instances and their phases."""
    return ", ".join(f"{found.name} {found.phase.value}" for found in view.instances) or "no instances"


def _later(view: HostView, seconds: float) -> HostView:
    """The same moment of the same host, had everything begun so much later."""
    replace = msgspec.structs.replace
    return replace(
        view,
        now=view.now + seconds,
        permit=replace(view.permit, since=view.permit.since + seconds),
        instances=tuple(replace(found, since=found.since + seconds) for found in view.instances),
    )


def _before(view: HostView) -> HostView:
    """The same host before those in the cycle entered it."""
    stale = {"phase": Phase.STALE, "serves": OLD, "state": State.RUNNING, "health": Health.HEALTHY}
    changes = {**stale, "gate_closed": False, "in_flight": None}
    instances = tuple(msgspec.structs.replace(found, **changes) if found.phase.in_cycle else found for found in view.instances)
    return msgspec.structs.replace(view, instances=instances)
