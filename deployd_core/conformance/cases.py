"""What a strategy is tried with: views that no host should show, and options that a spec could give it."""

from __future__ import annotations

import random
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from deployd_core.api import AtDeadline, DrainOptions, Health, HostView, Options, Phase, Role, Share, State
from deployd_core.observation import Drain
from deployd_core.testing.views import host_view, instance_view

_SHARES: tuple[int | str, ...] = (1, 2, 3, "25%", "50%", "100%")


def hostile_views(facts: Callable[[Sequence[str]], Mapping[str, object]]) -> Iterator[tuple[str, HostView]]:
    """Views at the edge, each with a few words on what is odd about it."""
    failed = {"state": State.FAILED, "health": Health.UNHEALTHY, "serves": None}
    twice = (instance_view("web@8001"), instance_view("web@8001"), instance_view("web@8001", phase=Phase.WARMING))
    cases: list[tuple[str, HostView]] = [
        ("no instances", host_view()),
        ("one instance", host_view(Phase.STALE)),
        ("one instance, restarting", host_view(Phase.RESTARTING)),
        ("all failed", host_view(*(instance_view(f"web@{8001 + n}", **failed) for n in range(4)))),
        (
            "nobody knows",
            host_view(*(instance_view(f"web@{8001 + n}", state=State.UNKNOWN, health=Health.UNKNOWN) for n in range(4))),
        ),
        ("two of one name", host_view(*twice)),
        ("a name without a port", host_view(instance_view("worker", port=None))),
        ("one in every phase", host_view(*Phase)),
        ("all done", host_view(*[Phase.READY] * 4)),
        ("all in the cycle", host_view(*[Phase.WARMING] * 4)),
        ("a canary host", host_view(*[Phase.STALE] * 4, role=Role.CANARY)),
        ("three hundred instances", host_view(*[Phase.STALE] * 300)),
    ]
    for label, view in cases:
        yield label, msgspec.structs.replace(view, facts=facts([found.name for found in view.instances]))
    yield "no facts, because the strategy's own look failed", host_view(*[Phase.STALE] * 3)


def varied(options: Options, rng: random.Random) -> Options:
    """The same options, some of those that are counts or shares chosen anew; half the time none is."""
    if rng.random() < 0.5:
        return options
    hints = typing.get_type_hints(type(options))
    changes: dict[str, object] = {}
    for name, kind in hints.items():
        if Share in (kind, *typing.get_args(kind)) and rng.random() < 0.6:
            changes[name] = Share(rng.choice([0, *_SHARES] if name.startswith("min_") else _SHARES))
        elif kind is AtDeadline:
            changes[name] = rng.choice(list(AtDeadline))
    return msgspec.structs.replace(options, **changes)


def drain_of(options: Options) -> Drain | None:
    """How traffic is turned off; None when the strategy restarts without a gate."""
    if not isinstance(options, DrainOptions):
        return None
    return Drain(
        settle=float(options.settle),
        timeout=min(5.0, float(options.drain_timeout)),
        at_deadline=options.at_deadline,
        traffic_timeout=min(4.0, float(options.traffic_timeout)),
        lease=float(options.lease),
    )
