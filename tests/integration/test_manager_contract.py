"""What every manager must do, shown on a real supervisord, a real systemd and real commands, with one small HTTP server."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from deployd_core import processes
from deployd_core.api import ConfigError, Manager, RestartFailed, State, Status
from deployd_core.testing.sample import SampleService
from deployd_core.testing.supervisor import Program, Supervisord
from deployd_core.testing.systemd import Systemd
from deployd_plugins.managers.command import CommandManager, CommandManagerOptions
from deployd_plugins.managers.supervisor import SupervisorManager, SupervisorOptions
from deployd_plugins.managers.systemd import SystemdManager, SystemdOptions

KINDS = ("web", "die", "deaf")
Found = TypeVar("Found")


class Bench:
    """A manager, the service whose instances it manages, and a way to see their processes from outside."""

    def __init__(self, service: SampleService, manager: Manager[Any], outer_pid: Callable[[int], int] = int) -> None:
        self.service = service
        self.manager = manager
        self.outer_pid = outer_pid

    def status(self, name: str) -> Status:
        return self.manager.state(self.service.call(name))

    def running(self, name: str) -> processes.Running | None:
        """What the main process of an instance is, seen from outside; None while there is none."""
        pid = self.status(name).pid
        return pid and processes.inspect(self.outer_pid(pid), self.service.root, self.service.flips)  # type: ignore[return-value]

    def serving(self, name: str, build: str) -> processes.Running:
        """Wait until an instance serves a build: a child enters its directory a moment after it was forked."""

        def look() -> processes.Running | None:
            running = self.running(name)
            return running if running is not None and running.serves == build else None

        return eventually(look)


def eventually(look: Callable[[], Found | None], seconds: float = 15.0) -> Found:
    deadline = time.monotonic() + seconds
    while (found := look()) is None:
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
    return found


def ignores_termination(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    (ignored,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigIgn:"))
    return bool(ignored & 1 << (signal.SIGTERM - 1))


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextmanager
def supervisor_bench(service: SampleService, directory: Path, ports: dict[str, int]) -> Iterator[Bench]:
    programs = {
        f"{kind}@{port}": Program(
            command=service.command(port, kind), directory=service.current, startretries=0, stopwaitsecs=2 if kind == "deaf" else 10
        )
        for kind, port in ports.items()
    }
    with Supervisord(directory, programs) as supervisord:
        yield Bench(service, SupervisorManager(SupervisorOptions(url=supervisord.url)))


@contextmanager
def systemd_bench(service: SampleService, directory: Path, ports: dict[str, int]) -> Iterator[Bench]:
    unit = (
        "[Unit]\nDefaultDependencies=no\n"
        "[Service]\nType=exec\nExecStart={command}\nWorkingDirectory={current}\nEnvironment=PWD={current}\n"
    )
    units = {
        f"{kind}@.service": unit.format(command=" ".join(service.command("%i", kind)), current=service.current) for kind in KINDS
    }
    with Systemd(units, shared=[directory.parent]) as systemd:
        yield Bench(service, SystemdManager(SystemdOptions(bus=systemd.bus)), systemd.pid_of)


INIT_SCRIPT = """\
#!/bin/sh
# An init script as people write them: server ACTION INSTANCE PORT
kind=${{2%@*}}
pid_file={shared}/$2.pid
case $kind in web|die|deaf) ;; *) echo "no such instance: $2"; exit 6;; esac
case $1 in
start) {command} $3 $kind & echo $! > $pid_file ;;
stop) kill $(cat $pid_file); rm $pid_file ;;
status) test -f $pid_file || exit 3; kill -0 $(cat $pid_file) || exit 1 ;;
esac
"""


@contextmanager
def command_bench(service: SampleService, directory: Path, ports: dict[str, int]) -> Iterator[Bench]:
    directory.mkdir()
    script = directory / "server"
    command = shlex.join(service.command("")[:-1])
    script.write_text(INIT_SCRIPT.format(shared=service.root / "shared", command=command), encoding="utf-8")
    script.chmod(0o755)
    action = [str(script), "{action}", "{instance}", "{port}"]
    options = CommandManagerOptions(
        **{name: tuple(word.replace("{action}", name) for word in action) for name in ("start", "stop", "status")},
        pid_file="{root}/shared/{instance}.pid",
    )
    bench = Bench(service, CommandManager(options))
    try:
        yield bench
    finally:
        kill_everything_in(service.root)


def kill_everything_in(root: Path) -> None:
    """Kill the processes whose working directory is below `root`."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").readlink().is_relative_to(root):
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue


BENCHES = {"supervisor": supervisor_bench, "systemd": systemd_bench, "command": command_bench}


@pytest.fixture
def ports() -> dict[str, int]:
    return {kind: free_port() for kind in KINDS}


