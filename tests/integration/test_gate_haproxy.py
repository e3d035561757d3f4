"""The `haproxy` gate on a real HAProxy in front of two real instances."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import deployd_core.testing
from deployd_core.api import ConfigError, Connections, GateCall, Instance, InstanceCall, Unavailable
from deployd_core.testing.balancers import Haproxy
from deployd_core.testing.instances import eventually
from deployd_plugins.gates.haproxy import HaproxyGate, HaproxyOptions

LOAD_SERVER = Path(deployd_core.testing.__file__).with_name("load_server.py")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


class Site:
    """Two instances behind HAProxy, and how they are called."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "web"
        self.leases = directory / "leases"
        self.ports = [free_port(), free_port()]
        self.processes: list[subprocess.Popen[bytes]] = []
        for name in ("releases/v1", "shared"):
            (self.root / name).mkdir(parents=True)
        (self.root / "releases" / "v1" / "VERSION").write_text("v1")
        servers = [f"127.0.0.1:{port}" for port in self.ports]
        self.haproxy = Haproxy(directory / "haproxy", servers, listen=f"127.0.0.1:{free_port()}")
        self.gate = HaproxyGate(HaproxyOptions(socket=str(self.haproxy.socket), leases=str(self.leases)))

    def start(self) -> None:
        for port in self.ports:
            command = [sys.executable, "-S", "-E", str(LOAD_SERVER), str(port), "--start-seconds", "0", "--cold-seconds", "0"]
            self.processes.append(subprocess.Popen(command, cwd=self.root / "releases" / "v1"))
        for port in self.ports:
            wait_for_port(port)
        self.haproxy.start()

    def stop(self) -> None:
        self.haproxy.stop()
        for process in self.processes:
            process.kill()
            process.wait()

    def call(self, index: int = 0, *, timeout: float = 5.0) -> InstanceCall:
        instance = Instance.parse("web", f"web@{self.ports[index]}")
        return InstanceCall(service="web", host="h1", zone="a", root=self.root, timeout=timeout, instance=instance)

    def closing(self, index: int = 0, *, seconds: float = 60.0, owner: str = "h1/7/9", hold: bool = False) -> GateCall:
        call = self.call(index)
        fields = {name: getattr(call, name) for name in call.__struct_fields__}
        return GateCall(**fields, until=time.time() + seconds, owner=owner, hold=hold)

    def ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.haproxy.socket))
            connection.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def state(self, index: int = 0) -> int:
        [row] = [row for row in self.ask("show servers state web").splitlines() if f" {self.server(index)} " in row]
        return int(row.split()[6])

    def server(self, index: int = 0) -> str:
        return f"web-{self.ports[index]}"

    def answered(self) -> list[int]:
        """How many requests each instance has begun."""
        found = []
        for port in self.ports:
            [counts] = (self.root / "shared").glob(f"{port}.*.requests")
            found.append(int.from_bytes(counts.read_bytes()[:8], sys.byteorder))
        return found


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        else:
            return


def get(address: str, milliseconds: int, cookie: str = "") -> int:
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", f"/work?ms={milliseconds}", headers={"Cookie": cookie})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    try:
        site.start()
        yield site
    finally:
        site.stop()


def test_closed_instance_gets_nothing_until_it_is_opened(site: Site) -> None:
    """Closing sends every request elsewhere, closing again moves the end of the lease, and opening brings its share back."""
    site.gate.close(site.closing())
    site.gate.close(site.closing(seconds=90))
    before = site.answered()
    for _ in range(4):
        assert get(site.haproxy.listen, 0) == 200

    [closed] = site.gate.closed(site.call())
    assert ("web", f"web@{site.ports[0]}", "h1/7/9") == (closed.service, closed.instance, closed.owner)
    assert closed.until > time.time() + 80
    assert [0, 4] == [after - earlier for after, earlier in zip(site.answered(), before, strict=True)]

    site.gate.open(site.call())
    site.gate.open(site.call())
    for _ in range(4):
        assert get(site.haproxy.listen, 0) == 200
    assert () == site.gate.closed(site.call())
    assert [2, 6] == [after - earlier for after, earlier in zip(site.answered(), before, strict=True)]


