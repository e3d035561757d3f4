"""A spec as deployd understands it: every plugin with all of its options, those that have their defaults too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from deployd_core.boundary import Bound
from deployd_core.config import ServiceSetup
from deployd_core.conformance.width import NO_LIMIT, lets_all_hosts_go
from deployd_core.units import encode_unit

_NAMED = 10
"""Instances that are named."""


def understood(setup: ServiceSetup) -> Iterator[tuple[str, str]]:
    """What a spec says, in the order in which it is written: what it is about, and what was understood."""
    spec = setup.spec
    yield "service", _values(spec.service)
    yield "source", _plugin(setup.source)
    for number, step in enumerate(setup.steps, start=1):
        yield f"step {number}", _plugin(step)
    names = [instance.name for instance in setup.instances]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    yield "instances", f"{', '.join(names[:_NAMED])}{more}" if names else "none: a service of files alone"
    for what, part in (("manager", setup.manager), ("probe", setup.probe), ("gate", setup.gate)):
        if part is not None:
            yield what, _plugin(part)
    if spec.warmup is not None:
        yield "warmup", _values(spec.warmup)
    if names:
        yield "limits", _values(spec.instances, "min_available", "restart_timeout", "healthy_timeout")
    yield "strategy", _plugin(setup.strategy)
    if lets_all_hosts_go(setup.strategy):
        yield "", NO_LIMIT
    yield "rollout", _values(spec.rollout)


def _plugin(bound: Bound[Any]) -> str:
    options = _values(bound.plugin.options)
    return f"{bound.name}: {options}" if options else bound.name


def _values(struct: msgspec.Struct, *only: str) -> str:
    """``limit="10%", instances_at_once="2"``: what is set, be it by default."""
    values: dict[str, Any] = msgspec.to_builtins(struct, enc_hook=encode_unit)
    chosen = {key: values[key] for key in only or values if values[key] not in (None, "", [], (), {})}
    return ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in chosen.items())
