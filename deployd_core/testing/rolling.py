"""A roll under load: real agent, supervisor, ZooKeeper, balancer and clients, in a network namespace that ends with it.

`roll` is what tests and benches call; the rest happens in a child process, so that nothing here touches the firewall of the host.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from deployd_core import rollouts
from deployd_core.errors import ConfigError, Unavailable
from deployd_core.packing import pack
from deployd_core.plugins import convert
from deployd_core.spec import ServiceSpec
from deployd_core.testing.balancers import Balancer, Haproxy, Nginx
from deployd_core.testing.fleet import Fleet
from deployd_core.testing.load import Load, LoadGenerator
from deployd_core.testing.zookeeper import ZooKeeperServer, home_from_environment
from deployd_core.zookeeper.chroot import ensure_chroot
from deployd_core.zookeeper.session import Session

_FIRST_PORT = 8001
_LISTEN_PORT = 8080
_ROLL_SECONDS = 180.0
_FAILED = ("failed", "reverting", "reverted", "broken")
_HERE, _THERE = "10.77.0.1", "10.77.0.2"
"""The two ends of the veth pair, where balancer and clients are remote."""

SPEC = """\
[service]
root = "{directory}/fleet/{{host}}/web"
[source]
url = "file://{directory}/builds/{{service}}-{{build}}.tar.gz"
[instances]
count = {instances}
pattern = "web@{{port}}"
first_port = {first_port}
manager = {{ use = "supervisor", url = "unix://{{root}}/../supervisor/supervisor.sock", program = "web-{{port}}" }}
probe = {{ use = "http", url = "http://{{address}}:{{port}}/health", source_ip = "127.0.0.2", stable_for = "200ms" }}
warmup = ["/work?ms=20"]
{gate}
{restart}
"""

DRAINED = """\
[restart]
strategy = "iptables-drain"
[restart.options]
{options}
"""


class Scenario(Struct, frozen=True, kw_only=True):
    """Who serves, who balances, and how it is restarted."""

    balancer: str = "nginx"
    """``nginx``, ``haproxy``, or ``none``: clients choose an instance themselves, and another one when it refuses."""
    keep_alive: int = 0
    """nginx: connections to keep open to the instances."""
    parameters: str = ""
    """nginx: what else it is told of each instance, such as ``fail_timeout=1s``."""
    close: bool = False
    """HAProxy: ``option http-server-close``."""
    check: bool = False
    """HAProxy checks health by itself, and takes an instance that refuses for down."""
    remote: bool = False
    """Balancer and clients are in another network namespace, behind a veth pair."""
    gate: str = "iptables"
    """Name of the gate, or its table in TOML."""
    drained: bool = True
    """Else all instances are restarted at once, without a gate."""
    options: str = "instances_at_once = 2"
    """Options of the strategy that drains, in TOML."""
    instances: int = 8
    clients: int = 40
    before: float = 1.5
    """Seconds of load before the roll."""
    after: float = 1.0


class Rolled(Struct, frozen=True, kw_only=True):
    """What came of it."""

    load: Load
    began: float
    """When v2 was enabled, on the monotonic clock of the load."""
    ended: float
    lives: int
    """Processes of the service that there have been."""
    cut: int
    """Requests that one of them had begun and never ended."""
    broken: list[str]
    """What the balancer's log says of connections that broke."""
    log: str
    """The agent's."""
    events: list[dict[str, Any]]

    @property
    def seconds(self) -> float:
        """How long the roll took."""
        return self.ended - self.began

    @property
    def before(self) -> Load:
        """What was sent before the roll, without the first second of it."""
        return self.load.between(min(request.at for request in self.load.requests) + 1, self.began)

    @property
    def after(self) -> Load:
        """What was sent after the roll."""
        return self.load.between(self.ended, math.inf)

    @property
    def during(self) -> Load:
        """What was sent during the roll."""
        return self.load.between(self.began, self.ended)

    def __str__(self) -> str:
        requests, failures = self.load.requests, self.load.failures
        before, during = self.before.quick, self.during.quick
        words = [f"{request.at - self.began:.2f} s: {request.kind}: {request.error}" for request in failures[:20]]
        return (
            f"{len(failures)} of {len(requests)} failed, {self.cut} cut, {len(self.broken)} broken; {self.seconds:.1f} s; "
            f"p50 {before.latency(50):.3f} -> {during.latency(50):.3f}, p99 {before.latency(99):.3f} -> {during.latency(99):.3f}; "
            f"{self.load.builds}\n" + "\n".join([*words, *self.broken[:20]])
        )


