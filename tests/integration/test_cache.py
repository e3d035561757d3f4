"""Nodes that are read once and again only when they changed, on a real server."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from kazoo.protocol.states import WatchedEvent

from deployd_core.coordination import Link
from deployd_core.testing.relay import Relay
from deployd_core.testing.zookeeper import ZooKeeperServer, home_from_environment
from deployd_core.zookeeper.cache import NodeCache
from deployd_core.zookeeper.chroot import ensure_chroot
from deployd_core.zookeeper.session import CREATED, Node, Session, Watch, split_address

pytestmark = pytest.mark.zookeeper


def _session(address: str, *, session_timeout: float = 10, kind: type[Session] = Session) -> Session:
    hosts, chroot = split_address(address, "")
    return kind(hosts, chroot, session_timeout=session_timeout, operation_timeout=5)


def test_a_cache_reads_only_what_changed(zookeeper: str) -> None:
    """A change marks its node; what did not change is not read again; a missing node that appears is seen."""
    changed = threading.Event()
    with _session(zookeeper) as session, _session(zookeeper) as other:
        ensure_chroot(session)
        other.create("/a", b"1")
        cache = NodeCache(session, changed.set)
        assert (b"1", None) == _data(cache)
        assert not cache.stale

        for data in (b"2", b"3"):
            other.set("/a", data)
            assert changed.wait(5)
            changed.clear()
            assert cache.stale
            assert (data, None) == _data(cache)
        other.create("/b", b"x")
        assert changed.wait(5)

        assert (b"3", b"x") == _data(cache)


def _data(cache: NodeCache) -> tuple[bytes | None, ...]:
    nodes = cache.read(["/a", "/b"])
    return tuple(node.data if node else None for node in (nodes["/a"], nodes["/b"]))


def test_a_change_during_a_broken_connection_is_seen_after_it(zookeeper: str) -> None:
    """Watches die with a connection: after it nothing that was read before holds."""
    hosts, _, chroot = zookeeper.partition("/")
    with (
        Relay(hosts) as relay,
        _session(f"{relay.address}/{chroot}", session_timeout=20) as session,
        _session(zookeeper) as other,
    ):
        ensure_chroot(other)
        other.create("/a", b"1")
        links: queue.Queue[Link] = queue.Queue()
        session.listen(links.put)
        cache = NodeCache(session, bool)
        assert (b"1", None) == _data(cache)

        relay.down()
        assert links.get(timeout=15) is Link.SUSPENDED
        other.set("/a", b"2")
        relay.up()
        assert links.get(timeout=15) is Link.CONNECTED

        assert cache.stale
        assert (b"2", None) == _data(cache)


def test_watches_do_not_pile_up(tmp_path: Path) -> None:
    """Reading the same nodes again and again arms each watch once."""
    with ZooKeeperServer(tmp_path / "zookeeper", home=home_from_environment()) as server, _session(server.address) as session:
        session.create("/a")
        cache = NodeCache(session, bool)
        for _ in range(50):
            cache.forget()
            cache.read(["/a", "/b"])

        host, _, port = server.address.partition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"wchs")
            answer = connection.makefile().read()

    assert "Total watches:2" in answer


# A node of our own, read right behind the transaction that creates it


def test_what_is_read_behind_its_creation_is_known(zookeeper: str) -> None:
    """The answer comes with that of the transaction, and news of the creation that comes late is none."""
    changed = threading.Event()
    with _session(zookeeper) as session:
        ensure_chroot(session)
        session.create("/a", b"1")
        cache = NodeCache(session, changed.set)
        assert (b"1", None) == _data(cache)
        _create(session, cache)
        assert changed.wait(5)
        readings = cache.readings
        cache.fired(WatchedEvent(type=CREATED, state="CONNECTED", path="/b"))

        assert not cache.stale
        assert (b"1", b"mine") == _data(cache)
        assert readings == cache.readings


def test_what_is_read_behind_its_creation_is_watched(zookeeper: str) -> None:
    """Somebody takes it away: that is news."""
    with _session(zookeeper) as session, _session(zookeeper) as other:
        ensure_chroot(session)
        deleted = threading.Event()
        cache = NodeCache(session, lambda: deleted.set() if cache.stale else None)
        _data(cache)
        _create(session, cache)
        deleted.clear()

        other.delete("/b")

        assert deleted.wait(5)
        assert (None, None) == _data(cache)


def test_an_answer_that_was_overtaken_is_dropped(zookeeper: str) -> None:
    """Between the answer and its being taken in the node changes, and the watch says so: it is read again."""
    with _session(zookeeper) as session, _session(zookeeper) as other:
        ensure_chroot(session)
        changed = threading.Event()
        cache = NodeCache(session, changed.set)
        _data(cache)
        made = session.transaction().create("/b", b"mine").send()
        take = cache.ask("/b")
        made()
        changed.wait(5)
        changed.clear()
        other.set("/b", b"theirs")
        assert changed.wait(5)
        take()

        assert cache.stale
        assert (None, b"theirs") == _data(cache)


def test_an_answer_does_not_take_the_place_of_a_newer_one(zookeeper: str) -> None:
    """Somebody else reads the node between the answer and its being taken in."""
    with _session(zookeeper) as session, _session(zookeeper) as other:
        ensure_chroot(session)
        cache = NodeCache(session, bool)
        _data(cache)
        made = session.transaction().create("/b", b"mine").send()
        take = cache.ask("/b")
        made()
        other.set("/b", b"theirs")
        cache.forget("/b")
        assert (None, b"theirs") == _data(cache)
        take()

        assert (None, b"theirs") == _data(cache)


def test_a_refused_creation_leaves_the_node_watched(zookeeper: str) -> None:
    """The answer that says that it is not there arms no watch; when it appears after all, that is seen."""
    changed = threading.Event()
    with _session(zookeeper) as session, _session(zookeeper) as other:
        ensure_chroot(session)
        cache = NodeCache(session, changed.set)
        _data(cache)
        cache.ask("/b")()
        assert (None, None) == _data(cache)

        other.create("/b", b"theirs")

        assert changed.wait(5)
        assert (None, b"theirs") == _data(cache)


class _Slow(Session):
    """Lets something happen between an answer and its being used."""

    meanwhile: Callable[[], object] = bool

    def get_many(self, paths: Iterable[str], watch: Watch | None = None) -> dict[str, Node | None]:
        found = super().get_many(paths, watch)
        then, self.meanwhile = self.meanwhile, bool
        then()
        return found


def test_a_node_that_comes_back_while_it_is_read_is_seen(zookeeper: str) -> None:
    """What was known of it before it went does not make the news of its return an old one."""
    changed = threading.Event()
    with _session(zookeeper, kind=_Slow) as session, _session(zookeeper) as other:
        assert isinstance(session, _Slow)
        ensure_chroot(session)
        other.create("/b", b"1")
        cache = NodeCache(session, changed.set)
        assert (None, b"1") == _data(cache)
        other.delete("/b")
        assert changed.wait(5)
        changed.clear()

        def comes_back() -> None:
            other.create("/b", b"2")
            assert changed.wait(5)

        session.meanwhile = comes_back
        _data(cache)

        assert (None, b"2") == _data(cache)


def _create(session: Session, cache: NodeCache) -> None:
    """Create a node, and read it behind that."""
    made = session.transaction().create("/b", b"mine").send()
    take = cache.ask("/b")
    made()
    take()
