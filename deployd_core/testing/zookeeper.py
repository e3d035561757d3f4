"""A real ZooKeeper server of one's own, on a free loopback port: for tests and for ``deployd demo``."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from deployd_core.errors import ConfigError, Unavailable

DEBIAN_JARS = Path("/usr/share/java")
_PACKAGES = "apt-get install libzookeeper-java default-jre-headless"
_MAIN_CLASS = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
_JARS = (
    "zookeeper",
    "zookeeper-jute",
    "slf4j-api",
    "slf4j-simple",
    "snappy-java",
    "metrics-core",
    "netty-common",
    "netty-buffer",
    "netty-handler",
    "netty-transport",
    "netty-codec",
    "netty-resolver",
    "netty-transport-native-unix-common",
    "netty-transport-native-epoll",
    "commons-cli",
    "commons-io",
)
_JAVA_OPTIONS = (
    "-Xms16m",
    "-Xmx128m",
    "-Xss256k",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dzookeeper.jmx.log4j.disable=true",
    "-Dzookeeper.forceSync=no",
    "-Dzookeeper.extendedTypesEnabled=true",
)
_SETTINGS = """\
dataDir={data}
clientPort={port}
clientPortAddress=127.0.0.1
tickTime=500
minSessionTimeout=1000
maxSessionTimeout=60000
maxClientCnxns=0
clientPortListenBacklog=4096
admin.enableServer=false
4lw.commands.whitelist=srvr,ruok,mntr,cons,wchs
"""
# A wrapper instead of preexec_fn, which Python warns about in a process with threads. The kernel kills the server when the thread
# that started it ends; a parent that ended before prctl is seen by the changed parent pid.
_WRAPPER = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9);"
    "os.getppid() == int(sys.argv[1]) or sys.exit('the parent is gone');"
    "os.execvp(sys.argv[2], sys.argv[2:])"
)
_START_TIMEOUT = 30.0
_PORT_ATTEMPTS = 5


def home_from_environment() -> Path | None:
    """What ``$ZOOKEEPER_HOME`` names; the one place that reads it, for the command line and the tests to pass on."""
    home = os.environ.get("ZOOKEEPER_HOME")
    return Path(home) if home else None


def find_classpath(home: Path | None = None) -> str:
    """The class path of the installed server: ``<home>/lib`` of an unpacked ZooKeeper, or Debian's jars.

    Raises:
        ConfigError: There are none; the hint names the packages.
    """
    if home is not None:
        found = sorted([*home.glob("*.jar"), *home.glob("lib/*.jar")])
        if not any(jar.name.startswith("zookeeper") for jar in found):
            raise ConfigError(
                f"ZOOKEEPER_HOME {home} has no zookeeper*.jar in its lib directory", hint="unset it, or unpack a ZooKeeper there"
            )
        return ":".join(str(jar) for jar in found)
    jars = [DEBIAN_JARS / f"{name}.jar" for name in _JARS]
    missing = [jar.name for jar in jars if not jar.exists()]
    if missing:
        raise ConfigError(
            f"no ZooKeeper server is installed: {DEBIAN_JARS} lacks {', '.join(missing)}",
            hint=f"{_PACKAGES}; or set ZOOKEEPER_HOME to an unpacked ZooKeeper",
        )
    return ":".join(str(jar) for jar in jars)


def find_java() -> str:
    """The path of the ``java`` command.

    Raises:
        ConfigError: There is none; the hint names the package.
    """
    java = shutil.which("java")
    if java is None:
        raise ConfigError("a ZooKeeper server needs java, which is not on PATH", hint="apt-get install default-jre-headless")
    return java


class ZooKeeperServer:
    """One ZooKeeper server with its data in `directory`; needs no root and ends with the thread that started it.

    Fit for tests and trials only: it does not sync its log to the disk.
    """

    def __init__(self, directory: Path, *, home: Path | None = None) -> None:
        """Choose the directory (made when missing) and, in `home`, an unpacked ZooKeeper to run instead of Debian's."""
        self.directory = directory
        self.port = 0
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """``127.0.0.1:<port>``; the same after every start."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """The pid of the running server."""
        return self._process.pid if self._process else None

    def start(self) -> ZooKeeperServer:
        """Start, or start again on the same port and data, and return when it serves.

        Raises:
            ConfigError: java or the server's jars are missing.
            Unavailable: It did not come up.
        """
        if self._process is not None:
            return self
        command = [
            find_java(),
            *_JAVA_OPTIONS,
            "-cp",
            find_classpath(self._home),
            "org.apache.zookeeper.server.quorum.QuorumPeerMain",
        ]
        (self.directory / "data").mkdir(parents=True, exist_ok=True)
        fixed = self.port
        for attempt in range(_PORT_ATTEMPTS):
            self.port = fixed or _free_port()
            if self._launch(command):
                return self
            # Somebody else took the port between our look and the server's bind.
            if fixed or "BindException" not in self._log_tail() or attempt == _PORT_ATTEMPTS - 1:
                break
        port, self.port = self.port, fixed
        raise Unavailable(f"ZooKeeper did not start on port {port}: {self._log_tail()}", hint=f"see {self._log}")

    def kill(self) -> None:
        """End the server at once, as a crash would; `start` brings it back with its data."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    stop = kill
    """The data survive a kill and an orderly end takes 0.4 s more: stopping is killing."""

    def pause(self) -> None:
        """Stop the server's process where it stands: connections stay, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._signal(signal.SIGCONT)

    def __enter__(self) -> ZooKeeperServer:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def _log(self) -> Path:
        return self.directory / "zookeeper.log"

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _launch(self, command: list[str]) -> bool:
        settings = self.directory / "zoo.cfg"
        settings.write_text(_SETTINGS.format(data=self.directory / "data", port=self.port))
        wrapper = [sys.executable, "-I", "-S", "-c", _WRAPPER, str(os.getpid())]
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                [*wrapper, *command, str(settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,  # a Ctrl-C in the terminal is for us: we stop the server when we are done
            )
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            if _serves(self.port) and process.poll() is None:
                self._process = process
                return True
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.02)
                return False
        process.kill()
        process.wait()
        return False

    def _log_tail(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return " | ".join(lines[-3:]) or "its log is empty"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _serves(port: int) -> bool:
    # A short timeout: the port listens for a moment before it answers.
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.25) as connection:
            connection.sendall(b"srvr")
            answer = b""
            while chunk := connection.recv(4096):
                answer += chunk
    except OSError:
        return False
    return b"Mode:" in answer