def roll(scenario: Scenario, *, timeout: float = 240.0) -> Rolled:
    """Roll from v1 to v2 under load, in a network namespace of its own.

    Raises:
        Unavailable: It did not come to an end; the message holds what it said.
    """
    # Whatever happens to us, the kernel ends the namespaces' first process, and with it everything in them.
    namespace = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with tempfile.TemporaryDirectory(prefix="deployd-roll-") as directory:
        report = Path(directory) / "report"
        words = [directory, msgspec.json.encode(scenario).decode(), _network()]
        try:
            done = subprocess.run(
                [*namespace, sys.executable, "-m", __name__, *words], check=False, capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"the roll took more than {timeout:g} s: {error.stderr!r}") from error
        if done.returncode or not report.exists():
            raise Unavailable(f"the roll ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-8000:]}")
        return msgspec.json.decode(report.read_bytes(), type=Rolled)


def main() -> None:
    """Run as a program, in namespaces of its own: DIRECTORY SCENARIO and the network namespace that it may not be in."""
    directory, scenario = Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=Scenario)
    if sys.argv[3] == _network():
        raise SystemExit("not in a network namespace of its own: nothing was done")
    with _Rig(directory, scenario) as rig:
        rolled = rig.roll()
    (directory / "report").write_bytes(msgspec.json.encode(rolled))


