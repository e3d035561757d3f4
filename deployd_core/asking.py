"""Asks a strategy, and checks what it says before anything is made of it."""

from __future__ import annotations

from typing import Any

import msgspec

from deployd_core.api import HostView, Plan, Strategy
from deployd_core.boundary import Bound
from deployd_core.errors import PluginError
from deployd_core.units import decode_unit


def ask_strategy(strategy: Bound[Strategy[Any]], view: HostView) -> Plan:
    """The plan of a strategy.

    Raises:
        DeploydError: The strategy raised it.
        PluginError: It raised anything else, or what it returned is no plan.
    """
    plan: Any = strategy.call("planning", lambda plugin: plugin.plan(view))
    fields: Any = msgspec.structs.asdict(plan) if isinstance(plan, Plan) else plan
    try:
        return msgspec.convert(fields, Plan, from_attributes=True, dec_hook=decode_unit)
    except msgspec.ValidationError as error:
        raise PluginError(f"strategy {strategy.name} [{strategy.provider}] returned no Plan: {error}") from error
