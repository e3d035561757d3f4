"""A real ZooKeeper for whoever asks for one: a server per run, a chroot per test."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from deployd_core.testing.netns import firewall

if TYPE_CHECKING:
    from deployd_core.testing.zookeeper import ZooKeeperServer


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A run in the background, or under nohup, inherits signals that are ignored, and would pass that on to what the tests end."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="module", autouse=True)
def _machine_untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """The firewall of the machine itself is the same after the tests of a module as before, where any of them is root's."""
    if not any(item.get_closest_marker("root") for item in request.session.items if item.path == request.path):
        yield
        return
    before = firewall()
    yield
    assert before == firewall()


@pytest.fixture(scope="session")
def zookeeper_server(deployd_zookeeper_server: ZooKeeperServer) -> ZooKeeperServer:
    """The kit's, under a shorter name."""
    return deployd_zookeeper_server


@pytest.fixture
def zookeeper(deployd_zookeeper: str) -> str:
    """The kit's, under a shorter name."""
    return deployd_zookeeper
