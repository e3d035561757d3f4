"""What every manager guarantees: inherit `ManagerContract`, say how to start yours, and pytest runs it on real processes.

class TestMyManager(ManagerContract):
    @contextlib.contextmanager
    def managing(self, service, directory, ports):
        yield MyManager(MyOptions(command=service.command("{port}")))
"""

# ruff: noqa: SIM300 - expected == actual, as in all tests

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from deployd_core import processes
from deployd_core.api import ConfigError, Manager, RestartFailed, State, Status
from deployd_core.testing.instances import free_port, refusal
from deployd_core.testing.sample import SampleService

KINDS = ("web", "peer", "die", "deaf")
T = TypeVar("T")


class Bench:
    """A manager, the service whose instances it manages, and a way to see their processes from outside."""

    def __init__(
        self, service: SampleService, manager: Manager[Any], ports: Mapping[str, int], outer_pid: Callable[[int], int]
    ) -> None:
        self.service = service
        self.manager = manager
        self.outer_pid = outer_pid
        self.web, self.peer, self.die, self.deaf = (f"{kind}@{ports[kind]}" for kind in KINDS)

    def status(self, name: str) -> Status:
        """What the manager says of an instance."""
        return self.manager.state(self.service.call(name))

    def running(self, name: str) -> processes.Running | None:
        """What the main process of an instance is, seen from outside; None while there is none."""
        pid = self.status(name).pid
        return None if pid is None else processes.inspect(self.outer_pid(pid), self.service.root, self.service.flips)

    def serving(self, name: str, build: str) -> processes.Running:
        """Wait until an instance serves a build: a child enters its directory a moment after it was forked."""

        def look() -> processes.Running | None:
            found = self.running(name)
            return found if found is not None and found.serves == build else None

        return _first(look, f"{name} serves {build}")


