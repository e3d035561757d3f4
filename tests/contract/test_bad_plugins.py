"""What the contracts find: plugins as a stranger might write them, each caught by the test that is about its fault."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deployd_core.api import (
    ClosedGate,
    Connections,
    Download,
    Event,
    FetchCall,
    Gate,
    InstanceCall,
    Manager,
    Options,
    Release,
    Reporter,
    Source,
    Step,
    StepCall,
    StepOptions,
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
    SourceContract,
    StepContract,
    WholeReporterContract,
)
from deployd_core.testing.fakes import FakeProcesses
from deployd_core.testing.instances import Client
from deployd_plugins.sources.file import FileOptions, FileSource


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
        (NoLease, LEASE, "it neither opened by itself nor is it told of by closed_everywhere()"),
        (HidesWhatIsOver, LEASE, "it neither opened by itself nor is it told of by closed_everywhere()"),
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


class OfTheRest(FileSource):
    """Say how much is left."""

    def fetch(self, call: FetchCall) -> Download:
        found = super().fetch(call)
        return msgspec.structs.replace(found, size=(found.size or 0) - found.offset)


class BySize(FileSource):
    """Take another file of the same size for the same."""

    def fetch(self, call: FetchCall) -> Download:
        size = str(super().fetch(FetchCall(service=call.service, build=call.build, timeout=call.timeout)).size)
        known = msgspec.structs.replace(call, validator=None, offset=0)
        if call.validator == size:
            known = msgspec.structs.replace(call, validator=super().fetch(known).validator)
        return msgspec.structs.replace(super().fetch(known), validator=size)


@pytest.mark.parametrize(
    ("kind", "test", "words"),
    [
        (OfTheRest, "a-broken-transfer-is-resumed-or-begun-again", "`size` is of the whole artifact, 262144, and not of the rest"),
        (
            BySize,
            "the-rest-of-another-artifact-is-not-taken-for-the-rest-of-this-one",
            "the artifact is another since the first part was fetched, and `validator` does not tell",
        ),
    ],
)
def test_a_bad_source_is_caught(kind: type[FileSource], test: str, words: str) -> None:
    """One whose size or validator is not what they are to be."""

    class Case(SourceContract):
        def make_source(self, directory: Path) -> Source[Any]:
            return kind(FileOptions(url=f"file://{directory}/{{build}}.tar.gz"))

    found = caught(Case)

    assert [test] == list(found)
    assert words in found[test]


class Appends(Step[StepOptions]):
    """Note each run."""

    def run(self, call: StepCall) -> None:
        with (call.release.path / "runs").open("a", encoding="utf-8") as file:
            file.write("x")


class WritesBeside(Step[StepOptions]):
    """Say beside all releases which is the last."""

    def run(self, call: StepCall) -> None:
        (call.release.path / "runs").touch()
        (call.release.root / "BUILD").write_text(call.release.build.id, encoding="utf-8")


class Flips(Step[StepOptions]):
    """Put the release in service."""

    def run(self, call: StepCall) -> None:
        (call.release.path / "runs").touch()
        current = call.release.root / "current"
        current.unlink(missing_ok=True)
        current.symlink_to(call.release.path)


class WritesWhereItMay(Step[StepOptions]):
    """Leave something that outlives the release, and a line in the log."""

    def run(self, call: StepCall) -> None:
        for path in (call.release.path / "runs", call.release.shared / "last", call.log):
            path.write_text(call.release.build.id, encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "problems"),
    [
        (Appends, {"it-leaves-the-same-when-it-is-repeated": "run once more it left runs with 2 bytes after 1"}),
        (WritesBeside, {"it-touches-the-release-alone": "it touched BUILD in "}),
        (Flips, {"it-touches-the-release-alone": "it touched current in "}),
        (WritesWhereItMay, {}),
    ],
)
def test_a_bad_step_is_caught(kind: type[Step[StepOptions]], problems: dict[str, str]) -> None:
    """One that appends, or works outside of its release; what a step may do is no fault."""

    class Case(StepContract):
        def make_step(self) -> Step[Any]:
            return kind(StepOptions())

        def is_done(self, release: Release) -> bool:
            return (release.path / "runs").exists()

    found = caught(Case)

    assert list(problems) == list(found)
    assert all(words in found[test] for test, words in problems.items())


class KeepsAList(Reporter[Options]):
    """Keep events as they are."""

    def __init__(self) -> None:
        super().__init__(Options())
        self.kept: list[dict[str, Any]] = []

    def report(self, event: Event) -> None:
        self.kept.append(msgspec.structs.asdict(event))


class Truncates(KeepsAList):
    """Keep a little of each detail."""

    def report(self, event: Event) -> None:
        self.kept.append({**msgspec.structs.asdict(event), "detail": {key: str(text)[:20] for key, text in event.detail.items()}})


class Mixes(KeepsAList):
    """Put the detail beside the fields of the event."""

    def report(self, event: Event) -> None:
        self.kept.append({**msgspec.structs.asdict(event), **event.detail})


class DropsTheBuild(KeepsAList):
    """Do without the build."""

    def report(self, event: Event) -> None:
        self.kept.append({key: value for key, value in msgspec.structs.asdict(event).items() if key != "build"})


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (KeepsAList, ""),
        (Truncates, "`detail` of instance.cut arrived as "),
        (Mixes, "`name` of host.failed arrived as "),
        (DropsTheBuild, "`build` of instance.cut arrived as None"),
    ],
)
def test_a_bad_reporter_is_caught(kind: type[KeepsAList], words: str) -> None:
    """One that loses something of an event."""

    class Case(WholeReporterContract):
        @contextlib.contextmanager
        def started(self) -> Iterator[tuple[Reporter[Any], Callable[[], Sequence[str]]]]:
            self.reporter = kind()
            yield self.reporter, lambda: [found["name"] for found in self.reporter.kept]

        def passed_on(self) -> Sequence[Mapping[str, Any]]:
            return self.reporter.kept

    found = caught(Case)

    assert (["nothing-of-an-event-is-lost"] if words else []) == list(found)
    assert words in found.get("nothing-of-an-event-is-lost", "")
