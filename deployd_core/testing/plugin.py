"""The fixtures of the test kit, for every pytest run where deployd is installed; docs/plugins/testing.md shows them at work.

This module is imported by all of them, those included that have nothing to do with deployd: it imports nothing else but pytest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from deployd_core.api import HostView
    from deployd_core.simulate.runner import Run
    from deployd_core.testing.fakes import FakeGate, FakeManager, FakeProbe
    from deployd_core.testing.zookeeper import ZooKeeperServer

pytest.register_assert_rewrite(
    *(
        f"deployd_core.testing.{name}"
        for name in ("gate_abilities", "gates", "managers", "probes", "reporters", "sources", "steps", "strategies")
    )
)


def pytest_configure() -> None:
    """Refuse a seed that is none, once, rather than in every test of a strategy."""
    seed = os.environ.get("DEPLOYD_SEED", "0")
    if not seed.removeprefix("-").isdecimal():
        raise pytest.UsageError(f"$DEPLOYD_SEED is {seed!r} and must be a whole number, as in DEPLOYD_SEED=17 pytest")


@pytest.fixture
def deployd_view() -> Callable[..., HostView]:
    """Make views: ``deployd_view("ready", "stale", facts={"primary": "web@8002"})``; see `deployd_core.testing.views`."""
    from deployd_core.testing.views import host_view  # noqa: PLC0415

    return host_view


@pytest.fixture
def deployd_fleet() -> Callable[..., Run]:
    """Roll virtual fleets: ``deployd_fleet(MyStrategy, hosts=20).lowest``; see `deployd_core.testing.virtual`."""
    from deployd_core.testing.virtual import virtual_fleet  # noqa: PLC0415

    return virtual_fleet


@pytest.fixture
def deployd_gate() -> FakeGate:
    """A gate with a balancer of its own, in memory."""
    from deployd_core.api import Options  # noqa: PLC0415
    from deployd_core.testing.fakes import FakeBalancer, FakeGate  # noqa: PLC0415

    return FakeGate(Options(), FakeBalancer())


@pytest.fixture
def deployd_manager() -> Iterator[Callable[..., FakeManager]]:
    """Make managers that run a command as a child: ``deployd_manager("sleep", "60")``; the children end with the test."""
    from deployd_core.testing.fakes import FakeManager, FakeManagerOptions, FakeProcesses  # noqa: PLC0415

    processes = FakeProcesses()
    yield lambda *command: FakeManager(FakeManagerOptions(command=command), processes)
    processes.kill()


@pytest.fixture
def deployd_probe() -> Callable[..., FakeProbe]:
    """Make probes that answer what they are told: ``deployd_probe(lambda call: Verdict.unhealthy("503"))``."""
    from deployd_core.api import ProbeOptions  # noqa: PLC0415
    from deployd_core.testing.fakes import FakeProbe  # noqa: PLC0415

    def make(verdict: Callable[..., Any] | None = None) -> FakeProbe:
        return FakeProbe(ProbeOptions(), verdict)

    return make


@pytest.fixture(scope="session")
def deployd_zookeeper_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooKeeperServer]:
    """A ZooKeeper for the whole run. Do not kill or pause it: others use it; start one of your own for that."""
    from deployd_core.testing.zookeeper import ZooKeeperServer, home_from_environment  # noqa: PLC0415

    with ZooKeeperServer(tmp_path_factory.mktemp("zookeeper"), home=home_from_environment()) as server:
        yield server


@pytest.fixture
def deployd_zookeeper(deployd_zookeeper_server: ZooKeeperServer) -> str:
    """An address with a chroot of one's own, which does not exist yet."""
    import uuid  # noqa: PLC0415

    return f"{deployd_zookeeper_server.address}/t-{uuid.uuid4().hex[:12]}"
