"""A real ZooKeeper for whoever asks for one: a server per run, a chroot per test."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from deployd_core.testing.zookeeper import ZooKeeperServer


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A run in the background, or under nohup, inherits signals that are ignored, and would pass that on to what the tests end."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def zookeeper_server(deployd_zookeeper_server: ZooKeeperServer) -> ZooKeeperServer:
    """The kit's, under a shorter name."""
    return deployd_zookeeper_server


@pytest.fixture
def zookeeper(deployd_zookeeper: str) -> str:
    """The kit's, under a shorter name."""
    return deployd_zookeeper
