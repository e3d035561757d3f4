"""Asks a strategy as the engine does, and holds every answer to what a strategy may and may not do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deployd_core.api import FleetOptions, HostView, Plan, Share, Strategy
from deployd_core.asking import check_plan
from deployd_core.boundary import Bound
from deployd_core.conformance.findings import Fault
from deployd_core.conformance.guard import PURE, Guard
from deployd_core.errors import PluginError

PLANS = "plans"
VIEW = "view"
MEMORY = "memory"
LIMITS = "limits"
_FLEETS = (2, 3, 10, 100, 1000)


class Questions:
    """One strategy with its options."""

    def __init__(self, make: Callable[[], Bound[Strategy[Any]]], guard: Guard, count: Callable[[], None]) -> None:
        self._make = make
        self._guard = guard
        self._count = count
        """Called for every question."""
        self._strategy = make()
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
            raise Fault(PURE, f"asked twice about one view, it answers differently: {_about(view)}")
        if plan != self._ask(self._make(), view):
            raise Fault(MEMORY, f"a new object of it answers differently about the same view, as after a crash: {_about(view)}")
        self._check(view, plan)
        self.asked.append((view, plan))
        return plan

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
                raise Fault(MEMORY, f"asked in another order, it answers differently about the same view: {_about(view)}")

    def _ask(self, strategy: Bound[Strategy[Any]], view: HostView) -> Plan:
        before = repr(view)
        try:
            plan = strategy.call("planning", lambda plugin: self._guard.watch(lambda: plugin.plan(view)))
            checked = check_plan(strategy, plan)
        except PluginError as error:
            raise Fault(PLANS, f"{error.message}; asked about {before if len(before) < 200 else _about(view)}") from error
        finally:
            if repr(view) != before:
                raise Fault(VIEW, f"it changes the view that it is given: {_about(view)}")
        return checked

    def _check(self, view: HostView, plan: Plan) -> None:
        known = {instance.name for instance in view.instances}
        strangers = [name for name in plan.cycle if name not in known]
        if strangers:
            raise Fault(PLANS, f"it names {strangers[0]!r}, which is no instance of the host: {_about(view)}")
        if not plan.why.strip() or "\n" in plan.why:
            raise Fault(PLANS, f"`why` must be one line, and is {plan.why!r}")
        if plan.impossible:
            return  # nothing will be done, however wide it is
        options = self._strategy.plugin.options
        count = len(view.instances)
        window, floor = getattr(options, "instances_at_once", None), getattr(options, "min_available", None)
        going = set(plan.cycle) | set(view.cycling)
        if isinstance(window, Share) and len(going) > max(window.at_most(count), len(view.cycling)):
            raise Fault(
                LIMITS, f"{len(going)} instances go at once, and its option instances_at_once says {window}: {_about(view)}"
            )
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


def _about(view: HostView) -> str:
    return ", ".join(f"{found.name} {found.phase.value}" for found in view.instances) or "no instances"
