"""The session on a real server that is killed, paused, absent and cut off."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from kazoo.client import KazooClient, TransactionRequest
from kazoo.exceptions import SessionExpiredError

from deployd_core import rollouts
from deployd_core.coordination import AgentInfo, Denial, Denied, Link, Permit
from deployd_core.errors import ConfigError, Conflict, NotFound, Unavailable
from deployd_core.model import FleetLimit
from deployd_core.spec import ServiceSpec, ServiceTable
from deployd_core.testing.relay import Relay
from deployd_core.testing.zookeeper import ZooKeeperServer, find_classpath, home_from_environment
from deployd_core.zookeeper import layout
from deployd_core.zookeeper.chroot import ensure_chroot, require_chroot, wait_for_chroot
from deployd_core.zookeeper.coordination import ZooKeeperCoordination
from deployd_core.zookeeper.session import Identity, OutcomeUnknown, Refused, Session, split_address

pytestmark = pytest.mark.zookeeper


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ZooKeeperServer]:
    """A server that a test may hurt."""
    with ZooKeeperServer(tmp_path / "zookeeper", home=home_from_environment()) as started:
        yield started


def session_of(address: str, *, session_timeout: float = 4, identity: Identity | None = None) -> Session:
    """A session that is quick to give up."""
    hosts, chroot = split_address(address, "")
    return Session(hosts, chroot, session_timeout=session_timeout, operation_timeout=2, identity=identity)


class Links:
    """Hears of every change of a link."""

    def __init__(self, session: Session) -> None:
        self._heard: queue.Queue[Link] = queue.Queue()
        session.listen(self._heard.put)

    def wait(self, link: Link, timeout: float = 30) -> None:
        """Wait until the link is this."""
        deadline = time.monotonic() + timeout
        while self._heard.get(timeout=max(0.01, deadline - time.monotonic())) is not link:
            pass


# Beginning


def test_an_ensemble_that_is_down_is_waited_for(tmp_path: Path) -> None:
    """An agent that starts before ZooKeeper says what it waits for, and is connected once the server is there."""
    server = ZooKeeperServer(tmp_path / "zookeeper", home=home_from_environment()).start()
    server.kill()
    said: queue.Queue[str] = queue.Queue()
    session = session_of(server.address)
    starting = threading.Thread(target=lambda: session.start(timeout=None, waiting=said.put))
    starting.start()
    try:
        message = said.get(timeout=10)
        assert server.address in message
        assert "Connection refused" in message
        with server:
            starting.join(20)
            assert session.link is Link.CONNECTED
            session.close()
    finally:
        server.stop()


def test_waiting_ends_when_it_is_told_to(server: ZooKeeperServer) -> None:
    """A stop event ends the wait for an ensemble that never comes."""
    server.kill()
    stop = threading.Event()
    session = session_of(server.address)

    assert not session.start(timeout=None, stop=stop, waiting=lambda _: stop.set())


@pytest.mark.parametrize(
    ("host", "reason"), [("127.0.0.1", "Connection refused"), ("no-such-host.invalid", "no-such-host.invalid")]
)
def test_a_command_gives_up_and_says_why(host: str, reason: str) -> None:
    """With a timeout, an ensemble that does not answer is an error that holds the reason."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    with pytest.raises(Unavailable, match=reason):
        session_of(f"{host}:{port}").start(timeout=0.5)


def test_a_missing_chroot_is_said_waited_for_and_made(zookeeper: str) -> None:
    """What needs the chroot says what to type; an agent waits for it; a verb that may makes it, all its levels."""
    address = f"{zookeeper}/a/b"
    said: queue.Queue[str] = queue.Queue()
    with session_of(address) as agent, session_of(address) as person:
        with pytest.raises(NotFound, match=r"no node /t-.*/a/b") as caught:
            require_chroot(agent)
        assert "services apply" in caught.value.hint
        waiting = threading.Thread(target=wait_for_chroot, args=(agent, threading.Event(), said.put))
        waiting.start()
        assert "/a/b" in said.get(timeout=5)

        ensure_chroot(person)
        ensure_chroot(person)

        waiting.join(10)
        assert not waiting.is_alive()
        require_chroot(agent)


