"""Asks a strategy, for its plan and for its facts, and checks what it says before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from deployd_core.api import Action, FleetLimit, HostCall, HostView, Plan, Strategy
from deployd_core.boundary import Bound
from deployd_core.config import ServiceSetup
from deployd_core.cycle import impossible
from deployd_core.decoding import convert
from deployd_core.errors import ConfigError, PluginError
from deployd_core.model import FleetView, Health, InstanceView, Phase, Role, State
from deployd_core.units import Share

PATIENCE = 5.0
"""Seconds until a strategy that has not answered is taken for one that hangs: it takes microseconds."""
FACTS_TIMEOUT, FACTS_GRACE = 5.0, 5.0
"""Seconds that a strategy's look at the world may take, and what it gets beyond them before it is abandoned."""
_SHOWN = 100
"""Characters of what a strategy returned instead of a plan, in a message."""
_LIMITS = (Share, type(None))
_MANY = FleetView(hosts=1000)
"""How many hosts there will be does not stand in a spec: enough for whatever a strategy needs."""


def ask_strategy(strategy: Bound[Strategy[Any]], view: HostView, *, within: float | None = PATIENCE) -> Plan:
    """The plan of a strategy.

    Args:
        strategy: Whom to ask.
        view: What about.
        within: Seconds to wait for the answer, on a thread of its own; None asks on this thread, for as long as it takes.

    Raises:
        DeploydError: The strategy raised it.
        PluginError: It raised anything else, did not answer in time, or what it returned is no plan.
    """

    def use(plugin: Strategy[Any]) -> Plan:
        return plugin.plan(view)

    plan = strategy.call("planning", use) if within is None else strategy.call_within(within, "planning", use)
    return check_plan(strategy, plan)


def ask_facts(strategy: Bound[Strategy[Any]], call: HostCall, *, within: float | None) -> dict[str, object]:
    """What a strategy finds out about a host, for `HostView.facts`.

    Args:
        strategy: Whom to ask.
        call: What it is told of the host.
        within: Seconds to wait, on a thread of its own; None asks on this thread, for as long as it takes.

    Raises:
        DeploydError: The strategy raised it.
        PluginError: It raised anything else, did not answer in time, or what it returned are no values by name.
    """

    def use(plugin: Strategy[Any]) -> Any:
        return plugin.facts(call)

    doing = "gathering facts"
    found = strategy.call(doing, use) if within is None else strategy.call_within(within, doing, use)
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise PluginError(f"strategy {strategy.name} [{strategy.provider}] returned no facts, which are values by name: {found!r}")
    return dict(found)


def refuse_impossible(setup: ServiceSetup, service: str, *, where: str, hint: str = "") -> None:
    """See that an ordinary host could restart an instance, before a spec is written or a build is enabled.

    The strategy is asked what it would be asked first on a host. One that looks at the world is not: what it finds there, only a
    host can tell, and reports.

    Args:
        setup: The spec, with its plugins made.
        service: Its service.
        where: The file or service it comes from, for the message.
        hint: What to type next.

    Raises:
        ConfigError: No instance of any host could be restarted, ever.
        DeploydError: See `ask_strategy`.
    """
    if setup.looks_at_the_world:
        return
    instances = tuple(
        InstanceView(
            name=instance.name, port=instance.port, phase=Phase.STALE, serves="", state=State.RUNNING, health=Health.HEALTHY
        )
        for instance in setup.instances
    )
    view = HostView(service=service, host="host", zone="default", role=Role.FLEET, build="build", instances=instances, fleet=_MANY)
    why = impossible(ask_strategy(setup.strategy, view), setup.rules, len(instances))
    if why:
        raise ConfigError(f"{where}: [restart] strategy {setup.strategy.name} could restart no instance: {why}", hint=hint)


def check_plan(strategy: Bound[Strategy[Any]], plan: Any) -> Plan:
    """What a strategy returned, as a plan whose every value has its type.

    Raises:
        PluginError: It is no plan.
    """
    if type(plan) is Plan and _is_sound(plan):
        return plan
    fields: Any = msgspec.structs.asdict(plan) if isinstance(plan, Plan) else plan
    try:
        return convert(fields, Plan, from_attributes=True)
    except msgspec.ValidationError as error:
        problem = str(error) if isinstance(plan, Plan) else repr(plan)[:_SHOWN]
        raise PluginError(f"strategy {strategy.name} [{strategy.provider}] returned no Plan: {problem}") from error


def _is_sound(plan: Plan) -> bool:
    """Whether every value has its type already, which spares the conversion: a plan is made many times a second."""
    limit = plan.limit
    return (
        type(plan.cycle) is tuple
        and all(type(name) is str for name in plan.cycle)
        and type(plan.why) is str
        and type(plan.impossible) is str
        and type(plan.action) is Action
        and type(limit) is FleetLimit
        and type(limit.hosts) in _LIMITS
        and type(limit.per_zone) in _LIMITS
        and type(plan.min_available) is Share
        and type(plan.priority) is int
    )
