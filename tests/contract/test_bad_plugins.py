"""What the contracts find: plugins as a stranger might write them, each caught by the test that is about its fault."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from deployd_core.api import (
    ClosedGate,
    Connections,
    Gate,
    InstanceCall,
    Manager,
    Options,
)
from deployd_core.conformance.suites import run_suite
from deployd_core.testing import (
    FakeBalancer,
    FakeGate,
    FakeManager,
    FakeManagerOptions,
    GateContract,
    ManagerContract,
    SampleService,
)
from deployd_core.testing.fakes import FakeProcesses
from deployd_core.testing.instances import Client


def caught(case: Callable[[], Any]) -> dict[str, str]:
    """The tests of a contract that fail, and what each says."""
    return {check.name: check.problem for check in run_suite(case) if not check.passed}


class ForEver(FakeBalancer):
    """A balancer that opens nothing by itself."""

    def admits(self, service: str, instance: str) -> bool:
        return (service, instance) not in self.gates


class BusyClient(Client):
    """Comes through the balancer, which knows what is under way."""

    balancer: FakeBalancer

    def connect(self) -> None:
        if not self.balancer.admits("web", f"web@{self.port}"):
            raise ConnectionRefusedError("closed")
        super().connect()

    def served(self, wait: float = 0.0) -> bool:
        self.balancer.busy[f"web@{self.port}"] = 1
        try:
            return super().served(wait)
        finally:
            self.balancer.busy[f"web@{self.port}"] = 0


class GateCase(GateContract):
    """A gate in memory."""

    own_network = False
    kind: type[FakeGate] = FakeGate

    def __init__(self) -> None:
        self.balancer: FakeBalancer = ForEver()

    def make_gate(self) -> Gate[Any]:
        return self.kind(Options(), self.balancer)

    def client(self, port: int, host: str = "127.0.0.1") -> Client:
        client = BusyClient(host, port)
        client.balancer = self.balancer
        return client


class NoLease(FakeGate):
    """Stays closed, and tells nobody."""

    def closed_everywhere(self) -> tuple[ClosedGate, ...]:
        return ()

    def closed(self, call: Any) -> tuple[ClosedGate, ...]:
        return tuple(found for found in self.balancer.gates.values() if found.service == call.service)


class HidesWhatIsOver(FakeGate):
    """Forgets a lease that is over, though it still closes."""

    def closed_everywhere(self) -> tuple[ClosedGate, ...]:
        return tuple(found for found in self.balancer.gates.values() if found.until > time.time())


class CountsNothing(FakeGate):
    """Takes every instance for drained."""

    def connections(self, call: InstanceCall) -> Connections:
        return Connections(busy=0)


class CountsForEver(FakeGate):
    """Never lets a drain end."""

    def connections(self, call: InstanceCall) -> Connections:
        return Connections(busy=1)


LEASE, COUNT = "no-gate-stays-closed-for-ever", "a-request-under-way-is-counted"


@pytest.mark.parametrize(
    ("kind", "test", "words"),
    [
        (NoLease, LEASE, "its lease is over, and it neither opened by itself nor is it told of by closed_everywhere()"),
        (HidesWhatIsOver, LEASE, "its lease is over, and it neither opened by itself nor is it told of by closed_everywhere()"),
        (CountsNothing, COUNT, "a request was under way, and connections() said busy=0"),
        (CountsForEver, COUNT, "it is over, and connections() still counts it"),
    ],
)
def test_a_bad_gate_is_caught(kind: type[FakeGate], test: str, words: str) -> None:
    """One that is no lease, or does not count, fails that test and no other."""
    found = caught(type("Case", (GateCase,), {"kind": kind}))

    assert [test] == list(found)
    assert words in found[test]


def test_a_gate_that_reap_opens_passes() -> None:
    """One that does not open by itself is none of these, as long as it is found and opened."""
    assert {} == caught(GateCase)


class WholeGroup(FakeManager):
    """Restart one, and take the others with it, as ``supervisorctl restart group:*`` does."""

    def restart(self, call: InstanceCall) -> None:
        super().restart(call)
        for key in [key for key in self.processes.running if key[1] != call.instance.name]:
            process = self.processes.running.pop(key)
            process.kill()
            process.wait()


class ManagerCase(ManagerContract):
    """Children of this process."""

    @contextlib.contextmanager
    def managing(self, service: SampleService, directory: Path, ports: Mapping[str, int]) -> Iterator[Manager[Any]]:
        names = tuple(f"{kind}@{port}" for kind, port in ports.items())
        command = ("/bin/sh", "-c", 'kind=${0%@*}; exec "$@" "$kind"', "{instance}", *service.command("{port}"))
        processes = FakeProcesses()
        try:
            yield WholeGroup(FakeManagerOptions(command=command, instances=names), processes)
        finally:
            processes.kill()


def test_a_manager_that_restarts_its_neighbours_is_caught() -> None:
    """No other test sees it."""
    found = caught(ManagerCase)

    assert ["its-neighbours-are-left-alone"] == list(found)
    assert "it must touch the one instance alone" in found["its-neighbours-are-left-alone"]
