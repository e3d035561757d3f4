"""What is particular to the `command` manager, and how commands are run, with real commands."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployd_core.api import ConfigError, RestartFailed, State, Unavailable
from deployd_core.testing.sample import SampleService
from deployd_plugins import commands
from deployd_plugins.managers.command import CommandManager, CommandManagerOptions

PID_FILE = "{root}/shared/{instance}.pid"
START = ("sh", "-c", f"sleep 60 & echo $! > {PID_FILE}")
STOP = ("sh", "-c", f"kill $(cat {PID_FILE}); rm {PID_FILE}")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[SampleService]:
    service = SampleService(tmp_path / "web")
    service.add("v1")
    service.flip("v1")
    yield service
    for pid_file in (service.root / "shared").glob("*.pid"):
        kill(int(pid_file.read_text(encoding="utf-8")))


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    commands.wait_gone(pid, 10)


def by_pid_file(**options: tuple[str, ...]) -> CommandManager:
    return CommandManager(CommandManagerOptions(**{"start": START, "stop": STOP, **options}, pid_file=PID_FILE))  # type: ignore[arg-type]


def test_pid_file_alone_tells_the_state(service: SampleService) -> None:
    """Without a status command: no file is stopped, a living process is running, a dead one has failed."""
    manager, call = by_pid_file(), service.call("web")
    assert manager.state(call).state is State.STOPPED
    manager.start(call)
    status = manager.state(call)
    assert status.state is State.RUNNING
    kill(status.pid or 0)
    assert (State.FAILED, None) == (manager.state(call).state, manager.state(call).pid)
    assert "no process of that pid" in manager.state(call).detail


def test_pid_command_tells_the_main_process(service: SampleService) -> None:
    """A command that prints the pid does instead of a file; one that prints nothing means that nothing runs."""
    options = CommandManagerOptions(start=START, stop=STOP, pid=("cat", PID_FILE))
    manager, call = CommandManager(options), service.call("web")
    assert manager.state(call).state is State.STOPPED
    manager.start(call)
    pid_file = service.root / "shared" / "web.pid"
    assert int(pid_file.read_text(encoding="utf-8")) == manager.state(call).pid


@pytest.mark.parametrize(
    ("code", "state"),
    [(0, State.RUNNING), (1, State.FAILED), (2, State.FAILED), (3, State.STOPPED), (4, State.UNKNOWN), (150, State.FAILED)],
)
def test_exit_codes_of_the_status_command_follow_init_scripts(service: SampleService, code: int, state: State) -> None:
    """The exit code tells the state, the output becomes its detail."""
    options = CommandManagerOptions(start=START, stop=STOP, status=("sh", "-c", f"echo in words; exit {code}"))
    status = CommandManager(options).state(service.call("web"))
    assert (state, f"status exited with {code}: in words") == (status.state, status.detail)


def test_status_command_that_hangs_is_worth_another_try(service: SampleService) -> None:
    """A status command that does not end in time says nothing about the instance."""
    options = CommandManagerOptions(start=START, stop=STOP, status=("sleep", "60"))
    with pytest.raises(Unavailable, match="status did not end in time and was killed"):
        CommandManager(options).state(service.call("web", timeout=0.2))


def test_failing_start_is_told_with_the_tail_of_its_output(service: SampleService) -> None:
    """What a command wrote to either stream ends the message."""
    manager = by_pid_file(start=("sh", "-c", "echo first; echo port is taken >&2; exit 7"))
    with pytest.raises(RestartFailed, match=r"web: start exited with 7: first\nport is taken"):
        manager.restart(service.call("web"))


def test_start_that_hangs_is_killed_with_its_children(service: SampleService) -> None:
    """At the deadline the whole process group goes, not only the command itself."""
    child = service.root / "shared" / "child"
    manager = by_pid_file(start=("sh", "-c", f"sleep 60 & echo $! > {child}; wait"))
    with pytest.raises(RestartFailed, match="start did not end in time and was killed"):
        manager.start(service.call("web", timeout=0.5))
    assert commands.wait_gone(int(child.read_text(encoding="utf-8")), 10)


def test_stop_waits_for_the_process_and_not_only_for_the_command(service: SampleService) -> None:
    """A stop command that merely sends a signal is no reason to start before the old process has ended."""
    slow = (
        "sh",
        "-c",
        f"sh -c 'trap \"sleep 0.3; exit\" TERM; echo ready > {{root}}/ready; while :; do sleep 0.05; done' & echo $! > {PID_FILE}",
    )
    manager, call = by_pid_file(start=slow), service.call("web")
    manager.start(call)
    while not (service.root / "ready").exists():
        assert manager.state(call).state is State.RUNNING
    pid = manager.state(call).pid
    manager.stop(call)
    assert commands.wait_gone(pid or 0, 0)


def test_restart_command_replaces_stop_and_start(service: SampleService) -> None:
    """Where there is a restart command, only that runs."""
    manager = by_pid_file(restart=("touch", "{root}/restarted"), start=("false",), stop=("false",))
    manager.restart(service.call("web"))
    assert (service.root / "restarted").exists()


def test_reload_runs_its_command_or_is_refused(service: SampleService) -> None:
    """Reload does what its command does; without one it fails, naming the option."""
    by_pid_file(reload=("touch", "{root}/reloaded")).reload(service.call("web"))
    assert (service.root / "reloaded").exists()
    with pytest.raises(RestartFailed, match="has no reload"):
        by_pid_file().reload(service.call("web"))


def test_commands_run_in_current_with_their_environment(service: SampleService) -> None:
    """Commands run in `current`, with PWD as its unresolved name, the service's variables and none of systemd's for the agent."""
    script = 'printf "%s\\n" "$PWD" "$(pwd -P)" "$PORT" "$NOTIFY_SOCKET" > {root}/out'
    options = CommandManagerOptions(start=("sh", "-c", script), stop=STOP, pid_file=PID_FILE, env={"PORT": "{port}"})
    CommandManager(options).start(service.call("web@8001"))
    expected = [str(service.current), str(service.current.resolve()), "8001", ""]
    assert expected == (service.root / "out").read_text(encoding="utf-8").split("\n")[:4]


def test_output_of_what_was_started_goes_to_the_log(service: SampleService) -> None:
    """A daemon that keeps its output open writes where somebody can read it, and holds nobody up."""
    daemon = ("sh", "-c", f"(echo from the daemon; exec sleep 60) & echo $! > {PID_FILE}")
    by_pid_file(start=daemon).start(service.call("web"))
    log = service.root / "shared" / "web.log"
    while "from the daemon" not in log.read_text(encoding="utf-8"):
        assert by_pid_file().state(service.call("web")).state is State.RUNNING


def test_command_that_is_not_there_is_an_error_of_the_configuration(service: SampleService) -> None:
    """The message names the command, the hint the way out."""
    with pytest.raises(ConfigError, match="cannot run 'no-such-command'") as caught:
        by_pid_file(start=("no-such-command",)).start(service.call("web"))
    assert caught.value.hint


def test_placeholder_without_a_value_is_an_error_of_the_configuration(service: SampleService) -> None:
    """An instance without a port cannot fill {port}."""
    with pytest.raises(ConfigError, match=r"no value for \{port\}"):
        by_pid_file(start=("server", "{port}")).start(service.call("web"))


def test_options_that_cannot_tell_the_state_are_refused() -> None:
    """Something has to tell whether an instance runs."""
    with pytest.raises(ValueError, match="needs status, pid_file or pid"):
        CommandManagerOptions(start=START, stop=STOP)


def test_large_output_does_not_hang_and_is_cut(tmp_path: Path) -> None:
    """A command may write as much as it likes: only the end is kept."""
    outcome = commands.run(["sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x; echo; echo the end"], timeout=30)
    assert outcome.code == 0
    assert outcome.tail.endswith("the end")
    assert len(outcome.tail) <= commands.TAIL_BYTES


def test_death_by_a_signal_is_told(tmp_path: Path) -> None:
    """A command that was killed by a signal says which."""
    outcome = commands.run(["sh", "-c", "kill -9 $$"], timeout=30)
    assert "check was killed by signal 9" == outcome.describe("check")


def test_log_takes_one_command_after_the_other(tmp_path: Path) -> None:
    """The log grows, and each outcome holds only its own output."""
    log = tmp_path / "log"
    commands.run(["echo", "one"], timeout=30, log=log)
    assert commands.run(["echo", "two"], timeout=30, log=log).tail == "two"
    assert log.read_text(encoding="utf-8") == "one\ntwo\n"
