"""The frozen values that everything else speaks of: builds, instances, what an instance is doing, what a host sees.

Nothing here does I/O or reads a clock. Times named `since`, `until` and `now` are seconds on one monotonic clock of the
agent; times that are stored or shown (`at`) are RFC 3339 text in UTC.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from operator import attrgetter
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from deployd_core.errors import ConfigError
from deployd_core.units import Share

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_BUILD_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}")
_INSTANCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PLACEHOLDER = re.compile(r"\{([a-z]+)\}")
_AVAILABLE = attrgetter("available")


def check_name(text: str, what: str) -> str:
    """Return the name of a service, host or zone when it can be a znode and a directory.

    Raises:
        ConfigError: It cannot.
    """
    if not _NAME.fullmatch(text):
        raise ConfigError(f"{what} {text!r} must be 1 to 63 letters, digits, '.', '_' or '-', with a letter or digit at both ends")
    return text


def check_build_id(text: str) -> str:
    """Return the id of a build when it can be a directory.

    Raises:
        ConfigError: It cannot.
    """
    if not _BUILD_ID.fullmatch(text):
        raise ConfigError(f"build id {text!r} must be 1 to 128 letters, digits, or one of ._+~- and begin with a letter or digit")
    return text


def check_digest(text: str) -> str:
    """Return the digest when it is written ``sha256:<64 hexadecimal digits>``.

    Raises:
        ConfigError: It is not.
    """
    if not _DIGEST.fullmatch(text):
        raise ConfigError(f"digest {text!r} must be 'sha256:' and 64 lower-case hexadecimal digits")
    return text


def expand(text: str, values: Mapping[str, object]) -> str:
    """Fill ``{port}``-like placeholders in an option.

    Only a lower-case word between braces is a placeholder, so that JSON and shell fragments pass untouched.

    Raises:
        ConfigError: A placeholder that has no value here.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if values.get(name) is None:
            known = ", ".join(f"{{{key}}}" for key, known_value in sorted(values.items()) if known_value is not None)
            raise ConfigError(f"{text!r} has no value for {{{name}}}", hint=f"placeholders here: {known}")
        return str(values[name])

    return _PLACEHOLDER.sub(value, text)


class Role(Enum):
    """Which `enabled` node a host follows for one service."""

    FLEET = "fleet"
    CANARY = "canary"


class Build(Struct, frozen=True):
    """An immutable artifact of a service: its id and the sha256 digest that was pinned when it was enabled."""

    id: str
    digest: str


class Instance(Struct, frozen=True):
    """One running copy of a service on a host: ``web@8001``."""

    service: str
    name: str
    port: int | None = None

    @classmethod
    def parse(cls, service: str, name: str) -> Instance:
        """Read the name of an instance; digits after the last ``@`` are its port.

        Raises:
            ConfigError: The name has other characters, or a port above 65535.
        """
        if not _INSTANCE_NAME.fullmatch(name):
            raise ConfigError(f"instance name {name!r} must be 1 to 128 letters, digits, or one of ._:@-")
        port = name.rpartition("@")[2]
        if "@" not in name or not port.isdigit():
            return cls(service=service, name=name)
        if not 0 < int(port) < 65536:
            raise ConfigError(f"instance name {name!r} ends in a port that is not between 1 and 65535")
        return cls(service=service, name=name, port=int(port))


class ProcessId(Struct, frozen=True, order=True):
    """A process, never confused with a later one of the same pid.

    `started` is when it started, in seconds since the machine booted: wall-clock jumps do not move it.
    """

    pid: int
    started: float


class Flip(Struct, frozen=True, kw_only=True):
    """A moment at which `current` was pointed at a build; kept on disk, bounded.

    `boot` and `boot_time` (seconds since that boot) are comparable with `ProcessId.started`; `at` is for people.
    """

    build: str
    boot: str
    boot_time: float
    at: str
    rollout: str = ""
    """The rollout that asked for a restart on the build that was served already; empty for any other flip."""


