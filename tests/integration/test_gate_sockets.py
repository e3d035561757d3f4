"""Connections counted in the kernel: of either family, in every state; each test in a network of its own."""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from deployd_core.testing.instances import eventually
from deployd_core.testing.netns import isolated
from deployd_plugins.gates import sockets
from deployd_plugins.gates.sockets import Query

pytestmark = pytest.mark.root

PORT = 8001
ANY = Query(PORT)


@contextlib.contextmanager
def listening():
    """A socket that listens on both families."""
    with socket.socket(socket.AF_INET6) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("::", PORT))
        server.listen(4096)
        yield server


def connected(server, host="127.0.0.1"):
    """Both ends of a new connection."""
    client = socket.create_connection((host, PORT))
    return client, server.accept()[0]


def counts(query=ANY):
    """Busy and idle connections."""
    found = sockets.count(query)
    return found.busy, found.idle


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@isolated
def test_a_connection_is_followed_through_its_life(host):
    """Unused it is idle, asked it is busy, answered it is idle, half closed it is busy, and then it is gone."""
    with listening() as server:
        client, accepted = connected(server, host)
        assert (0, 1) == counts()

        client.sendall(b"request")
        assert (1, 0) == counts()
        accepted.recv(100)
        assert (1, 0) == counts()
        threading.Event().wait(0.05)  # the kernel's clock ticks: request and answer do not fall together
        accepted.sendall(b"answer")
        assert eventually(lambda: counts() == (0, 1))

        client.shutdown(socket.SHUT_WR)
        assert (1, 0) == counts()
        accepted.close()
        client.close()
        assert eventually(lambda: counts() == (0, 0))


@isolated
def test_a_request_that_nobody_has_taken_yet_is_busy():
    """A client whose connection waits to be accepted, with its request in it, has one under way."""
    with listening():
        client = socket.create_connection(("127.0.0.1", PORT))
        client.sendall(b"request")

        assert (1, 0) == counts()
        client.close()


@isolated
def test_an_answer_that_has_not_arrived_is_busy():
    """While the client has yet to take what was sent, the connection is busy."""
    with listening() as server:
        client, accepted = connected(server)
        client.sendall(b"request")
        accepted.recv(100)
        accepted.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                accepted.send(bytes(1 << 16))

        assert (1, 0) == counts()
        client.close()


@isolated
def test_a_connection_that_is_being_made_is_busy():
    """A handshake that is not complete counts: its client will send a request."""
    drop = f"iptables-legacy -A INPUT -p tcp --dport {PORT} --tcp-flags SYN,ACK,RST,FIN ACK -j DROP"
    subprocess.run(drop.split(), check=True)
    with listening(), socket.socket() as client:
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", PORT))

        assert eventually(lambda: counts() == (1, 0))


@isolated
def test_connections_to_other_ports_and_from_here_are_not_counted():
    """What the host itself connects to elsewhere, on the same number, is no client's."""
    with listening() as server, socket.create_server(("127.0.0.1", 8002)) as other:
        client = socket.create_connection(("127.0.0.1", 8002), source_address=("127.0.0.3", 9001))
        accepted = other.accept()[0]
        assert (0, 0) == counts()
        assert (0, 1) == counts(Query(8002))

        end = connected(server)
        assert (0, 1) == counts()
        assert (0, 0) == counts(Query(PORT, address="127.0.0.9"))
        assert (0, 1) == counts(Query(PORT, address="127.0.0.1"))
        for one in (client, accepted, *end):
            one.close()


@isolated
def test_two_thousand_connections_are_counted_one_by_one():
    """None is missed, and none is counted twice, however many messages it takes."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
    with listening() as server:
        ends = [connected(server, "::1" if number % 2 else "127.0.0.1") for number in range(2000)]
        for client, _ in ends[:700]:
            client.sendall(b"request")

        assert (700, 1300) == counts()
        assert (0, 0) == counts(Query(PORT, passing_source="127.0.0.1", address="127.0.0.1"))
        assert (350, 650) == counts(Query(PORT, passing_source="127.0.0.1"))


@isolated
def test_traffic_without_keep_alive_is_seen():
    """Connections that the instance closes after each answer are recent use, though a look finds none open."""
    with listening() as server:
        assert 0 == sockets.count(ANY).recent
        client, accepted = connected(server)
        client.sendall(b"request")
        accepted.recv(100)
        accepted.close()
        client.recv(100)
        client.close()
        assert eventually(lambda: counts() == (0, 0))

        assert 1 == sockets.count(ANY).recent
        assert 0 == sockets.count(Query(PORT, passing_source="127.0.0.1")).recent
        assert eventually(lambda: sockets.count(ANY).recent == 0)


@isolated
def test_an_unused_connection_is_no_traffic():
    """A connection that has carried nothing, such as a balancer's look at the port, is no use of the instance."""
    with listening() as server:
        ends = connected(server)

        assert 0 == sockets.count(ANY).recent
        for end in ends:
            end.close()


