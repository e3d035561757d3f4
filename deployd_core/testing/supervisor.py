"""A real supervisord of one's own, in a directory: for tests and for ``deployd demo``. Needs no root, only supervisor itself."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil
from msgspec import Struct, field

from deployd_core.errors import ConfigError, Unavailable

_SOCKET_PATH_BYTES = 107 - len(".4194304")  # supervisord binds to a name with its pid at the end, and then renames it
_START_SECONDS = 10.0
_STOP_SECONDS = 15.0

_UNWRITABLE = re.compile(r"\s[;#]|^[;#]|[\n\r]")

_SETTINGS = """\
[supervisord]
nodaemon = true
silent = true
directory = {directory}
logfile = {directory}/supervisord.log
pidfile = {directory}/supervisord.pid
childlogdir = {directory}
identifier = deployd

[unix_http_server]
file = {socket}
chmod = 0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl = unix://{socket}
"""

_PROGRAM = """
[program:{name}]
command = {command}
directory = {directory}
environment = {environment}
autostart = {autostart}
autorestart = {autorestart}
startsecs = {startsecs}
startretries = {startretries}
stopsignal = {stopsignal}
stopwaitsecs = {stopwaitsecs}
stopasgroup = true
killasgroup = true
redirect_stderr = true
stdout_logfile = {log}
"""


class Program(Struct, frozen=True, kw_only=True):
    """A program of supervisord. Its environment gets PWD, as the unresolved `directory`."""

    command: Sequence[str]
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    autostart: bool = False
    autorestart: bool = True
    startsecs: int = 1
    startretries: int = 3
    stopsignal: str = "TERM"
    stopwaitsecs: int = 10


class Supervisord:
    """A supervisord with its files in a directory; a context manager that starts and stops it.

    `directory` takes its configuration, its log and those of its programs. Where the path of its socket would be too long for
    Linux, the socket lies in a directory of its own under /tmp, which `stop` removes.
    """

    def __init__(self, directory: Path, programs: Mapping[str, Program]) -> None:
        self.directory = directory
        self.programs = programs
        self.config = directory / "supervisord.conf"
        self.log = directory / "supervisord.log"
        self._socket_directory: Path | None = None
        self.socket = directory / "supervisor.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers, as the `supervisor` manager wants it."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        """The pid of supervisord itself."""
        if self._process is None:
            raise Unavailable("supervisord has not been started")
        return self._process.pid

    def start(self) -> None:
        """Start it, and return when it answers.

        Raises:
            ConfigError: supervisor is not installed.
            Unavailable: It ended, or did not answer in time; the message holds the end of its log.
        """
        if importlib.util.find_spec("supervisor") is None:
            raise ConfigError("supervisor is not installed", hint="install it: pip install 'deployd[demo]'")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._place_socket()
        self.write_config()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "supervisor.supervisord", "-c", str(self.config)],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise Unavailable(f"supervisord did not start; the end of {self.log}:\n{self._end_of_log()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it with everything it has started, whether that listens to reason or not."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._end(psutil.Process(process.pid))
            process.wait()
        if self._socket_directory is not None:
            shutil.rmtree(self._socket_directory, ignore_errors=True)
            self._socket_directory = None

    def write_config(self) -> None:
        """Write its configuration from `programs`; a running supervisord takes it on restart or by reloadConfig."""
        text = _SETTINGS.format(directory=_escape(str(self.directory)), socket=_escape(str(self.socket)))
        for name, program in self.programs.items():
            text += _PROGRAM.format(
                name=name,
                command=" ".join(_quote(word) for word in program.command),
                directory=_escape(str(program.directory)),
                environment=_environment({"PWD": str(program.directory), **program.environment}),
                autostart=program.autostart,
                autorestart="unexpected" if program.autorestart else "false",
                startsecs=program.startsecs,
                startretries=program.startretries,
                stopsignal=program.stopsignal,
                stopwaitsecs=program.stopwaitsecs,
                log=_escape(str(self.directory / f"{name}.log")),
            )
        self.config.write_text(text, encoding="utf-8")

    def __enter__(self) -> Supervisord:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _end(self, supervisord: psutil.Process) -> None:
        """Ask supervisord to end, which ends its programs; what is still there after a while is killed."""
        family = supervisord.children(recursive=True)
        supervisord.send_signal(signal.SIGTERM)
        self._answers()  # it looks for signals once a second, unless something wakes it
        _, left = psutil.wait_procs([supervisord, *family], timeout=_STOP_SECONDS)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)

    def _place_socket(self) -> None:
        self.socket = self.directory / "supervisor.sock"
        if len(str(self.socket).encode()) > _SOCKET_PATH_BYTES:
            # Not the default directory: TMPDIR may be too long itself.
            self._socket_directory = Path(tempfile.mkdtemp(prefix="deployd-", dir="/tmp"))
            self.socket = self._socket_directory / "supervisor.sock"

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, contextlib.suppress(OSError):
            connection.connect(str(self.socket))
            return True
        return False

    def _end_of_log(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:] if self.log.exists() else "(it wrote none)"


def _escape(text: str) -> str:
    """Double each ``%``, which supervisor expands in every value."""
    return text.replace("%", "%%")


def _quote(word: str) -> str:
    """A word of a command, as supervisor's reader takes it.

    Raises:
        ConfigError: It has what the reader would take for a comment or the end of the value.
    """
    if _UNWRITABLE.search(word):
        raise ConfigError(f"{word!r} cannot be written into supervisord.conf")
    escaped = _escape(word).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _environment(values: Mapping[str, str]) -> str:
    """A list of ``KEY="value"``; unlike a command it knows no escapes.

    Raises:
        ConfigError: A value has a quote, or what cannot be written at all.
    """
    for key, value in values.items():
        if _UNWRITABLE.search(value) or '"' in value:
            raise ConfigError(f"{key}={value!r} cannot be written into supervisord.conf")
    return ",".join(f'{key}="{_escape(value)}"' for key, value in values.items())
