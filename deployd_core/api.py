"""Everything a plugin imports: the contracts, the views they are given, the hook marker.

A plugin is a class with a `name`, an `Options` type and a docstring; its first line is the summary that
``deployd plugins list`` shows. A hook of the module returns the class::

    from deployd_core.api import FleetOptions, HostView, Plan, Strategy, hookimpl


    class OneByOne(Strategy[FleetOptions]):
        \"\"\"Restart one instance of a host after the other.\"\"\"

        name = "one-by-one"

        def plan(self, view: HostView) -> Plan:
            return Plan(cycle=view.cycling or view.stale[:1], limit=self.options.fleet_limit, why="one instance at a time")


    @hookimpl
    def deployd_strategies() -> list[type]:
        return [OneByOne]

Every call of a plugin crosses one boundary in the core: it has a deadline, runs on a thread of its own, and whatever it raises
is reported under the plugin's name and version. `Unavailable` says "try again later", `RestartFailed`, `StepFailed` and
`BuildRefused` say what their names say; anything else counts as a fault of the plugin.

`API_VERSION` is raised when a contract changes so that an old plugin could not work; a plugin module that needs a newer one
says so with ``DEPLOYD_API_VERSION = 2`` and is then reported instead of loaded by an older deployd.
"""

from __future__ import annotations

import pluggy
from msgspec import Meta

from deployd_core.contracts import (
    Artifact,
    AtDeadline,
    BuildCall,
    ClosedGate,
    Connections,
    Download,
    DrainOptions,
    FetchCall,
    FleetOptions,
    Gate,
    GateCall,
    HostCall,
    InstanceCall,
    Manager,
    Options,
    Passing,
    Plugin,
    Probe,
    ProbeOptions,
    Reporter,
    Source,
    Status,
    Step,
    StepCall,
    StepOptions,
    Strategy,
    Verdict,
)
from deployd_core.errors import BuildRefused, ConfigError, DeploydError, NotFound, RestartFailed, StepFailed, Unavailable
from deployd_core.model import (
    Action,
    Build,
    Event,
    FleetLimit,
    FleetView,
    Health,
    HostView,
    Instance,
    InstanceView,
    PermitView,
    Phase,
    Plan,
    Release,
    RestartRequest,
    Role,
    State,
    Veto,
)
from deployd_core.units import Duration, Share, Size

API_VERSION = 1

hookimpl = pluggy.HookimplMarker("deployd")
"""Marks a function of a plugin module as the implementation of the hook of its name."""

__all__ = [
    "API_VERSION",
    "Action",
    "Artifact",
    "AtDeadline",
    "Build",
    "BuildCall",
    "BuildRefused",
    "ClosedGate",
    "ConfigError",
    "Connections",
    "DeploydError",
    "Download",
    "DrainOptions",
    "Duration",
    "Event",
    "FetchCall",
    "FleetLimit",
    "FleetOptions",
    "FleetView",
    "Gate",
    "GateCall",
    "Health",
    "HostCall",
    "HostView",
    "Instance",
    "InstanceCall",
    "InstanceView",
    "Manager",
    "Meta",
    "NotFound",
    "Options",
    "Passing",
    "PermitView",
    "Phase",
    "Plan",
    "Plugin",
    "Probe",
    "ProbeOptions",
    "Release",
    "Reporter",
    "RestartFailed",
    "RestartRequest",
    "Role",
    "Share",
    "Size",
    "Source",
    "State",
    "Status",
    "Step",
    "StepCall",
    "StepFailed",
    "StepOptions",
    "Strategy",
    "Unavailable",
    "Verdict",
    "Veto",
    "hookimpl",
]