@isolated
def test_closing_an_idle_connection_tells_both_ends():
    """Client and instance learn at once that an idle connection is gone; one that is in use is left alone."""
    quick = Query(PORT, idle_after=50)
    with listening() as server:
        for host in ("127.0.0.1", "::1"):
            unused, used = connected(server, host), connected(server, host)
            used[0].sendall(b"request")
            threading.Event().wait(0.1)

            assert 1 == sockets.close_idle(quick)

            for end in unused:
                with pytest.raises(ConnectionError):
                    assert end.recv(1) == b"never"
            assert used[1].recv(100) == b"request"
            used[1].sendall(b"answer")
            assert used[0].recv(100) == b"answer"
            for end in used:
                end.close()
            assert eventually(lambda: counts() == (0, 0))


@isolated
def test_a_connection_that_was_used_after_the_look_is_left_alone():
    """A client may send a request while the list of idle connections is gone through: it gets its answer."""
    quick = Query(PORT, idle_after=50)
    with listening() as server:
        for host in ("127.0.0.1", "::1"):
            client, accepted = connected(server, host)
            threading.Event().wait(0.1)
            [listed] = [found for found in sockets._of_clients(quick, (sockets._ESTABLISHED,)) if found.idle(50)]
            client.sendall(b"request")

            assert not sockets._destroy_if_silent(listed, quick)

            assert accepted.recv(100) == b"request"
            accepted.sendall(b"answer")
            assert client.recv(100) == b"answer"
            threading.Event().wait(0.4)
            assert sockets._destroy_if_silent(listed, quick)
            accepted.close()
            with pytest.raises(FileNotFoundError):
                sockets._destroy_if_silent(listed, quick)


@isolated
def test_a_request_right_behind_an_answer_is_not_taken_for_idle():
    """Of many connections whose next request came within the same tick as the last answer, none is closed while it waits."""
    quick = Query(PORT, idle_after=300)
    with listening() as server:
        ends = [connected(server, "::1" if number % 2 else "127.0.0.1") for number in range(200)]
        for client, accepted in ends:
            for _ in range(2):  # the first answer of a connection is acknowledged at once, later ones are not
                client.sendall(b"request")
                accepted.recv(100)
                accepted.sendall(b"answer")
                client.recv(100)
            client.sendall(b"another request")
            accepted.recv(100)
        threading.Event().wait(0.8)

        assert (200, 0) == counts(quick)
        assert 0 == sockets.close_idle(quick)


@isolated
def test_answers_that_came_at_once_are_idle_in_the_end():
    """Of many connections that were answered within a tick, all are closed when they have been silent long enough."""
    quick = Query(PORT, idle_after=200)
    with listening() as server:
        ends = [connected(server, "::1" if number % 2 else "127.0.0.1") for number in range(200)]
        for client, accepted in ends:
            client.sendall(b"request")
            accepted.recv(100)
            accepted.sendall(b"answer")
            client.recv(100)

        assert eventually(lambda: counts(quick) == (0, 200))
        assert 200 == sockets.close_idle(quick)


@isolated
def test_many_threads_count_at_once():
    """Every thread has its own question to the kernel."""
    with listening() as server:
        ends = [connected(server) for _ in range(50)]
        found = []
        threads = [threading.Thread(target=lambda: found.extend(counts() for _ in range(20))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert {(0, 50)} == set(found)
        assert 80 == len(found)
        del ends


@isolated
def test_no_descriptor_is_left_open():
    """Counting and closing leave nothing behind."""
    with listening() as server:
        ends = connected(server)
        before = len([*Path("/proc/self/fd").iterdir()])

        for _ in range(20):
            sockets.count(Query(PORT, passing_mark=7))
            sockets.close_idle(Query(PORT, passing_mark=7))

        assert before == len([*Path("/proc/self/fd").iterdir()])
        for end in ends:
            end.close()
