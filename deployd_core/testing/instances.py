"""Small instances of a service in threads of this process, and their clients: for tests of gates."""

from __future__ import annotations

import http.client
import http.server
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, TypeVar

E = TypeVar("E", bound=Exception)

PATIENCE = 30.0
"""Seconds after which nothing more is expected to happen."""


class Server(http.server.ThreadingHTTPServer):
    """An instance: answers ``/?wait=0.5`` after half a second, over IPv4 and IPv6."""

    address_family = socket.AF_INET6
    request_queue_size = 4096
    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("::", port), _Handler)
        self.asked = threading.Event()
        """Set when a request has come."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def server_bind(self) -> None:
        """Take IPv4 too."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "localhost", int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the game."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if isinstance(self.server, Server):
            self.server.asked.set()
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        time.sleep(float(query.get("wait", ["0"])[0]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is http.server's
        """Say nothing."""


class Client(http.client.HTTPConnection):
    """A client that may come from an address, or carry a mark."""

    def __init__(self, host: str, port: int, *, source: str = "", mark: int = 0, timeout: float = 10.0) -> None:
        super().__init__(host, port, timeout=timeout)
        self.source, self.mark = source, mark

    def connect(self) -> None:
        """Connect, marked."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self.sock = socket.socket(family)
        self.sock.settimeout(self.timeout)
        if self.mark:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self.mark)
        if self.source:
            self.sock.bind((self.source, 0))
        self.sock.connect((self.host, self.port))

    def served(self, wait: float = 0.0) -> bool:
        """Ask on this connection, which stays open; whether the instance answered."""
        try:
            self.request("GET", f"/?wait={wait}")
            answer = self.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            self.close()
            return False
        return answer.status == 200


def eventually(condition: Callable[[], object], patience: float = PATIENCE) -> bool:
    """Whether something becomes true."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def free_port() -> int:
    """A port of the loopback where nobody listens now."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def refusal(kind: type[E], call: Callable[[], object]) -> E:
    """The error that a call must end with."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"it did not raise {kind.__name__}")
