"""Bad strategies in a real engine, with real processes: they harm nobody, and the report says what is wrong with them."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deployd_core.api import Verdict
from deployd_core.clock import SystemClock
from deployd_core.engine import Engine
from deployd_core.events import Events
from deployd_core.performing import Identity
from deployd_core.plugins import Plugins, convert
from deployd_core.spec import ServiceSpec
from deployd_core.testing import FakeManager, FakeProbe
from deployd_core.testing.child import run_in_child
from deployd_core.testing.coordination import MemoryEnsemble

BAD = Path(__file__).parent / "plugins.d" / "bad.py"
NAMES = ["web@1", "web@2", "web@3", "web@4"]
START = 0.4
"""Seconds that an instance takes to get healthy."""


class Ended(msgspec.Struct):
    """How it ended."""

    step: str
    reason: str
    remedy: str
    last_error: str
    fewest: int
    """Healthy instances at the worst moment."""
    others: str
    """What the host's other service came to."""
    restarts: int


class Host:
    """A host with a service under a bad strategy, and one under a good one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ensemble = MemoryEnsemble()
        self.stop = threading.Event()
        self.engines: list[Engine] = []
        self.coordination = self.ensemble.coordination("h1", lambda _: [engine.wake() for engine in self.engines])
        self.fewest = len(NAMES)
        plugins = directory / "plugins.d"
        plugins.mkdir()
        (plugins / "bad.py").write_text(BAD.read_text(encoding="utf-8"), encoding="utf-8")
        (plugins / "fakes.py").write_text("from deployd_core.testing.fakes import *\n", encoding="utf-8")
        self.plugins = Plugins.load(directory=plugins)
        self.begun: dict[int, float] = {}
        FakeProbe.verdict = staticmethod(
            lambda call: Verdict.healthy() if self.is_up(call.service, call.instance.name) else Verdict.unhealthy("starts")
        )

    def is_up(self, service: str, name: str) -> bool:
        process = FakeManager.processes.running.get((service, name))
        if process is None or process.poll() is not None:
            return False
        return time.monotonic() - self.begun.setdefault(process.pid, time.monotonic()) >= START

    def apply(self, service: str, strategy: str) -> None:
        table: dict[str, Any] = {
            "service": {"root": str(self.directory / service), "reserve": "0B"},
            "source": {"url": f"file://{self.directory}/{{build}}.tar.gz"},
            "instances": {
                "names": NAMES,
                "manager": {"use": "fake", "command": ["sleep", "600"]},
                "probe": {"use": "fake", "stable_for": "100ms"},
                "healthy_timeout": "4s",
                "min_available": 3,
            },
            "restart": {"strategy": strategy},
        }
        self.ensemble.apply_spec(service, convert(table, ServiceSpec, where="test"))

    def enable(self, service: str, build: str) -> None:
        path = self.directory / f"{build}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            member = tarfile.TarInfo("BUILD")
            member.size = len(build)
            archive.addfile(member, io.BytesIO(build.encode()))
        self.ensemble.enable(service, build, "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest())

    def start(self, service: str) -> None:
        self.coordination.join(service, "z")
        state = self.directory / "state"
        identity = Identity(host="h1", zone="z", address="127.0.0.1", owner="h1/1/1.00", version="1", state_directory=state)
        engine = Engine(
            service,
            identity,
            coordination=self.coordination,
            plugins=self.plugins,
            events=Events([]),
            clock=SystemClock(),
            observe_every=30.0,
        )
        self.engines.append(engine)
        threading.Thread(target=engine.run, args=(self.stop,), daemon=True).start()

    def wait(self, service: str, build: str, steps: tuple[str, ...], seconds: float = 40) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            status = self.ensemble.statuses(service).get("h1")
            if status is not None and status.wanted == build and status.step in steps:
                return status
            assert time.monotonic() < deadline, status
            self.fewest = min(self.fewest, sum(self.is_up("web", name) for name in NAMES))
            time.sleep(0.01)


def live(directory: Path, strategy: str) -> Ended:
    """Bring both services to v1 in a good way, then to v2 under the strategy."""
    host = Host(directory)
    try:
        for service in ("web", "other"):
            host.apply(service, "all-at-once")
            host.enable(service, "v1")
            host.start(service)
            host.wait(service, "v1", ("converged",))
        before, host.fewest = len(FakeManager.processes.calls), len(NAMES)
        host.apply("web", strategy)
        host.enable("web", "v2")
        status = host.wait("web", "v2", ("converged", "blocked", "failed", "broken"))
        restarts = [name for what, name in FakeManager.processes.calls[before:] if what == "restart"]
        host.apply("other", "all-at-once")
        host.enable("other", "v3")
        others = host.wait("other", "v3", ("converged",))
        return Ended(
            step=status.step,
            reason=status.reason,
            remedy=status.remedy,
            last_error=status.last_error,
            fewest=host.fewest,
            others=others.step,
            restarts=len(restarts),
        )
    finally:
        host.stop.set()
        FakeManager.processes.kill()


@pytest.mark.parametrize(
    ("strategy", "step", "reason", "restarts"),
    [
        ("at-once-under-a-limit", "converged", "", 4),
        ("never-finishes", "broken", "v2 failed: no instance could be restarted for 4 s: not the last one", 3 + 2),
        ("raises", "blocked", "IndexError", 0),
        ("hangs", "blocked", "no answer within 5 s", 0),
        ("sleeps", "converged", "", 4),
        ("changes-its-view", "converged", "", 4),
        ("counts-its-calls", "converged", "", 4),
        ("names-strangers", "converged", "", 4),
    ],
)
def test_a_bad_strategy_is_harmless(strategy: str, step: str, reason: str, restarts: int, tmp_path: Path) -> None:
    """Three of four instances stay up, none is restarted for nothing, the reason is reported, and the other service goes on."""
    ended = run_in_child(lambda: live(tmp_path, strategy), timeout=150)

    assert (step, 3 if restarts else 4, "converged", restarts) == (ended.step, ended.fewest, ended.others, ended.restarts), ended
    assert reason in ended.reason


@pytest.mark.parametrize(
    ("strategy", "error"),
    [
        ("looks-in-vain", "failed gathering facts: FileNotFoundError"),
        ("looks-for-ever", "facts: no answer within 10 s"),
        ("finds-no-names", "returned no facts, which are values by name: ['web@1']"),
    ],
)
def test_a_look_that_fails_is_reported_beside_what_the_strategy_makes_of_it(strategy: str, error: str, tmp_path: Path) -> None:
    """The host is blocked by the strategy's own word, with why it knows no better; that the spec is to blame nobody claims."""
    ended = run_in_child(lambda: live(tmp_path, strategy), timeout=150)

    assert ("blocked", "nobody knows the primary", "", 0) == (ended.step, ended.reason, ended.remedy, ended.restarts)
    assert error in ended.last_error
