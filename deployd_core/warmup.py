"""Warm-up: the requests a fresh instance gets before its traffic comes back."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator

from deployd_core.api import InstanceCall
from deployd_core.errors import ConfigError, DeploydError, Unavailable
from deployd_core.spec import WarmupTable


def send(call: InstanceCall, table: WarmupTable) -> None:
    """Request every path, `rounds` times over, from the instance on this host; at most `concurrency` requests are under way.

    Args:
        call: The instance.
        table: What to request, and what counts as a success.

    Raises:
        ConfigError: The instance has no port.
        Unavailable: A request was not answered as it should be, or not all of them were in time.
    """
    if call.instance.port is None:
        raise ConfigError(f"{call.instance.name} has no port to warm up", hint="name it NAME@PORT")
    run = _Run(call, call.instance.port, table)
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

    def __init__(self, call: InstanceCall, port: int, table: WarmupTable) -> None:
        self._call = call
        self._port = port
        self._table = table
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
            connection.sock = self._call.connect(self._call.address, self._port, left)
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
