"""The daemon of a host: one engine per service, one ZooKeeper session, signals, readiness.

Signal handlers only hand the signal on; the main thread acts on it. SIGTERM and SIGINT end every engine at its next safe point (no
restart under way), SIGHUP does the same and then begins again with what agent.toml says now, SIGUSR1 writes to standard error where
every thread is. A service whose engine fails goes on alone: the others never notice.
"""

from __future__ import annotations

import faulthandler
import fcntl
import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from deployd_core import __version__
from deployd_core.boundary import call_plugin
from deployd_core.clock import SystemClock, rfc3339
from deployd_core.config import AgentConfig, load_agent_config, make_reporters
from deployd_core.coordination import AgentInfo
from deployd_core.engine import Engine
from deployd_core.errors import ConfigError, DeploydError, Unavailable
from deployd_core.events import Events, Sink
from deployd_core.logs import set_up_logging
from deployd_core.model import Event
from deployd_core.notify import Notifier
from deployd_core.performing import Identity
from deployd_core.plugins import Plugins, PluginState
from deployd_core.processes import owner_here
from deployd_core.zookeeper.access import identity_of
from deployd_core.zookeeper.address import Identity as ZooKeeperIdentity
from deployd_core.zookeeper.address import split_address
from deployd_core.zookeeper.chroot import wait_for_chroot
from deployd_core.zookeeper.coordination import ZooKeeperCoordination
from deployd_core.zookeeper.session import Session

_LOG = logging.getLogger("deployd.agent")

_JOIN_RETRY = 2.0
_ENGINE_STUCK = 180.0
"""Seconds without a round after which an engine counts as stuck: it goes round at least once a minute."""
_BEAT = 5.0


