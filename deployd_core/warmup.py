"""Warm-up: the requests a fresh instance gets before its traffic comes back."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator

from deployd_core.api import InstanceCall
from deployd_core.errors import ConfigError, DeploydError, Unavailable
from deployd_core.spec import WarmupTable

_SOURCE, _MARK = "127.0.0.2", 0xDEB
"""What a closed gate lets pass unless it is told otherwise: this source on the loopback, this socket mark elsewhere."""


def send(call: InstanceCall, table: WarmupTable, *, past_gate: bool) -> None:
    """Request every path, `rounds` times over, from the instance on this host; at most `concurrency` requests are under way.

    Args:
        call: The instance.
        table: What to request, and what counts as a success.
        past_gate: Its gate is closed: come in a way that it lets pass.

    Raises:
        ConfigError: The instance has no port.
        Unavailable: A request was not answered as it should be, or not all of them were in time.
    """
    if call.instance.port is None:
        raise ConfigError(f"{call.instance.name} has no port to warm up", hint="name it NAME@PORT")
    run = _Run(call, call.instance.port, table, past_gate=past_gate)
    # Not an executor, whose threads would hold up the end of the process.
    threads = [
        threading.Thread(target=run.work, name=f"warmup-{call.instance.name}", daemon=True) for _ in range(table.concurrency)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if run.problem is not None:
        raise run.problem


class _Run:
    """One warm-up: its threads take requests from one list until that is empty, one of them fails, or time is up."""

    def __init__(self, call: InstanceCall, port: int, table: WarmupTable, *, past_gate: bool) -> None:
        self._call = call
        self._port = port
        self._table = table
        self._past_gate = past_gate
        self._statuses = table.statuses
        self._deadline = time.monotonic() + table.timeout
        self._lock = threading.Lock()
        self._requests = self._list()
        self._answered = 0
        self.problem: DeploydError | None = None

    def _list(self) -> Iterator[str]:
        for _ in range(self._table.rounds):
            yield from self._table.paths

    def work(self) -> None:
        """Send requests until there are none left, or there is a problem."""
        while True:
            with self._lock:
                path = None if self.problem else next(self._requests, None)
            if path is None:
                return
            try:
                self._ask(path)
            except DeploydError as error:
                with self._lock:
                    self.problem = self.problem or error
            else:
                with self._lock:
                    self._answered += 1

    def _ask(self, path: str) -> None:
        name = self._call.instance.name
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._late()
        connection = http.client.HTTPConnection(self._call.address, self._port, timeout=left)
        try:
            connection.sock = _connect(self._call.address, self._port, left, past_gate=self._past_gate)
            connection.request("GET", path)
            response = connection.getresponse()
            while response.read(65536):
                if time.monotonic() >= self._deadline:
                    raise self._late()
        except TimeoutError as error:
            raise self._late() from error
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{name} did not answer warm-up request {path}: {str(error) or type(error).__name__}") from error
        finally:
            connection.close()
        if not any(response.status in some for some in self._statuses):
            raise Unavailable(f"{name} answered warm-up request {path} with {response.status}, not with {self._table.success}")

    def _late(self) -> Unavailable:
        total = len(self._table.paths) * self._table.rounds
        return Unavailable(
            f"{self._call.instance.name} answered {self._answered} of {total} warm-up requests in {self._table.timeout}"
        )


def _connect(address: str, port: int, timeout: float, *, past_gate: bool) -> socket.socket:
    """A connection to the instance; with `past_gate`, one that a closed gate lets pass."""
    family, kind, protocol, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    connection = socket.socket(family, kind, protocol)
    try:
        connection.settimeout(timeout)
        if past_gate and family == socket.AF_INET and ipaddress.ip_address(place[0]).is_loopback:
            connection.bind((_SOURCE, 0))
        elif past_gate:
            with contextlib.suppress(PermissionError):  # not root: then no firewall is closed either
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _MARK)
        connection.connect(place)
    except OSError:
        connection.close()
        raise
    return connection
