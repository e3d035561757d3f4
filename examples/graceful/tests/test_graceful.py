"""The contract of managers, with the server of this directory, and that no request is lost."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graceful import Graceful, GracefulOptions

from deployd_core.api import Manager
from deployd_core.testing import ManagerContract, SampleService

SERVER = Path(__file__).parents[1] / "server.py"


class TestGraceful(ManagerContract):
    """All that every manager keeps to."""

    @contextmanager
    def managing(self, service: SampleService, directory: Path, ports: Mapping[str, int]) -> Iterator[Manager[Any]]:
        for release in (service.root / "releases").iterdir():
            (release / "server.py").write_text(SERVER.read_text(encoding="utf-8"), encoding="utf-8")
        names = tuple(f"{kind}@{port}" for kind, port in ports.items())
        # The kind of instance (web, peer, die, deaf) is the last argument.
        command = ("/bin/sh", "-c", 'kind=${0%@*}; exec "$@" "$kind"', "{instance}", *service.command("{port}"))
        yield Graceful(GracefulOptions(command=command, instances=names))

    def test_program_that_dies_at_once_is_not_taken_for_a_running_one(self) -> None:
        """One that ends before it has written its pid is waited for until the deadline, and refused."""
        with self.started() as bench:
            call = bench.service.call(bench.die, timeout=1.0)
            try:
                bench.manager.start(call)
            except Exception as error:
                assert "no new process wrote its pid" in str(error)  # noqa: PT017
            else:
                raise AssertionError("it was taken for a running one")

    def test_no_request_is_lost(self) -> None:
        """Clients that ask all the time are all answered, first by the old build and then by the new one."""
        with self.started() as bench:
            bench.manager.start(bench.service.call(bench.web))
            bench.serving(bench.web, "v1")
            port = int(bench.web.rpartition("@")[2])
            answers: list[bytes] = []
            stopping = threading.Event()
            asking = threading.Thread(target=lambda: _ask(port, answers, stopping))
            asking.start()
            time.sleep(0.2)
            bench.service.flip("v2")

            bench.manager.restart(bench.service.call(bench.web))

            bench.serving(bench.web, "v2")
            deadline = time.monotonic() + 10
            while answers[-1] != b"v2" and time.monotonic() < deadline:
                time.sleep(0.01)
            stopping.set()
            asking.join()
            assert {b"v1", b"v2"} == set(answers)
            assert sorted(answers) == answers


def _ask(port: int, answers: list[bytes], stopping: threading.Event) -> None:
    while not stopping.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/")
            answers.append(connection.getresponse().read())
        except OSError as error:
            answers.append(repr(error).encode())
        finally:
            connection.close()
