"""A real ZooKeeper for whoever asks for one: a server per run, a chroot per test."""

from __future__ import annotations

import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployd_core.testing.netns import firewall
from deployd_core.testing.zookeeper import ZooKeeperServer, home_from_environment


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
