"""The probes that ship, against real servers that answer well, badly, slowly or not at all."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deployd_core.api import Health, InstanceCall, Size
from deployd_core.testing.instances import Server
from deployd_core.testing.sample import SampleService
from deployd_core.units import Duration
from deployd_plugins.probes.command import CommandProbe, CommandProbeOptions
from deployd_plugins.probes.http import HttpOptions, HttpProbe
from deployd_plugins.probes.tcp import TcpOptions, TcpProbe

Call = Callable[..., InstanceCall]


class Pages(BaseHTTPRequestHandler):
    """`/<status>` answers with that status; the body repeats who asked for what."""

    def do_GET(self) -> None:
        status = int(self.path.partition("?")[0].strip("/") or 200)
        body = f"{self.command} {self.path} from {self.client_address[0]} as {self.headers['X-Probe']}".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 302:
            self.send_header("Location", "/200")
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def call(tmp_path: Path) -> Call:
    service = SampleService(tmp_path / "web")

    def make(port: int | None = None, timeout: float = 10.0) -> InstanceCall:
        return service.call("web" if port is None else f"web@{port}", timeout)

    return make


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def port(server: ThreadingHTTPServer) -> int:
    return server.server_port


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture
def crooked() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    """Serves one connection as it is told, on the port that it returns."""
    threads, sockets = [], []

    def serve(behave: Callable[[socket.socket], None]) -> int:
        listening = socket.create_server(("127.0.0.1", 0))
        sockets.append(listening)

        def run() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                behave(connection)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return int(listening.getsockname()[1])

    yield serve
    for thread in threads:
        thread.join()
    for listening in sockets:
        listening.close()


def http(path: str = "/", **options: Any) -> HttpProbe:
    return HttpProbe(HttpOptions(url=f"http://127.0.0.1:{{port}}{path}", **options))


def test_good_answer_is_healthy(call: Call, port: int) -> None:
    """A status in the expected range is health."""
    assert http().check(call(port)).health is Health.HEALTHY


@pytest.mark.parametrize("url", ["http://{address}:{port}/", "http://[{address}]:{port}/"])
def test_ipv6_address_of_the_host_is_asked(call: Call, url: str) -> None:
    """An IPv6 address of agent.toml becomes a host of the URL, in brackets or without them, and of the tcp probe."""
    with Server(0) as server:
        asked = msgspec.structs.replace(call(server.socket.getsockname()[1]), address="::1")
        assert HttpProbe(HttpOptions(url=url)).check(asked).health is Health.HEALTHY
        assert TcpProbe(TcpOptions()).check(asked).health is Health.HEALTHY
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "expected", "health"),
    [
        ("/200", ("200-299",), Health.HEALTHY),
        ("/404", ("200-299",), Health.UNHEALTHY),
        ("/503", ("200-299",), Health.UNHEALTHY),
        ("/302", ("200-299",), Health.UNHEALTHY),
        ("/302", ("200-399",), Health.HEALTHY),
        ("/404", (200, 404), Health.HEALTHY),
        ("/204", (200, "404-410"), Health.UNHEALTHY),
    ],
)
def test_status_decides_and_redirects_are_not_followed(
    call: Call, port: int, path: str, expected: tuple[int | str, ...], health: Health
) -> None:
    """Only an expected status is health, and a redirect is the status that it has."""
    verdict = http(path, status=expected).check(call(port))
    assert health is verdict.health
    assert path[1:] in verdict.reason


def test_body_must_hold_the_text(call: Call, port: int) -> None:
    """A good status with the wrong body is not health; how much is read is bounded."""
    assert http("/?q=1", contains="GET /?q=1").check(call(port)).health is Health.HEALTHY
    verdict = http(contains="all good").check(call(port))
    assert verdict.health is Health.UNHEALTHY
    assert "without 'all good'" in verdict.reason
    assert http(contains="GET /", max_body=Size("3B")).check(call(port)).health is Health.UNHEALTHY


def test_request_is_as_told(call: Call, port: int) -> None:
    """Method, headers and the address to ask from are those of the options."""
    probe = http(
        "/",
        method="POST",
        headers={"X-Probe": "{instance}"},
        source_ip="127.0.0.2",
        contains=f"POST / from 127.0.0.2 as web@{port}",
    )
    assert probe.check(call(port)).health is Health.HEALTHY


def test_nobody_there_is_unhealthy(call: Call, free_port: int) -> None:
    """A refused connection is the instance's doing."""
    verdict = http().check(call(free_port))
    assert verdict.health is Health.UNHEALTHY
    assert "refused" in verdict.reason


def never_answer(connection: socket.socket) -> None:
    connection.recv(1)


def drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    stopped = threading.Event()
    try:
        while not stopped.wait(0.02):
            connection.sendall(b"X")
    except OSError:
        return