def test_request_under_way_counts_until_it_has_ended(site: Site) -> None:
    """A request that was there before the gate closed is busy, is answered, and then nothing is in flight."""
    site.gate.close(site.closing(1))
    client = threading.Thread(target=get, args=(site.haproxy.listen, 700))
    client.start()
    while site.gate.connections(site.call()).busy == 0:
        time.sleep(0.01)
    site.gate.open(site.call(1))
    site.gate.close(site.closing())

    assert site.gate.connections(site.call()).busy == 1
    client.join()
    assert site.gate.connections(site.call()).busy == 0


def test_pooled_connection_is_not_in_flight(site: Site) -> None:
    """What HAProxy keeps open for later is neither busy nor idle: it will not use it while the server is drained."""
    assert get(site.haproxy.listen, 0) == 200
    assert get(site.haproxy.listen, 0) == 200

    found = [site.gate.connections(site.call(index)) for index in (0, 1)]

    assert [(0, 0), (0, 0)] == [(one.busy, one.idle) for one in found]
    assert all(one.recent for one in found)


def test_silence_is_not_recent(site: Site) -> None:
    """An instance that no client has used says so."""
    assert Connections(busy=0, in_rotation=True) == site.gate.connections(site.call())


def test_a_server_is_in_rotation_when_haproxy_itself_says_so(site: Site) -> None:
    """Not while it is drained, and not while HAProxy's own checks are not sure of it."""

    def in_rotation() -> bool:
        return site.gate.connections(site.call()).in_rotation

    assert in_rotation()
    site.gate.close(site.closing())
    assert not in_rotation()
    site.gate.open(site.call())
    assert in_rotation()

    server = f"web/{site.server()}"
    site.ask(f"enable health {server}")
    site.ask(f"set server {server} health down")
    assert not in_rotation()
    site.ask(f"set server {server} health up")
    assert in_rotation()


def test_another_process_finds_and_opens_what_a_dead_one_has_closed(site: Site) -> None:
    """Nothing is kept in the process: a gate object made afterwards, even under another spec, lists and opens it."""
    site.gate.close(site.closing(seconds=-1))
    other = HaproxyGate(HaproxyOptions(socket="/nonexistent", server="gone/{port}", leases=str(site.leases)))

    [closed] = other.closed(site.call())
    assert closed.until < time.time()
    other.open(site.call())

    assert site.state() == 0


def test_all_leases_are_listed_and_cleared_with_no_spec_at_hand(site: Site) -> None:
    """`deployd drains` finds every lease by the directory alone, opens those that have run out, or those of an instance, or all."""
    other = HaproxyGate(HaproxyOptions(leases=str(site.leases)))
    site.gate.close(site.closing(0, seconds=-1))
    site.gate.close(site.closing(1))
    names = [f"web@{port}" for port in site.ports]
    assert set(names) == {closed.instance for closed in other.closed_everywhere()}

    assert [names[0]] == [closed.instance for closed in other.clear(expired_only=True)]
    assert (0, 8) == (site.state(0), site.state(1))
    assert () == other.clear("web", names[0])
    assert () == other.clear("api")
    assert [names[1]] == [closed.instance for closed in other.clear("web")]
    assert (0, 0) == (site.state(0), site.state(1))
    assert () == other.closed_everywhere()


def test_haproxy_that_is_gone_does_not_keep_others_closed(site: Site) -> None:
    """What each lease says is listed; clearing opens what it can, and then says which HAProxy did not answer."""
    site.gate.close(site.closing(0))
    [lease] = site.leases.glob("*.json")
    gone = lease.read_bytes().replace(str(site.haproxy.socket).encode(), b"/nonexistent.sock").replace(b'"web@', b'"gone@')
    (site.leases / "a.json").write_bytes(gone)

    assert [f"gone@{site.ports[0]}", f"web@{site.ports[0]}"] == [found.instance for found in site.gate.closed_everywhere()]
    with pytest.raises(Unavailable, match=r"/nonexistent\.sock"):
        site.gate.clear()
    assert site.state() == 0


