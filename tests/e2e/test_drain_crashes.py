"""An agent killed with -9 between any two moves of a drained restart: nothing leaks, nothing is doubled, the end is the same."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

import deployd_core.demo_app
from deployd_core import rollouts
from deployd_core.packing import pack
from deployd_core.plugins import Kind, Plugins, convert
from deployd_core.spec import ServiceSpec
from deployd_core.testing.fleet import Fleet
from deployd_core.testing.netns import isolated
from deployd_core.testing.zookeeper import ZooKeeperServer, home_from_environment
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


@pytest.mark.parametrize(
    "move", ["before close", "after close", "before stop", "before start", "after start", "before open", "after open"]
)
def test_an_agent_killed_between_two_moves(move: str) -> None:
    """Started again it ends the cycle: each instance restarted once or, cut off in the middle, brought up; no gate stays closed."""
    directory = Path(tempfile.mkdtemp(prefix="deployd-drain-"))
    try:
        roll_and_die(directory, move)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@isolated
def roll_and_die(directory: Path, move: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=FOREIGN[1], text=True, check=True)
    foreign = subprocess.run(["nft", "list", "table", "inet", "foreign"], check=True, capture_output=True, text=True).stdout
    (directory / "builds").mkdir()
    (directory / "zookeeper").mkdir()
    with ZooKeeperServer(directory / "zookeeper", home=home_from_environment()) as server:
        fleet = Fleet(directory / "fleet", f"{server.address}/deployd", {"web": PORTS}, hosts=1, zones=("a",))
        order = directory / "die"
        (fleet.plugins / "deadly.py").write_text(DEADLY.replace("{order!r}", repr(str(order))))
        session = Session(server.address, "/deployd")
        with fleet, session:
            session.ensure_chroot()
            options = 'gate = "deadly"\nsettle = "100ms"\ntraffic_timeout = "500ms"\nlease = "20s"'
            text = fleet.spec("web", directory / "builds", strategy="iptables-drain", options=options)
            text = text.replace('use = "supervisor"', 'use = "deadly"')
            rollouts.apply_spec(session, "web", convert(tomllib.loads(text), ServiceSpec, where="web"))
            [host] = fleet.hosts.values()
            fleet.start()
            enable(session, directory, "v1", fleet)
            wait(lambda: serves(host.address) == {"v1"} and converged(session, "v1"), "serving v1", fleet)

            order.write_text(move)
            enable(session, directory, "v2", fleet)
            assert host.wait_agent() == -9
            host.start_agent()
            wait(lambda: converged(session, "v2"), "converged on v2", fleet)

            assert {"v2"} == serves(host.address)
            gate = Plugins.load().make(Kind.GATE, "nftables", {}, where="test").plugin
            assert () == gate.closed_everywhere()
            for port in PORTS:
                assert ["v1", "v2"] == (host.directory / "web" / "shared" / f"{port}.starts").read_text().split()
    after = subprocess.run(["nft", "list", "table", "inet", "foreign"], check=True, capture_output=True, text=True).stdout
    assert foreign == after


def enable(session: Session, directory: Path, build: str, fleet: Fleet) -> None:
    source = directory / "builds" / build
    source.mkdir()
    code = Path(deployd_core.demo_app.__file__).with_name("server.py").read_text(encoding="utf-8")
    line = '    build = Path("VERSION").read_text(encoding="utf-8").strip()\n'
    note = '    with Path(f"../../shared/{arguments.port}.starts").open("a") as starts:\n        starts.write(f"{build}\\n")\n'
    assert line in code
    (source / "server.py").write_text(code.replace(line, line + note))
    (source / "VERSION").write_text(build)
    digest = pack(source, directory / "builds" / f"web-{build}.tar.gz").digest
    rollouts.enable(session, "web", build, digest, by="test")


def converged(session: Session, build: str) -> bool:
    entries = rollouts.statuses(session, "web")
    return bool(entries) and all(entry.converged and entry.status and entry.status.wanted == build for entry in entries)


def serves(address: str) -> set[str]:
    answers = set()
    for port in PORTS:
        try:
            with urllib.request.urlopen(f"http://{address}:{port}/", timeout=2) as response:
                answers.add(response.read().decode().strip())
        except OSError:
            answers.add("refused")
    return answers
