"""Whether a strategy limits how many hosts restart at a time: what has to be said of one that does not."""

from __future__ import annotations

from typing import Any

from deployd_core.api import FleetLimit, HostView, Phase, Plan, Strategy
from deployd_core.asking import check_plan
from deployd_core.boundary import Bound
from deployd_core.errors import DeploydError
from deployd_core.testing.views import host_view

NO_LIMIT = "no fleet limit: all hosts at once"
_PATIENCE = 2.0
"""Seconds that a plan may take."""


def is_unlimited(view: HostView, plan: Plan) -> bool:
    """Whether a plan that begins something would have every host of the fleet begin it at once."""
    begins = set(plan.cycle) - set(view.cycling)
    return bool(begins) and not plan.impossible and plan.limit == FleetLimit()


def lets_all_hosts_go(strategy: Bound[Strategy[Any]]) -> bool | None:
    """Whether a strategy sets no fleet limit, asked about a host with four stale instances; None when it does not say."""
    view = host_view(*[Phase.STALE] * 4)
    try:
        plan = check_plan(strategy, strategy.call_within(_PATIENCE, "planning", lambda plugin: plugin.plan(view)))
    except DeploydError:
        return None
    return is_unlimited(view, plan) if plan.cycle and not plan.impossible else None
