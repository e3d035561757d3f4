"""The contracts: one class per kind of plugin, and what each is told when it is called.

Plugins import them from `deployd_core.api`. A method takes one context object, so that what it is told can grow without breaking
a plugin that is older.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Generic, TypeVar, get_args, get_origin

from msgspec import Meta, Struct

from deployd_core.errors import RestartFailed
from deployd_core.model import Event, FleetLimit, Health, HostView, Instance, Plan, Release, State, expand
from deployd_core.units import Duration, Share

if TYPE_CHECKING:
    import socket


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a plugin: typed fields with defaults, each documented by ``Annotated[type, Meta(description=...)]``.

    Use `Duration`, `Size` and `Share` where a number has a unit, so that a spec says ``"30s"`` and never ``30``.
    """


class FleetOptions(Options, frozen=True, kw_only=True):
    """Options of a strategy that limits how many hosts restart at a time."""

    limit: Annotated[Share, Meta(description="hosts restarting at a time; a percentage rounds down, at least 1")] = Share("10%")
    limit_per_zone: Annotated[Share | None, Meta(description="the same within each zone")] = None

    @property
    def fleet_limit(self) -> FleetLimit:
        """The limit, as a plan states it."""
        return FleetLimit(hosts=self.limit, per_zone=self.limit_per_zone)


class AtDeadline(Enum):
    """What to do when a drain has taken too long."""

    PROCEED = "proceed"  # restart, and report how many requests were cut
    ABORT = "abort"  # open the gate again, and fail the host
    WAIT = "wait"  # as long as an instance may take to get healthy, then abort


class DrainOptions(FleetOptions, frozen=True, kw_only=True):
    """Options of a strategy that turns the traffic of an instance off before it is restarted.

    A strategy whose options derive from these has every instance it lets into the cycle walked through a gate.
    """

    gate: Annotated[str, Meta(description="what turns traffic off, unless [instances] gate says so")] = "auto"
    settle: Annotated[Duration, Meta(description="least time between closing a gate and the restart")] = Duration("300ms")
    drain_timeout: Annotated[Duration, Meta(description="longest to wait for the requests in flight")] = Duration("30s")
    at_deadline: Annotated[AtDeadline, Meta(description="then: proceed (and cut), abort (and fail) or wait")] = AtDeadline.PROCEED
    traffic_timeout: Annotated[Duration, Meta(description="longest to wait until clients are back")] = Duration("15s")
    hold: Annotated[bool, Meta(description="have new clients wait instead of turning them away")] = False
    lease: Annotated[Duration, Meta(description="a closed gate opens by itself after this, if the agent is dead")] = Duration("2m")


class ProbeOptions(Options, frozen=True, kw_only=True):
    """What every probe can be told; the core does the counting and the waiting."""

    timeout: Annotated[Duration, Meta(description="longest one check may take")] = Duration("2s")
    healthy_after: Annotated[int, Meta(ge=1, description="healthy answers in a row that make an instance healthy")] = 2
    stable_for: Annotated[Duration, Meta(description="how long it must stay healthy before the next instance goes")] = Duration(
        "1s"
    )


class StepOptions(Options, frozen=True, kw_only=True):
    """What every post-install step can be told."""

    timeout: Annotated[Duration, Meta(description="longest the step may take")] = Duration("10m")


OptionsT = TypeVar("OptionsT", bound=Options)