def test_doctor_is_told_the_version_and_the_weakness(site: Site) -> None:
    """The gate says which HAProxy it speaks to, and that leases there do not end by themselves."""
    told = site.gate.explain(site.call())

    assert str(site.haproxy.socket) in told
    assert "leases do not end by themselves" in told


def test_drain_by_a_person_is_not_ours_and_stays(site: Site) -> None:
    """A server that somebody has drained is not listed, opening leaves it alone, and closing and opening give it back drained."""
    site.ask(f"set server web/{site.server()} state drain")
    assert () == site.gate.closed(site.call())
    site.gate.open(site.call())
    assert site.state() == 8

    site.gate.close(site.closing())
    site.gate.close(site.closing())
    site.gate.open(site.call())

    assert site.state() == 8


def test_maintenance_by_a_person_comes_back(site: Site) -> None:
    """A server in maintenance is given back in maintenance."""
    site.ask(f"set server web/{site.server()} state maint")
    site.gate.close(site.closing())
    assert site.state() == 8
    site.gate.open(site.call())

    assert site.state() == 1


@pytest.mark.parametrize(("state", "bits"), [("maint", 1), ("ready", 0)])
def test_what_a_person_does_in_mid_drain_stays(site: Site, state: str, bits: int) -> None:
    """A server that somebody puts into maintenance, or opens, while its gate is closed is given back so, renewed lease or not."""
    for renewed in (False, True):
        site.gate.close(site.closing())
        site.ask(f"set server web/{site.server()} state {state}")
        if renewed:
            site.gate.close(site.closing())
        site.gate.open(site.call())

        assert site.state() == bits
        site.ask(f"set server web/{site.server()} state ready")


@pytest.mark.parametrize(
    ("backend", "server"),
    [("cookie SRV insert indirect nocache", " cookie {server}"), ("stick-table type ip size 1k\n    stick on src", "")],
)
def test_clients_that_stick_to_a_server_go_elsewhere(site: Site, backend: str, server: str) -> None:
    """A client with a cookie or a place in a table is sent elsewhere, what it has under way is answered, and then it comes back."""
    site.haproxy.stop()
    text = site.haproxy.configuration().replace("balance roundrobin", f"balance roundrobin\n    {backend}")
    for index, port in enumerate(site.ports):
        text = text.replace(f" 127.0.0.1:{port}", f" 127.0.0.1:{port}" + server.format(server=site.server(index)))
    path = site.haproxy.directory / "sticky.conf"
    path.write_text(text)
    with subprocess.Popen(site.haproxy.command(path)) as process:
        try:
            wait_for_port(int(site.haproxy.listen.rpartition(":")[2]))
            idle = site.answered()
            assert get(site.haproxy.listen, 0, cookie=f"SRV={site.server()}") == 200
            stuck = [after - before for after, before in zip(site.answered(), idle, strict=True)].index(1)
            client = threading.Thread(target=get, args=(site.haproxy.listen, 3000, f"SRV={site.server(stuck)}"))
            client.start()
            while site.gate.connections(site.call(stuck)).busy == 0:
                time.sleep(0.01)

            site.gate.close(site.closing(stuck))
            site.gate.close(site.closing(stuck))
            before = site.answered()
            assert get(site.haproxy.listen, 0, cookie=f"SRV={site.server(stuck)}") == 200
            assert site.gate.connections(site.call(stuck)).busy == 1
            client.join()
            assert before[stuck] == site.answered()[stuck]
            assert f"web@{site.ports[stuck]}" == site.gate.closed(site.call(stuck))[0].instance

            site.gate.open(site.call(stuck))
            assert site.state(stuck) == 0
        finally:
            process.terminate()