class ManagerContract(ABC):
    """What every manager guarantees."""

    @abstractmethod
    def managing(
        self, service: SampleService, directory: Path, ports: Mapping[str, int]
    ) -> contextlib.AbstractContextManager[Manager[Any]]:
        """A manager of four instances, none of which has been started.

        Args:
            service: Its ``service.command(port, kind)`` is what each instance runs, in the directory `service.current`.
            directory: For whatever the manager keeps; not made yet.
            ports: By kind: ``web@PORT`` and ``peer@PORT`` serve, ``die@PORT`` ends at once, ``deaf@PORT`` ignores SIGTERM.
        """

    def outer_pid(self, pid: int) -> int:
        """A process as this process sees it, when the manager lives in a namespace of its own."""
        return pid

    @contextlib.contextmanager
    def started(self) -> Iterator[Bench]:
        """A service whose `current` points at ``v1``, and its manager."""
        directory = Path(tempfile.mkdtemp(prefix="deployd-manager-"))
        service = SampleService(directory / "web")
        for build in ("v1", "v2"):
            service.add(build)
        service.flip("v1")
        ports = {kind: free_port() for kind in KINDS}
        try:
            with self.managing(service, directory / "manager", ports) as manager:
                yield Bench(service, manager, ports, self.outer_pid)
        finally:
            kill_everything_in(directory)
            shutil.rmtree(directory, ignore_errors=True)

    def test_started_instance_runs_the_current_release(self) -> None:
        """After a start, the main process is known and serves what `current` points at."""
        with self.started() as bench:
            assert bench.status(bench.web).state is State.STOPPED
            bench.manager.start(bench.service.call(bench.web))

            assert bench.status(bench.web).state in (State.STARTING, State.RUNNING)
            bench.serving(bench.web, "v1")

    def test_starting_what_runs_changes_nothing(self) -> None:
        """A second start leaves the process alone."""
        with self.started() as bench:
            bench.manager.start(bench.service.call(bench.web))
            before = bench.serving(bench.web, "v1")

            bench.manager.start(bench.service.call(bench.web))

            assert before == bench.running(bench.web)

    def test_restart_after_a_flip_gives_a_new_process_of_the_new_build(self) -> None:
        """Until it is restarted an instance serves the old build; then another process serves the new one."""
        with self.started() as bench:
            bench.manager.start(bench.service.call(bench.web))
            before = bench.serving(bench.web, "v1")
            time.sleep(2 * processes.TOLERANCE)
            bench.service.flip("v2")
            assert before == bench.running(bench.web)

            bench.manager.restart(bench.service.call(bench.web))

            assert before.process != bench.serving(bench.web, "v2").process

    def test_its_neighbours_are_left_alone(self) -> None:
        """Whatever is done to one instance, another one keeps its process."""
        with self.started() as bench:
            for name in (bench.web, bench.peer):
                bench.manager.start(bench.service.call(name))
            before = bench.serving(bench.peer, "v1")
            bench.serving(bench.web, "v1")
            for method in ("restart", "stop", "start"):
                getattr(bench.manager, method)(bench.service.call(bench.web))

                assert before == bench.running(bench.peer), (
                    f"{method}({bench.web}) ended or replaced the process of {bench.peer}: it must touch the one instance alone"
                )
            bench.serving(bench.web, "v1")
            assert before == bench.running(bench.peer), f"{bench.peer} lost its process when {bench.web} was stopped and started"

    def test_flip_there_and_back_needs_no_restart(self) -> None:
        """An instance that was not restarted between two flips serves what it served before."""
        with self.started() as bench:
            bench.manager.start(bench.service.call(bench.web))
            before = bench.serving(bench.web, "v1")
            bench.service.flip("v2")
            bench.service.flip("v1")

            assert before == bench.running(bench.web)

    def test_restart_starts_what_was_stopped(self) -> None:
        """A restart of an instance that does not run starts it."""
        with self.started() as bench:
            bench.manager.restart(bench.service.call(bench.web))
            bench.serving(bench.web, "v1")

    def test_stopped_instance_has_no_process(self) -> None:
        """When stop returns, the process has ended; a second stop changes nothing."""
        with self.started() as bench:
            bench.manager.start(bench.service.call(bench.web))
            before = bench.serving(bench.web, "v1")

            bench.manager.stop(bench.service.call(bench.web))

            assert before.process != processes.process_id(before.process.pid)
            assert (State.STOPPED, None) == (bench.status(bench.web).state, bench.status(bench.web).pid)
            bench.manager.stop(bench.service.call(bench.web))

    def test_unknown_instance_is_an_error_of_the_configuration(self) -> None:
        """An instance that the manager does not know is named in a ConfigError, with what to do about it."""
        with self.started() as bench:
            for method in ("state", "start", "stop", "restart"):
                error = refusal(ConfigError, lambda method=method: getattr(bench.manager, method)(bench.service.call("nope@1")))  # type: ignore[misc]

                assert "nope@1" in error.message
                assert error.hint

    def test_program_that_dies_at_once_is_not_taken_for_a_running_one(self) -> None:
        """A program that ends right after its start is refused, or its state says that it failed."""
        with self.started() as bench:
            try:
                bench.manager.restart(bench.service.call(bench.die))
            except RestartFailed:
                return
            _first(lambda: bench.status(bench.die).state is State.FAILED or None, "it is known to have failed")
            assert bench.status(bench.die).pid is None
            assert bench.status(bench.die).detail

    def test_stop_that_hangs_is_given_up_at_the_deadline(self) -> None:
        """A process that does not listen makes stop and restart fail when their time is over, and never hang."""
        with self.started() as bench:
            bench.manager.start(bench.service.call(bench.deaf))
            running = bench.serving(bench.deaf, "v1")
            _first(lambda: _ignores_termination(running.process.pid) or None, "it ignores SIGTERM")

            error = refusal(RestartFailed, lambda: bench.manager.stop(bench.service.call(bench.deaf, timeout=0.5)))

            assert "deaf" in error.message

    def test_instances_can_be_restarted_from_several_threads(self) -> None:
        """Calls for an instance while others are made do not disturb each other."""
        with self.started() as bench:
            bench.manager.start(bench.service.call(bench.web))
            before = bench.serving(bench.web, "v1")
            with ThreadPoolExecutor(4) as threads:
                states = [threads.submit(bench.status, bench.web) for _ in range(20)]
                threads.submit(bench.manager.restart, bench.service.call(bench.web)).result()
                assert all(state.result().state in State for state in states)

            assert before.process != bench.serving(bench.web, "v1").process


def kill_everything_in(root: Path) -> None:
    """Kill the processes whose working directory is below `root`."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cwd").readlink().is_relative_to(root):
                    os.kill(int(entry.name), signal.SIGKILL)


def _first(look: Callable[[], T | None], what: str) -> T:
    """The first answer that is not None."""
    deadline = time.monotonic() + 15.0
    while (found := look()) is None:
        assert time.monotonic() < deadline, f"it did not happen in time that {what}"
        time.sleep(0.01)
    return found


def _ignores_termination(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    (ignored,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigIgn:"))
    return bool(ignored & 1 << (signal.SIGTERM - 1))
