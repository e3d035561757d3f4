"""What every probe guarantees: inherit `ProbeContract`, say how to make yours, and pytest runs it against real servers.

    class TestMyProbe(ProbeContract):
        def make_probe(self):
            return MyProbe(MyOptions())

The healthy instance is a small HTTP server, and nobody listens on the port of the sick one; a probe that looks elsewhere overrides
`healthy` and `sick`. `SpeakingProbeContract` is for probes that wait for an answer.
"""

# ruff: noqa: SIM300 - expected == actual, as in all tests

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from deployd_core.api import Health, Instance, InstanceCall, Passing, Probe, Verdict
from deployd_core.testing.instances import Server, free_port
from deployd_core.testing.sample import SampleService

PATIENCE = 10.0
"""Seconds over its deadline after which a probe is taken for one that hangs."""
BYPASS, LAST = "127.0.0.2", "127.0.0.9"
"""Where connections that pass a gate come from here, and the one that ends the listening."""


class ProbeContract(ABC):
    """What every probe guarantees."""

    @abstractmethod
    def make_probe(self) -> Probe[Any]:
        """The probe to test."""

    @contextlib.contextmanager
    def healthy(self, service: SampleService) -> Iterator[InstanceCall]:
        """An instance that is healthy, and is no more when the context is left."""
        server = Server(free_port())
        try:
            yield service.call(f"web@{server.server_port}", timeout=5.0)
        finally:
            server.shutdown()
            server.server_close()

    @contextlib.contextmanager
    def sick(self, service: SampleService) -> Iterator[InstanceCall]:
        """An instance that is not."""
        yield service.call(f"web@{free_port()}", timeout=5.0)

    @contextlib.contextmanager
    def service(self) -> Iterator[SampleService]:
        """A service whose `current` points at ``v1``."""
        with tempfile.TemporaryDirectory(prefix="deployd-probe-") as directory:
            service = SampleService(Path(directory) / "web")
            service.add("v1")
            service.flip("v1")
            yield service

    def test_a_healthy_instance_is_healthy(self) -> None:
        """What works is called healthy, every time."""
        with self.service() as service, self.healthy(service) as call:
            assert [Health.HEALTHY] * 3 == [self.make_probe().check(call).health for _ in range(3)]

    def test_a_sick_instance_is_not_healthy_and_the_verdict_says_why(self) -> None:
        """A verdict is returned rather than raised, and has one line for `deployd why`."""
        with self.service() as service, self.sick(service) as call:
            verdict = self.make_probe().check(call)

            assert verdict.health is not Health.HEALTHY
            assert verdict.reason.strip()
            assert "\n" not in verdict.reason

    def test_one_object_tells_instances_apart(self) -> None:
        """Instances are checked at the same time, from several threads, by one object that remembers nothing of the last."""
        with self.service() as service, self.healthy(service) as well, self.sick(service) as ill:
            probe = self.make_probe()
            with ThreadPoolExecutor(4) as threads:
                found = list(threads.map(lambda call: probe.check(call).health is Health.HEALTHY, [well, ill] * 6))

            assert [True, False] * 6 == found

    def test_a_verdict_is_of_now(self) -> None:
        """An instance that has just been found healthy and has gone since is not healthy."""
        with self.service() as service:
            probe = self.make_probe()
            with self.healthy(service) as call:
                assert probe.check(call).health is Health.HEALTHY

            assert probe.check(call).health is not Health.HEALTHY, (
                "the instance has gone, and the probe still calls it healthy: it must look each time, and remember nothing"
            )

    def test_a_check_ends_in_time(self) -> None:
        """Whatever it thinks of an instance that takes connections and never answers, it says so within `call.timeout`."""
        with self.service() as service, silence(service) as call:
            verdicts: list[Verdict] = []
            checking = threading.Thread(target=lambda: verdicts.append(self.make_probe().check(call)), daemon=True)
            checking.start()
            checking.join(call.timeout + PATIENCE)

            assert not checking.is_alive(), f"call.timeout was {call.timeout:g} s, and {PATIENCE:g} s later the check has not ended"

    def test_it_passes_a_closed_gate(self) -> None:
        """Every connection that it makes is one that a closed gate lets pass."""
        with self.service() as service, silence(service) as call:
            listening = socket.create_server(("127.0.0.1", 0))
            port = listening.getsockname()[1]
            instance = Instance.parse("web", f"web@{port}")
            peers: list[str] = []
            with listening:
                taking = threading.Thread(target=_take, args=(listening, peers))
                taking.start()
                try:
                    self.make_probe().check(msgspec.structs.replace(call, instance=instance, passing=Passing(source=BYPASS)))
                finally:
                    socket.create_connection(("127.0.0.1", port), source_address=(LAST, 0)).close()
                    taking.join()

            assert [BYPASS] * len(peers) == peers, (
                f"it connects from {peers[0]}, as any client: a closed gate turns it away, and no instance behind one is found "
                "healthy. Use call.connect(host, port, timeout)"
            )


class SpeakingProbeContract(ProbeContract):
    """For probes that wait for an answer."""

    @contextlib.contextmanager
    def silent(self, service: SampleService) -> Iterator[InstanceCall]:
        """An instance that takes connections and never answers."""
        with silence(service) as call:
            yield call

    def test_silence_is_not_health(self) -> None:
        """An instance that does not answer within `call.timeout` is not healthy, and the check ends."""
        with self.service() as service, self.silent(service) as call:
            began = time.monotonic()
            verdict = self.make_probe().check(call)

            assert verdict.health is not Health.HEALTHY
            assert verdict.reason.strip()
            assert time.monotonic() - began < call.timeout + PATIENCE


@contextlib.contextmanager
def silence(service: SampleService) -> Iterator[InstanceCall]:
    """An instance that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield service.call(f"web@{listening.getsockname()[1]}", timeout=0.5)


def _take(listening: socket.socket, peers: list[str]) -> None:
    """Note where connections come from, and end them, until the last one."""
    while True:
        connection, (address, _) = listening.accept()
        connection.close()
        if address == LAST:
            return
        peers.append(address)
