"""The `command` manager: instances that are started and stopped by commands."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from deployd_core.api import ConfigError, InstanceCall, Manager, Meta, Options, RestartFailed, State, Status, Unavailable, hookimpl
from deployd_plugins import commands

_LSB_NOT_CONFIGURED = (5, 6)
_LSB_STATES = {0: State.RUNNING, 3: State.STOPPED, 4: State.UNKNOWN}


class CommandManagerOptions(Options, frozen=True, kw_only=True):
    """Commands are lists of words, run in ``<root>/current`` without a shell; their words may hold ``{instance}``, ``{port}``…"""

    start: Annotated[tuple[str, ...], Meta(min_length=1, description="starts an instance in the background and ends")]
    stop: Annotated[tuple[str, ...], Meta(min_length=1, description="stops an instance")]
    restart: Annotated[tuple[str, ...], Meta(description="restarts one; without it: stop, then start")] = ()
    reload: Annotated[tuple[str, ...], Meta(description="has one take the new release without stopping")] = ()
    status: Annotated[tuple[str, ...], Meta(description="exits with 0 running, 3 stopped, 4 unknown, else failed")] = ()
    pid_file: Annotated[str, Meta(description="file with the pid of the main process")] = ""
    pid: Annotated[tuple[str, ...], Meta(description="instead of pid_file: prints the pid of the main process")] = ()
    env: Annotated[Mapping[str, str], Meta(description="added to the environment of the commands")] = {}
    log: Annotated[str, Meta(description="file that takes the output of the commands, and of what they start")] = (
        "{root}/shared/{instance}.log"
    )

    def __post_init__(self) -> None:
        """Refuse options that leave the state of an instance unknowable."""
        if not (self.status or self.pid_file or self.pid):
            raise ValueError("needs status, pid_file or pid: something has to tell whether an instance runs")


class CommandManager(Manager[CommandManagerOptions]):
    """Start, stop and ask for instances by commands of your own, such as init scripts.

    An instance is what its start command leaves behind. It must have ``<root>/current`` as its working directory, where the
    commands run, for deployd to see which build it serves. Exit codes 5 and 6 of any command say that it knows no such instance.
    """

    name = "command"

    def state(self, call: InstanceCall) -> Status:
        """Ask the status command; without one, look for the main process."""
        return self._state(call, _Deadline(call))

    def start(self, call: InstanceCall) -> None:
        """Run the start command unless the instance runs."""
        deadline = _Deadline(call)
        if self._state(call, deadline).state is not State.RUNNING:
            self._act(call, "start", self.options.start, deadline)

    def stop(self, call: InstanceCall) -> None:
        """Run the stop command unless the instance is stopped, and wait until its main process has ended."""
        deadline = _Deadline(call)
        if self._state(call, deadline).state is not State.STOPPED:
            self._stop(call, deadline)

    def restart(self, call: InstanceCall) -> None:
        """Run the restart command; or stop the instance, wait until it has ended, and start it."""
        deadline = _Deadline(call)
        if self.options.restart:
            self._act(call, "restart", self.options.restart, deadline)
            return
        if self._state(call, deadline).state is not State.STOPPED:
            self._stop(call, deadline)
        self._act(call, "start", self.options.start, deadline)

    def reload(self, call: InstanceCall) -> None:
        """Run the reload command."""
        if not self.options.reload:
            raise RestartFailed(f"{call.instance.name}: manager command has no reload", hint="give it a reload command, or restart")
        self._act(call, "reload", self.options.reload, _Deadline(call))

    def _state(self, call: InstanceCall, deadline: _Deadline) -> Status:
        if not self.options.status:
            return self._state_by_pid(call, deadline)
        outcome = self._run(call, "status", self.options.status, deadline, keep=False)
        if outcome.code is None:
            raise Unavailable(f"{call.instance.name}: {outcome.describe('status')}")
        state = _LSB_STATES.get(outcome.code, State.FAILED)
        pid = self._pid(call, deadline) if state is State.RUNNING else None
        return Status(state=state, pid=pid, detail=outcome.describe("status"))

    def _stop(self, call: InstanceCall, deadline: _Deadline) -> None:
        pid = self._pid(call, deadline)
        self._act(call, "stop", self.options.stop, deadline)
        # Many stop commands only send a signal. A new process would find the port still taken.
        if pid is not None and not commands.wait_gone(pid, deadline.left()):
            raise RestartFailed(
                f"{call.instance.name}: stop ended, but process {pid} still runs {call.timeout:.1f} s later",
                hint="make the stop command wait, or raise restart_timeout",
            )

    def _act(self, call: InstanceCall, name: str, argv: tuple[str, ...], deadline: _Deadline) -> None:
        outcome = self._run(call, name, argv, deadline, keep=True)
        if outcome.code != 0:
            raise RestartFailed(f"{call.instance.name}: {outcome.describe(name)}")

    def _run(self, call: InstanceCall, name: str, argv: tuple[str, ...], deadline: _Deadline, *, keep: bool) -> commands.Outcome:
        env = {key: call.expand(value) for key, value in self.options.env.items()}
        words = [call.expand(word) for word in argv]
        current = call.root / "current"
        outcome = commands.run(
            words,
            timeout=deadline.left(),
            env=env,
            cwd=current if current.is_dir() else call.root,
            log=self._log(call) if keep else None,
        )
        if outcome.code in _LSB_NOT_CONFIGURED:
            raise ConfigError(
                f"{call.instance.name}: {outcome.describe(name)}",
                hint="exit codes 5 and 6 say that the command knows no such instance",
            )
        return outcome

    def _log(self, call: InstanceCall) -> Path:
        path = Path(call.expand(self.options.log))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make {path.parent} for the log: {error.strerror}", hint="set `log` elsewhere") from error
        return path

    def _state_by_pid(self, call: InstanceCall, deadline: _Deadline) -> Status:
        pid = self._pid(call, deadline)
        if pid is not None:
            return Status(state=State.RUNNING, pid=pid)
        path = Path(call.expand(self.options.pid_file))
        if self.options.pid_file and path.exists():
            return Status(state=State.FAILED, detail=f"{path} is there, but no process of that pid")
        return Status(state=State.STOPPED)

    def _pid(self, call: InstanceCall, deadline: _Deadline) -> int | None:
        """The main process if it lives."""
        if self.options.pid:
            text = self._run(call, "pid", self.options.pid, deadline, keep=False).tail
        elif self.options.pid_file:
            text = _read(Path(call.expand(self.options.pid_file)))
        else:
            return None
        return int(text) if text.isdecimal() and _lives(int(text)) else None


class _Deadline:
    """When a call must have ended; several commands share it."""

    def __init__(self, call: InstanceCall) -> None:
        self._at = time.monotonic() + call.timeout

    def left(self) -> float:
        """Seconds until then, never negative."""
        return max(0.0, self._at - time.monotonic())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from error


def _lives(pid: int) -> bool:
    """Whether there is such a process, and not merely one that nobody has reaped."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] not in "ZXx"
    except OSError:
        return False


@hookimpl
def deployd_managers() -> list[type]:
    """The manager of this module."""
    return [CommandManager]