class Plugin(ABC, Generic[OptionsT]):
    """The base of every plugin class. One object is made per service, from the options of its spec."""

    name: ClassVar[str]
    """What a spec calls it: lower-case words joined by dashes."""

    options_type: ClassVar[type[Options]] = Options
    """Read from the type argument: ``class Drain(Gate[DrainOptions])``."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for base in getattr(cls, "__orig_bases__", ()):
            arguments = get_args(base)
            if isinstance(get_origin(base), type) and arguments and isinstance(arguments[0], type):
                cls.options_type = arguments[0]


class Strategy(Plugin[OptionsT]):
    """Decides which instances may restart now, and under which limits.

    A strategy is pure: no I/O, no clock, no randomness, no memory, from its ``__init__`` on. It is asked again after every
    change, and after a crash, in another process: the order of a set is another there.
    """

    @abstractmethod
    def plan(self, view: HostView) -> Plan:
        """Say what may happen now. An instance that serves the wanted build is never restarted, whatever this returns."""

    def facts(self, host: HostCall) -> Mapping[str, object]:  # noqa: ARG002 - for those that look
        """Look at the world, for `HostView.facts`: the one place where a strategy may; off the planning path, with a deadline."""
        return {}


class Status(Struct, frozen=True, kw_only=True):
    """What a manager knows of an instance."""

    state: State
    pid: int | None = None
    """The main process; None when there is none, or the manager cannot tell."""
    detail: str = ""
    """In the manager's own words: ``BACKOFF: exited too quickly``."""


class HostCall(Struct, frozen=True, kw_only=True):
    """What a plugin is told when it is called about a service on this host."""

    service: str
    host: str
    zone: str
    root: Path
    address: str = "127.0.0.1"
    """Where instances of this host listen, as agent.toml says."""
    timeout: float
    """Seconds this call may take; past them it is abandoned and reported."""


class Passing(Struct, frozen=True, kw_only=True):
    """How the agent's own connections get past a closed gate."""

    source: str = ""
    """An IPv4 address of this host to come from; only of use where the instance listens on the loopback."""
    mark: int = 0
    """A socket mark (SO_MARK), over IPv4 and IPv6; setting it needs root, as closing a gate does."""


class InstanceCall(HostCall, frozen=True, kw_only=True):
    """What a plugin is told when it is called about one instance."""

    instance: Instance
    build: str | None = None
    """The build that `current` points at."""
    release: Path | None = None
    """Its directory, resolved: read this rather than `current`, which can move between two reads."""
    passing: Passing = Passing()
    """How to get past the instance's gate, when it has one."""

    def connect(self, host: str, port: int, timeout: float, *, source: str = "") -> socket.socket:
        """Open a TCP connection that a closed gate lets pass, from `source` if that is given.

        Raises:
            OSError: It could not be opened within `timeout` seconds.
        """
        from deployd_core import connecting  # noqa: PLC0415 - sockets are of no use to those who only list plugins

        return connecting.connect(host, port, timeout, source=source or self.passing.source, mark=self.passing.mark)

    def expand(self, text: str) -> str:
        """Fill ``{instance} {port} {address} {service} {host} {zone} {root} {build} {release}`` in an option.

        Raises:
            ConfigError: A placeholder that has no value here.
        """
        return expand(
            text,
            {
                "instance": self.instance.name,
                "port": self.instance.port,
                "address": self.address,
                "service": self.service,
                "host": self.host,
                "zone": self.zone,
                "root": self.root,
                "build": self.build,
                "release": self.release,
            },
        )


class Manager(Plugin[OptionsT]):
    """Starts, stops, restarts and reloads instances. Called from several threads, for different instances.

    Whatever is done to one instance, the processes of the others stay as they are.
    """

    @abstractmethod
    def state(self, call: InstanceCall) -> Status:
        """Say what the instance is doing; quick, without side effects.

        Raises:
            Unavailable: The manager does not answer.
            ConfigError: The manager does not know the instance.
        """

    @abstractmethod
    def restart(self, call: InstanceCall) -> None:
        """Stop the instance if it runs and start it; return once it is started (it need not be healthy).

        Raises:
            RestartFailed: It did not come up.
            Unavailable: The manager does not answer.
        """

    def reload(self, call: InstanceCall) -> None:  # noqa: ARG002 - for those that can
        """Have the instance take the new release without stopping."""
        raise RestartFailed(f"manager {self.name} cannot reload", hint="use a strategy that restarts")

    @abstractmethod
    def start(self, call: InstanceCall) -> None:
        """Start the instance; nothing happens when it runs."""

    @abstractmethod
    def stop(self, call: InstanceCall) -> None:
        """Stop the instance; nothing happens when it does not run."""


