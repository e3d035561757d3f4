"""Real balancers of one's own, nginx and HAProxy, in a directory: for tests that restart a service under load."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from deployd_core.errors import ConfigError, Unavailable

_SOCKET_PATH_BYTES = 107 - len(".4194304.tmp")  # HAProxy binds to a name with its pid at the end, and then renames it
_START_SECONDS = 10.0
_STOP_SECONDS = 5.0

_NGINX = """\
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log info;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    upstream web {{
{servers}
{pool}
    }}
    server {{
        listen {listen} backlog=512;
        keepalive_requests 1000000;
        location / {{
            proxy_pass http://web;
{headers}
        }}
    }}
}}
"""

_HAPROXY = """\
global
    stats socket {socket} mode 600 level admin
    maxconn 1000
defaults
    mode http
    option redispatch 1
    retries 3
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    {reuse}
frontend clients
    bind {listen}
    default_backend web
backend web
    balance roundrobin
{servers}
"""


class Balancer(ABC):
    """A balancer in the foreground, with its files in a directory; a context manager that starts and stops it."""

    program: str
    package: str

    def __init__(self, directory: Path, servers: Sequence[str], *, listen: str, before: Sequence[str] = ()) -> None:
        """Lay it out.

        Args:
            directory: Takes its configuration and its logs.
            servers: ``host:port`` of each server behind it.
            listen: ``host:port`` for clients.
            before: Words before the command, such as ``nsenter …``.
        """
        self.directory = directory
        self.servers = servers
        self.listen = listen
        self._before = before
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def configuration(self) -> str:
        """What its configuration file says."""

    @abstractmethod
    def command(self, configuration: Path) -> list[str]:
        """What runs it in the foreground."""

    @property
    @abstractmethod
    def broken(self) -> list[str]:
        """What its log says of connections to its servers that broke."""

    @property
    def log(self) -> str:
        """What it has logged."""
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(self.directory.glob("*.log"))]
        return "".join(texts)

    def start(self) -> None:
        """Start it, and return when it takes connections.

        Raises:
            ConfigError: It is not installed.
            Unavailable: It ended, or did not listen in time; the message holds the end of its log.
        """
        if shutil.which(self.program) is None:
            raise ConfigError(f"{self.program} is not installed", hint=f"install it: apt-get install {self.package}")
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"{self.program}.conf"
        path.write_text(self.configuration(), encoding="utf-8")
        with (self.directory / "output.log").open("ab") as log:
            self._process = subprocess.Popen([*self._before, *self.command(path)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise Unavailable(f"{self.program} did not start; the end of its log:\n{self.log[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _listens(self) -> bool:
        host, _, port = self.listen.rpartition(":")
        look = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1).close()"
        if self._before:  # where it is, and not where we are
            asked = [*self._before, sys.executable, "-S", "-E", "-c", look, host, port]
            return subprocess.run(asked, check=False, stderr=subprocess.DEVNULL).returncode == 0
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return True
        return False

    def __enter__(self) -> Balancer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Nginx(Balancer):
    """nginx with its own defaults."""

    program, package = "nginx", "nginx-light"

    def __init__(
        self,
        directory: Path,
        servers: Sequence[str],
        *,
        listen: str,
        keep_alive: int = 0,
        parameters: str = "",
        before: Sequence[str] = (),
    ) -> None:
        """Lay it out.

        Args:
            directory: Takes its configuration and its log.
            servers: ``host:port`` of each server behind it.
            listen: ``host:port`` for clients.
            keep_alive: Connections to its servers that are pooled.
            parameters: What else it is told of each server: ``fail_timeout=1s``.
            before: Words before the command.
        """
        super().__init__(directory, servers, listen=listen, before=before)
        self.keep_alive = keep_alive
        self.parameters = parameters

    def configuration(self) -> str:
        """What its configuration file says."""
        pooled = '            proxy_http_version 1.1;\n            proxy_set_header Connection "";'
        return _NGINX.format(
            directory=self.directory,
            listen=self.listen,
            servers="\n".join(f"        server {server} {self.parameters};" for server in self.servers),
            pool=f"        keepalive {self.keep_alive};" if self.keep_alive else "",
            headers=pooled if self.keep_alive else "",
        )

    def command(self, configuration: Path) -> list[str]:
        """What runs it in the foreground."""
        return ["nginx", "-p", str(self.directory), "-c", str(configuration), "-e", str(self.directory / "error.log")]

    @property
    def broken(self) -> list[str]:
        """What its log says of connections to its servers that broke.

        One that was reset before anything was sent on it (`connect() failed`) was refused, a moment late, and nothing is lost.
        """
        signs = ("prematurely closed", "reset by peer", "no live upstreams", "Broken pipe")
        lines = [line for line in self.log.splitlines() if "upstream" in line and "connect() failed" not in line]
        return [line for line in lines if any(sign in line for sign in signs)]


class Haproxy(Balancer):
    """HAProxy: it tries another server when one refuses, and pools its connections unless told not to."""

    program, package = "haproxy", "haproxy"

    def __init__(
        self,
        directory: Path,
        servers: Sequence[str],
        *,
        listen: str,
        close: bool = False,
        check: bool = False,
        before: Sequence[str] = (),
    ) -> None:
        """Lay it out.

        Args:
            directory: Takes its configuration and its log.
            servers: ``host:port`` of each server behind it; they are named ``web-PORT`` in the backend ``web``.
            listen: ``host:port`` for clients.
            close: ``option http-server-close``: no connection to a server outlives its request.
            check: It checks its servers' health by itself, and takes one that refuses for down.
            before: Words before the command.
        """
        super().__init__(directory, servers, listen=listen, before=before)
        self.close = close
        self.check = check
        self.socket = directory / "haproxy.sock"
        self._socket_directory: Path | None = None

    def configuration(self) -> str:
        """What its configuration file says."""
        check = " check inter 500ms observe layer4 error-limit 1 on-error mark-down" if self.check else ""
        return _HAPROXY.format(
            socket=self.socket,
            listen=self.listen,
            reuse="option http-server-close" if self.close else "",
            servers="\n".join(f"    server web-{server.rpartition(':')[2]} {server}{check}" for server in self.servers),
        )

    def command(self, configuration: Path) -> list[str]:
        """What runs it in the foreground."""
        return ["haproxy", "-db", "-f", str(configuration)]

    @property
    def broken(self) -> list[str]:
        """Nothing: it tells a syslog, if anybody."""
        return []

    def start(self) -> None:
        """Start it, and return when it takes connections."""
        if self._socket_directory is None and len(str(self.socket).encode()) > _SOCKET_PATH_BYTES:
            self._socket_directory = Path(tempfile.mkdtemp(prefix="deployd-", dir="/tmp"))
            self.socket = self._socket_directory / "haproxy.sock"
        super().start()

    def _listens(self) -> bool:
        # Its socket gets its name a moment after it has begun to take clients.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.socket))
            return super()._listens()
        return False

    def stop(self) -> None:
        """End it."""
        super().stop()
        if self._socket_directory is not None:
            shutil.rmtree(self._socket_directory, ignore_errors=True)
            self._socket_directory = None
