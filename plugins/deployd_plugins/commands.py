"""Run commands for plugins: an argv list, a deadline, a session of its own, output to a file.

Output goes to a file and never through a pipe: a daemon that a command leaves behind keeps its output open, and would hold the
pipe (and whoever reads it) for as long as it lives, or die of it when we are gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from deployd_core.api import ConfigError, Unavailable

if TYPE_CHECKING:
    import subprocess

TAIL_BYTES = 2000
"""How much of the end of a command's output goes into a message."""

_LOCK_AGAIN = 0.1
"""Seconds between two tries to lock a log."""

_OURS_ALONE = (
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "MAINPID",
    "MANAGERPID",
    "NOTIFY_SOCKET",
    "SYSTEMD_EXEC_PID",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
)
"""What systemd tells the agent about itself: a service that inherited it would speak to systemd in the agent's name."""


class Outcome(NamedTuple):
    """How a command ended."""

    code: int | None
    """Its exit code, negative for a signal; None when it was killed at the deadline."""
    tail: str
    """The end of its output, both streams as they came."""

    def describe(self, command: str) -> str:
        """Say it in words: ``start exited with 1: no such file``."""
        how = "did not end in time and was killed" if self.code is None else f"was killed by signal {-self.code}"
        if self.code is not None and self.code >= 0:
            how = f"exited with {self.code}"
        return f"{command} {how}" + (f": {self.tail}" if self.tail else "")


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
    grace: float = 0.0,
    run_as: str = "",
    alone: bool = False,
) -> Outcome:
    """Run a command to its end, at most `timeout` seconds; then its whole process group is killed.

    With `grace` it is asked to end first, by SIGTERM, and has so many seconds to. With `run_as` it runs as that user.

    `env` is added to the agent's own; the directory is told as PWD as well, unresolved. What the command leaves running in the
    background lives on when it ends in time. The output is appended to `log`, or else thrown away after the tail was read.

    With `alone`, nothing is started on `log` while a command that was run alone still writes to it: one that outlived an agent
    that was killed is waited for, so that the next agent never runs it beside itself. Not for what starts daemons, which keep it.

    Raises:
        ConfigError: The command, its directory or the log cannot be used.
        Unavailable: The machine has no room for another process, or an earlier run goes on for longer than `timeout`.
    """
    import os
    import tempfile
    import time

    deadline = time.monotonic() + timeout
    identity, account = as_user(run_as) if run_as else ({}, {})
    try:
        output: BinaryIO
        with tempfile.TemporaryFile() if log is None else log.open("ab+") as output:
            if alone and log is not None:
                _wait_for_earlier_run(output, log, deadline)
                timeout = max(0.0, deadline - time.monotonic())
            # Where this output begins must be known before: the command shares the position in the file, and moves it.
            begin = output.seek(0, os.SEEK_END)
            process = _start(argv, output, _environment(account | dict(env or {}), cwd), cwd, identity)
            return Outcome(_finish(process, timeout, grace), _tail(output, begin))
    except (FileNotFoundError, NotADirectoryError, PermissionError, IsADirectoryError) as error:
        raise ConfigError(f"cannot run {argv[0]!r}: {error.strerror}: {error.filename}", hint="give an absolute path") from error
    except (OSError, ValueError) as error:
        # ValueError: a NUL in an argument. OSError: no memory, too many processes, an executable of no known format.
        raise Unavailable(f"cannot run {argv[0]!r}: {error}") from error


def _wait_for_earlier_run(output: BinaryIO, log: Path, deadline: float) -> None:
    """Lock the log. The command inherits it with its output, so that the lock is held for as long as the command lives."""
    import fcntl
    import time

    while True:
        try:
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Unavailable(f"an earlier run still writes to {log}", hint=f"see who: fuser -v {log}") from None
            time.sleep(_LOCK_AGAIN)  # there is no waiting for a lock with a deadline
        else:
            return


def wait_gone(pid: int, timeout: float) -> bool:
    """Wait until a process has ended, or `timeout` seconds; True when it has. It need not be our child."""
    import os
    import select

    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(max(0.0, timeout) * 1000))
    finally:
        os.close(descriptor)


def as_user(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What it takes to start a process as a user: arguments of Popen, and its environment.

    Raises:
        ConfigError: There is no such user, or the agent may not become it.
    """
    import os
    import pwd

    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"there is no user {name!r} on this host", hint="make the user, or change run_as") from None
    account = {"HOME": user.pw_dir, "LOGNAME": name, "USER": name}
    if os.geteuid() == user.pw_uid:
        return {}, account
    if os.geteuid() != 0:
        raise ConfigError(f"run_as = {name!r} needs an agent that runs as root", hint="run the agent as root, or drop run_as")
    groups = os.getgrouplist(name, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": groups}, account


def _start(
    argv: Sequence[str], output: BinaryIO, env: Mapping[str, str], cwd: Path | None, identity: Mapping[str, Any]
) -> subprocess.Popen[bytes]:
    import subprocess

    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=env,
        cwd=cwd,
        start_new_session=True,
        **identity,
    )


def _finish(process: subprocess.Popen[bytes], timeout: float, grace: float) -> int | None:
    """Wait for its end, or bring it about; the exit code, None when it did not end in time."""
    import os
    import signal

    try:
        in_time = wait_gone(process.pid, timeout)
        if in_time:
            process.wait()
        elif grace:
            os.killpg(process.pid, signal.SIGTERM)
            wait_gone(process.pid, grace)
    finally:
        if process.returncode is None:
            # Not reaped yet, so that the group's number cannot have become somebody else's.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode if in_time else None


def _environment(extra: Mapping[str, str], cwd: Path | None) -> dict[str, str]:
    import os

    inherited = {name: value for name, value in os.environ.items() if name not in _OURS_ALONE}
    return inherited | ({"PWD": str(cwd)} if cwd else {}) | dict(extra)


def _tail(output: BinaryIO, begin: int) -> str:
    import os

    end = output.seek(0, os.SEEK_END)
    output.seek(max(begin, end - TAIL_BYTES))
    return output.read(TAIL_BYTES).decode(errors="replace").strip()