class Verdict(Struct, frozen=True, kw_only=True):
    """What one check found."""

    health: Health
    reason: str = ""

    @classmethod
    def healthy(cls, reason: str = "") -> Verdict:
        """It answered as it should."""
        return cls(health=Health.HEALTHY, reason=reason)

    @classmethod
    def unhealthy(cls, reason: str) -> Verdict:
        """It answered wrongly, or not in time."""
        return cls(health=Health.UNHEALTHY, reason=reason)

    @classmethod
    def unknown(cls, reason: str) -> Verdict:
        """Nothing could be learnt. This is not health."""
        return cls(health=Health.UNKNOWN, reason=reason)


ProbeOptionsT = TypeVar("ProbeOptionsT", bound=ProbeOptions)


class Probe(Plugin[ProbeOptionsT]):
    """Tells whether an instance is healthy, by one check; the core counts and waits."""

    @abstractmethod
    def check(self, call: InstanceCall) -> Verdict:
        """Check once, within `call.timeout` seconds.

        A verdict is of now: the core counts them, so that none may be kept from an earlier check. Connect by `call.connect`, which
        a closed gate lets pass; an instance that is asked in another way is never found healthy behind its gate.
        """


class ClosedGate(Struct, frozen=True, kw_only=True):
    """One instance whose traffic is off."""

    service: str
    instance: str
    owner: str
    until: float
    """When the lease ends by itself, in seconds since the epoch."""


class GateCall(InstanceCall, frozen=True, kw_only=True):
    """An `InstanceCall` for closing a gate."""

    until: float
    """When the gate opens by itself, agent alive or not, in seconds since the epoch."""
    owner: str
    """Who closes it: ``host/pid/start time`` of the agent."""
    hold: bool = False
    """Have new clients wait instead of turning them away: for the only instance there is."""


class Connections(Struct, frozen=True, kw_only=True):
    """The connections of an instance's clients at one moment, those of our own probe left out."""

    busy: int
    """A request is under way on them, or may be."""
    idle: int = 0
    """Open, with nothing under way: what a client keeps in its pool."""
    recent: int = 0
    """Those that carried something within the last second: clients really use the instance."""
    in_rotation: bool = False
    """The balancer itself says that it sends the instance its share, as to any other: what is recent is then no cautious try, and
    need not be seen for a while before clients count as back."""


class Gate(Plugin[OptionsT]):
    """Turns the traffic of an instance off and on. Every method can be repeated; the state lives in the kernel or the balancer.

    A closed gate is a lease: past its end, when nobody has moved that, it opens by itself, or `closed_everywhere` tells of it and
    `clear` opens it.
    """

    @abstractmethod
    def close(self, call: GateCall) -> None:
        """Turn off new traffic, until `call.until` at the latest; closing a closed gate moves its end."""

    @abstractmethod
    def open(self, call: InstanceCall) -> None:
        """Turn traffic on; nothing happens when it is on."""

    @abstractmethod
    def closed(self, call: HostCall) -> tuple[ClosedGate, ...]:
        """Say which instances of the service are closed now."""

    @abstractmethod
    def connections(self, call: InstanceCall) -> Connections:
        """Count the connections of clients now; asked some ten times a second while an instance is drained or comes back.

        An instance with none that is busy is drained, and will be restarted: whatever may have a request under way counts as busy.
        """

    def passing(self) -> Passing:
        """Say how the agent's own requests get past a closed gate of this kind; by default nothing is in their way."""
        return Passing()

    def close_idle(self, call: InstanceCall) -> int:  # noqa: ARG002 - for those that can
        """Close connections that have been idle for so long that no request can be on its way into them; how many were closed."""
        return 0

    def explain(self, call: HostCall) -> str:  # noqa: ARG002 - for those that choose
        """Say in a line or two how traffic is turned off on this host, and why so: for ``deployd doctor``. Empty: nothing to say.

        Raises:
            ConfigError: The gate cannot work on this host; the message says what is missing.
        """
        return ""

    def preview(self, call: GateCall) -> tuple[str, ...]:  # noqa: ARG002 - for those that can
        """Say what closing would do, in the words of the tool a person would use for it; touches nothing."""
        return ()

    def closed_everywhere(self) -> tuple[ClosedGate, ...]:
        """Say which instances of *any* service are closed on this host, those included whose lease has run out but left a trace.

        For ``deployd drains list``. A gate that cannot tell without a service returns nothing.
        """
        return ()

    def clear(
        self,
        service: str | None = None,  # noqa: ARG002 - for those that can
        instance: str | None = None,  # noqa: ARG002
        *,
        expired_only: bool = False,  # noqa: ARG002
    ) -> tuple[ClosedGate, ...]:
        """Open what is closed, whoever closed it: of one service or instance, or everything; returns what was opened.

        With `expired_only` just what leases that have run out left behind. For ``deployd drains clear`` and ``reap``.
        """
        return ()