class Agent:
    """One life of the agent, from one reading of agent.toml to the next."""

    def __init__(self, config: AgentConfig, access: ZooKeeperIdentity, plugins: Plugins, notifier: Notifier) -> None:
        self._config = config
        self._plugins = plugins
        self._notifier = notifier
        self._stop = threading.Event()
        self._engines: dict[str, Engine] = {}
        self._threads: list[threading.Thread] = []
        table = config.zookeeper
        self._info = AgentInfo(
            host=config.host,
            instance=f"{_machine_id()}:{config.state_directory}",
            version=__version__,
            pid=os.getpid(),
            since=rfc3339(time.time()),
            zone=config.zone,
            services=config.services,
            plugins=tuple(sorted({str(row.provider) for row in plugins.rows if row.state is PluginState.OK})),
        )
        self._session = Session(table.hosts, table.chroot, session_timeout=float(table.session_timeout), identity=access)
        self._coordination = ZooKeeperCoordination(self._session, config.host, wake=self._wake)

    def live(self, ended: threading.Event) -> None:
        """Run until `ended` is set, and stop at a safe point."""
        with ExitStack() as stack:
            events = Events(self._sinks())
            stack.callback(events.close, 2.0)
            stack.callback(self._session.close)
            if not self._connect(ended):
                return
            stack.callback(self._stop_engines)
            self._announce()  # before anything is done under our name, which may be another's
            self._start_engines(events)
            self._notifier.send("READY=1", f"STATUS=following {', '.join(self._engines) or 'no service'}")
            while not ended.is_set():
                announced = self._coordination.announced or self._announce()
                self._beat()
                ended.wait(_BEAT if announced else _JOIN_RETRY)
            self._notifier.send("STATUS=stopping at the next safe point")

    def _connect(self, ended: threading.Event) -> bool:
        """Wait for the ensemble, and for the chroot, for as long as it takes; say so now and then."""

        def waiting(reason: str) -> None:
            _LOG.warning("%s", reason)
            self._notifier.send(f"STATUS={reason}")
            self._beat()

        if not self._session.start(timeout=None, stop=ended, waiting=waiting):
            return False
        while not ended.is_set():
            try:
                return wait_for_chroot(self._session, ended, waiting)
            except Unavailable as error:
                waiting(error.message)
                ended.wait(_JOIN_RETRY)
        return False

    def _start_engines(self, events: Events) -> None:
        identity = Identity(
            host=self._config.host,
            zone=self._config.zone,
            address=self._config.address,
            owner=owner_here(self._config.host),
            version=__version__,
            state_directory=Path(self._config.state_directory),
        )
        for service in self._config.services:
            self._coordination.join(service, self._config.zone)
            self._engines[service] = Engine(
                service,
                identity,
                coordination=self._coordination,
                plugins=self._plugins,
                events=events,
                clock=SystemClock(),
                observe_every=float(self._config.observe_every),
            )
        for service, engine in self._engines.items():
            thread = threading.Thread(target=engine.run, args=(self._stop,), name=f"deployd-{service}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _stop_engines(self) -> None:
        self._stop.set()
        for engine in self._engines.values():
            engine.wake()
        for thread in self._threads:
            while thread.is_alive():
                # A restart under way is waited for, however long it may take: systemd must not take that for a hang.
                self._notifier.send("WATCHDOG=1", f"EXTEND_TIMEOUT_USEC={int(4 * _BEAT * 1e6)}")
                thread.join(_BEAT)

    def _announce(self) -> bool:
        """Say that this agent is alive; False while another one of the same name is, or ZooKeeper is away."""
        try:
            self._coordination.announce(self._info)
        except DeploydError as error:
            _LOG.error("%s%s", error, f" ({error.hint})" if error.hint else "")
            return False
        return True

    def _beat(self) -> None:
        """Tell systemd that every engine goes round; silence has it restart the agent, which harms no service."""
        now = time.monotonic()
        stuck = [service for service, engine in self._engines.items() if now - engine.last_round > _ENGINE_STUCK]
        if stuck:
            _LOG.error("no round for %d s: %s", _ENGINE_STUCK, ", ".join(stuck))
        elif self._notifier.watchdog:
            self._notifier.send("WATCHDOG=1")

    def _wake(self, service: str) -> None:
        engine = self._engines.get(service)
        if engine is not None:
            engine.wake()

    def _sinks(self) -> list[tuple[str, Sink]]:
        """Where events go: the log, the reporters of agent.toml, and the event hooks of plugins."""
        reporters = make_reporters(self._config, self._plugins)
        hooks = self._plugins.hook_functions("deployd_event")
        return [
            ("log", _log_event),
            *((reporter.name, _reporter_sink(reporter)) for reporter in reporters),
            *((provider.entry, _hook_sink(provider, hook)) for provider, hook in hooks),
        ]


def run(config_path: Path, plugins_directory: Path | None = None) -> int:
    """Run the agent in the foreground until SIGTERM or SIGINT.

    Returns:
        The exit code.

    Raises:
        ConfigError: agent.toml is wrong at the start, or another agent runs on this host. (A SIGHUP that finds it wrong keeps the
            old one and logs the error.)
    """
    config, access = _read_config(config_path)
    set_up_logging(host=config.host, journal="JOURNAL_STREAM" in os.environ)
    notifier = Notifier()
    ended, finish = threading.Event(), threading.Event()
    _take_signals(ended, finish)
    faulthandler.register(signal.SIGUSR1)
    with _only_agent(Path(config.state_directory), config.host):
        while not finish.is_set():
            Agent(config, access, _load_plugins(config, plugins_directory), notifier).live(ended)
            if not finish.is_set():
                ended.clear()  # and not later: a SIGHUP that comes now is for what may be read too early
                notifier.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
                config, access = _reread(config_path, (config, access), plugins_directory)
    notifier.send("STOPPING=1")
    return 0


def _take_signals(ended: threading.Event, finish: threading.Event) -> None:
    """Have SIGHUP set `ended`, and SIGTERM and SIGINT `finish` before it.

    A handler runs in the middle of whatever the main thread is doing, be it waiting for `ended`, whose lock it then holds: to set
    it there would be to wait for oneself. Putting something into a `SimpleQueue` may interrupt anything.
    """
    arrived: SimpleQueue[int] = SimpleQueue()

    def take() -> None:
        while True:
            if arrived.get() != signal.SIGHUP:
                finish.set()
            ended.set()

    threading.Thread(target=take, name="deployd-signals", daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: arrived.put(number))


def _read_config(path: Path) -> tuple[AgentConfig, ZooKeeperIdentity]:
    config = load_agent_config(path)
    try:
        split_address(config.zookeeper.hosts)
    except ConfigError as error:
        raise ConfigError(f"{path}: [zookeeper] hosts: {error.message}", hint=error.hint) from error
    return config, identity_of(config.zookeeper, str(path))


def _reread(
    path: Path, old: tuple[AgentConfig, ZooKeeperIdentity], plugins_directory: Path | None
) -> tuple[AgentConfig, ZooKeeperIdentity]:
    try:
        config, access = _read_config(path)
        make_reporters(config, _load_plugins(config, plugins_directory))
    except DeploydError as error:
        _LOG.error("%s; going on with the configuration as it was", error)
        return old
    _LOG.info("read %s again", path)
    return config, access


def _load_plugins(config: AgentConfig, directory: Path | None) -> Plugins:
    plugins = Plugins.load(directory=directory or Path(config.plugins.directory), disabled=config.plugins.disabled)
    for row in plugins.rows:
        if row.state not in (PluginState.OK, PluginState.DISABLED):
            _LOG.error("plugin %s cannot be used: %s", row.provider, row.reason)
    return plugins


@contextmanager
def _only_agent(directory: Path, host: str) -> Iterator[None]:
    """One agent per host and state directory; the kernel gives the lock back however the agent ends."""
    path = directory / f"agent-{host}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", hint="set state_directory in agent.toml") from error
    with file:
        file.seek(0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"an agent already runs for host {host}: pid {file.read().strip() or '?'} holds {path}") from error
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def _machine_id() -> str:
    """What tells machines of one name apart."""
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()


def _log_event(event: Event) -> None:
    details = " ".join(f"{key}={value!r}" for key, value in event.detail.items() if value)
    _LOG.info("%s %s %s", event.name, event.service, details)


def _reporter_sink(reporter: Any) -> Sink:
    return lambda event: reporter.call(f"reporting {event.name}", lambda plugin: plugin.report(event))


def _hook_sink(provider: Any, hook: Callable[..., Any]) -> Sink:
    return lambda event: call_plugin(provider, f"in deployd_event for {event.name}", lambda: hook(event=event))
