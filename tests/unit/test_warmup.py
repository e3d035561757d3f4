"""Warm-up requests, against a small server on a loopback address of its own."""

import http.server
import socketserver
import threading
from pathlib import Path

import msgspec
import pytest

from deployd_core import warmup
from deployd_core.config import set_up
from deployd_core.contracts import InstanceCall, Passing
from deployd_core.errors import ConfigError, Unavailable
from deployd_core.model import Instance
from deployd_core.plugins import Plugins
from deployd_core.spec import InstancesTable, ServiceSpec, ServiceTable, WarmupTable
from deployd_core.units import Duration, decode_unit


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """An instance: answers with the status that the path names, and holds ``/together`` back until all that may come are there."""

    daemon_threads = True

    def __init__(self, together=1):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []
        self.barrier = threading.Barrier(together)
        self.released = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.client_address[0]))
        if self.path == "/together":
            self.server.barrier.wait(10)
        if self.path == "/never":
            self.server.released.wait(10)
        status = int(self.path.strip("/")) if self.path.strip("/").isdigit() else 200
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def serve():
    """Starts servers, and ends them."""
    servers = []

    def start(**options):
        server = Server(**options)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.released.set()
        server.shutdown()
        server.server_close()


def warm(server, *paths, past_gate=False, **options):
    """Send the requests of a table."""
    port = server.server_address[1]
    instance = Instance(service="web", name=f"web@{port}", port=port)
    passing = Passing(source="127.0.0.2", mark=0xDEB) if past_gate else Passing()
    call = InstanceCall(service="web", host="h1", zone="a", root=Path("/run/web"), timeout=5.0, instance=instance, passing=passing)
    warmup.send(call, WarmupTable(paths=paths, **options))


def test_every_path_is_asked_in_order_as_often_as_the_table_says(serve):
    """One request at a time, the whole list in each round."""
    server = serve()

    warm(server, "/", "/search", rounds=2)

    assert ["/", "/search", "/", "/search"] == [path for path, _ in server.asked]


def test_requests_are_under_way_together(serve):
    """With concurrency, requests that wait for each other all come."""
    server = serve(together=3)

    warm(server, "/together", rounds=3, concurrency=3)

    assert 3 == len(server.asked)


@pytest.mark.parametrize(("past_gate", "source"), [(True, "127.0.0.2"), (False, "127.0.0.1")])
def test_a_closed_gate_is_passed_by_the_source_that_it_lets_through(serve, past_gate, source):
    """Behind a closed gate requests come from 127.0.0.2; without one they are like anybody's."""
    server = serve()

    warm(server, "/", past_gate=past_gate)

    assert [("/", source)] == server.asked


@pytest.mark.parametrize(
    ("success", "status", "fine"),
    [
        ("2xx-3xx", 302, True),
        ("2xx-3xx", 404, False),
        ("2xx, 404", 404, True),
        ("200", 204, False),
        ("200-204", 204, True),
        ("4xx", 500, False),
    ],
)
def test_a_status_is_a_success_when_the_table_says_so(serve, success, status, fine):
    """A status that is none ends the warm-up, and the message names the path and both statuses."""
    server = serve()

    if fine:
        warm(server, f"/{status}", success=success)
        return
    with pytest.raises(Unavailable, match=f"answered warm-up request /{status} with {status}, not with {success}"):
        warm(server, f"/{status}", success=success)


def test_the_first_failure_ends_it(serve):
    """Nothing more is asked of an instance that has failed."""
    server = serve()

    with pytest.raises(Unavailable):
        warm(server, "/500", "/", rounds=50)

    assert ["/500"] == [path for path, _ in server.asked]


def test_what_is_not_done_in_time_has_failed(serve):
    """The message says how far it got."""
    server = serve()

    with pytest.raises(Unavailable, match="answered 1 of 2 warm-up requests in 200ms"):
        warm(server, "/", "/never", timeout=Duration("200ms"))


def test_a_refused_connection_is_reported(serve):
    """Nobody listens: the reason is the kernel's."""
    server = serve()
    server.shutdown()
    server.server_close()

    with pytest.raises(Unavailable, match="did not answer warm-up request /: .*refused"):
        warm(server, "/")


def table(written):
    """``[instances]`` with a warm-up, as JSON holds it."""
    return msgspec.convert({"warmup": written}, InstancesTable, dec_hook=decode_unit, strict=False)


def spec(written):
    """A spec with that warm-up."""
    return ServiceSpec(
        service=ServiceTable(root="/srv/web"),
        source={"use": "file", "url": "file:///builds/{build}.tar.gz"},
        instances=table(written),
    )


def test_a_list_is_short_for_a_table():
    """Both forms are one warm-up."""
    assert spec({"paths": ["/"]}).warmup == spec(["/"]).warmup
    assert spec([]).warmup is None


@pytest.mark.parametrize(
    ("written", "problem"),
    [({"paths": ["/"], "success": "good"}, "no list of statuses"), (["search"], "must begin with a /")],
)
def test_nonsense_is_refused_with_the_spec(written, problem):
    """A warm-up that cannot work is an error of the spec, not of the deploy."""
    with pytest.raises(ConfigError, match=problem):
        set_up(spec(written), "web", Plugins.load())
