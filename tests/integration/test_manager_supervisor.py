"""What is particular to the `supervisor` manager and to `Supervisord`, on a real supervisord."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deployd_core.api import ConfigError, RestartFailed, State, Unavailable
from deployd_core.testing.sample import SampleService
from deployd_core.testing.supervisor import Program, Supervisord
from deployd_plugins.managers.supervisor import SupervisorManager, SupervisorOptions

_DEAF_AT_FIRST = (
    "import signal as s,time;s.signal(15,s.SIG_IGN);s.signal(3,s.SIG_IGN);time.sleep(0.4);s.signal({0},s.SIG_DFL);time.sleep(60)"
)


@pytest.fixture
def service(tmp_path: Path) -> SampleService:
    service = SampleService(tmp_path / "web")
    service.add("v1")
    service.flip("v1")
    return service


@pytest.fixture
def supervisord(service: SampleService, tmp_path: Path) -> Iterator[Supervisord]:
    sleep = Program(command=["sleep", "60"], directory=service.current)
    missing = Program(command=["/nonexistent/server"], directory=service.current)
    lost = Program(command=["sleep", "60"], directory=tmp_path / "no-such-directory", startretries=0)
    dying = Program(command=service.command(1, "die"), directory=service.current, startretries=5)
    deaf, quits = (
        Program(
            command=[sys.executable, "-S", "-c", _DEAF_AT_FIRST.format(number)],
            directory=service.current,
            stopwaitsecs=60,
            stopsignal=name,
        )
        for name, number in (("TERM", 15), ("QUIT", 3))
    )
    programs = {"web": sleep, "missing": missing, "lost": lost, "dying": dying, "deaf": deaf, "quits": quits}
    with Supervisord(tmp_path / "run", programs) as supervisord:
        yield supervisord


def manager(supervisord: Supervisord, program: str = "{instance}") -> SupervisorManager:
    return SupervisorManager(SupervisorOptions(url=supervisord.url, program=program))


def test_program_name_is_filled_in_for_each_instance(supervisord: Supervisord, service: SampleService) -> None:
    """A template names the program, with its group where there is one."""
    assert manager(supervisord, "{service}:{service}").state(service.call("web@8001")).state is State.STOPPED
    with pytest.raises(ConfigError, match="has no program 'web:8001'"):
        manager(supervisord, "web:{port}").state(service.call("web@8001"))


def test_whole_group_is_no_program(supervisord: Supervisord, service: SampleService) -> None:
    """A template that names a group with all its programs is refused, and nothing is started."""
    with pytest.raises(ConfigError, match="has no program"):
        manager(supervisord, "web:*").restart(service.call("web"))
    assert manager(supervisord).state(service.call("web")).state is State.STOPPED


def test_missing_executable_is_told_in_supervisors_words(supervisord: Supervisord, service: SampleService) -> None:
    """A program whose executable is missing is refused with the reason."""
    with pytest.raises(RestartFailed, match="can't find command '/nonexistent/server'"):
        manager(supervisord).restart(service.call("missing"))


def test_missing_directory_makes_the_program_fail_with_a_reason(supervisord: Supervisord, service: SampleService) -> None:
    """A program whose directory is missing ends up failed, and the state says how; it may be refused at once, too."""
    with contextlib.suppress(RestartFailed):
        manager(supervisord).restart(service.call("lost"))
    while (status := manager(supervisord).state(service.call("lost"))).state is State.STARTING:
        assert status.detail
    assert status.state is State.FAILED
    assert status.detail.startswith("FATAL: ")


def test_program_that_is_tried_again_counts_as_starting(supervisord: Supervisord, service: SampleService) -> None:
    """While supervisor waits before the next attempt, the state is starting and its words say BACKOFF."""
    manager(supervisord).start(service.call("dying"))
    while not (status := manager(supervisord).state(service.call("dying"))).detail.startswith("BACKOFF"):
        assert status.state is State.STARTING
    assert (State.STARTING, None) == (status.state, status.pid)
    manager(supervisord).stop(service.call("dying"))
    assert manager(supervisord).state(service.call("dying")).state is State.STOPPED


@pytest.mark.parametrize("program", ["deaf", "quits"])
def test_a_process_that_lost_the_signal_to_stop_gets_it_again(
    program: str, supervisord: Supervisord, service: SampleService, tmp_path: Path
) -> None:
    """A child that has yet to become the program is deaf: it is told once more, and no restart waits for stopwaitsecs.

    It is told by the signal that its program ends of: the other one means something else to it.
    """
    manager(supervisord).start(service.call(program))
    first = manager(supervisord).state(service.call(program)).pid
    while not int(re.findall(r"SigIgn:\s(\w+)", Path(f"/proc/{first}/status").read_text())[0], 16) & 1 << signal.SIGTERM - 1:
        time.sleep(0.001)

    manager(supervisord).restart(service.call(program, timeout=10.0))

    assert first not in (None, manager(supervisord).state(service.call(program)).pid)
    assert "SIGKILL" not in (tmp_path / "run" / "supervisord.log").read_text()


def test_reload_sends_the_signal(supervisord: Supervisord, service: SampleService) -> None:
    """Reload signals the main process: sleep ends of a HUP, and supervisor starts another."""
    manager(supervisord).start(service.call("web"))
    process = psutil.Process(manager(supervisord).state(service.call("web")).pid)
    manager(supervisord).reload(service.call("web"))
    process.wait(10)


def test_reload_of_a_stopped_program_is_refused(supervisord: Supervisord, service: SampleService) -> None:
    """There is nothing to signal where nothing runs."""
    with pytest.raises(RestartFailed, match="NOT_RUNNING"):
        manager(supervisord).reload(service.call("web"))


def test_absent_supervisord_is_worth_another_try(supervisord: Supervisord, service: SampleService) -> None:
    """Without a supervisord behind the socket, the error names the socket and is Unavailable, at once."""
    asked = manager(supervisord)
    supervisord.stop()
    with pytest.raises(Unavailable, match=str(supervisord.socket)) as caught:
        asked.restart(service.call("web"))
    assert caught.value.hint == "is supervisord running?"


def test_supervisord_that_came_back_is_asked_again(supervisord: Supervisord, service: SampleService) -> None:
    """Nothing is kept open: after a restart of supervisord the same manager works."""
    asked = manager(supervisord)
    supervisord.stop()
    supervisord.start()
    asked.restart(service.call("web"))
    assert asked.state(service.call("web")).pid


def test_silent_socket_is_given_up_at_the_deadline(service: SampleService, tmp_path: Path) -> None:
    """Somebody who takes connections and never answers costs the time of the call, not more."""
    path = tmp_path / "silent.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        asked = SupervisorManager(SupervisorOptions(url=f"unix://{path}"))
        with pytest.raises(Unavailable, match="did not answer getProcessInfo in time"):
            asked.state(service.call("web", timeout=0.2))


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", ConfigError, "another user name or password"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", ConfigError, "is not supervisor's"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", Unavailable, "answers 500 Oops"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<html", Unavailable, "does not answer as supervisor does"),
        (b"SSH-2.0-OpenSSH\r\n", Unavailable, "does not answer"),
    ],
)
def test_strange_answers_become_our_errors(service: SampleService, answer: bytes, error: type[Exception], words: str) -> None:
    """Whatever answers instead of supervisor, the error is ours and says what happened; over TCP as over a socket file."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        asked = SupervisorManager(SupervisorOptions(url=f"http://127.0.0.1:{listening.getsockname()[1]}"))
        with pytest.raises(error, match=words):
            asked.state(service.call("web"))
        server.join()