# What goes wrong while it runs


def test_a_restarted_server_is_the_same_session(server: ZooKeeperServer) -> None:
    """While the server is down operations are refused at once; when it is back the session and its ephemeral nodes are."""
    with session_of(server.address, session_timeout=40) as session:
        links = Links(session)
        session.create("/here", ephemeral=True)
        before = session.session_id

        server.kill()
        links.wait(Link.SUSPENDED)
        with pytest.raises(Unavailable, match="not connected"):
            session.get("/here")
        server.start()
        links.wait(Link.CONNECTED)

        stat = session.stat("/here")
        assert stat is not None
        assert (before, before) == (session.session_id, stat.owner)


def test_a_server_restored_from_an_older_copy_is_taken_for_what_it_is(server: ZooKeeperServer) -> None:
    """Once its session has run out, an agent follows an ensemble that knows less than it has seen, and need not be restarted."""
    with session_of(server.address, session_timeout=2) as session:
        for number in range(5):
            session.create(f"/n{number}")
        server.kill()
        shutil.rmtree(server.data)
        server.launch()

        assert session.wait_connected(20)

        session.create("/n0")
        assert session.link is Link.CONNECTED


def test_a_silence_longer_than_the_session_counts_as_lost(server: ZooKeeperServer) -> None:
    """A server that stops answering is LOST after the session's time, before it says so itself; then it goes on.

    Whether the session is a new one is the server's to say: one that was stopped itself may have kept it.
    """
    with session_of(server.address, session_timeout=1.5) as session:
        links = Links(session)

        server.pause()
        try:
            links.wait(Link.LOST)
            assert Link.LOST is session.link
            assert not session.wait_connected(0)
        finally:
            server.resume()
        links.wait(Link.CONNECTED)

        assert session.link is Link.CONNECTED


def test_a_paused_server_makes_operations_fail_in_time(server: ZooKeeperServer) -> None:
    """An operation that is never answered ends as unavailable; a write says that its outcome is not known."""
    with session_of(server.address, session_timeout=30) as session:
        session.create("/a")
        server.pause()
        try:
            with pytest.raises(Unavailable, match="no answer in time"):
                session.get("/a")
            with pytest.raises(OutcomeUnknown):
                session.set("/a", b"x")
        finally:
            server.resume()


def expire(session: Session) -> None:
    """End a session behind its back, as the server does when it heard nothing for too long."""
    other = KazooClient(hosts=session.hosts, client_id=session._client.client_id)
    other.start()
    other.stop()
    other.close()


def test_an_expired_session_announces_its_agent_again(zookeeper: str) -> None:
    """After expiry the agent's node is made again by the new session, without anybody asking."""
    with session_of(zookeeper) as session, session_of(zookeeper) as other:
        ensure_chroot(session)
        links = Links(session)
        coordination = ZooKeeperCoordination(session, "h1", bool)
        coordination.announce(AgentInfo(host="h1", instance="machine:/var/lib/deployd"))
        first = other.stat(layout.agent("h1"))
        appeared = threading.Event()
        assert first is not None

        expire(session)
        links.wait(Link.LOST)
        links.wait(Link.CONNECTED)

        deadline = time.monotonic() + 10
        while (now := other.stat(layout.agent("h1"), lambda _: appeared.set())) is None or now.owner == first.owner:
            assert time.monotonic() < deadline
            appeared.wait(0.1)
        assert session.session_id == now.owner


