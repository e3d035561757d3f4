"""`deployd_core.processes` on real processes: what the kernel says of them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deployd_core import processes
from deployd_core.testing.sample import SampleService

MOVING = """
import os, signal, sys
signal.signal(signal.SIGHUP, lambda *_: (os.chdir(sys.argv[1]), print("moved", flush=True)))
print("ready", flush=True)
while True:
    signal.pause()
"""

Spawn = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def service(tmp_path: Path) -> SampleService:
    service = SampleService(tmp_path / "web")
    service.add("v1")
    service.add("v2")
    service.flip("v1")
    return service


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts processes that say `ready`, and kills them in the end."""
    with ExitStack() as stack:

        def start(*argv: str, cwd: Path) -> subprocess.Popen[str]:
            process = subprocess.Popen(argv, cwd=cwd, stdout=subprocess.PIPE, text=True)
            stack.callback(process.wait)
            stack.callback(process.kill)
            stack.callback(process.stdout.close)  # type: ignore[union-attr]
            return process

        yield start


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-E", "-c", code)


SLEEP = python("import time; print('ready', flush=True); time.sleep(60)")


def inspect(process: subprocess.Popen[str], service: SampleService) -> processes.Running:
    running = processes.inspect(process.pid, service.root, service.flips)
    assert running is not None
    return running


def test_instances_of_two_releases_are_told_apart(service: SampleService, spawn: Spawn) -> None:
    """Each process is told by the release that was current when it started, through flips there and back."""
    first = spawn(*SLEEP, cwd=service.current)
    assert said(first) == "ready"
    time.sleep(2 * processes.TOLERANCE)
    service.flip("v2")
    time.sleep(2 * processes.TOLERANCE)
    second = spawn(*SLEEP, cwd=service.current)
    assert said(second) == "ready"
    service.flip("v1")
    assert [inspect(first, service).serves, inspect(second, service).serves] == ["v1", "v2"]
    assert inspect(first, service).process != inspect(second, service).process


def test_process_that_changes_its_directory_on_a_reload_does_not_serve_the_new_build(service: SampleService, spawn: Spawn) -> None:
    """The directory of a process that moved is no evidence; a preloading server does just this."""
    process = spawn(*python(MOVING), str(service.current), cwd=service.current)
    assert said(process) == "ready"
    time.sleep(2 * processes.TOLERANCE)
    service.flip("v2")
    process.send_signal(signal.SIGHUP)
    assert said(process) == "moved"
    running = inspect(process, service)
    assert running.serves is None
    assert "v1 was current when it started" in running.why


def test_process_keeps_its_identity_and_start_time(service: SampleService, spawn: Spawn) -> None:
    """Two looks at one process give one identity, whose start lies between the moments around its start."""
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    process = spawn(*SLEEP, cwd=service.current)
    after = time.clock_gettime(time.CLOCK_BOOTTIME)
    identity = inspect(process, service).process
    assert identity == inspect(process, service).process
    assert before - 0.02 <= identity.started <= after


def test_process_in_a_removed_release_is_still_told(service: SampleService, spawn: Spawn) -> None:
    """Removing the release of a running process hides neither its build nor the removal."""
    process = spawn(*SLEEP, cwd=service.current)
    assert said(process) == "ready"
    shutil.rmtree(service.root / "releases" / "v1")
    running = inspect(process, service)
    assert running.serves == "v1"
    assert "deleted" in running.why


def test_compiled_program_is_told_by_its_executable(service: SampleService, spawn: Spawn) -> None:
    """A daemon whose working directory is the root directory is told by the executable in its release."""
    program = Path(shutil.copy(shutil.which("sleep") or "/bin/sleep", service.root / "releases" / "v1" / "server"))
    process = spawn(str(program), "60", cwd=Path("/"))
    assert inspect(process, service).serves == "v1"


def test_process_elsewhere_serves_nothing(service: SampleService, spawn: Spawn) -> None:
    """A process outside the releases serves nothing that can be told, and the reason names where it should be started."""
    running = inspect(spawn(*SLEEP, cwd=Path("/")), service)
    assert running.serves is None
    assert f"start it with directory {service.root / 'current'}" in running.why


def test_root_may_be_given_through_a_link(service: SampleService, spawn: Spawn, tmp_path: Path) -> None:
    """A service root that is itself reached through a symlink makes no difference."""
    link = tmp_path / "link"
    link.symlink_to(service.root)
    process = spawn(*SLEEP, cwd=service.current)
    assert said(process) == "ready"
    running = processes.inspect(process.pid, link, service.flips)
    assert running is not None
    assert running.serves == "v1"


def test_zombie_and_absent_process_are_no_processes(service: SampleService, spawn: Spawn) -> None:
    """A process that has ended is not there, whether somebody has buried it or not."""
    process = spawn(*python("pass"), cwd=service.current)
    assert said(process) == ""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert processes.inspect(process.pid, service.root, service.flips) is None
    process.wait()
    assert processes.inspect(process.pid, service.root, service.flips) is None


@pytest.mark.root
def test_process_of_another_user_is_unknown_to_an_ordinary_agent(service: SampleService, spawn: Spawn) -> None:
    """An agent that may not look says so, and names the way out."""
    process = spawn(*SLEEP, cwd=service.current)
    assert said(process) == "ready"
    code = """
import os, pathlib, sys
from deployd_core import processes
os.seteuid(65534)
running = processes.inspect(int(sys.argv[1]), pathlib.Path(sys.argv[2]), [])
print(running.serves, running.why)
"""
    agent = [sys.executable, "-c", code, str(process.pid), str(service.root)]
    answer = subprocess.run(agent, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert answer.startswith("None its working directory and executable may not be read: run the agent as root")


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_listener_of_a_port_is_found(family: socket.AddressFamily, host: str) -> None:
    """The process that listens on a port is found, in either family; nobody once the socket is closed."""
    with socket.socket(family) as listening:
        listening.bind((host, 0))
        listening.listen()
        port = listening.getsockname()[1]
        assert processes.listener(port) == os.getpid()
    assert processes.listener(port) is None


def test_listener_of_a_master_with_workers_is_the_master(spawn: Spawn, tmp_path: Path) -> None:
    """Of several processes that share a listening socket, the one that opened it is meant."""
    code = """
import os, socket, sys, time
if os.fork():
    os.wait()
    sys.exit()
listening = socket.create_server(("127.0.0.1", 0))
worker = os.fork() or time.sleep(60)
print(listening.getsockname()[1], os.getpid(), worker, listening.fileno(), flush=True)
sys.stdin.read()
os.killpg(0, 9)
"""
    process = subprocess.Popen(
        python(code), cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        port, master, worker, descriptor = map(int, said(process).split())
        found = processes.listener(port)
        climbed = processes._first_holder(worker, f"/proc/{worker}/fd/{descriptor}")
        assert process.stdin is not None
        process.stdin.close()
    assert [found, climbed] == [master, master]
