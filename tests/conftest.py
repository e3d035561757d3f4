"""A real ZooKeeper for whoever asks for one: a server per run, a chroot per test."""

from __future__ import annotations

import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployd_core.testing.zookeeper import ZooKeeperServer, home_from_environment


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A run in the background, or under nohup, inherits signals that are ignored, and would pass that on to what the tests end."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def zookeeper_server() -> Iterator[ZooKeeperServer]:
    """A server for the whole run. Do not kill or pause it: others use it; start one of your own for that."""
    directory = Path(tempfile.mkdtemp(prefix="deployd-zookeeper-"))
    try:
        with ZooKeeperServer(directory, home=home_from_environment()) as server:
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def zookeeper(zookeeper_server: ZooKeeperServer) -> str:
    """An address with a chroot of one's own, which does not exist yet."""
    return f"{zookeeper_server.address}/t-{uuid.uuid4().hex[:12]}"