@pytest.mark.parametrize(
    "url", ["", "supervisor.sock", "unix://run/supervisor.sock", "https://host", "http://host:port", f"unix:///{'a' * 120}"]
)
def test_url_that_cannot_be_is_refused_with_the_options(url: str) -> None:
    """A URL that is no supervisor's is found when the spec is read, not when a host restarts."""
    with pytest.raises(ValueError, match="url|Port"):
        SupervisorOptions(url=url)


def test_socket_of_a_deep_directory_is_put_where_it_fits(service: SampleService, tmp_path: Path) -> None:
    """A directory whose path is too long for a socket is no obstacle, and nothing stays behind."""
    directory = tmp_path / ("deep" * 20) / ("deeper" * 10)
    with Supervisord(directory, {"web": Program(command=["sleep", "60"], directory=service.current)}) as supervisord:
        place = supervisord.socket.parent
        asked = manager(supervisord)
        asked.start(service.call("web"))
        pid = asked.state(service.call("web")).pid
        assert not place.is_relative_to(directory)
    assert not place.exists()
    assert not psutil.pid_exists(pid or 0)


def test_program_sees_the_unresolved_directory_and_its_environment(service: SampleService, tmp_path: Path) -> None:
    """PWD is `current` itself, arguments and variables arrive as they were given."""
    words = 'one "two" 100% back\\slash'
    program = Program(
        command=["sh", "-c", 'printf "%s\\n" "$PWD" "$COLOUR" "$1" > out; sleep 60', "sh", words],
        directory=service.current,
        environment={"COLOUR": "50% red, yellow"},
        autostart=True,
    )
    with Supervisord(tmp_path / "run", {"web": program}) as supervisord:
        out = service.current / "out"
        while not out.exists() or out.read_text(encoding="utf-8").count("\n") < 3:
            assert manager(supervisord).state(service.call("web")).state is not State.FAILED
        assert [str(service.current), "50% red, yellow", words] == out.read_text(encoding="utf-8").splitlines()
