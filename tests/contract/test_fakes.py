"""The fake gate keeps the contract of the real ones, and the fixtures of the kit work wherever it is installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from deployd_core.api import Gate, Health, HostView, InstanceCall, Options, Phase, State, Verdict
from deployd_core.testing import ClearingContract, FakeBalancer, FakeGate, FakeManager, FakeProbe, LeaseContract, SampleService
from deployd_core.testing.instances import Client
from deployd_strategies.concurrency import Concurrency


class Through(Client):
    """A client that comes through the fake balancer."""

    balancer: FakeBalancer

    def connect(self) -> None:
        """Refused, or passed on."""
        if not self.balancer.admits("web", f"web@{self.port}"):
            raise ConnectionRefusedError("closed")
        super().connect()

    def served(self, wait: float = 0.0) -> bool:
        """The balancer knows of it while it is under way."""
        name = f"web@{self.port}"
        self.balancer.busy[name] = self.balancer.busy.get(name, 0) + 1
        try:
            return super().served(wait)
        finally:
            self.balancer.busy[name] -= 1


class TestFakeGate(LeaseContract, ClearingContract):
    """The balancer in memory."""

    own_network = False

    def make_gate(self) -> Gate[Any]:
        self.balancer: FakeBalancer = getattr(self, "balancer", FakeBalancer())
        return FakeGate(Options(), self.balancer)

    def client(self, port: int, host: str = "127.0.0.1") -> Client:
        client = Through(host, port)
        client.balancer = self.balancer
        return client


def test_views_have_sane_defaults(deployd_view: Callable[..., HostView]) -> None:
    """Phases alone make a host, and whatever else matters is said by name."""
    view = deployd_view("ready", "stale", "warming", facts={"primary": "web@8002"})

    assert ("web@8001", "web@8002", "web@8003") == tuple(found.name for found in view.instances)
    assert ("v2", "v1", "v2") == tuple(found.serves for found in view.instances)
    assert (("web@8002",), ("web@8003",)) == (view.stale, view.cycling)
    assert (Phase.READY, 8001, "web@8002") == (view.instances[0].phase, view.instances[0].port, view.facts["primary"])


def test_the_fakes_come_as_fixtures(
    deployd_gate: FakeGate, deployd_manager: Callable[..., FakeManager], deployd_probe: Callable[..., FakeProbe], tmp_path: Any
) -> None:
    """A gate, a manager and a probe without anything around them."""
    service = SampleService(tmp_path / "web")
    service.add("v1")
    service.flip("v1")
    call: InstanceCall = service.call("web@8001")
    manager, probe = deployd_manager("sleep", "600"), deployd_probe(lambda _: Verdict.unhealthy("503"))

    manager.start(call)

    assert State.RUNNING is manager.state(call).state
    assert [("start", "web@8001")] == manager.processes.calls
    assert (Health.UNHEALTHY, Health.HEALTHY) == (probe.check(call).health, deployd_probe().check(call).health)
    assert () == deployd_gate.closed(call)


def test_a_virtual_fleet_comes_as_a_fixture(deployd_fleet: Callable[..., Any]) -> None:
    """A class that is not installed is simulated, under its own limit; the same seed gives the same run."""

    class TwoHosts(Concurrency):
        """Restart two hosts at a time."""

        name = "two-hosts"

    run = deployd_fleet(TwoHosts, hosts=8, options={"limit": 2}, seed=3)

    assert (8, 2, ()) == (run.converged, run.most_permits, run.broken)
    assert run == deployd_fleet(TwoHosts, hosts=8, options={"limit": 2}, seed=3)
    assert run.trace != deployd_fleet(TwoHosts, hosts=8, options={"limit": 2}, seed=4).trace


@pytest.mark.zookeeper
def test_a_real_zookeeper_comes_as_a_fixture(deployd_zookeeper: str) -> None:
    """An address of a server that answers, with a chroot for this test alone."""
    address, _, chroot = deployd_zookeeper.partition("/")

    assert address.startswith("127.0.0.1:")
    assert chroot.startswith("t-")


def test_the_kit_costs_other_test_runs_nothing(tmp_path: Any) -> None:
    """A run that has nothing to do with deployd imports the fixtures' module and nothing more of ours, nor of what we use."""
    (tmp_path / "test_other.py").write_text(
        "import sys\n"
        "def test_other():\n"
        "    packages = ('deployd_core', 'msgspec', 'kazoo', 'psutil')\n"
        "    ours = sorted(name for name in sys.modules if name.partition('.')[0] in packages)\n"
        "    assert ours == ['deployd_core', 'deployd_core.testing', 'deployd_core.testing.plugin']\n"
    )

    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (0, "") == (done.returncode, done.stderr), done.stdout