class State(Enum):
    """What a manager says an instance is doing."""

    RUNNING = "running"
    STARTING = "starting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Health(Enum):
    """What a probe says. Unknown is not healthy."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


class Action(Enum):
    """How an instance is brought onto the new release."""

    RESTART = "restart"
    RELOAD = "reload"


class Phase(Enum):
    """Where an instance stands on its way to the wanted build; derived from evidence, stored nowhere."""

    STALE = "stale"  # serves another build, or nothing: has yet to enter the cycle
    DRAINING = "draining"  # its gate is closed, requests are still in flight
    RESTARTING = "restarting"  # the manager is at it
    WARMING = "warming"  # serves the wanted build; not yet healthy for long enough, not yet warm, or its gate is not open yet
    RETURNING = "returning"  # healthy and open, but its clients have yet to come back
    READY = "ready"  # serves the wanted build, healthy for the stability window, open

    in_cycle: bool
    """Whether the instance counts as being restarted now."""

    wait: str
    """How the keys of waits in this phase begin."""

    def __init__(self, name: str) -> None:
        self.in_cycle = name not in ("stale", "ready")
        self.wait = f"{name}:"


_STALE, _HEALTHY = Phase.STALE, Health.HEALTHY
"""Looked up once: on Python 3.11 to find a member on its class takes as long as to make a view."""


class InstanceView(Struct, frozen=True, kw_only=True):
    """What a strategy sees of one instance."""

    name: str
    port: int | None
    phase: Phase
    serves: str | None
    """The build it really serves; None when it runs nothing, or nothing that can be told."""
    state: State
    health: Health
    gate_closed: bool = False
    in_flight: int | None = None
    """Busy connections while it is drained; None at other times."""
    since: float = 0.0
    """When it entered this phase."""

    @property
    def available(self) -> bool:
        """Open and healthy: it can take a request now."""
        return self.health is _HEALTHY and not self.gate_closed and not self.phase.in_cycle


class PermitView(Struct, frozen=True, kw_only=True):
    """What a host knows of its permit to restart."""

    held: bool = False
    token: int = 0
    since: float = 0.0
    denied: str = ""
    """Why the last request was denied; empty when none was."""


class FleetView(Struct, frozen=True, kw_only=True):
    """Counts over the hosts of the service."""

    hosts: int = 1
    permits: int = 0
    """Permits held now, this host's included."""
    failed: int = 0


class HostView(Struct, frozen=True, kw_only=True):
    """Everything a strategy may look at: one service on one host, at one moment."""

    service: str
    host: str
    zone: str
    role: Role
    build: str
    """The build that should be served."""
    instances: tuple[InstanceView, ...]
    """In the order of the spec."""
    permit: PermitView = PermitView()
    fleet: FleetView = FleetView()
    facts: Mapping[str, Any] = field(default_factory=dict)
    now: float = 0.0
    """Seconds, to compare with `since`: no time of day."""

    @property
    def stale(self) -> tuple[str, ...]:
        """Instances that have yet to enter the cycle: those that serve nobody anyway first, else in the order of the spec."""
        waiting = [instance for instance in self.instances if instance.phase is _STALE]
        return tuple([instance.name for instance in sorted(waiting, key=_AVAILABLE)])

    @property
    def cycling(self) -> tuple[str, ...]:
        """Names of the instances that are in the cycle now."""
        return tuple([instance.name for instance in self.instances if instance.phase.in_cycle])


class FleetLimit(Struct, frozen=True, kw_only=True):
    """How many hosts may hold a permit at a time; None is no limit."""

    hosts: Share | None = None
    per_zone: Share | None = None


class Plan(Struct, frozen=True, kw_only=True):
    """What a strategy wants now. The core carries out as much of it as the rules allow."""

    cycle: tuple[str, ...]
    """Instances that may be in the cycle now; those already in it stay whether they are named or not."""
    why: str
    """One line for `deployd why`."""
    impossible: str = ""
    """Why this can never be carried out, with the arithmetic: the host is blocked, and nothing is disturbed."""
    action: Action = Action.RESTART
    limit: FleetLimit = FleetLimit()
    min_available: Share = Share(0)
    """Never fewer instances open and healthy on this host because of us."""
    priority: int = 0
    """Hosts with a higher number are served first."""


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened, for reporters and event hooks."""

    name: str
    """What it is about, and what happened: ``host.restarting``, ``host.failed``, ``host.converged``, ``instance.cut``…"""
    service: str
    host: str
    at: str
    """RFC 3339."""
    build: str = ""
    """The build that is enabled; empty when none is."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """More about it, by names that depend on the event; docs/plugins/hooks.md has them all."""


class RestartRequest(Struct, frozen=True, kw_only=True):
    """What a veto is asked: may this host begin to restart this service?"""

    service: str
    host: str
    zone: str
    build: str
    serving: str | None


class Veto(Struct, frozen=True, kw_only=True):
    """No, and why; asked again after `retry_after` seconds, a second at least."""

    reason: str
    retry_after: float = 30.0


class Release(Struct, frozen=True, kw_only=True):
    """A build unpacked on this host."""

    service: str
    build: Build
    path: Path
    root: Path

    @property
    def shared(self) -> Path:
        """The directory that outlives releases."""
        return self.root / "shared"
