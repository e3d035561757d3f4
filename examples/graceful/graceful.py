"""A manager for servers that replace themselves on a signal, as gunicorn and nginx do on SIGUSR2: no connection is ever refused.

The running process starts its successor, which takes over the listening socket, reads the new release, and writes its pid into the
pid file; then the old one finishes its requests and ends. To deployd that is a restart: another process, of the new build.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Annotated

from deployd_core.api import ConfigError, InstanceCall, Manager, Meta, Options, RestartFailed, State, Status, hookimpl

_POLL = 0.02
"""Seconds between two looks at a pid file: there is nothing to wait for."""


class GracefulOptions(Options, frozen=True, kw_only=True):
    """What a spec can say of the manager."""

    command: Annotated[tuple[str, ...], Meta(description="starts an instance, in `current`; {port} and the like are filled in")]
    pid_file: Annotated[str, Meta(description="where the server writes its pid")] = "{root}/shared/{instance}.pid"
    signal: Annotated[str, Meta(description="what has it start its successor")] = "USR2"
    instances: Annotated[tuple[str, ...], Meta(description="the instances it knows; all, when there are none")] = ()


class Graceful(Manager[GracefulOptions]):
    """Restart a server by a signal on which it starts its own successor, and hands over the socket.

    The server must resolve $PWD anew when it starts its successor: in the directory it is in, that would be the old release.
    """

    name = "graceful"

    def state(self, call: InstanceCall) -> Status:
        """Look at the process that the pid file names."""
        pid = self._pid(call)
        if pid is None:
            return Status(state=State.STOPPED)
        return Status(state=State.RUNNING, pid=pid) if _lives(pid) else Status(state=State.FAILED, detail=f"pid {pid} has ended")

    def start(self, call: InstanceCall) -> None:
        """Start it, unless it runs; return when it has written its pid."""
        if self.state(call).pid is not None:
            return
        self._path(call).unlink(missing_ok=True)
        current = call.root / "current"
        argv = [call.expand(word) for word in self.options.command]
        # A session of its own, and no child of the agent: it outlives an agent that is restarted.
        script = 'cd "$PWD" && exec setsid --fork "$@"'
        environment = {**os.environ, "PWD": str(current), "PIDFILE": str(self._path(call))}
        done = subprocess.run(
            ["/bin/sh", "-c", script, "start", *argv],
            cwd=current,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=call.timeout,
            check=False,
        )
        if done.returncode != 0:
            raise RestartFailed(f"{call.instance.name} was not started: {argv[0]} could not be run")
        self._await_pid(call, None)

    def stop(self, call: InstanceCall) -> None:
        """End it, and return when it has ended."""
        pid = self._pid(call)
        if pid is None:
            return
        deadline = time.monotonic() + call.timeout
        if _lives(pid):
            os.kill(pid, signal.SIGTERM)
        while _lives(pid):
            if time.monotonic() > deadline:
                raise RestartFailed(f"{call.instance.name} (pid {pid}) did not end within {call.timeout:g} s")
            time.sleep(_POLL)
        self._path(call).unlink(missing_ok=True)

    def restart(self, call: InstanceCall) -> None:
        """Have it start its successor; one that does not run is started."""
        before = self.state(call).pid
        if before is None:
            self.start(call)
            return
        os.kill(before, signal.Signals[f"SIG{self.options.signal.upper().removeprefix('SIG')}"])
        self._await_pid(call, before)

    def _await_pid(self, call: InstanceCall, before: int | None) -> None:
        """Wait until the pid file names a process that lives and is not the one before."""
        deadline = time.monotonic() + call.timeout
        while (pid := self._pid(call)) is None or pid == before or not _lives(pid):
            if time.monotonic() > deadline:
                raise RestartFailed(
                    f"{call.instance.name}: no new process wrote its pid to {self._path(call)} in {call.timeout:g} s"
                )
            time.sleep(_POLL)

    def _pid(self, call: InstanceCall) -> int | None:
        name = call.instance.name
        if self.options.instances and name not in self.options.instances:
            raise ConfigError(f"there is no instance {name!r}", hint="name it in `instances` of the manager")
        try:
            return int(self._path(call).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None  # not there, or not yet written

    def _path(self, call: InstanceCall) -> Path:
        return Path(call.expand(self.options.pid_file))


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][:1]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@hookimpl
def deployd_managers() -> list[type[Graceful]]:
    """Register the manager."""
    return [Graceful]