def test_restart_of_haproxy_opens_and_the_gate_says_so(site: Site) -> None:
    """Whether an instance is closed is asked of HAProxy, not of our file: after it was restarted nothing is closed."""
    site.gate.close(site.closing())
    site.haproxy.stop()
    site.haproxy.start()

    assert () == site.gate.closed(site.call())
    site.gate.close(site.closing())
    site.gate.open(site.call())
    assert site.state() == 0


def test_request_of_a_process_from_before_a_reload_is_busy(site: Site) -> None:
    """A reload leaves requests to the old process of HAProxy; they are in flight until they are answered."""
    answers: list[int] = []
    client = threading.Thread(target=lambda: answers.append(get(site.haproxy.listen, 4000)))
    client.start()
    while not (busy := [index for index in (0, 1) if site.gate.connections(site.call(index)).busy]):
        time.sleep(0.01)
    [index], before = busy, pid_of(site)
    command = [*site.haproxy.command(site.haproxy.directory / "haproxy.conf"), "-sf", before]
    with subprocess.Popen(command) as reloaded:
        try:
            while pid_of(site) in ("", before):
                time.sleep(0.01)

            site.gate.close(site.closing(index))
            assert site.gate.connections(site.call(index)).busy == 1
            assert answers == []
            client.join()
            assert answers == [200]
            assert eventually(lambda: site.gate.connections(site.call(index)).busy == 0)
        finally:
            reloaded.terminate()


def pid_of(site: Site) -> str:
    """The process of HAProxy that answers, or nothing while none does."""
    try:
        return next(line.split()[1] for line in site.ask("show info").splitlines() if line.startswith("Pid:"))
    except (OSError, StopIteration):
        return ""


def test_lease_left_by_a_crash_is_not_held_against_a_later_drain(site: Site) -> None:
    """A lease whose server is open is forgotten once it has run out, so that a drain by hand afterwards stays a person's."""
    site.gate.close(site.closing(seconds=-1))
    site.ask(f"set server web/{site.server()} state ready")
    assert () == site.gate.closed(site.call())
    site.ask(f"set server web/{site.server()} state drain")

    assert () == site.gate.closed(site.call())


def test_server_that_has_gone_needs_no_opening(site: Site) -> None:
    """A backend that was renamed while a gate was closed is no longer closed, and opening it is done."""
    site.gate.close(site.closing())
    [lease] = site.leases.glob("*.json")
    lease.write_bytes(lease.read_bytes().replace(b'"web/web-', b'"old/web-'))

    assert () == site.gate.closed(site.call())
    site.gate.open(site.call())
    assert not lease.exists()


@pytest.mark.parametrize("server", ["web/nobody", "nowhere/web-{port}"])
def test_unknown_server_is_named(site: Site, server: str) -> None:
    """HAProxy answers in words, not codes; they become an error that names the server, for every question."""
    gate = HaproxyGate(HaproxyOptions(socket=str(site.haproxy.socket), server=server, leases=str(site.leases)))
    with pytest.raises(ConfigError, match="has no server") as caught:
        gate.close(site.closing())
    assert "show servers state" in caught.value.hint
    with pytest.raises(ConfigError, match="has no server"):
        gate.connections(site.call())
    assert () == gate.closed(site.call())


