"""A small fleet on one machine: hosts that differ by a loopback address, each with its own directory, supervisord and agent.

Real agents, real processes: what `deployd demo` shows and the end-to-end tests try. No root is needed.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from deployd_core.errors import Unavailable
from deployd_core.testing.supervisor import Program, Supervisord

AGENT_FILE = """\
host = "{name}"
zone = "{zone}"
address = "{address}"
services = {services}
state_directory = "{directory}"
observe_every = "2s"

[zookeeper]
hosts = "{zookeeper}"
chroot = "{chroot}"
session_timeout = "{session_timeout}"

[plugins]
directory = "{plugins}"

[[reporters]]
use = "jsonl"
path = "{directory}/events.jsonl"
"""


class FleetHost:
    """One host: its directory holds agent.toml, agent.log, events.jsonl, supervisor's files and the root of each service."""

    def __init__(self, directory: Path, name: str, *, zone: str, address: str, programs: Mapping[str, Program]) -> None:
        self.directory = directory
        self.name = name
        self.zone = zone
        self.address = address
        self.supervisor = Supervisord(directory / "supervisor", programs)
        self._agent: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Path:
        """Its agent.toml."""
        return self.directory / "agent.toml"

    @property
    def agent_pid(self) -> int | None:
        """The agent's pid while it runs."""
        return self._agent.pid if self._agent is not None and self._agent.poll() is None else None

    @property
    def agent_exit(self) -> int | None:
        """How the agent has ended: its exit code, or a signal's negative number; None while it runs, and before."""
        return None if self._agent is None else self._agent.poll()

    def start_agent(self) -> None:
        """Start the agent, as an init system would."""
        with (self.directory / "agent.log").open("ab") as log:
            self._agent = subprocess.Popen(
                [sys.executable, "-m", "deployd_core", "agent", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill_agent(self, number: int = signal.SIGKILL, *, timeout: float = 30.0) -> int:
        """Send the agent a signal and wait for its end; its exit code."""
        if self._agent is None:
            raise Unavailable(f"the agent of {self.name} was not started")
        if self._agent.poll() is None:
            self._agent.send_signal(number)
        return self.wait_agent(timeout)

    def wait_agent(self, timeout: float = 30.0) -> int:
        """Wait until the agent has ended by itself; its exit code."""
        if self._agent is None:
            raise Unavailable(f"the agent of {self.name} was not started")
        return self._agent.wait(timeout)

    def log(self) -> str:
        """What the agent has logged."""
        path = self.directory / "agent.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def stop(self) -> None:
        """End the agent, then supervisord and what it runs."""
        if self._agent is not None and self._agent.poll() is None:
            self._agent.terminate()
            try:
                self._agent.wait(10)
            except subprocess.TimeoutExpired:
                self._agent.kill()
                self._agent.wait()
        self.supervisor.stop()


class Fleet:
    """Hosts ``h1``, ``h2``, … in a directory, following one ZooKeeper; a context manager that ends what it started."""

    def __init__(
        self,
        directory: Path,
        zookeeper: str,
        services: Mapping[str, Sequence[int]],
        *,
        hosts: int,
        zones: Sequence[str] = ("a", "b"),
        start_seconds: float = 0.2,
        session_timeout: str = "4s",
        network: str = "127.0.1",
    ) -> None:
        """Lay out the fleet.

        Args:
            directory: Where everything goes.
            zookeeper: ``host:port/chroot``.
            services: Ports of the instances by service, the same on every host.
            hosts: How many.
            zones: Handed out in turn.
            start_seconds: How long the service takes to start.
            session_timeout: Of the agents' ZooKeeper sessions.
            network: The first three bytes of the hosts' addresses; two fleets at a time need different ones.
        """
        self.directory = directory
        self.services = services
        self.plugins = directory / "plugins.d"
        self.plugins.mkdir(parents=True)
        self.hosts: dict[str, FleetHost] = {}
        for number in range(1, hosts + 1):
            name, address = f"h{number}", f"{network}.{10 + number}"
            host = FleetHost(
                directory / name,
                name,
                zone=zones[(number - 1) % len(zones)],
                address=address,
                programs=self._programs(directory / name, address, start_seconds),
            )
            host.directory.mkdir()
            host.config.write_text(self._agent_file(host, zookeeper, session_timeout), encoding="utf-8")
            self.hosts[name] = host

    def start(self, *, agents: bool = True) -> None:
        """Start every supervisord, and every agent."""
        for host in self.hosts.values():
            host.supervisor.start()
            if agents:
                host.start_agent()

    def stop(self) -> None:
        """End everything, whatever fails on the way."""
        with ExitStack() as stack:
            for host in self.hosts.values():
                stack.callback(host.stop)

    def spec(
        self, service: str, builds: Path, *, strategy: str = "all-at-once", options: str = "", extra: str = "", **instances: str
    ) -> str:
        """A spec, as TOML, for a service whose instances supervisor runs on every host of this fleet."""
        names = ", ".join(f'"{service}@{port}"' for port in self.services[service])
        more = "\n".join(f'{key} = "{value}"' for key, value in instances.items())
        return f"""\
[service]
root = "{self.directory}/{{host}}/{service}"
[source]
url = "file://{builds}/{{service}}-{{build}}.tar.gz"
[instances]
names = [{names}]
manager = {{ use = "supervisor", url = "unix://{{root}}/../supervisor/supervisor.sock", program = "{service}-{{port}}" }}
probe = {{ use = "http", url = "http://{{address}}:{{port}}/health", timeout = "2s", healthy_after = 2, stable_for = "200ms" }}
{more}
[restart]
strategy = "{strategy}"
[restart.options]
{options}
{extra}
"""

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _agent_file(self, host: FleetHost, zookeeper: str, session_timeout: str) -> str:
        servers, _, chroot = zookeeper.partition("/")
        return AGENT_FILE.format(
            name=host.name,
            zone=host.zone,
            address=host.address,
            services=list(self.services),
            directory=host.directory,
            zookeeper=servers,
            chroot=f"/{chroot}",
            session_timeout=session_timeout,
            plugins=self.plugins,
        ).replace("'", '"')

    def _programs(self, directory: Path, address: str, start_seconds: float) -> dict[str, Program]:
        return {
            f"{service}-{port}": Program(
                command=[
                    sys.executable,
                    "-S",
                    "-E",
                    "server.py",
                    str(port),
                    "--address",
                    address,
                    "--start-seconds",
                    str(start_seconds),
                ],
                directory=directory / service / "current",
                startsecs=0,
                startretries=2,
            )
            for service, ports in self.services.items()
            for port in ports
        }
