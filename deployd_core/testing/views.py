"""Views for tests of strategies, with everything filled in that a test does not care about.

view = host_view("ready", "stale", "stale")
assert MyStrategy(Options()).plan(view).cycle == ("web@8002",)
"""

from __future__ import annotations

from typing import Any

import msgspec

from deployd_core.api import Health, HostView, Instance, InstanceView, Phase, Role, State


def instance_view(name: str = "web@8001", **changes: Any) -> InstanceView:
    """An instance that serves the old build, healthy and open: ``instance_view("web@8002", phase="warming", gate_closed=True)``."""
    phase = Phase(changes.pop("phase", Phase.STALE))
    view = InstanceView(
        name=name,
        port=Instance.parse("web", name).port,
        phase=phase,
        serves="v1" if phase in (Phase.STALE, Phase.DRAINING) else "v2",
        state=State.RUNNING,
        health=Health.HEALTHY,
    )
    return msgspec.structs.replace(view, **changes)


def host_view(*instances: InstanceView | Phase | str, **changes: Any) -> HostView:
    """A host on its way from ``v1`` to ``v2``; of an instance its phase may be all that is said.

    Args:
        instances: Instances, or their phases: they are then named ``web@8001`` and so on.
        changes: Any other field of `HostView`: ``facts={"primary": "web@8001"}``.
    """
    views = tuple(
        found if isinstance(found, InstanceView) else instance_view(f"web@{8001 + number}", phase=found)
        for number, found in enumerate(instances)
    )
    view = HostView(service="web", host="h1", zone="a", role=Role.FLEET, build="v2", instances=views)
    return msgspec.structs.replace(view, **changes)