@pytest.fixture(params=["supervisor", pytest.param("systemd", marks=pytest.mark.root), "command"])
def bench(request: pytest.FixtureRequest, tmp_path: Path, ports: dict[str, int]) -> Iterator[Bench]:
    service = SampleService(tmp_path / "web")
    service.add("v1")
    service.add("v2")
    service.flip("v1")
    with BENCHES[request.param](service, tmp_path / "manager", ports) as bench:
        yield bench


@pytest.fixture
def web(ports: dict[str, int]) -> str:
    return f"web@{ports['web']}"


def test_started_instance_runs_the_current_release(bench: Bench, web: str) -> None:
    """After a start, the main process is known and serves what `current` points at."""
    assert bench.status(web).state is State.STOPPED
    bench.manager.start(bench.service.call(web))
    assert bench.status(web).state in (State.STARTING, State.RUNNING)
    bench.serving(web, "v1")


def test_starting_what_runs_changes_nothing(bench: Bench, web: str) -> None:
    """A second start leaves the process alone."""
    bench.manager.start(bench.service.call(web))
    before = bench.serving(web, "v1")
    bench.manager.start(bench.service.call(web))
    assert bench.running(web) == before


def test_restart_after_a_flip_gives_a_new_process_of_the_new_build(bench: Bench, web: str) -> None:
    """Until it is restarted an instance serves the old build; then another process serves the new one."""
    bench.manager.start(bench.service.call(web))
    before = bench.serving(web, "v1")
    time.sleep(2 * processes.TOLERANCE)
    bench.service.flip("v2")
    assert bench.running(web) == before
    bench.manager.restart(bench.service.call(web))
    after = bench.serving(web, "v2")
    assert after.process != before.process


def test_flip_there_and_back_needs_no_restart(bench: Bench, web: str) -> None:
    """An instance that was not restarted between two flips serves what it served before."""
    bench.manager.start(bench.service.call(web))
    before = bench.serving(web, "v1")
    bench.service.flip("v2")
    bench.service.flip("v1")
    assert bench.running(web) == before


def test_restart_starts_what_was_stopped(bench: Bench, web: str) -> None:
    """A restart of an instance that does not run starts it."""
    bench.manager.restart(bench.service.call(web))
    bench.serving(web, "v1")


def test_stopped_instance_has_no_process(bench: Bench, web: str) -> None:
    """When stop returns, the process has ended; a second stop changes nothing."""
    bench.manager.start(bench.service.call(web))
    before = bench.serving(web, "v1")
    bench.manager.stop(bench.service.call(web))
    assert processes.process_id(before.process.pid) != before.process
    assert (State.STOPPED, None) == (bench.status(web).state, bench.status(web).pid)
    bench.manager.stop(bench.service.call(web))


@pytest.mark.parametrize("method", ["state", "start", "stop", "restart"])
def test_unknown_instance_is_an_error_of_the_configuration(bench: Bench, method: str) -> None:
    """An instance that the manager does not know is named in a ConfigError, with what to do about it."""
    with pytest.raises(ConfigError, match="nope@1") as caught:
        getattr(bench.manager, method)(bench.service.call("nope@1"))
    assert caught.value.hint


def test_program_that_dies_at_once_is_not_taken_for_a_running_one(bench: Bench, ports: dict[str, int]) -> None:
    """A program that ends right after its start is refused, or its state says that it failed."""
    name = f"die@{ports['die']}"
    try:
        bench.manager.restart(bench.service.call(name))
    except RestartFailed:
        return
    eventually(lambda: bench.status(name).state is State.FAILED or None)
    assert bench.status(name).pid is None
    assert bench.status(name).detail


def test_stop_that_hangs_is_given_up_at_the_deadline(bench: Bench, ports: dict[str, int]) -> None:
    """A process that does not listen makes stop and restart fail when their time is over, and never hang."""
    name = f"deaf@{ports['deaf']}"
    bench.manager.start(bench.service.call(name))
    running = bench.serving(name, "v1")
    eventually(lambda: ignores_termination(running.process.pid) or None)
    with pytest.raises(RestartFailed, match=name.partition("@")[0]):
        bench.manager.stop(bench.service.call(name, timeout=0.5))


def test_instances_can_be_restarted_from_several_threads(bench: Bench, web: str) -> None:
    """Calls for an instance while others are made do not disturb each other."""
    bench.manager.start(bench.service.call(web))
    before = bench.serving(web, "v1")
    with ThreadPoolExecutor(4) as threads:
        states = [threads.submit(bench.status, web) for _ in range(20)]
        restart = threads.submit(bench.manager.restart, bench.service.call(web))
        restart.result()
        assert all(state.result().state in State for state in states)
    assert bench.serving(web, "v1").process != before.process