def drip_body(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    drip(connection)


@pytest.mark.parametrize("behave", [never_answer, drip, drip_body])
def test_whole_answer_must_come_in_time(call: Call, crooked: Callable[..., int], behave: Callable[[socket.socket], None]) -> None:
    """Silence, and a byte now and then, are given up when the time of the probe is over."""
    verdict = http(timeout=Duration("300ms"), contains="ok").check(call(crooked(behave)))
    assert verdict.health is Health.UNHEALTHY


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"])
def test_broken_answer_is_unhealthy(call: Call, crooked: Callable[..., int], answer: bytes) -> None:
    """A connection that closes, another protocol, half an answer: none of them is health."""
    verdict = http(contains="whole").check(call(crooked(lambda connection: connection.sendall(answer))))
    assert verdict.health is Health.UNHEALTHY
    assert verdict.reason


@pytest.mark.parametrize(
    "options",
    [
        {"url": "http://no-such-host.invalid:{port}/"},
        {"url": "ftp://127.0.0.1:{port}/"},
        {"url": "http://127.0.0.1:{nothing}/"},
        {"url": "http://127.0.0.1:99999999/"},
        {"url": "http://127.0.0.1:{port}/a b"},
        {"source_ip": "192.0.2.1"},
        {"source_ip": "not an address"},
        {"headers": {"X": "a\nb"}},
    ],
)
def test_what_cannot_be_asked_is_unknown(call: Call, port: int, options: Mapping[str, Any]) -> None:
    """A name that does not resolve, or options that make no sense, teach nothing; the reason says what is wrong."""
    verdict = HttpProbe(HttpOptions(**options)).check(call(port))
    assert verdict.health is Health.UNKNOWN
    assert verdict.reason


def test_certificate_is_checked_unless_told_otherwise(call: Call, server: ThreadingHTTPServer, tmp_path: Path) -> None:
    """A certificate that nobody vouches for is no health, until the options say not to care."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    subprocess.run([*request, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    url = "https://127.0.0.1:{port}/"
    verdict = HttpProbe(HttpOptions(url=url)).check(call(server.server_port))
    assert verdict.health is Health.UNHEALTHY
    assert "certificate" in verdict.reason.lower()
    assert HttpProbe(HttpOptions(url=url, verify=False)).check(call(server.server_port)).health is Health.HEALTHY


@pytest.mark.parametrize("status", ["ok", "200-", "-300", "2xx", ""])
def test_status_that_cannot_be_is_refused_with_the_options(status: str) -> None:
    """A status that is neither a number nor a range is found when the spec is read."""
    with pytest.raises(ValueError, match="must be a number such as 200 or a range"):
        HttpOptions(status=(status,))


def test_connection_is_health_for_tcp(call: Call, port: int) -> None:
    """An instance that takes a connection is healthy."""
    assert TcpProbe(TcpOptions()).check(call(port)).health is Health.HEALTHY


def test_refused_connection_is_unhealthy_for_tcp(call: Call, free_port: int) -> None:
    """A refused connection is the instance's doing."""
    verdict = TcpProbe(TcpOptions()).check(call(free_port))
    assert verdict.health is Health.UNHEALTHY
    assert "refused" in verdict.reason


def test_full_backlog_is_unhealthy_for_tcp(call: Call) -> None:
    """A server that does not take its connections is given up when the time of the probe is over."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        with closing(socket.create_connection(listening.getsockname())):
            verdict = TcpProbe(TcpOptions(timeout=Duration("200ms"))).check(call(listening.getsockname()[1]))
    assert verdict.health is Health.UNHEALTHY
    assert "no answer in 0.2 s" == verdict.reason


def test_meeting_oneself_is_not_health(call: Call, free_port: int) -> None:
    """A connection from a port to that very port succeeds in Linux, though nobody listens."""
    options = TcpOptions(source_ip="127.0.0.1")
    probe = TcpProbe(options)
    assert all(probe.check(call(free_port)).health is Health.UNHEALTHY for _ in range(200))


@pytest.mark.parametrize("options", [{"host": "no-such-host.invalid"}, {"port": "http"}, {"port": "0"}, {"source_ip": "192.0.2.1"}])
def test_what_cannot_be_connected_to_is_unknown(call: Call, port: int, options: Mapping[str, Any]) -> None:
    """A name that does not resolve, or options that make no sense, teach nothing."""
    assert TcpProbe(TcpOptions(**options)).check(call(port)).health is Health.UNKNOWN


def test_instance_without_a_port_is_unknown(call: Call) -> None:
    """Where there is no port to fill in, nothing can be learnt."""
    assert TcpProbe(TcpOptions()).check(call()).health is Health.UNKNOWN
    assert HttpProbe(HttpOptions()).check(call()).health is Health.UNKNOWN


def test_exit_code_decides_for_commands(call: Call) -> None:
    """0 is health, anything else is not, with the tail of the output as the reason."""
    assert CommandProbe(CommandProbeOptions(argv=("true",))).check(call()).health is Health.HEALTHY
    verdict = CommandProbe(
        CommandProbeOptions(argv=("sh", "-c", "echo $WHO is not ready; exit 3"), env={"WHO": "{instance}"})
    ).check(call())
    assert (Health.UNHEALTHY, "sh exited with 3: web is not ready") == (verdict.health, verdict.reason)


def test_command_that_hangs_is_unhealthy(call: Call) -> None:
    """A command that does not end in time is killed."""
    verdict = CommandProbe(CommandProbeOptions(argv=("sleep", "60"), timeout=Duration("100ms"))).check(call())
    assert (Health.UNHEALTHY, "sleep did not end in time and was killed") == (verdict.health, verdict.reason)


@pytest.mark.parametrize("argv", [("no-such-command",), ("/etc/hostname",), ("echo", "{port}")])
def test_command_that_cannot_run_is_unknown(call: Call, argv: tuple[str, ...]) -> None:
    """A command that is missing, not executable or has no value for a placeholder teaches nothing."""
    assert CommandProbe(CommandProbeOptions(argv=argv)).check(call()).health is Health.UNKNOWN
