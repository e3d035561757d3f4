"""What is simulated: hosts, the spec they run, how the world behaves, and what goes wrong."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from deployd_core.api import Artifact, BuildCall, Download, FetchCall, Options, Source
from deployd_core.boundary import Bound, Provider
from deployd_core.config import ServiceSetup, set_up
from deployd_core.errors import ConfigError, NotFound
from deployd_core.model import Role
from deployd_core.plugins import Kind, Plugins
from deployd_core.simulate.faults import Fault
from deployd_core.simulate.found import Found, FoundHost
from deployd_core.spec import InstancesTable, RestartTable, ServiceSpec, ServiceTable

BEGAN = 1_767_225_600.0
"""2026-01-01, so that no run depends on when it is made."""
_SPREAD = 0.15
"""Of the logarithm of a length of time: most are within a sixth of what is typical, a few take half as long again."""


OTHERS = ""
"""Stands for every host that is not named."""


class Behaviour(Struct, frozen=True, kw_only=True):
    """How long things take, typically; each time is drawn anew around it. Seconds."""

    fetch: float = 8.0
    unpack: float = 4.0
    step: float = 20.0
    restart: float = 1.0
    """From the order until the new process runs."""
    start: float = 20.0
    """From then on until it answers its probe."""
    drain: float = 3.0
    """From closing a gate until the last request has ended."""
    clients: float = 2.0
    """From opening a gate until clients use the instance again."""
    warmup: float = 2.0
    write: float = 0.01
    """An answer of the coordination service."""
    watch: float = 0.02
    """From a write until whoever watches hears of it."""
    agent: float = 5.0
    """From the death of an agent until the next one runs."""
    reboot: float = 90.0

    def draw(self, typical: float, rng: random.Random) -> float:
        """One length of time around a typical one."""
        return typical * math.exp(rng.gauss(0.0, _SPREAD))


class HostSetup(Struct, frozen=True, kw_only=True):
    """One host of the roster."""

    name: str
    zone: str
    role: Role = Role.FLEET
    found: FoundHost | None = None
    """How it stands before the build is enabled; None: well, and with the build of `Scenario.before`."""


class Scenario(Struct, frozen=True, kw_only=True):
    """Everything but the seed."""

    service: str = "web"
    spec: ServiceSpec
    hosts: tuple[HostSetup, ...]
    behaviour: Behaviour = Behaviour()
    faults: tuple[Fault, ...] = ()
    before: str = "v1"
    """The build that every host serves of which nothing else was found."""
    build: str = "v2"
    """The one that is enabled at the beginning."""
    found: Found | None = None
    """What coordination holds before that; None: `before` is enabled, and nothing stands in the way."""
    facts: Mapping[str, Mapping[str, object]] = {}
    """What the strategy's own look at a host finds, by the name of the host; under `OTHERS` at those that are not named."""
    began: float = BEGAN
    """Seconds since the epoch."""

    def facts_of(self, host: str) -> Mapping[str, object]:
        """What the strategy's own look at a host finds."""
        return self.facts.get(host, self.facts.get(OTHERS, {}))


def roster(hosts: int, zones: int) -> tuple[HostSetup, ...]:
    """So many hosts, spread over zones.

    Raises:
        ConfigError: There are fewer than one of either, or more zones than hosts.
    """
    if hosts < 1 or not 1 <= zones <= hosts:
        raise ConfigError(f"{hosts} hosts in {zones} zones make no fleet", hint="give at least one host a zone")
    width = len(str(hosts))
    numbers = range(1, hosts + 1)
    return tuple(HostSetup(name=f"host-{number:0{width}}", zone=f"zone-{_letters((number - 1) % zones)}") for number in numbers)


def spec_for(strategy: str, options: Mapping[str, Any], instances: int) -> ServiceSpec:
    """The simplest spec: some instances, restarted by a strategy."""
    return ServiceSpec(
        service=ServiceTable(root="/srv/{service}"),
        source={},
        instances=InstancesTable(count=instances, pattern="web@{port}", first_port=8001),
        restart=RestartTable(strategy=strategy, options=dict(options)),
    )


def with_strategy(spec: ServiceSpec, strategy: str, options: Mapping[str, Any]) -> ServiceSpec:
    """A spec restarted by another strategy, or by its own with other options."""
    own = spec.restart.options if spec.restart.strategy == strategy else {}
    return replace(spec, restart=RestartTable(strategy=strategy, options={**own, **options}))


def set_up_virtual(spec: ServiceSpec, service: str, plugins: Plugins) -> ServiceSetup:
    """What a spec names, made as an engine would. One of `spec_for` names only a strategy, and the rest is imagined.

    Raises:
        ConfigError: A value is wrong.
        UnknownPlugin: It names a plugin that is not here.
    """
    if spec.source:
        return set_up(spec, service, plugins)
    restart = spec.restart
    nowhere = Provider(entry="virtual", distribution="deployd", version="", origin=__name__)
    return ServiceSetup(
        spec=spec,
        instances=spec.instances_of(service),
        strategy=plugins.make(Kind.STRATEGY, restart.strategy, restart.options, where=f"strategy {restart.strategy}"),
        source=Bound(_NoSource(Options()), "virtual", nowhere),
        steps=(),
        step_markers=(),
        manager=None,
        probe=None,
        gate=None,
    )


class _NoSource(Source[Options]):
    """Where builds of a spec without a source come from: nobody asks it."""

    name = "virtual"

    def resolve(self, call: BuildCall) -> Artifact:
        """There is nothing."""
        raise NotFound(f"{call.build} is imagined")

    def fetch(self, call: FetchCall) -> Download:
        """There is nothing."""
        raise NotFound(f"{call.build} is imagined")


def _letters(number: int) -> str:
    """``a``, ``b``, … ``z``, ``aa`` …"""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(ord("a") + rest) + text
    return text