def connects(path: Path) -> bool:
    """Whether somebody listens on a socket."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        return True
    return False


def test_socket_that_may_only_look_is_told(site: Site) -> None:
    """A socket without `level admin` is a matter of configuration, and the error says which line; nothing counts as closed."""
    site.haproxy.stop()
    text = site.haproxy.configuration().replace("level admin", "level operator")
    path = site.haproxy.directory / "operator.conf"
    path.write_text(text.replace(site.haproxy.listen, f"127.0.0.1:{(port := free_port())}"))
    with subprocess.Popen(site.haproxy.command(path)) as process:
        try:
            wait_for_port(port)
            assert eventually(lambda: connects(site.haproxy.socket))  # a moment after it has begun to take clients
            with pytest.raises(ConfigError, match="may only look") as caught:
                site.gate.close(site.closing())
            assert "level admin" in caught.value.hint
            assert () == site.gate.closed(site.call())
            with pytest.raises(ConfigError, match="may only look"):
                site.gate.explain(site.call())
        finally:
            process.terminate()


def test_absent_haproxy_is_worth_another_try(site: Site) -> None:
    """Without a HAProxy the error names the socket, and is one to retry: its state is unknown, not open."""
    site.gate.close(site.closing())
    site.haproxy.stop()
    for question in (site.gate.closed, site.gate.connections, site.gate.open):
        with pytest.raises(Unavailable, match=str(site.haproxy.socket)) as caught:
            question(site.call())
        assert "stats socket" in caught.value.hint


@pytest.mark.parametrize(("answer", "words"), [(b"SSH-2.0-OpenSSH\r\n", "does not answer as HAProxy does"), (None, "in 0.2 s")])
def test_strange_and_silent_sockets(tmp_path: Path, answer: bytes | None, words: str) -> None:
    """Whatever answers instead of HAProxy, or does not, the error is ours and comes in time; over TCP as over a socket file."""
    site = Site(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer or b"")
                if answer is None:
                    connection.recv(1)

        server = threading.Thread(target=serve)
        server.start()
        gate = HaproxyGate(HaproxyOptions(socket=f"127.0.0.1:{listening.getsockname()[1]}"))
        with pytest.raises(Unavailable, match=words):
            gate.connections(site.call(timeout=0.2))
        server.join()


def test_runtime_api_over_tcp(site: Site) -> None:
    """A HAProxy elsewhere is spoken to over host:port."""
    site.haproxy.stop()
    port = free_port()
    text = site.haproxy.configuration().replace("defaults\n", f"    stats socket ipv4@127.0.0.1:{port} level admin\ndefaults\n")
    path = site.haproxy.directory / "tcp.conf"
    path.write_text(text)
    with subprocess.Popen(site.haproxy.command(path)) as process:
        try:
            wait_for_port(port)
            wait_for_port(int(site.haproxy.listen.rpartition(":")[2]))
            HaproxyGate(HaproxyOptions(socket=f"127.0.0.1:{port}", leases=str(site.leases))).close(site.closing())
            assert site.state() == 8
        finally:
            process.terminate()


def test_holding_back_is_refused(site: Site) -> None:
    """HAProxy would turn clients away where the spec wants them to wait: that is said, and nothing is closed."""
    with pytest.raises(ConfigError, match="cannot hold back"):
        site.gate.close(site.closing(hold=True))
    assert site.state() == 0


def test_broken_lease_is_told_by_its_path(site: Site) -> None:
    """A file that is no lease stops with its path, rather than leaving a server drained in silence."""
    site.gate.close(site.closing())
    [lease] = site.leases.glob("*.json")
    lease.write_text("{")
    with pytest.raises(ConfigError, match=str(lease)):
        site.gate.closed(site.call())


def test_broken_lease_keeps_no_other_server_closed(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is no lease does not hide those of other services, nor keep their servers drained; the log names it."""
    site.gate.close(site.closing())
    broken = site.leases / "h1:other:other@9000.json"
    broken.write_text("{")

    assert 1 == len(site.gate.closed(site.call()))
    assert 1 == len(site.gate.closed_everywhere())
    assert 1 == len(site.gate.clear())
    assert site.state() == 0
    assert str(broken) in caplog.text


@pytest.mark.parametrize(
    "options", [{"server": "web"}, {"server": "a/b/c"}, {"server": "web/web@8001"}, {"socket": "/" + "a" * 120}]
)
def test_options_that_cannot_be_are_refused_with_the_spec(options: dict[str, str]) -> None:
    """What HAProxy could never have is found when the spec is read."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(options, HaproxyOptions)


def test_instance_name_with_an_at_cannot_be_a_server(tmp_path: Path) -> None:
    """A template that yields an @ is refused before HAProxy is asked: it could not be one of its names."""
    site = Site(tmp_path)
    gate = HaproxyGate(HaproxyOptions(socket=str(tmp_path / "none.sock"), server="web/{instance}"))
    with pytest.raises(ConfigError, match="cannot be a backend/server"):
        gate.connections(site.call())
