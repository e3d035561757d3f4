"""The simulator tells what real engines do: the same spec on real disks, processes and threads, act by act."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deployd_core.clock import Clock, SystemClock
from deployd_core.engine import Engine
from deployd_core.events import Events
from deployd_core.packing import pack
from deployd_core.performing import Identity
from deployd_core.plugins import Plugins, convert
from deployd_core.simulate.runner import simulate
from deployd_core.simulate.scenario import Behaviour, Scenario, roster
from deployd_core.spec import ServiceSpec
from deployd_core.tasks import Tasks, ThreadTasks
from deployd_core.testing.coordination import MemoryEnsemble

PLUGINS = Plugins.load()
HOSTS = roster(3, 1)
_PATIENCE = 60.0


class Recorded:
    """Tasks on threads, with a note of each that begins."""

    def __init__(self, inner: Tasks, notes: list[str]) -> None:
        self._inner = inner
        self._notes = notes

    @property
    def busy(self) -> frozenset[str]:
        return self._inner.busy

    def start(self, key: str, function: Callable[[], Any], *, timeout: float, epoch: int, exclusive: bool = False) -> None:
        self._notes.append(key)
        self._inner.start(key, function, timeout=timeout, epoch=epoch, exclusive=exclusive)

    def collect(self) -> list[Any]:
        return self._inner.collect()

    def next_deadline(self) -> float | None:
        return self._inner.next_deadline()


class Fleet:
    """An engine per host, in threads of this process, around one ensemble in memory."""

    def __init__(self, directory: Path, spec: ServiceSpec) -> None:
        self.directory = directory
        self.ensemble = MemoryEnsemble()
        self.ensemble.apply_spec("web", spec)
        self.notes: dict[str, list[str]] = {}
        """Acts of each host, as they began."""
        self._stop = threading.Event()
        self._engines: dict[str, Engine] = {}
        self._threads: list[threading.Thread] = []
        for setup in HOSTS:
            (directory / setup.name).mkdir()
            coordination = self.ensemble.coordination(setup.name, lambda _, host=setup.name: self._engines[host].wake())
            coordination.join("web", setup.zone)
            coordination.snapshot("web")
            identity = Identity(
                host=setup.name,
                zone=setup.zone,
                address="127.0.0.1",
                owner=f"{setup.name}/1/1.00",
                version="1",
                state_directory=directory,
            )
            self._engines[setup.name] = Engine(
                "web",
                identity,
                coordination=coordination,
                plugins=PLUGINS,
                events=Events([]),
                clock=SystemClock(),
                observe_every=30.0,
                make_tasks=self._make_tasks(setup.name),
            )

    def _make_tasks(self, host: str) -> Callable[[Clock, Callable[[], None]], Tasks]:
        notes = self.notes[host] = []
        return lambda clock, wake: Recorded(ThreadTasks(clock, wake), notes)

    def start(self) -> None:
        for engine in self._engines.values():
            thread = threading.Thread(target=engine.run, args=(self._stop,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def enable(self, build: str) -> None:
        """Enable a build, and wait until every host is done with it."""
        content = self.directory / f"content-{build}"
        content.mkdir()
        (content / "BUILD").write_text(build)
        digest = pack(content, self.directory / f"{build}.tar.gz").digest
        self.ensemble.enable("web", build, digest)
        deadline = time.monotonic() + _PATIENCE
        while not all(self._tidied(host, build) for host in self.notes):
            assert time.monotonic() < deadline, self.ensemble.statuses("web")
            time.sleep(0.02)

    def _tidied(self, host: str, build: str) -> bool:
        status = self.ensemble.statuses("web")[host]
        done = status is not None and (status.step, status.served) == ("converged", build)
        return done and self.notes[host].count("tidy") == self.notes[host].count("settle")

    def close(self) -> None:
        self._stop.set()
        for engine in self._engines.values():
            engine.wake()
        for thread in self._threads:
            thread.join(30)
        for path in self.directory.glob("*/shared/*.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGKILL)


def spec_at(directory: Path, options: dict[str, Any]) -> ServiceSpec:
    """Two instances on each host that do nothing but live."""
    start = "sleep 1000 >/dev/null 2>&1 & echo $! > {root}/shared/{instance}.pid"
    manager = {
        "use": "command",
        "start": ["sh", "-c", start],
        "stop": ["sh", "-c", "kill -9 $(cat {root}/shared/{instance}.pid)"],
        "pid_file": "{root}/shared/{instance}.pid",
    }
    table = {
        "service": {"root": f"{directory}/{{host}}", "reserve": "0B"},
        "source": {"url": f"file://{directory}/{{build}}.tar.gz"},
        "instances": {"names": ["web-1", "web-2"], "manager": manager},
        "restart": {"strategy": "concurrency", "options": options},
    }
    return convert(table, ServiceSpec, where="test")


@contextlib.contextmanager
def running(directory: Path, spec: ServiceSpec) -> Iterator[Fleet]:
    """A fleet that serves v1."""
    fleet = Fleet(directory, spec)
    fleet.start()
    try:
        fleet.enable("v1")
        for notes in fleet.notes.values():
            notes.clear()
        yield fleet
    finally:
        fleet.close()


def in_short(keys: list[str]) -> list[str]:
    """Acts in order, without looks, reports and whether all are done, and questions for a permit that follow each other as one."""
    acts = [key for key in keys if not key.startswith(("look:", "report", "advance"))]
    return [key for before, key in zip([None, *acts], acts, strict=False) if key != before]


def simulated(spec: ServiceSpec) -> dict[str, list[str]]:
    """What the simulator says that each host does."""
    quick = Behaviour(fetch=0.05, unpack=0.05, restart=0.05, start=0.05)
    _, record = simulate(Scenario(spec=spec, hosts=HOSTS, behaviour=quick), PLUGINS, 1, full=True)
    words = [line.split(" ") for line in record.trace.splitlines()]
    return {setup.name: in_short([what[3] for what in words if what[1:3] == [setup.name, "begins"]]) for setup in HOSTS}


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({"limit": 1, "instances_at_once": 1}, ["restart:web-1", "restart:web-2"]),
        ({"limit": 2}, ["restart:web-1", "restart:web-2"]),
        ({"limit": 3, "instances_at_once": 1, "min_available": 1}, ["restart:web-1", "restart:web-2"]),
    ],
)
def test_every_host_acts_as_the_simulator_says(tmp_path: Path, options: dict[str, Any], order: list[str]) -> None:
    """Each host of a real fleet does the very acts, in the very order, that the simulator tells for the same spec."""
    spec = spec_at(tmp_path, options)
    with running(tmp_path, spec) as fleet:
        fleet.enable("v2")
        lived = {host: in_short(keys) for host, keys in fleet.notes.items()}

    assert simulated(spec) == lived
    assert {setup.name: ["fetch:v2", "unpack:v2", "takepermit", "flip", *order, "settle", "tidy"] for setup in HOSTS} == lived
