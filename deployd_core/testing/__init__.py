"""What tests need: of deployd itself, and of plugins.

For those who write plugins: the contracts as classes to inherit, views and fakes, all to be had from here. Each is imported when it
is asked for, because pytest imports this package wherever deployd is installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deployd_core.testing.fakes import FakeBalancer, FakeGate, FakeManager, FakeManagerOptions, FakeProbe, FakeProcesses
    from deployd_core.testing.gate_abilities import (
        BypassContract,
        ClearingContract,
        CountingContract,
        HoldingContract,
        LeaseContract,
    )
    from deployd_core.testing.gates import GateContract
    from deployd_core.testing.instances import eventually, free_port
    from deployd_core.testing.managers import ManagerContract
    from deployd_core.testing.probes import ProbeContract, SpeakingProbeContract
    from deployd_core.testing.reporters import ReporterContract, WholeReporterContract
    from deployd_core.testing.sample import SampleService
    from deployd_core.testing.sources import SourceContract
    from deployd_core.testing.steps import RefusingStepContract, StepContract
    from deployd_core.testing.strategies import StrategyContract
    from deployd_core.testing.views import host_view, instance_view
    from deployd_core.testing.virtual import virtual_fleet

_WHERE = {
    "fakes": ("FakeBalancer", "FakeGate", "FakeManager", "FakeManagerOptions", "FakeProbe", "FakeProcesses"),
    "gate_abilities": ("BypassContract", "ClearingContract", "CountingContract", "HoldingContract", "LeaseContract"),
    "gates": ("GateContract",),
    "instances": ("eventually", "free_port"),
    "managers": ("ManagerContract",),
    "probes": ("ProbeContract", "SpeakingProbeContract"),
    "reporters": ("ReporterContract", "WholeReporterContract"),
    "sample": ("SampleService",),
    "sources": ("SourceContract",),
    "steps": ("RefusingStepContract", "StepContract"),
    "strategies": ("StrategyContract",),
    "views": ("host_view", "instance_view"),
    "virtual": ("virtual_fleet",),
}

__all__ = [
    "BypassContract",
    "ClearingContract",
    "CountingContract",
    "FakeBalancer",
    "FakeGate",
    "FakeManager",
    "FakeManagerOptions",
    "FakeProbe",
    "FakeProcesses",
    "GateContract",
    "HoldingContract",
    "LeaseContract",
    "ManagerContract",
    "ProbeContract",
    "RefusingStepContract",
    "ReporterContract",
    "SampleService",
    "SourceContract",
    "SpeakingProbeContract",
    "StepContract",
    "StrategyContract",
    "WholeReporterContract",
    "eventually",
    "free_port",
    "host_view",
    "instance_view",
    "virtual_fleet",
]


def __getattr__(name: str) -> Any:
    for module, names in _WHERE.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
