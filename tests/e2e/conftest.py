"""A real fleet for each test: agents, supervisors and services as processes, on the session's ZooKeeper."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import tempfile
import time
import tomllib
import urllib.request
import xmlrpc.client
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from supervisor.xmlrpc import SupervisorTransport

import deployd_core.demo_app
from deployd_core import rollouts
from deployd_core.coordination import HostStatus
from deployd_core.errors import Unavailable
from deployd_core.model import Role
from deployd_core.packing import pack
from deployd_core.plugins import Plugins, convert
from deployd_core.spec import ServiceSpec
from deployd_core.testing.fleet import Fleet
from deployd_core.zookeeper.chroot import ensure_chroot
from deployd_core.zookeeper.session import Session

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_NETWORKS = itertools.cycle(range(2 + _WORKER % 8 * 30, 32 + _WORKER % 8 * 30))

SERVER = (
    Path(deployd_core.demo_app.__file__)
    .with_name("server.py")
    .read_text(encoding="utf-8")
    .replace(
        '    build = Path("VERSION").read_text(encoding="utf-8").strip()\n',
        '    build = Path("VERSION").read_text(encoding="utf-8").strip()\n'
        '    with Path(f"../../shared/{arguments.port}.starts").open("a") as starts:\n'
        '        starts.write(f"{build}\\n")\n',
    )
)
"""The demo's service, which also puts on record each time it is started."""


class Deployment:
    """A fleet, its builds, and what a person would type."""

    server = SERVER

    def __init__(self, fleet: Fleet, session: Session, builds: Path) -> None:
        self.fleet = fleet
        self.session = session
        self.builds = builds
        self.digests: dict[tuple[str, str], str] = {}
        self.plugins = Plugins.load()

    def pack(self, service: str, build: str, *, server: str | None = None) -> str:
        """Make a build of the demo's service."""
        source = self.builds / f"{service}-{build}"
        source.mkdir()
        (source / "VERSION").write_text(build, encoding="utf-8")
        (source / "server.py").write_text(server if server is not None else SERVER, encoding="utf-8")
        digest = pack(source, self.builds / f"{service}-{build}.tar.gz").digest
        self.digests[service, build] = digest
        return digest

    def apply(self, service: str, *, text: str = "", **options: Any) -> None:
        """Write a spec: `text`, or one of the fleet's."""
        text = text or self.fleet.spec(service, self.builds, **options)
        spec = convert(tomllib.loads(text), ServiceSpec, where=service)
        rollouts.apply_spec(self.session, service, spec)

    def enable(self, service: str, build: str, *, role: Role = Role.FLEET, digest: str | None = None) -> None:
        """Enable a build."""
        digest = digest or self.digests.get((service, build)) or self.pack(service, build)
        rollouts.enable(self.session, service, build, digest, role=role, by="test")

    def statuses(self, service: str) -> dict[str, HostStatus | None]:
        """The hosts' reports."""
        return {entry.host: entry.status for entry in rollouts.statuses(self.session, service)}

    def wait(
        self, service: str, condition: Callable[[dict[str, HostStatus | None]], bool], what: str, timeout: float = 60.0
    ) -> None:
        """Wait until the reports are as wanted; on time-out show them, and the agents' logs."""
        deadline = time.monotonic() + timeout
        found: dict[str, HostStatus | None] = {}
        while True:
            with suppress(Unavailable):
                found = self.statuses(service)
                if condition(found):
                    return
            if time.monotonic() > deadline:
                before = {name: host.agent_exit for name, host in self.fleet.hosts.items()}
                for host in self.fleet.hosts.values():
                    if host.agent_pid is not None:
                        os.kill(host.agent_pid, signal.SIGUSR1)  # it writes to its log where every thread is
                time.sleep(0.5)
                logs = "\n".join(
                    f"--- {name}, agent ended with {before[name]}\n{host.log()[-8000:]}" for name, host in self.fleet.hosts.items()
                )
                pytest.fail(f"not {what} within {timeout:g} s: {found}\n{logs}")
            time.sleep(0.02)

    def wait_converged(self, service: str, build: str, *, hosts: Sequence[str] | None = None, timeout: float = 60.0) -> None:
        """Wait until hosts report that they serve a build."""
        names = hosts or list(self.fleet.hosts)

        def converged(found: dict[str, HostStatus | None]) -> bool:
            reports = [found.get(name) for name in names]
            return all(report is not None and (report.wanted, report.step) == (build, "converged") for report in reports)

        self.wait(service, converged, f"converged on {build}", timeout)

    def answers(self, service: str, *, hosts: Sequence[str] | None = None) -> set[str]:
        """What the instances really answer."""
        return {self.answer(host, port) for host in hosts or self.fleet.hosts for port in self.fleet.services[service]}

    def answer(self, host: str, port: int) -> str:
        """What one instance answers."""
        with urllib.request.urlopen(f"http://{self.fleet.hosts[host].address}:{port}/", timeout=5) as response:
            text: str = response.read().decode().strip()
            return text

    def pids(self, service: str) -> dict[str, int]:
        """The pid of each instance, as its supervisor says it."""
        found = {}
        for name, host in self.fleet.hosts.items():
            transport = SupervisorTransport(None, None, serverurl=host.supervisor.url)
            with xmlrpc.client.ServerProxy("http://supervisor", transport=transport) as server:
                for program in server.supervisor.getAllProcessInfo():
                    if program["name"].startswith(f"{service}-"):
                        found[f"{name}/{program['name']}"] = program["pid"]
        return found

    def events(self, host: str) -> list[dict[str, Any]]:
        """What the agent of a host has reported."""
        path = self.fleet.hosts[host].directory / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def starts(self, host: str, service: str, port: int) -> list[str]:
        """The builds an instance was started with, from the first on; see `SERVER`."""
        path = self.fleet.hosts[host].directory / service / "shared" / f"{port}.starts"
        return path.read_text().split() if path.exists() else []


@pytest.fixture
def deploy(zookeeper: str) -> Iterator[Callable[..., Deployment]]:
    """Make a fleet; everything it starts ends with the test."""
    directory = Path(tempfile.mkdtemp(prefix="deployd-e2e-"))
    made: list[tuple[Fleet, Session]] = []

    def make(
        services: dict[str, Sequence[int]], *, hosts: int, agents: bool = True, address: str = zookeeper, **options: Any
    ) -> Deployment:
        fleet = Fleet(directory / "fleet", address, services, hosts=hosts, network=f"127.0.{next(_NETWORKS)}", **options)
        servers, _, chroot = address.partition("/")
        session = Session(servers, f"/{chroot}")
        session.start()
        ensure_chroot(session)
        made.append((fleet, session))
        builds = directory / "builds"
        builds.mkdir()
        fleet.start(agents=agents)
        return Deployment(fleet, session, builds)

    try:
        yield make
    finally:
        for fleet, session in made:
            fleet.stop()
            session.close()
        shutil.rmtree(directory, ignore_errors=True)