class BuildCall(Struct, frozen=True, kw_only=True):
    """What a source is told: which build of which service."""

    service: str
    build: str
    timeout: float
    """Seconds without a byte before a transfer is given up."""

    def expand(self, text: str) -> str:
        """Fill ``{service}`` and ``{build}`` in an option.

        Raises:
            ConfigError: Another placeholder.
        """
        return expand(text, {"service": self.service, "build": self.build})


class Artifact(Struct, frozen=True, kw_only=True):
    """What a source knows of a build before fetching it."""

    location: str
    """Where it lies, for messages; its ending names the archive format."""
    size: int | None = None
    digest: str | None = None
    """``sha256:…``, when it is published beside the build."""


class FetchCall(BuildCall, frozen=True, kw_only=True):
    """A `BuildCall` for fetching, possibly the rest of a broken transfer."""

    offset: int = 0
    validator: str | None = None
    """What `Download.validator` said when the first part was fetched."""


class Download(Struct, frozen=True, kw_only=True):
    """A transfer under way."""

    chunks: Iterator[bytes | memoryview]
    """The bytes; each chunk may be overwritten by the next. Raises `Unavailable` when the transfer breaks."""
    offset: int
    """Where the bytes really begin: 0 when the source cannot resume, or the artifact has changed."""
    size: int | None = None
    """The whole artifact, not the rest."""
    validator: str | None = None
    """An ETag or the like: the same as long as the artifact is, and another for another of the same size."""


class Source(Plugin[OptionsT]):
    """Fetches builds."""

    @abstractmethod
    def resolve(self, call: BuildCall) -> Artifact:
        """Say what is known of a build.

        Raises:
            NotFound: There is no such build.
            Unavailable: It cannot be asked now.
        """

    @abstractmethod
    def fetch(self, call: FetchCall) -> Download:
        """Begin a transfer.

        Raises:
            NotFound: There is no such build.
            Unavailable: It cannot be fetched now.
        """


class StepCall(Struct, frozen=True, kw_only=True):
    """What a post-install step is told."""

    release: Release
    host: str
    log: Path
    """A file for the output of whatever the step runs."""
    timeout: float

    def expand(self, text: str) -> str:
        """Fill ``{service} {build} {host} {root} {release} {shared}`` in an option.

        Raises:
            ConfigError: Another placeholder.
        """
        release = self.release
        return expand(
            text,
            {
                "service": release.service,
                "build": release.build.id,
                "host": self.host,
                "root": release.root,
                "release": release.path,
                "shared": release.shared,
            },
        )


StepOptionsT = TypeVar("StepOptionsT", bound=StepOptions)


class Step(Plugin[StepOptionsT]):
    """A post-install step: makes an unpacked release ready to serve, before anything is restarted.

    The core marks a step as done in the release; one that was cut off runs again, so it must bear repeating, and then leave the
    same. It changes nothing beside its release and `Release.shared`.
    """

    @abstractmethod
    def run(self, call: StepCall) -> None:
        """Do it.

        Raises:
            StepFailed: It said no; the message ends with the tail of its output.
        """


class Reporter(Plugin[OptionsT]):
    """Is told what happens, on a thread of its own; may be slow or broken without harm.

    One that passes events on passes them on whole: `build`, and `detail` with whatever keys and values it has.
    """

    @abstractmethod
    def report(self, event: Event) -> None:
        """Take one event."""
