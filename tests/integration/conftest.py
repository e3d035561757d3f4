"""A person at a terminal, with hosts that report what they are told to; and the virtual environment of whoever writes a plugin."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deployd_core import rollouts
from deployd_core.cli.main import run
from deployd_core.coordination import AgentInfo, Denied, HostStatus, InstanceStatus
from deployd_core.model import FleetLimit
from deployd_core.packing import pack
from deployd_core.units import Share
from deployd_core.zookeeper import layout, members, status
from deployd_core.zookeeper.address import split_address
from deployd_core.zookeeper.coordination import ZooKeeperCoordination
from deployd_core.zookeeper.session import Session

SPEC = """
[service]
root = "/srv/{name}"
[source]
url = "file://{builds}/{{build}}.tar.gz"
[instances]
names = ["web@8001", "web@8002"]
manager = {{ use = "command", start = ["true"], stop = ["true"], status = ["true"] }}
[restart]
strategy = "concurrency"
options = {{ limit = 1 }}
"""


class Desk:
    """A person at a terminal, and the hosts they have."""

    def __init__(self, address, directory, capsys):
        self.address = address
        self.directory = directory
        self.capsys = capsys
        self.builds = directory / "builds"
        self.builds.mkdir()
        hosts, chroot = split_address(address)
        self.session = Session(hosts, chroot)
        self.session.start()
        self.agents = {}

    def type(self, *arguments):
        """Run a command; its exit code, output and messages."""
        code = run([*arguments, "--zookeeper", self.address, "--plugins-dir", str(self.directory / "none")])
        captured = self.capsys.readouterr()
        return code, captured.out, captured.err

    def build(self, name, content=""):
        """Publish a build; its digest."""
        source = self.directory / f"content-{name}"
        source.mkdir(exist_ok=True)
        (source / "index.html").write_text(content or name)
        return pack(source, self.builds / f"{name}.tar.gz", replace=True).digest

    def spec(self, name="web", old="", new="", more=""):
        """A spec file, with `new` for `old` and `more` at its end."""
        path = self.directory / f"{name}.toml"
        path.write_text((SPEC.replace(old, new) if old else SPEC).format(name=name, builds=self.builds) + more)
        return str(path)

    def apply(self, *hosts, service="web", more=""):
        """Make a service with live hosts; `more` is the end of its spec."""
        assert 0 == self.type("services", "apply", self.spec(service, more=more))[0]
        for host in hosts:
            self.start_agent(host, service=service)

    def start_agent(self, host, service="web"):
        """Register a host, with its agent alive as long as our session is."""
        members.register(self.session, service, host, "zone-a")
        status.announce(self.session, AgentInfo(host=host, instance=host, version="0.1.0"))

    def agent(self, host, service="web"):
        """What the host's agent speaks to ZooKeeper with, and what it reads there now."""
        coordination = self.agents.setdefault(host, ZooKeeperCoordination(self.session, host, bool))
        coordination.snapshot(service)
        coordination._services[service]._cache.forget()  # what was written a moment ago may not have been heard of
        return coordination, coordination.snapshot(service)

    def take(self, host):
        """Have a host take its permit, and report that it restarts; or report why it has to wait."""
        coordination, snapshot = self.agent(host)
        answer = coordination.take_permit(snapshot, FleetLimit(hosts=Share(1)))
        denied = isinstance(answer, Denied)
        self.report(host, "waiting" if denied else "restarting", reason=answer.reason if denied else "")
        return answer

    def fail(self, host, reason="web@8001 did not get healthy"):
        """Have a host fail that holds a permit; it keeps that."""
        coordination, snapshot = self.agent(host)
        coordination.record_failure(snapshot, reason)
        self.report(host, "failed", reason=reason)

    def finish(self, *hosts):
        """Have hosts serve what they should and give their permits back; the last one completes the rollout."""
        for host in hosts:
            coordination, snapshot = self.agent(host)
            self.report(host, "converged")
            done = next(entry.status for entry in rollouts.statuses(self.session, "web") if entry.host == host)
            coordination.release_permit(snapshot, done)
            coordination.advance(snapshot, lambda build: "")

    def die(self, host):
        """End a host's agent."""
        self.session.delete(layout.agent(host))

    def report(self, host, step, *, service="web", **more):
        """Have a host's agent report a step about what it should serve now."""
        entry = next(entry for entry in rollouts.statuses(self.session, service) if entry.host == host)
        wanted = entry.wanted.build if entry.wanted else None
        done = step == "converged"
        values = {
            "host": host,
            "zone": entry.zone,
            "role": entry.role,
            "wanted": wanted,
            "served": wanted if done else None,
            "step": step,
            "since": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "rollout": entry.rollout_id,
            "instances": tuple(
                InstanceStatus(
                    name=name,
                    phase="ready" if done else "stale",
                    serves=wanted if done else None,
                    state="running",
                    health="healthy",
                )
                for name in ("web@8001", "web@8002")
            ),
            "agent": "0.1.0",
        }
        status.write_status(self.session, service, HostStatus(**values | more))


@pytest.fixture
def desk(zookeeper, tmp_path, capsys):
    """A desk with a ZooKeeper of its own and no service yet."""
    made = Desk(zookeeper, tmp_path, capsys)
    yield made
    made.session.close()


class Environment:
    """A fresh virtual environment with deployd and pytest, and a directory to work in."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "home"
        self.home.mkdir(parents=True)
        self.bin = directory / "venv" / "bin"
        venv.create(directory / "venv", with_pip=True)
        (site,) = (directory / "venv" / "lib").glob("python*/site-packages")
        # What is installed where these tests run, without downloading it again: its own .pth files are read, too.
        (site / "tests.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        for name, module in (("deployd", "deployd_core"), ("pytest", "pytest")):
            (self.bin / name).write_text(f'#!/bin/sh\nexec "{self.bin}/python" -P -m {module} "$@"\n')
            (self.bin / name).chmod(0o755)

    def run(self, script: str, *, expect: int = 0) -> str:
        """What a shell script prints, run as in an activated environment."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "DEPLOYD_", "PYTEST"))
        }
        environment = {
            **kept,
            "PATH": f"{self.bin}:{kept['PATH']}",
            "VIRTUAL_ENV": str(self.bin.parent),
            "DEPLOYD_PLUGINS_DIR": str(self.home / "plugins.d"),
            "PIP_QUIET": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
        }
        done = subprocess.run(
            ["/bin/sh", "-euc", script],
            cwd=self.home,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        assert expect == done.returncode, f"{script}: {done.stdout}"
        return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """One for the tests of a module."""
    return Environment(tmp_path_factory.mktemp("author"))


@pytest.fixture
def run_pytest() -> Callable[[Path], str]:
    """Run the tests of a package that is not installed, and say how they went: ``7 passed``."""

    def run(package: Path) -> str:
        environment = {**{key: value for key, value in os.environ.items() if "PYTEST" not in key}, "PYTHONPATH": str(package)}
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", package],
            cwd=package,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        found = re.search(r"^(\d+ .*) in [\d.]+s", done.stdout, re.MULTILINE)
        assert found, done.stdout + done.stderr
        return found[1]

    return run
