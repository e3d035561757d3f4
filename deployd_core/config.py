"""agent.toml and service specs, from text into the model. An error names the file, the key and the fix."""

from __future__ import annotations

import socket
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from deployd_core.api import (
    DrainOptions,
    Gate,
    Manager,
    Options,
    Passing,
    Probe,
    ProbeOptions,
    Reporter,
    Source,
    Step,
    StepOptions,
    Strategy,
)
from deployd_core.boundary import Bound
from deployd_core.errors import ConfigError, UnknownPlugin
from deployd_core.model import Instance, check_name, expand
from deployd_core.observation import Drain, Rules
from deployd_core.plugins import Kind, Plugins, convert
from deployd_core.spec import OnHostFailure, ServiceSpec, Table
from deployd_core.units import Duration, encode_unit
from deployd_core.windows import check_windows

AGENT_FILE = Path("/etc/deployd/agent.toml")
PLUGIN_DIRECTORY = Path("/etc/deployd/plugins.d")

_NEEDS = (("user", "password_file"), ("password_file", "user"), ("certificate", "ca"), ("key", "certificate"))
"""Keys of ``[zookeeper]``, each with the one that it is of no use without."""


class ZooKeeperTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[zookeeper]``"""

    hosts: Annotated[str, Meta(description="host:port of every server of the ensemble, joined by commas")] = "127.0.0.1:2181"
    chroot: Annotated[str, Meta(description="the node that everything lies under", pattern=r"^/[^/]+(/[^/]+)*$")] = "/deployd"
    session_timeout: Annotated[Duration, Meta(description="how long the ensemble waits for a silent agent")] = Duration("10s")
    user: Annotated[str, Meta(description="who we are to ZooKeeper (scheme digest)", pattern="^[^:]+$")] = ""
    password_file: Annotated[str, Meta(description="a file with that user's password alone; others must not read it")] = ""
    ca: Annotated[str, Meta(description="a PEM file, who signs the servers' certificates; with it, TLS is spoken")] = ""
    certificate: Annotated[str, Meta(description="a PEM file, for servers that demand a certificate of their clients")] = ""
    key: Annotated[str, Meta(description="a PEM file, its private key; others must not read it")] = ""


class PluginsTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[plugins]``"""

    directory: Annotated[str, Meta(description="single-file plugins")] = str(PLUGIN_DIRECTORY)
    disabled: Annotated[tuple[str, ...], Meta(description="plugins that are not to be used")] = ()


class AgentConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``agent.toml``"""

    host: Annotated[str, Meta(description="this host's name; the machine's by default")] = ""
    zone: Annotated[str, Meta(description="the failure domain this host is in")] = "default"
    address: Annotated[str, Meta(description="the address that instances of this host listen on: {address} in a spec")] = (
        "127.0.0.1"
    )
    services: Annotated[tuple[str, ...], Meta(description="the services this host runs")] = ()
    state_directory: Annotated[str, Meta(description="the agent's lock file, and which gates it uses")] = "/run/deployd"
    observe_every: Annotated[Duration, Meta(description="how often an idle agent looks at its instances")] = Duration("30s")
    zookeeper: ZooKeeperTable = ZooKeeperTable()
    plugins: PluginsTable = PluginsTable()
    reporters: tuple[Table, ...] = ()


class ServiceSetup(Struct, frozen=True, kw_only=True, dict=True):
    """A spec with its plugins made: what an engine works with."""

    spec: ServiceSpec
    instances: tuple[Instance, ...]
    strategy: Bound[Strategy[Any]]
    source: Bound[Source[Any]]
    steps: tuple[Bound[Step[Any]], ...]
    step_markers: tuple[str, ...]
    """One per step: its place, its plugin and its options, so that a changed step runs again."""
    manager: Bound[Manager[Any]] | None
    probe: Bound[Probe[Any]] | None
    gate: Bound[Gate[Any]] | None

    @property
    def looks_at_the_world(self) -> bool:
        """Whether the strategy has facts of its own, which only a host can tell."""
        return type(self.strategy.plugin).facts is not Strategy.facts

    @cached_property
    def drain(self) -> DrainOptions | None:
        """How traffic is turned off; None when the strategy restarts without a gate."""
        options = self.strategy.plugin.options
        return options if isinstance(options, DrainOptions) else None

    @cached_property
    def probe_options(self) -> ProbeOptions:
        """What the spec's probe was told; the defaults when there is none."""
        return self.probe.plugin.options if self.probe else ProbeOptions()

    @property
    def passing(self) -> Passing:
        """How our own connections get past a closed gate.

        Raises:
            DeploydError: The gate cannot say.
        """
        return self.gate.ask(Passing, "saying how to get past it", lambda gate: gate.passing()) if self.gate else Passing()

    @cached_property
    def rules(self) -> Rules:
        """What the spec says about the cycle."""
        table, probe = self.spec.instances, self.probe_options
        return Rules(
            drain=_drain_of(self.drain) if self.drain is not None else None,
            warmup=self.spec.warmup is not None,
            healthy_after=probe.healthy_after,
            stable_for=float(probe.stable_for),
            healthy_timeout=float(table.healthy_timeout),
            restart_timeout=float(table.restart_timeout),
            min_available=table.min_available,
            looks=self.looks_at_the_world,
            revert=self.spec.rollout.on_host_failure is OnHostFailure.REVERT,
        )


