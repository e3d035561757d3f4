"""One look at a service on this host, with no agent: for people who ask what would happen. Changes nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from deployd_core.api import Gate, GateCall, HostCall, InstanceCall
from deployd_core.asking import FACTS_GRACE, ask_facts, ask_strategy
from deployd_core.boundary import Bound
from deployd_core.config import AgentConfig, ServiceSetup, root_of, set_up
from deployd_core.coordination import Enabled, Snapshot
from deployd_core.errors import ConfigError, NotFound
from deployd_core.model import HostView, Instance, Plan
from deployd_core.observation import InstanceFacts, Observation
from deployd_core.observing import observe, stand
from deployd_core.plugins import Plugins
from deployd_core.processes import owner_here
from deployd_core.releases import ReleaseStore
from deployd_core.retention import Disk
from deployd_core.sightings import Lookout, Watch

_TIMEOUT = 10.0
"""Seconds that a plugin gets in a look, beside the probe."""
_A_WHILE = 1.0


class Here(Struct, frozen=True, kw_only=True):
    """A service on this host."""

    config: AgentConfig
    snapshot: Snapshot
    setup: ServiceSetup
    root: Path
    disk: Disk
    owner: str
    """Who this process is, in gates that it closes."""

    @property
    def gate(self) -> Bound[Gate[Any]]:
        """What turns its traffic off.

        Raises:
            ConfigError: Nothing does.
        """
        if self.setup.gate is None:
            raise ConfigError(f"{self.snapshot.service} has no gate", hint="use a strategy that drains: see docs/gates.md")
        return self.setup.gate

    def host_call(self) -> HostCall:
        """What a plugin is told of the service here."""
        return HostCall(
            service=self.snapshot.service,
            host=self.config.host,
            zone=self.config.zone,
            address=self.config.address,
            root=self.root,
            timeout=_TIMEOUT,
        )

    def call(self, instance: Instance) -> InstanceCall:
        """What a plugin is told of an instance."""
        release = self.root / "releases" / self.disk.current if self.disk.current else None
        return InstanceCall(
            **msgspec.structs.asdict(self.host_call()),
            instance=instance,
            build=self.disk.current,
            release=release,
            passing=self.setup.passing,
        )

    def gate_call(self, instance: Instance, *, until: float) -> GateCall:
        """What a gate is told when it closes an instance, until a moment in seconds since the epoch."""
        hold = self.setup.drain.hold if self.setup.drain else False
        return GateCall(**msgspec.structs.asdict(self.call(instance)), until=until, owner=self.owner, hold=hold)

    def plan(self, view: HostView) -> Plan:
        """What the strategy wants."""
        return ask_strategy(self.setup.strategy, view)


def find(service: str, snapshot: Snapshot, plugins: Plugins, config: AgentConfig, *, build: str = "") -> Here:
    """Make what the spec names, and read the disk.

    Args:
        service: The service.
        snapshot: What ZooKeeper says of it to this host.
        plugins: Where to look plugins up.
        config: Which host this is.
        build: Look at things as if this build were enabled.

    Raises:
        NotFound: There is no such service.
        ConfigError: Its spec is wrong.
        UnknownPlugin: It names a plugin that is not here.
    """
    if snapshot.spec is None:
        raise NotFound(snapshot.problem or f"there is no service {service!r}", hint="deployd services list")
    setup = set_up(snapshot.spec, service, plugins)
    root = root_of(setup.spec, service=service, host=config.host)
    if build and (snapshot.enabled is None or snapshot.enabled.build != build):
        snapshot = msgspec.structs.replace(snapshot, enabled=Enabled(build=build), permit=None)
    disk = ReleaseStore(service, root).look()
    return Here(config=config, snapshot=snapshot, setup=setup, root=root, disk=disk, owner=owner_here(config.host))


def look(here: Here) -> Observation:
    """Observe the service as the agent would, and take it that every instance has been so for a while."""
    setup, now = here.setup, time.monotonic()
    facts: list[InstanceFacts] = []
    if setup.manager is not None:
        timeout = float(setup.probe_options.timeout)
        lookout = Lookout(manager=setup.manager, probe=setup.probe, gate=setup.gate, probe_timeout=timeout, owner=here.owner)
        facts = [_look_at(here, lookout, instance) for instance in setup.instances]
    return observe(
        stand(here.snapshot, setup, here.disk, digest=None),
        facts,
        tidy=True,
        busy=frozenset(),
        setbacks={},
        waits={},
        facts=ask_facts(setup.strategy, here.host_call(), within=_TIMEOUT + FACTS_GRACE) if setup.looks_at_the_world else {},
        advanced=True,
        connected=True,
        now=now,
    )


def _look_at(here: Here, lookout: Lookout, instance: Instance) -> InstanceFacts:
    started = time.monotonic()
    sighting = lookout.look(here.call(instance), here.root, here.disk.flips)
    watch = Watch(instance)
    watch.saw(sighting, started=started, ended=time.monotonic())
    facts = watch.facts(time.time(), here.owner)
    if not facts.streak:
        return facts
    rules = here.setup.probe_options
    return msgspec.structs.replace(
        facts,
        streak=rules.healthy_after,
        healthy_since=started - float(rules.stable_for) - _A_WHILE,  # and not just so long: differences of floats are rounded
        healthy_until=started,
        opened_at=None,
    )


def may_see_everything() -> bool:
    """Whether this process sees what the agent sees: the firewall, and other users' processes."""
    return os.geteuid() == 0