class _Rig:
    """Everything that runs, in the namespace of this process."""

    def __init__(self, directory: Path, scenario: Scenario) -> None:
        self._directory = directory
        self._scenario = scenario
        self._ports = range(_FIRST_PORT, _FIRST_PORT + scenario.instances)
        self._running = ExitStack()
        self._before: list[str] = []
        """Words before a command that has it run where the clients are."""

    def __enter__(self) -> _Rig:
        with ExitStack() as starting:
            _run("ip", "link", "set", "lo", "up")
            if self._scenario.remote:
                self._before = starting.enter_context(_remote())
            (self._directory / "zookeeper").mkdir()
            server = starting.enter_context(ZooKeeperServer(self._directory / "zookeeper", home=home_from_environment()))
            self._session = Session(server.address, "/deployd")
            self._session.start()
            starting.callback(self._session.close)
            ensure_chroot(self._session)
            (self._directory / "builds").mkdir()
            services = {"web": list(self._ports)}
            self._fleet = Fleet(
                self._directory / "fleet", f"{server.address}/deployd", services, hosts=1, start_seconds=1.0, session_timeout="10s"
            )
            starting.enter_context(self._fleet)
            self._balancer = self._make_balancer()
            self._apply(drained=False)
            self._fleet.start()
            self._enable("v1")
            if self._balancer is not None:
                starting.enter_context(self._balancer)
            self._running = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def roll(self) -> Rolled:
        """Load, roll, load."""
        scenario = self._scenario
        self._apply(drained=scenario.drained)
        servers = [self._listen] if self._balancer is not None else self._servers
        with LoadGenerator(
            servers, clients=scenario.clients, keep_alive=self._balancer is not None, before=self._before
        ) as clients:
            time.sleep(scenario.before)
            began = time.monotonic()
            self._enable("v2")
            ended = time.monotonic()
            time.sleep(scenario.after)
            load = clients.finish()
        [host] = self._fleet.hosts.values()
        return Rolled(
            load=load,
            began=began,
            ended=ended,
            lives=len(self._counts()),
            cut=sum(begun - ended for begun, ended in self._counts()),
            broken=self._balancer.broken if self._balancer is not None else [],
            log=host.log(),
            events=[msgspec.json.decode(line) for line in (host.directory / "events.jsonl").read_bytes().splitlines()],
        )

    @property
    def _servers(self) -> list[str]:
        address = _HERE if self._scenario.remote else next(iter(self._fleet.hosts.values())).address
        return [f"{address}:{port}" for port in self._ports]

    @property
    def _listen(self) -> str:
        return f"{_THERE if self._scenario.remote else '127.0.0.1'}:{_LISTEN_PORT}"

    def _make_balancer(self) -> Balancer | None:
        scenario, directory = self._scenario, self._directory / "balancer"
        match scenario.balancer:
            case "nginx":
                return Nginx(
                    directory,
                    self._servers,
                    listen=self._listen,
                    keep_alive=scenario.keep_alive,
                    parameters=scenario.parameters,
                    before=self._before,
                )
            case "haproxy":
                return Haproxy(
                    directory, self._servers, listen=self._listen, close=scenario.close, check=scenario.check, before=self._before
                )
            case "none":
                return None
            case other:
                raise ConfigError(f"no balancer {other}")

    def _apply(self, *, drained: bool) -> None:
        gate = self._scenario.gate
        table = f'{{ use = "{gate}" }}' if "=" not in gate else gate
        if gate == "haproxy" and isinstance(self._balancer, Haproxy):
            table = f'{{ use = "haproxy", socket = "{self._balancer.socket}", leases = "{self._directory}/leases" }}'
        text = SPEC.format(
            directory=self._directory,
            instances=self._scenario.instances,
            first_port=_FIRST_PORT,
            gate=f"gate = {table}" if drained else "",
            restart=DRAINED.format(options=self._scenario.options) if drained else "",
        )
        rollouts.apply_spec(self._session, "web", convert(tomllib.loads(text), ServiceSpec, where="web"))

    def _enable(self, build: str) -> None:
        """Make a build, enable it, and wait until the host serves it."""
        source = self._directory / "builds" / build
        source.mkdir()
        shutil.copy(Path(__file__).with_name("load_server.py"), source / "server.py")
        (source / "VERSION").write_text(build, encoding="utf-8")
        digest = pack(source, self._directory / "builds" / f"web-{build}.tar.gz").digest
        rollouts.enable(self._session, "web", build, digest, by="test")
        deadline = time.monotonic() + _ROLL_SECONDS
        stop = threading.Event()
        for found in rollouts.watch_statuses(self._session, "web", stop, every=0.5):
            if found.hosts and all(entry.converged for entry in found.hosts):
                stop.set()
            elif time.monotonic() > deadline or any(entry.status and entry.status.step in _FAILED for entry in found.hosts):
                logs = "".join(host.log()[-6000:] for host in self._fleet.hosts.values())
                raise SystemExit(f"not converged on {build}: {found.hosts}\n{logs}")

    def _counts(self) -> list[tuple[int, int]]:
        """Requests begun and ended, of every process of the service that there has been."""
        paths = self._directory.glob("fleet/*/web/shared/*.requests")
        return [struct.unpack("qq", path.read_bytes()) for path in paths]


@contextlib.contextmanager
def _remote() -> Iterator[list[str]]:
    """Another network namespace behind a veth pair; the words that have a command run there."""
    keeper = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    try:
        there = Path(f"/proc/{keeper.pid}/ns/net")
        while there.readlink() == Path("/proc/self/ns/net").readlink():
            time.sleep(0.005)
        before = ["nsenter", f"--net={there}", "--"]
        _run("ip", "link", "add", "here", "type", "veth", "peer", "name", "there", "netns", str(keeper.pid))
        _run("ip", "address", "add", f"{_HERE}/24", "dev", "here")
        _run("ip", "link", "set", "here", "up")
        _run(*before, "ip", "link", "set", "lo", "up")
        _run(*before, "ip", "address", "add", f"{_THERE}/24", "dev", "there")
        _run(*before, "ip", "link", "set", "there", "up")
        yield before
    finally:
        keeper.kill()
        keeper.wait()


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}: {done.stderr.strip()}")


def _network() -> str:
    """Which network namespace this is."""
    return str(Path("/proc/self/ns/net").readlink())


if __name__ == "__main__":
    main()
