"""A real ZooKeeper of one's own, on free loopback ports: one server for tests and ``deployd demo``, or an ensemble of several."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from deployd_core.errors import ConfigError, Unavailable

DEBIAN_JARS = Path("/usr/share/java")
_PACKAGES = "install it: apt-get install libzookeeper-java default-jre-headless"
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
tickTime=500
minSessionTimeout=1000
maxSessionTimeout=60000
maxClientCnxns=0
clientPortListenBacklog=4096
admin.enableServer=false
4lw.commands.whitelist=srvr,ruok,mntr,cons,wchs
"""
_ALONE = """\
clientPort={port}
clientPortAddress=127.0.0.1
"""
_TOGETHER = """\
initLimit=20
syncLimit=10
"""
# A wrapper instead of preexec_fn, which Python warns about in a process with threads. The kernel kills the server when the thread
# that started it ends; a parent that ended before prctl is seen by the changed parent pid.
_WRAPPER = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9);"
    "os.getppid() == int(sys.argv[1]) or sys.exit('the parent is gone');"
    "os.execvp(sys.argv[2], sys.argv[2:])"
)
_START_TIMEOUT = 30.0
_ELECTION_TIMEOUT = 30.0
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
        raise ConfigError(
            "a ZooKeeper server needs java, which is not on PATH", hint="install one: apt-get install default-jre-headless"
        )
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
        fixed = self.port
        for attempt in range(_PORT_ATTEMPTS):
            self.port = fixed or free_ports(1)[0]
            self.launch()
            if self.wait_serving():
                return self
            # Somebody else took the port between our look and the server's bind.
            if fixed or "BindException" not in self._log_tail() or attempt == _PORT_ATTEMPTS - 1:
                break
        port, self.port = self.port, fixed
        raise Unavailable(f"ZooKeeper did not start on port {port}: {self._log_tail()}", hint=f"see {self._log}")

    def launch(self) -> None:
        """Start the server's process, and do not wait for it.

        Raises:
            ConfigError: java or the server's jars are missing.
        """
        command = [find_java(), *_JAVA_OPTIONS, "-cp", find_classpath(self._home), _MAIN_CLASS]
        self.data.mkdir(parents=True, exist_ok=True)
        settings = self.directory / "zoo.cfg"
        settings.write_text(self._settings())
        wrapper = [sys.executable, "-I", "-S", "-c", _WRAPPER, str(os.getpid())]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*wrapper, *command, str(settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,  # a Ctrl-C in the terminal is for us: we stop the server when we are done
            )

    def wait_serving(self) -> bool:
        """Wait until a launched server serves; False, and it is stopped, when it ends or takes too long."""
        deadline = time.monotonic() + _START_TIMEOUT
        while self._process is not None and time.monotonic() < deadline:
            if "Mode:" in self.ask("srvr") and self._process.poll() is None:
                return True
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=0.02)
                break
        self.kill()
        return False

    def ask(self, word: str) -> str:
        """What the server answers to a word of four letters, such as ``srvr`` or ``mntr``; empty when it does not."""
        # A short timeout: the port listens for a moment before it answers.
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=0.25) as connection:
                connection.sendall(word.encode())
                answer = b""
                while chunk := connection.recv(4096):
                    answer += chunk
        except OSError:
            return ""
        return answer.decode(errors="replace")

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
    def data(self) -> Path:
        """Where it keeps its snapshots and its log of transactions."""
        return self.directory / "data"

    @property
    def _log(self) -> Path:
        return self.directory / "zookeeper.log"

    def _settings(self) -> str:
        return (_SETTINGS + _ALONE).format(data=self.data, port=self.port)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _log_tail(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return " | ".join(lines[-3:]) or "its log is empty"


class EnsembleMember(ZooKeeperServer):
    """One server of an ensemble: can be killed, paused and started again by itself."""

    def __init__(self, directory: Path, number: int, *, home: Path | None = None) -> None:
        """Be the server of that number, from 1 on."""
        super().__init__(directory, home=home)
        self.number = number
        self.peers: Sequence[str] = ()
        """The lines of the settings that name all of them."""

    @property
    def leads(self) -> bool:
        """Whether it says that it is the leader."""
        return "Mode: leader" in self.ask("srvr")

    def launch(self) -> None:
        """Start its process; it serves once more than half of them talk to each other."""
        self.data.mkdir(parents=True, exist_ok=True)
        (self.data / "myid").write_text(str(self.number))
        super().launch()

    def _settings(self) -> str:
        return (_SETTINGS + _TOGETHER).format(data=self.data) + "\n".join([*self.peers, ""])


class ZooKeeperEnsemble:
    """Several ZooKeeper servers that elect a leader among them; they end with the thread that started them."""

    def __init__(self, directory: Path, servers: int = 3, *, home: Path | None = None) -> None:
        """Have each keep its data in a directory of its own below `directory`."""
        self.servers = tuple(EnsembleMember(directory / f"server-{number}", number, home=home) for number in range(1, servers + 1))

    @property
    def address(self) -> str:
        """``host:port`` of every server, joined by commas."""
        return ",".join(server.address for server in self.servers)

    def start(self) -> ZooKeeperEnsemble:
        """Start all of them, and return when each serves.

        Raises:
            ConfigError: java or the servers' jars are missing.
            Unavailable: They did not come up.
        """
        for _ in range(_PORT_ATTEMPTS):
            self._choose_ports()
            for server in self.servers:
                server.launch()
            if all(server.wait_serving() for server in self.servers):
                return self
            self.stop()  # somebody else took a port between our look and a server's bind, nearly always
        raise Unavailable(f"the ZooKeeper ensemble did not start; see {self.servers[0].directory.parent}/*/zookeeper.log")

    def stop(self) -> None:
        """End all of them at once."""
        for server in self.servers:
            server.kill()

    def leader(self, timeout: float = _ELECTION_TIMEOUT) -> EnsembleMember:
        """The server that leads, waiting for an election that is under way.

        Raises:
            Unavailable: There is none within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            leading = next((server for server in self.servers if server.pid is not None and server.leads), None)
            if leading is not None:
                return leading
            time.sleep(0.02)
        raise Unavailable("the ZooKeeper ensemble has no leader", hint="is more than half of it running?")

    def followers(self) -> tuple[EnsembleMember, ...]:
        """The running servers that do not lead."""
        leading = self.leader()
        return tuple(server for server in self.servers if server.pid is not None and server is not leading)

    def __enter__(self) -> ZooKeeperEnsemble:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _choose_ports(self) -> None:
        ports: Iterator[int] = iter(free_ports(3 * len(self.servers)))
        peers = []
        for server in self.servers:
            server.port = next(ports)
            peers.append(f"server.{server.number}=127.0.0.1:{next(ports)}:{next(ports)}:participant;127.0.0.1:{server.port}")
        for server in self.servers:
            server.peers = peers


def free_ports(count: int) -> list[int]:
    """So many different loopback ports that are free at this moment."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
