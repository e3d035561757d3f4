"""An agent that ends in the middle of a drained restart. Killed with -9 between any two moves: nothing leaks, nothing is doubled,
the end is the same. Told to stop: what can serve is open when it has ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import deployd_core.demo_app
from deployd_core import rollouts
from deployd_core.api import Gate, GateCall, Instance
from deployd_core.packing import pack
from deployd_core.plugins import Kind, Plugins, convert
from deployd_core.processes import owner_here, same_owner
from deployd_core.spec import ServiceSpec
from deployd_core.testing.balancers import Haproxy
from deployd_core.testing.fleet import Fleet
from deployd_core.testing.netns import isolated
from deployd_core.testing.zookeeper import ZooKeeperServer, home_from_environment
from deployd_core.zookeeper.chroot import ensure_chroot
from deployd_core.zookeeper.session import Session

pytestmark = [pytest.mark.zookeeper, pytest.mark.root]

DEADLY = '''
"""The nftables gate and the supervisor manager, but the agent dies once, by SIGKILL, at the move that a file names."""

import os
import pathlib
import signal

from deployd_core.api import hookimpl
from deployd_plugins.gates.nftables import NftablesGate
from deployd_plugins.managers.supervisor import SupervisorManager

ORDER = pathlib.Path({order!r})


def maybe_die(move):
    if ORDER.exists() and ORDER.read_text() == move:
        ORDER.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


class DeadlyGate(NftablesGate):
    """Close gates, and die."""

    name = "deadly"

    def close(self, call):
        maybe_die("before close")
        super().close(call)
        maybe_die("after close")

    def open(self, call):
        maybe_die("before open")
        super().open(call)
        maybe_die("after open")


class DeadlyManager(SupervisorManager):
    """Restart programs, and die."""

    name = "deadly"

    def restart(self, call):
        maybe_die("before stop")
        self.stop(call)
        maybe_die("before start")
        self.start(call)
        maybe_die("after start")


@hookimpl
def deployd_gates():
    return [DeadlyGate]


@hookimpl
def deployd_managers():
    return [DeadlyManager]
'''
PORTS = (8001, 8002)
FOREIGN = ["nft", "add table inet foreign; add chain inet foreign input { type filter hook input priority 0; tcp dport 9 drop; }"]


def wait(condition: Callable[[], bool], what: str, fleet: Fleet, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not {what}: {fleet.hosts['h1'].log()[-4000:]}"
        time.sleep(0.05)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: that of a socket is limited."""
    path = Path(tempfile.mkdtemp(prefix="deployd-drain-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.parametrize(
    "move", ["before close", "after close", "before stop", "before start", "after start", "before open", "after open"]
)
@isolated
def test_an_agent_killed_between_two_moves(move: str, directory: Path) -> None:
    """Started again it ends the cycle: each instance restarted once or, cut off in the middle, brought up; no gate stays closed."""
    subprocess.run(["nft", "-f", "-"], input=FOREIGN[1], text=True, check=True)
    foreign = subprocess.run(["nft", "list", "table", "inet", "foreign"], check=True, capture_output=True, text=True).stdout
    with Host(directory) as host:
        host.order.write_text(move)
        host.enable("v2")
        assert host.wait_agent() == -9
        host.start_agent()
        host.wait(lambda: host.converged("v2"), "converged on v2")

        assert {"v2"} == host.serves()
        assert () == host.gate.closed_everywhere()
        for port in PORTS:
            assert ["v1", "v2"] == host.starts(port)
    after = subprocess.run(["nft", "list", "table", "inet", "foreign"], check=True, capture_output=True, text=True).stdout
    assert foreign == after


@pytest.mark.parametrize("move", ["after close", "before start", "before open"])
@isolated
def test_an_agent_killed_and_not_started_again(move: str, directory: Path) -> None:
    """Nobody takes over: the gate opens by its lease, the other instance serves meanwhile, and an agent ends the cycle later."""
    with Host(directory, lease="6s") as host:
        host.order.write_text(move)
        host.enable("v2")
        assert host.wait_agent() == -9
        [lease] = host.gate.closed_everywhere()
        assert f"web@{PORTS[0]}" == lease.instance
        assert host.answer(PORTS[1]) == "v1"

        host.wait(lambda: host.gate.closed_everywhere() == (), "open by the lease", timeout=10)
        assert lease.until - 1.0 <= time.time() <= lease.until + 2.0

        host.start_agent()
        host.wait(lambda: host.converged("v2"), "converged on v2")
        assert {"v2"} == host.serves()
        assert () == host.gate.closed_everywhere()


@pytest.mark.parametrize("zookeeper_away", [False, True], ids=["", "ZooKeeper away"])
@isolated
def test_an_agent_that_stops_opens_what_was_only_being_drained(zookeeper_away: bool, directory: Path) -> None:
    """After SIGTERM in mid-drain the old build serves again, its requests go on, and what others have closed is as it was."""
    with Host(directory) as host:
        request = host.request_under_way(PORTS[0])
        host.enable("v2")
        host.wait(lambda: [PORTS[0]] == host.closed_ports(), "draining the first")
        others = host.close_by_hand(PORTS[1])
        if zookeeper_away:
            host.server.kill()

        assert host.stop_agent(signal.SIGTERM) == 0

        assert [others] == [lease.owner for lease in host.gate.closed_everywhere()]
        assert host.answer(PORTS[0]) == "v1"
        assert host.finish(request) == "v1"


@isolated
def test_an_agent_that_stops_leaves_closed_what_cannot_serve(directory: Path) -> None:
    """After SIGTERM an instance that was not healthy yet stays closed, and opens by its lease while no agent lives."""
    with Host(directory, lease="8s") as host:
        agent = host.agent_pid
        host.enable("v2", health="not yet")
        host.wait(lambda: ["v1", "v2"] == host.starts(PORTS[0]), "restarting the first")

        assert host.stop_agent(signal.SIGTERM) == 0

        [lease] = host.gate.closed_everywhere()
        assert (f"web@{PORTS[0]}", agent) == (lease.instance, int(lease.owner.split("/")[1]))
        assert host.answer(PORTS[1]) == "v1"
        host.wait(lambda: host.closed_ports() == [], "open by the lease", timeout=15)


@isolated
def test_an_agent_that_begins_again_goes_on_with_the_drain(directory: Path) -> None:
    """SIGHUP in mid-drain opens the gate; with agent.toml read again it is closed again, and the deploy comes to its end."""
    with Host(directory) as host:
        request = host.request_under_way(PORTS[0])
        host.enable("v2")
        host.wait(lambda: [PORTS[0]] == host.closed_ports(), "draining the first")

        assert host.agent_pid is not None
        os.kill(host.agent_pid, signal.SIGHUP)
        host.wait(lambda: host.log().count(f"closing the gate of web@{PORTS[0]}") == 2, "closing again")
        assert f"opening the gate of web@{PORTS[0]}" in host.log()
        assert host.finish(request) == "v1"
        host.wait(lambda: host.converged("v2"), "converged on v2")

        assert [["v1", "v2"]] * 2 == [host.starts(port) for port in PORTS]
        assert [] == host.closed_ports()


@isolated
def test_what_a_dead_agent_left_in_haproxy_is_reaped_with_nothing_but_agent_toml(directory: Path) -> None:
    """Where the leases lie, and which HAProxy it was, is found with no agent and no ZooKeeper."""
    haproxy = Haproxy(directory / "haproxy", [f"127.0.1.11:{port}" for port in PORTS], listen="127.0.0.1:8080")
    with haproxy:
        gate = f'{{ use = "haproxy", socket = "{haproxy.socket}", leases = "{directory}/leases" }}'
        with Host(directory, gate=gate) as host:
            host.order.write_text("before stop")
            host.enable("v2")
            assert host.wait_agent() == -9
            host.server.kill()

            assert "web      web@8001  haproxy  orphaned" in host.deployd("drains", "list")
            assert "web@8001 of web opened (haproxy, orphaned)\n" == host.deployd("drains", "reap", "--grace", "100ms")

            assert "" == host.deployd("drains", "reap", "--grace", "100ms")
            assert [] == list((directory / "leases").iterdir())
            assert {"web-8001": "0", "web-8002": "0"} == admin_states(haproxy)


def admin_states(haproxy: Haproxy) -> dict[str, str]:
    """What HAProxy's servers were told to do; 0 is nothing."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(haproxy.socket))
        connection.sendall(b"show servers state web\n")
        rows = b"".join(iter(lambda: connection.recv(65536), b"")).decode().splitlines()
    return {row.split()[3]: row.split()[6] for row in rows if " web-" in row}


class Host:
    """One host with two instances that serve v1, and with what a person does there."""

    def __init__(self, directory: Path, *, lease: str = "20s", gate: str = '{ use = "deadly" }') -> None:
        (directory / "builds").mkdir()
        (directory / "zookeeper").mkdir()
        self.directory = directory
        self._lease, self._gate_table = lease, gate
        self.order = directory / "die"
        self.server = ZooKeeperServer(directory / "zookeeper", home=home_from_environment())
        self.gate: Gate[Any] = Plugins.load().make(Kind.GATE, "nftables", {}, where="test").plugin
        self._ends = contextlib.ExitStack()

    def __enter__(self) -> Host:
        with contextlib.ExitStack() as ends:
            ends.enter_context(self.server)
            address = f"{self.server.address}/deployd"
            self._fleet = Fleet(self.directory / "fleet", address, {"web": PORTS}, hosts=1, zones=("a",))
            (self._fleet.plugins / "deadly.py").write_text(DEADLY.replace("{order!r}", repr(str(self.order))))
            [self._host] = self._fleet.hosts.values()
            self._session = Session(self.server.address, "/deployd")
            ends.enter_context(self._fleet)
            ends.enter_context(self._session)
            ensure_chroot(self._session)
            self._apply()
            self._fleet.start()
            self.enable("v1")
            self.wait(lambda: self.serves() == {"v1"} and self.converged("v1"), "serving v1")
            self._ends = ends.pop_all()
        self.start_agent, self.wait_agent, self.stop_agent = self._host.start_agent, self._host.wait_agent, self._host.kill_agent
        self.log = self._host.log
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def _apply(self) -> None:
        options = f'settle = "100ms"\ntraffic_timeout = "500ms"\ndrain_timeout = "60s"\nlease = "{self._lease}"'
        text = self._fleet.spec("web", self.directory / "builds", strategy="iptables-drain", options=options)
        text = text.replace('use = "supervisor"', 'use = "deadly"').replace("[restart]", f"gate = {self._gate_table}\n[restart]")
        rollouts.apply_spec(self._session, "web", convert(tomllib.loads(text), ServiceSpec, where="web"))

    def deployd(self, *words: str) -> str:
        """What a command says, run as a program on this host."""
        command = [sys.executable, "-P", "-m", "deployd_core", *words, "--config", str(self._host.config)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def enable(self, build: str, *, health: str = "") -> None:
        """Make a build that puts on record each time it is started, and enable it; `health`: its path there."""
        source = self.directory / "builds" / build
        source.mkdir()
        code = Path(deployd_core.demo_app.__file__).with_name("server.py").read_text(encoding="utf-8")
        line = '    build = Path("VERSION").read_text(encoding="utf-8").strip()\n'
        note = '    with Path(f"../../shared/{arguments.port}.starts").open("a") as starts:\n        starts.write(f"{build}\\n")\n'
        assert line in code
        assert '("/", "/health")' in code
        code = code.replace('("/", "/health")', f'("/", "/{health or "health"}")')
        (source / "server.py").write_text(code.replace(line, line + note))
        (source / "VERSION").write_text(build)
        digest = pack(source, self.directory / "builds" / f"web-{build}.tar.gz").digest
        rollouts.enable(self._session, "web", build, digest, by="test")

    def wait(self, condition: Callable[[], bool], what: str, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"not {what}: {self._host.log()[-4000:]}"
            time.sleep(0.05)

    def converged(self, build: str) -> bool:
        entries = rollouts.statuses(self._session, "web")
        return bool(entries) and all(entry.converged and entry.status and entry.status.wanted == build for entry in entries)

    @property
    def agent_pid(self) -> int | None:
        return self._host.agent_pid

    def answer(self, port: int) -> str:
        try:
            with urllib.request.urlopen(f"http://{self._host.address}:{port}/", timeout=2) as response:
                answer: str = response.read().decode().strip()
                return answer
        except OSError:
            return "refused"

    def serves(self) -> set[str]:
        return {self.answer(port) for port in PORTS}

    def starts(self, port: int) -> list[str]:
        """The builds that an instance was started with."""
        return (self._host.directory / "web" / "shared" / f"{port}.starts").read_text().split()

    def closed_ports(self) -> list[int]:
        return sorted(int(lease.instance.partition("@")[2]) for lease in self.gate.closed_everywhere())

    def close_by_hand(self, port: int) -> str:
        """Close a gate as a rehearsal does; by whom."""
        call = GateCall(
            service="web",
            host="h1",
            zone="a",
            root=self.directory,
            timeout=10.0,
            instance=Instance(service="web", name=f"web@{port}", port=port),
            until=time.time() + 60,
            owner=owner_here("h1"),
        )
        self.gate.close(call)
        [found] = [lease.owner for lease in self.gate.closed_everywhere() if same_owner(lease.owner, call.owner)]
        return found

    def request_under_way(self, port: int) -> socket.socket:
        """A request that is not whole yet: the instance cannot be drained until it is answered."""
        connection = socket.create_connection((self._host.address, port), timeout=10)
        connection.sendall(b"GET / HTTP/1.0\r\n")
        return connection

    def finish(self, request: socket.socket) -> str:
        """Send the rest of it; the answer."""
        request.sendall(b"\r\n")
        with request, request.makefile("rb") as answer:
            return answer.read().decode().splitlines()[-1]
