"""A small real service to deploy: an HTTP server that says which build it is, in a root with releases and a `current`."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from deployd_core.api import InstanceCall
from deployd_core.model import Flip, Instance
from deployd_core.processes import boot_id

_SERVER = '''\
"""Answer every request with the build that was in the working directory at the start: server.py PORT [die | deaf]"""

import http.server
import pathlib
import signal
import sys

BUILD = pathlib.Path("BUILD").read_bytes()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BUILD)))
        self.end_headers()
        self.wfile.write(BUILD)

    def log_message(self, *arguments):
        pass


if "die" in sys.argv:
    sys.exit("told to die")
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
'''


class SampleService:
    """The directory of a service on one host, and what its instances run."""

    def __init__(self, root: Path, *, service: str = "web") -> None:
        self.root = root
        self.service = service
        self.flips: list[Flip] = []
        (root / "releases").mkdir(parents=True)
        (root / "shared").mkdir()

    @property
    def current(self) -> Path:
        """The link that points at the release to serve."""
        return self.root / "current"

    def command(self, port: int | str, *behaviour: str) -> list[str]:
        """What starts the server on a port, in the directory `current`; behaviour: ``die`` at once, or ``deaf`` to SIGTERM."""
        return [sys.executable, "-S", "-E", "server.py", str(port), *behaviour]

    def add(self, build: str) -> Path:
        """Make a release."""
        release = self.root / "releases" / build
        release.mkdir()
        (release / "BUILD").write_text(build, encoding="utf-8")
        (release / "server.py").write_text(_SERVER, encoding="utf-8")
        return release

    def flip(self, build: str) -> None:
        """Point `current` at a release, and note when."""
        link = self.root / "next"
        link.symlink_to(self.root / "releases" / build)
        link.replace(self.current)
        now = datetime.now(UTC).isoformat()
        self.flips.append(Flip(build=build, boot=boot_id(), boot_time=time.clock_gettime(time.CLOCK_BOOTTIME), at=now))

    def call(self, name: str, timeout: float = 20.0) -> InstanceCall:
        """What a plugin is told about an instance."""
        release = self.current.resolve() if self.current.is_symlink() else None
        return InstanceCall(
            service=self.service,
            host="test-host",
            zone="test-zone",
            root=self.root,
            timeout=timeout,
            instance=Instance.parse(self.service, name),
            build=release.name if release else None,
            release=release,
        )
