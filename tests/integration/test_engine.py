"""The engine on a real disk, with coordination in memory: what it does about things that others move."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deployd_core import performing, setbacks
from deployd_core.clock import SystemClock
from deployd_core.coordination import Denial, Denied, Freeze, Link, Permit, Snapshot
from deployd_core.engine import Engine
from deployd_core.errors import Unavailable
from deployd_core.events import Events
from deployd_core.model import FleetLimit
from deployd_core.performing import Identity, Performer
from deployd_core.plugins import Plugins, convert
from deployd_core.releases import ReleaseStore
from deployd_core.spec import ServiceSpec
from deployd_core.tasks import ThreadTasks
from deployd_core.testing.coordination import MemoryEnsemble
from deployd_core.units import Share


class Host:
    """One engine in this process, for a service of files alone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "srv"
        self.ensemble = MemoryEnsemble()
        self.engine: Engine | None = None
        self.coordination: Any = self.ensemble.coordination("h1", lambda _: self.engine and self.engine.wake())
        self.plugins = Plugins.load()
        self.rounds = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def apply(self, **tables: Any) -> None:
        table = {
            "service": {"root": str(self.root), "reserve": "0B"},
            "source": {"url": f"file://{self.directory}/{{build}}.tar.gz"},
            **tables,
        }
        self.ensemble.apply_spec("web", convert(table, ServiceSpec, where="test"))

    def enable(self, build: str) -> None:
        path = self.directory / f"{build}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            member = tarfile.TarInfo("BUILD")
            member.size = len(build)
            archive.addfile(member, io.BytesIO(build.encode()))
        self.ensemble.enable("web", build, "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest())

    def start(self) -> None:
        self.coordination.join("web", "z")
        identity = Identity(
            host="h1", zone="z", address="127.0.0.1", owner="h1/1/1.00", version="1", state_directory=self.directory
        )
        engine = Engine(
            "web",
            identity,
            coordination=self.coordination,
            plugins=self.plugins,
            events=Events([]),
            clock=SystemClock(),
            observe_every=30.0,
        )
        inner = engine.round

        def counted() -> float:
            self.rounds += 1
            return inner()

        engine.round = counted  # type: ignore[method-assign]
        self.engine = engine
        self._thread = threading.Thread(target=engine.run, args=(self._stop,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self.engine is not None and self._thread is not None:
            self.engine.wake()
            self._thread.join(30)

    def status(self) -> Any:
        return self.ensemble.statuses("web").get("h1")

    @property
    def queued(self) -> bool:
        return self.ensemble.read("web", "h1", "z").queued

    def wait(self, condition: Callable[[Any], bool], *, within: float = 20) -> None:
        self.until(lambda: (status := self.status()) is not None and condition(status), within=within)

    def until(self, condition: Callable[[], bool], *, within: float = 20) -> None:
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, self.status()
            time.sleep(0.02)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.stop()


def test_what_was_in_the_way_may_be_moved_without_a_word(host: Host) -> None:
    """A real directory named `current` blocks the host, which takes no permit; when it is gone the deploy goes on."""
    (host.root / "current").mkdir(parents=True)
    host.apply()
    host.enable("v1")
    host.start()
    host.wait(lambda status: (status.step, status.remedy) == ("blocked", "host"))
    assert host.ensemble.permits("web") == ()

    (host.root / "current").rmdir()
    host.engine.wake()

    host.wait(lambda status: status.step == "converged")
    assert (host.root / "current" / "BUILD").read_text() == "v1"


def test_a_slow_answer_to_a_report_makes_no_busy_loop(host: Host) -> None:
    """While a report is under way the engine waits for its end, and does not go round and round."""
    host.apply()
    inner, slow = host.coordination.report, threading.Event()
    host.coordination.report = lambda *arguments: (slow.wait(3), inner(*arguments))
    host.enable("v1")
    host.start()
    time.sleep(2.5)

    rounds, _ = host.rounds, slow.set()
    assert rounds < 100


def test_what_cannot_be_put_on_record_is_tried_again_with_patience(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full when a deploy is put on record makes no busy loop, and ends no more than the wait."""
    host.apply()
    full = threading.Event()
    inner, tries = ReleaseStore.mark_good, []

    def mark_good(store: ReleaseStore, build_id: str) -> None:
        tries.append(build_id)
        if full.is_set():
            raise Unavailable("the disk is full")
        inner(store, build_id)

    monkeypatch.setattr(ReleaseStore, "mark_good", mark_good)
    full.set()
    host.enable("v1")
    host.start()
    host.wait(lambda status: status.last_error == "the disk is full")
    time.sleep(2)
    assert len(tries) < 10

    full.clear()
    host.wait(lambda status: status.step == "converged")


@pytest.mark.parametrize("answer", [Denied(code=Denial.QUEUED, reason="others asked first"), Unavailable("ZooKeeper is away")])
def test_what_changes_while_a_host_asks_for_a_permit_is_not_missed(host: Host, answer: Denied | Unavailable) -> None:
    """An engine that went round because of a change while the request was under way asks again as soon as it is refused."""
    host.apply()
    inner = host.coordination.take_permit
    asking, go_on, asked = threading.Event(), threading.Event(), []

    def take_permit(*arguments: Any, **named: Any) -> Any:
        asked.append(named)
        if len(asked) > 4:
            return inner(*arguments, **named)
        if len(asked) == 4:  # after so many errors the next attempt waits for long
            asking.set()
            go_on.wait(20)
        if isinstance(answer, Unavailable):
            raise answer
        return answer

    host.coordination.take_permit = take_permit
    host.enable("v1")
    host.start()
    host.until(lambda: host.engine.wake() or asking.is_set())
    rounds = host.rounds
    host.engine.wake()
    host.until(lambda: host.rounds > rounds)
    go_on.set()

    host.wait(lambda status: status.step == "converged", within=5)


def test_what_changes_between_reading_and_asking_is_not_missed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that is refused because of what it had read asks again, when that changed just before it began to ask."""
    host.apply()
    host.ensemble.set_freeze(Freeze(by="ann"))
    read, inner, start, thawed = host.coordination.snapshot, host.coordination.take_permit, ThreadTasks.start, threading.Event()

    def snapshot(*arguments: Any, **named: Any) -> Snapshot:
        found: Snapshot = read(*arguments, **named)
        if found.freeze is None:
            thawed.set()
        return found

    def take_permit(snapshot: Snapshot, *arguments: Any, **named: Any) -> Any:  # as on ZooKeeper: by the freeze that was read
        if snapshot.freeze is None:
            return inner(snapshot, *arguments, **named)
        assert thawed.wait(10)
        return Denied(code=Denial.FROZEN, reason="everything is frozen by ann")

    def start_late(tasks: ThreadTasks, key: str, *arguments: Any, **named: Any) -> None:
        if key == "takepermit":
            monkeypatch.setattr(ThreadTasks, "start", start)
            host.ensemble.set_freeze(None)
        start(tasks, key, *arguments, **named)

    host.coordination.snapshot, host.coordination.take_permit = snapshot, take_permit
    monkeypatch.setattr(ThreadTasks, "start", start_late)
    host.enable("v1")
    host.start()

    host.wait(lambda status: status.step == "converged", within=10)


def test_what_was_heard_of_before_a_round_failed_is_read_again(host: Host) -> None:
    """A bug of ours while ZooKeeper is read costs a second: the change that was to be read is not forgotten."""
    host.apply()
    host.enable("v1")
    host.start()
    host.wait(lambda status: status.step == "converged")
    read, bugs = host.coordination.snapshot, [RuntimeError("a bug")]

    def snapshot(*arguments: Any, **named: Any) -> Any:
        if bugs:
            raise bugs.pop()
        return read(*arguments, **named)

    host.coordination.snapshot = snapshot
    host.enable("v2")

    host.wait(lambda status: (status.wanted, status.step) == ("v2", "converged"), within=10)


def test_a_problem_that_comes_while_a_report_is_under_way_is_reported_soon(host: Host) -> None:
    """A report that had to wait for another one is written when that has ended, and not with the next reading of ZooKeeper."""
    host.apply()
    host.enable("v1")
    host.start()
    host.wait(lambda status: status.step == "converged")
    inner, slow = host.coordination.report, threading.Event()
    host.coordination.report = lambda *arguments: (slow.wait(10), inner(*arguments))
    host.enable("v2")
    host.engine.wake()
    time.sleep(0.3)
    host.apply(restart={"strategy": "no-such"})
    time.sleep(0.3)
    slow.set()

    host.wait(lambda status: status.step == "blocked" and "no-such" in status.reason and status.remedy == "install")


def test_a_strategy_that_returns_nonsense_is_named_and_blocks_the_host(host: Host, tmp_path: Path) -> None:
    """What is no plan is refused with the key that is wrong, in the report, and nothing is disturbed."""
    directory = tmp_path / "plugins.d"
    directory.mkdir()
    (directory / "nonsense.py").write_text(
        "from deployd_core.api import Options, Plan, Strategy, hookimpl\n"
        "class Nonsense(Strategy[Options]):\n"
        "    '''Return nonsense.'''\n"
        "    name = 'nonsense'\n"
        "    def plan(self, view):\n"
        "        return Plan(cycle=None, why='')\n"
        "@hookimpl\n"
        "def deployd_strategies():\n"
        "    return [Nonsense]\n"
    )
    host.apply(restart={"strategy": "nonsense"})
    host.enable("v1")
    host.plugins = Plugins.load(directory=directory)
    host.start()
    host.wait(lambda status: status.step == "blocked" and "cycle" in status.reason)

    assert "strategy nonsense [nonsense (" in host.status().reason
    assert not (host.root / "current").exists()


def test_nothing_new_begins_while_the_link_is_suspended(host: Host) -> None:
    """Without ZooKeeper the build is staged, and the host waits with the reason; afterwards it goes on."""
    host.apply()
    host.enable("v1")
    host.coordination.snapshot("web")
    host.start()
    host.wait(lambda status: status.step == "converged")
    host.enable("v2")
    host.coordination.link = Link.SUSPENDED
    host.engine.wake()
    time.sleep(0.5)
    assert (host.root / "current" / "BUILD").read_text() == "v1"

    host.coordination.link = Link.CONNECTED
    host.engine.wake()
    host.wait(lambda status: (status.step, status.wanted) == ("converged", "v2"))


def test_old_releases_go_after_a_deploy(host: Host) -> None:
    """Retention runs when the permit is back, and keeps what is current and what was good before."""
    host.apply(service={"root": str(host.root), "reserve": "0B", "keep_releases": 2})
    host.start()
    for number in range(5):
        host.enable(f"v{number}")
        host.wait(lambda status, build=f"v{number}": (status.step, status.wanted) == ("converged", build))

    deadline = time.monotonic() + 10
    while len(kept := sorted(path.name for path in (host.root / "releases").iterdir())) > 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert {"v3", "v4"} <= set(kept)
    assert "v0" not in kept


def test_the_queue_is_left_once(host: Host) -> None:
    """A host that waits for a permit and is to serve another build leaves the queue with one write, while it fetches that."""
    host.apply(restart={"strategy": "concurrency", "options": {"limit": 1}})
    other = host.ensemble.coordination("h2")
    other.join("web", "z")
    other.snapshot("web")
    host.enable("v1")
    assert isinstance(other.take_permit(other.snapshot("web"), FleetLimit(hosts=Share(1))), Permit)
    host.start()
    host.wait(lambda status: status.step == "waiting")
    inner, left = host.coordination.leave_queue, []
    host.coordination.leave_queue = lambda service: (left.append(service), inner(service))

    host.ensemble.enable("web", "no-such", f"sha256:{'0' * 64}")
    host.wait(lambda status: (status.wanted, status.step) == ("no-such", "fetching") and "no-such" in status.last_error)

    assert ["web"] == left


def test_a_host_that_cannot_begin_any_more_leaves_the_queue(host: Host) -> None:
    """A spec that this host cannot carry out has it make room for the others; once it can, it stands in the queue again."""
    concurrency = {"strategy": "concurrency", "options": {"limit": 1}}
    host.apply(restart=concurrency)
    other = host.ensemble.coordination("h2")
    other.join("web", "z")
    other.snapshot("web")
    host.enable("v1")
    assert isinstance(other.take_permit(other.snapshot("web"), FleetLimit(hosts=Share(1))), Permit)
    host.start()
    host.wait(lambda status: status.step == "waiting" and host.queued)

    host.apply(restart=concurrency, steps=[{"use": "no-such"}])
    host.wait(lambda status: status.step == "blocked" and not host.queued)

    host.apply(restart=concurrency)
    host.wait(lambda status: status.step == "waiting" and host.queued)


@pytest.mark.parametrize("broken", ["raise RuntimeError('out of order')", "threading.Event().wait()"])
def test_a_host_whose_veto_cannot_be_asked_leaves_the_queue(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """A veto that raises or hangs counts as a no: the others do not wait for this host, and nobody grants it a permit."""
    monkeypatch.setattr(Performer, "timeout", lambda *_: 0.5)
    directory = tmp_path / "plugins.d"
    directory.mkdir()
    (directory / "careful.py").write_text(
        "import pathlib, threading\n"
        "from deployd_core.api import hookimpl\n"
        "@hookimpl\n"
        "def deployd_veto(request):\n"
        f"    if pathlib.Path({str(tmp_path / 'broken')!r}).exists():\n"
        f"        {broken}\n"
    )
    host.plugins = Plugins.load(directory=directory)
    host.apply(restart={"strategy": "concurrency", "options": {"limit": 1}})
    other = host.ensemble.coordination("h2")
    other.join("web", "z")
    other.snapshot("web")
    host.enable("v1")
    assert isinstance(other.take_permit(other.snapshot("web"), FleetLimit(hosts=Share(1))), Permit)
    host.start()
    host.wait(lambda status: status.step == "waiting" and host.queued)

    (tmp_path / "broken").touch()
    host.engine.wake()

    host.wait(lambda status: not host.queued and ("takepermit" in status.last_error or "a veto" in status.last_error))


def test_a_gate_that_cannot_say_how_to_get_past_it_is_named(host: Host, tmp_path: Path) -> None:
    """It costs the looks at its instances, with its name, and not the rounds of the engine."""
    directory = tmp_path / "plugins.d"
    directory.mkdir()
    (directory / "wall.py").write_text(
        "from deployd_core.testing import FakeGate\n"
        "from deployd_core.api import hookimpl\n"
        "class Wall(FakeGate):\n"
        "    '''Let nobody past.'''\n"
        "    name = 'wall'\n"
        "    def passing(self):\n"
        "        raise ValueError('no way')\n"
        "@hookimpl\n"
        "def deployd_gates():\n"
        "    return [Wall]\n"
    )
    host.plugins = Plugins.load(directory=directory)
    host.apply(
        instances={
            "names": ["web"],
            "manager": {"use": "command", "start": ["x"], "stop": ["x"], "pid_file": "x"},
            "gate": {"use": "wall"},
        }
    )
    host.enable("v1")
    host.start()

    host.wait(lambda status: any("failed saying how to get past it: ValueError: no way" in one.reason for one in status.instances))
    assert "a round failed" not in host.status().last_error


def test_a_step_that_does_not_end_in_time_is_not_begun_beside_itself(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be half-way through a migration: the report says that it hangs, and it is run again when it has ended."""
    monkeypatch.setattr(performing, "_GRACE", 0.0)
    directory = tmp_path / "plugins.d"
    directory.mkdir()
    (directory / "slow.py").write_text(
        "import pathlib, time\n"
        "from deployd_core.api import Step, StepOptions, hookimpl\n"
        "class Slow(Step[StepOptions]):\n"
        "    '''Run for longer than it may, the first time.'''\n"
        "    name = 'slow'\n"
        "    def run(self, call):\n"
        f"        runs = pathlib.Path({str(tmp_path)!r}, 'runs')\n"
        "        with runs.open('a') as file:\n"
        "            file.write('begins ')\n"
        "        while not runs.with_name('end').exists():\n"
        "            time.sleep(0.01)\n"
        "        with runs.open('a') as file:\n"
        "            file.write('ends ')\n"
        "@hookimpl\n"
        "def deployd_steps():\n"
        "    return [Slow]\n"
    )
    host.plugins = Plugins.load(directory=directory)
    host.apply(steps=[{"use": "slow", "timeout": "100ms"}])
    host.enable("v1")
    host.start()
    host.wait(lambda status: "still hang" in status.last_error)
    (tmp_path / "end").touch()
    host.wait(lambda status: status.step == "converged")

    assert (tmp_path / "runs").read_text() == "begins ends begins ends "


def test_a_step_that_fails_again_and_again_does_not_fill_the_disk(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log holds the last runs, and no more than that."""
    monkeypatch.setattr(performing, "_LOG_MAX", 150_000)
    monkeypatch.setattr(setbacks, "_FIRST", 0.01)
    runs = host.directory / "runs"
    host.apply(steps=[{"use": "command", "argv": ["sh", "-c", f"echo >> {runs}; yes | head -c 100000; exit 1"]}])
    host.enable("v1")
    host.start()
    host.wait(lambda _: runs.exists() and runs.stat().st_size >= 6)

    [log] = (host.root / ".deployd/logs").iterdir()
    assert log.stat().st_size < 400_000