def _drain_of(options: DrainOptions) -> Drain:
    return Drain(
        settle=float(options.settle),
        timeout=float(options.drain_timeout),
        at_deadline=options.at_deadline,
        traffic_timeout=float(options.traffic_timeout),
        lease=float(options.lease),
    )


def read_toml(path: Path, *, hint: str = "") -> dict[str, Any]:
    """Read a TOML file; `hint` is what to do when it is missing.

    Raises:
        ConfigError: It is missing, unreadable, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist", hint=hint) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def load_agent_config(path: Path) -> AgentConfig:
    """Read agent.toml.

    Raises:
        ConfigError: It is missing or wrong.
    """
    config: AgentConfig = convert(read_toml(path, hint="write one: see docs/agent.md"), AgentConfig, where=str(path))
    if not config.host:
        config = msgspec.structs.replace(config, host=socket.gethostname())
    if config.observe_every < 1:
        raise ConfigError(f"{path}: observe_every is {config.observe_every}, which is less than 1s", hint='write "30s"')
    timeout = config.zookeeper.session_timeout
    if timeout < 1:
        raise ConfigError(f"{path}: zookeeper.session_timeout is {timeout}, which is less than 1s", hint='write "10s"')
    check_name(config.host, f"{path}: host")
    check_name(config.zone, f"{path}: zone")
    for service in config.services:
        check_name(service, f"{path}: service")
    _check_access(config.zookeeper, path)
    return config


def _check_access(table: ZooKeeperTable, path: Path) -> None:
    """What belongs together is there together. The files are read by who connects: not every command may, or needs to."""
    for key, needed in _NEEDS:
        if getattr(table, key) and not getattr(table, needed):
            raise ConfigError(f"{path}: zookeeper.{key} is of no use without zookeeper.{needed}", hint=f'write {needed} = "…"')


def load_spec(path: Path, plugins: Plugins, service: str) -> ServiceSpec:
    """Read a service spec from a TOML file and check it as far as it can be without a host.

    Raises:
        ConfigError: It is missing or wrong.
        UnknownPlugin: It names a plugin that is not here.
    """
    spec: ServiceSpec = convert(read_toml(path), ServiceSpec, where=str(path), hint="see docs/spec.md")
    try:
        set_up(spec, service, plugins, where=str(path))
    except UnknownPlugin as error:
        raise UnknownPlugin(f"{path}: {error.message}", hint=error.hint) from error
    if obstacle := spec.obstacle(service):
        raise ConfigError(f"{path}: [instances] {obstacle}")
    return spec


def spec_to_json(spec: ServiceSpec) -> bytes:
    """A spec as it is stored."""
    return msgspec.json.format(msgspec.json.encode(spec, enc_hook=encode_unit), indent=2)


def spec_to_toml(spec: ServiceSpec) -> str:
    """A spec as a file that `load_spec` reads as the same; keys that have their defaults are left out."""
    import tomli_w  # noqa: PLC0415 - one command in many needs it

    return tomli_w.dumps(_as_written(spec))


def _as_written(value: Any) -> Any:
    """In values that TOML has: it knows no null, and whoever reads a spec wants to see what somebody chose."""
    if isinstance(value, Struct):
        fields = {field.encode_name: (getattr(value, field.name), _default_of(field)) for field in msgspec.structs.fields(value)}
        return {key: _as_written(item) for key, (item, default) in fields.items() if item != default}
    if isinstance(value, dict):
        return {key: _as_written(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_as_written(item) for item in value]
    return msgspec.to_builtins(value, enc_hook=encode_unit)


def _default_of(field: msgspec.structs.FieldInfo) -> Any:
    return field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default


def set_up(spec: ServiceSpec, service: str, plugins: Plugins, *, where: str = "") -> ServiceSetup:
    """Make the plugins that a spec names, each checked against its own options.

    Args:
        spec: The spec.
        service: Its service.
        plugins: Where to look the names up.
        where: The file or node it comes from, for messages.

    Raises:
        ConfigError: A value is wrong; the message names its table.
        UnknownPlugin: A table names a plugin that is not here.
    """
    where = where or service
    root = root_of(spec, service=service, host="host")
    if not root.is_absolute() or root == Path("/"):
        raise ConfigError(f"{where}: [service] root {spec.service.root!r} must be an absolute path below /")
    instances = spec.instances_of(check_name(service, "service"))
    manager = _maybe(plugins, Kind.MANAGER, spec.instances.manager, f"{where}: [instances] manager")
    if instances and manager is None:
        raise ConfigError(f"{where}: [instances] has no manager", hint='say what restarts them: manager = { use = "systemd" }')
    _check_warmup(spec, where)
    if spec.rollout.windows is not None:
        check_windows(spec.rollout.windows, f"{where}: [rollout.windows]")
    restart = spec.restart
    strategy = plugins.make(Kind.STRATEGY, restart.strategy, restart.options, where=f"{where}: [restart.options]")
    return ServiceSetup(
        spec=spec,
        instances=instances,
        strategy=strategy,
        source=_source(plugins, spec.source, f"{where}: [source]"),
        steps=tuple(_named(plugins, Kind.STEP, table, f"{where}: [[steps]] {n}") for n, table in enumerate(spec.steps, start=1)),
        step_markers=tuple(_step_marker(n, table) for n, table in enumerate(spec.steps, start=1)),
        manager=manager,
        probe=_maybe(plugins, Kind.PROBE, spec.instances.probe, f"{where}: [instances] probe"),
        gate=_gate(plugins, spec, strategy, where),
    )


def root_of(spec: ServiceSpec, *, service: str, host: str) -> Path:
    """The directory of a service on one host.

    Raises:
        ConfigError: The spec's root has another placeholder than {service} and {host}.
    """
    return Path(expand(spec.service.root, {"service": service, "host": host}))


def make_reporters(config: AgentConfig, plugins: Plugins) -> tuple[Bound[Reporter[Any]], ...]:
    """Make the reporters that agent.toml names.

    Raises:
        ConfigError: An option is wrong.
        UnknownPlugin: There is no reporter of that name.
    """
    return tuple(
        _named(plugins, Kind.REPORTER, table, f"[[reporters]] {number}") for number, table in enumerate(config.reporters, start=1)
    )


def step_timeout(step: Bound[Step[Any]]) -> float:
    """Seconds a step may take."""
    options: Options = step.plugin.options
    return float(options.timeout) if isinstance(options, StepOptions) else float(StepOptions().timeout)


def _named(plugins: Plugins, kind: Kind, table: Table, where: str) -> Bound[Any]:
    name = table.get("use")
    if not isinstance(name, str):
        raise ConfigError(f"{where} does not say which {kind.value}", hint=f'write use = "NAME": see `deployd {kind.plural} list`')
    return plugins.make(kind, name, {key: value for key, value in table.items() if key != "use"}, where=where)


def _maybe(plugins: Plugins, kind: Kind, table: Table | None, where: str) -> Bound[Any] | None:
    return None if table is None else _named(plugins, kind, table, where)


def _gate(plugins: Plugins, spec: ServiceSpec, strategy: Bound[Strategy[Any]], where: str) -> Bound[Gate[Any]] | None:
    """The gate of the spec, or the one that the strategy's own options name."""
    options = strategy.plugin.options
    if spec.instances.gate is None and isinstance(options, DrainOptions):
        return plugins.make(Kind.GATE, options.gate, {}, where=f"{where}: [restart.options] gate")
    return _maybe(plugins, Kind.GATE, spec.instances.gate, f"{where}: [instances] gate")


def _check_warmup(spec: ServiceSpec, where: str) -> None:
    table = spec.warmup
    if table is None:
        return
    wrong = [path for path in table.paths if not path.startswith("/")]
    if wrong:
        raise ConfigError(f"{where}: [instances] warmup: {wrong[0]!r} must begin with a /")
    try:
        _ = table.statuses
    except ConfigError as error:
        raise ConfigError(f"{where}: [instances] warmup: {error}", hint=error.hint) from error


def _source(plugins: Plugins, table: Table, where: str) -> Bound[Source[Any]]:
    """A source may be named by the scheme of its URL alone."""
    url = table.get("url")
    if "use" not in table and isinstance(url, str):
        table = {"use": urlsplit(url).scheme or "file", **table}
    return _named(plugins, Kind.SOURCE, table, where)


def _step_marker(number: int, table: Table) -> str:
    import hashlib  # noqa: PLC0415 - costs 5 ms, and only an engine with steps needs it

    digest = hashlib.sha256(msgspec.json.encode(table, order="sorted")).hexdigest()[:12]
    return f"{number:02d}-{table.get('use', '')}-{digest}"