def test_an_agent_replaces_its_dead_predecessor_and_no_other(zookeeper: str) -> None:
    """The node of a killed agent on the same machine is taken over at once; a namesake elsewhere is an error that names it."""
    with session_of(zookeeper) as old, session_of(zookeeper) as new, session_of(zookeeper) as namesake:
        ensure_chroot(old)
        mine = AgentInfo(host="h1", instance="machine-1:/var/lib/deployd", pid=4711)
        ZooKeeperCoordination(old, "h1", bool).announce(mine)

        ZooKeeperCoordination(new, "h1", bool).announce(mine)
        stat = new.stat(layout.agent("h1"))
        assert stat is not None
        assert new.session_id == stat.owner
        other = ZooKeeperCoordination(namesake, "h1", bool)
        with pytest.raises(Conflict, match="another agent calls itself 'h1': machine-1:/var/lib/deployd, pid 4711"):
            other.announce(AgentInfo(host="h1", instance="machine-2:/var/lib/deployd"))

        rollouts.apply_spec(new, "web", ServiceSpec(service=ServiceTable(root="/srv/web"), source={}))
        rollouts.enable(new, "web", "v1", None)
        denied = other.take_permit(other.snapshot("web"), FleetLimit())
        assert isinstance(denied, Denied)
        assert Denial.DUPLICATE is denied.code
        new.delete(layout.agent("h1"))
        assert isinstance(other.take_permit(other.snapshot("web"), FleetLimit()), Permit)


# Refusals


def test_a_refused_transaction_names_its_node_and_does_nothing(zookeeper: str) -> None:
    """Wherever the culprit stands in a transaction, it is named, and the rest of it did not happen."""
    with session_of(zookeeper) as session:
        ensure_chroot(session)
        session.create("/a")
        session.set("/a", b"1")
        wrong = {
            "/a": session.transaction().create("/new").check("/a", 0).set("/a", b"2"),
            "/missing": session.transaction().create("/new").set("/a", b"2").delete("/missing"),
        }
        for path, transaction in wrong.items():
            with pytest.raises(Refused) as caught:
                transaction.commit()
            assert path == caught.value.path
        with pytest.raises(Refused, match="exists already"):
            session.create("/a")

        node = session.get("/a")
        assert node is not None
        assert (b"1", None) == (node.data, session.get("/new"))


def test_a_lost_answer_is_told_apart_from_a_refusal(zookeeper: str) -> None:
    """A transaction whose answer was lost has an unknown outcome, and may well have happened."""
    hosts, _, chroot = zookeeper.partition("/")
    with Relay(hosts) as relay, session_of(f"{relay.address}/{chroot}") as session:
        ensure_chroot(session)
        relay.lose_next_answer()

        with pytest.raises(OutcomeUnknown):
            session.transaction().create("/a").commit()

        assert session.wait_connected(10)
        assert session.stat("/a") is not None


@pytest.mark.parametrize("error", [AttributeError("no path in the answer to a create"), RuntimeError("xids do not match")])
def test_an_answer_that_kazoo_cannot_read_is_a_lost_one(zookeeper: str, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """What kazoo trips over in an answer is an error of ours like any other: whoever tells of the link, or beats, goes on."""
    with session_of(zookeeper) as session:

        def answer(*_: object, **__: object) -> object:
            result = session._client.handler.async_result()
            result.set_exception(error)
            return result

        monkeypatch.setattr(session._client, "create_async", answer)
        monkeypatch.setattr(session._client, "exists_async", answer)

        with pytest.raises(OutcomeUnknown, match=type(error).__name__):
            session.create("/agents")
        with pytest.raises(Unavailable, match=type(error).__name__):
            session.stat("/agents")


@pytest.mark.parametrize("error", [RuntimeError("xids do not match"), struct.error("unpack requires a buffer of 16 bytes")])
def test_a_connection_that_makes_no_sense_any_more_is_begun_again(
    zookeeper: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whatever ends kazoo's loop, the session goes on: an agent that stayed away would keep its permit for ever."""
    with session_of(zookeeper) as session:
        connection, links = session._client._connection, Links(session)

        def unreadable(*_: object) -> object:
            monkeypatch.undo()
            raise error

        monkeypatch.setattr(connection, "_read_socket", unreadable)
        with pytest.raises(Unavailable):
            session.stat("/")
        links.wait(Link.SUSPENDED)
        links.wait(Link.CONNECTED)

        ensure_chroot(session)


@pytest.mark.parametrize("how", ["alone", "in a transaction"])
def test_a_session_that_is_over_while_its_connection_lives_is_begun_anew(
    zookeeper: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A server may go on to answer one whose session has ended, but for what it writes: its agent would be gone for good."""
    with session_of(zookeeper) as session:
        ensure_chroot(session)
        before, links = session.session_id, Links(session)
        expired = session._client.handler.async_result()
        expired.set_exception(SessionExpiredError())
        answered = session._client.handler.async_result()
        answered.set([SessionExpiredError()])
        monkeypatch.setattr(session._client, "create_async", lambda *_, **__: expired)
        monkeypatch.setattr(TransactionRequest, "commit_async", lambda _: answered)
        with pytest.raises(OutcomeUnknown, match="SessionExpiredError"):
            session.create("/a") if how == "alone" else session.transaction().create("/a").commit()
        monkeypatch.undo()
        links.wait(Link.LOST)
        links.wait(Link.CONNECTED)

        assert before != session.session_id
        session.create("/a", ephemeral=True)


def test_access_that_is_not_allowed_is_said_clearly(zookeeper: str) -> None:
    """A node that we may not write is an error that names us, the node, and how to see its access list."""
    owner = Identity(digest="ops:secret")
    with session_of(zookeeper, identity=owner) as session, session_of(zookeeper) as other:
        ensure_chroot(session)
        session.create("/a")
        acl = session._client.get_acls("/a")[0][0]
        session._client.set_acls("/a", [acl._replace(id=acl.id._replace(scheme="auth", id=""))])
        session.set("/a", b"mine")

        with pytest.raises(ConfigError, match=r"does not allow an anonymous client to write /t-.*/a") as caught:
            other.set("/a", b"theirs")

    assert "getAcl" in caught.value.hint


def test_many_nodes_are_read_in_order(zookeeper: str) -> None:
    """Reading two thousand nodes, half of them missing, gives each its own answer."""
    with session_of(zookeeper) as session:
        ensure_chroot(session)
        for begin in range(0, 1000, 100):
            transaction = session.transaction()
            for number in range(begin, begin + 100):
                transaction.create(f"/n{number}", str(number).encode())
            transaction.commit()

        nodes = session.get_many(f"/n{number}" for number in range(2000))

    assert [str(number).encode() if number < 1000 else None for number in range(2000)] == [
        node.data if (node := nodes[f"/n{number}"]) else None for number in range(2000)
    ]


# The server for tests


def test_the_server_keeps_its_data_and_its_address(server: ZooKeeperServer) -> None:
    """Killed and started again it has the same port and the same nodes."""
    address = server.address
    with session_of(address) as session:
        session.create("/kept", b"x")

    server.kill()
    server.start()

    assert address == server.address
    with session_of(address) as session:
        assert session.stat("/kept") is not None


def test_the_server_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """A starter that is killed takes its server with it."""
    code = (
        "import sys, pathlib; from deployd_core.testing.zookeeper import *;"
        "s = ZooKeeperServer(pathlib.Path(sys.argv[1]), home=home_from_environment()).start();"
        "print(s.pid, flush=True); sys.stdin.read()"
    )
    with ExitStack() as stack:
        starter = stack.enter_context(
            subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        handle = os.pidfd_open(pid)
        stack.callback(os.close, handle)

        starter.send_signal(signal.SIGKILL)

        import select

        assert [handle] == select.select([handle], [], [], 10)[0]


def test_a_missing_server_says_what_to_install(tmp_path: Path) -> None:
    """Without jars the error names the directory and the way out."""
    with pytest.raises(ConfigError, match=str(tmp_path)) as caught:
        find_classpath(tmp_path)

    assert "unpack a ZooKeeper" in caught.value.hint
