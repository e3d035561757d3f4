"""Light agents: the real engine and the real ZooKeeper code of many hosts in one process, each with a session of its own.

Only what they do to their host is simulated: the one instance of a service is a process that waits and costs nothing, and its
probe answers what the spec says it should. Builds come from real sources, and releases are real directories.

    python -m deployd_core.testing.light ADDRESS SERVICE PLUGIN_DIRECTORY HOST@ZONE…

runs agents until its standard input ends, so that killing the process is killing those agents with all that they hold.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from deployd_core.api import InstanceCall, Manager, Meta, Options, Probe, ProbeOptions, State, Status, Verdict, hookimpl
from deployd_core.clock import Clock, SystemClock
from deployd_core.coordination import AgentInfo
from deployd_core.engine import Engine
from deployd_core.errors import Unavailable
from deployd_core.events import Events
from deployd_core.performing import Identity
from deployd_core.plugins import Plugins
from deployd_core.processes import owner_here
from deployd_core.zookeeper.coordination import ZooKeeperCoordination
from deployd_core.zookeeper.session import Session, split_address

PLUGIN_FILE = "from deployd_core.testing.light import deployd_managers, deployd_probes\n"
"""What a file in the plugin directory holds, to have the manager and the probe of this module."""
_OBSERVE_EVERY = 30.0

_processes: dict[tuple[Path, str], subprocess.Popen[bytes]] = {}
"""What runs, by the root of the service and the instance: as with a real manager, it outlives the object that started it."""


class LightOptions(Options, frozen=True, kw_only=True):
    """None."""


class LightManager(Manager[LightOptions]):
    """Have an instance be a process that only waits, in the directory of its release; it ends with this process."""

    name = "light"

    def state(self, call: InstanceCall) -> Status:
        """Whether its process runs."""
        process = _processes.get((call.root, call.instance.name))
        if process is None or process.poll() is not None:
            return Status(state=State.STOPPED)
        return Status(state=State.RUNNING, pid=process.pid)

    def restart(self, call: InstanceCall) -> None:
        """End its process and begin another."""
        self.stop(call)
        self.start(call)

    def start(self, call: InstanceCall) -> None:
        """Begin a process; it waits for an input that never comes, and ends when whoever could send it has ended."""
        if self.state(call).state is State.STOPPED:
            process = subprocess.Popen(["cat"], cwd=call.release, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            _processes[call.root, call.instance.name] = process

    def stop(self, call: InstanceCall) -> None:
        """End its process."""
        process = _processes.pop((call.root, call.instance.name), None)
        if process is not None:
            process.kill()
            process.communicate()


class LightProbeOptions(ProbeOptions, frozen=True, kw_only=True):
    """Where a build is bad."""

    bad: Annotated[tuple[str, ...], Meta(description="BUILD@HOST: that build never gets healthy there")] = ()


class LightProbe(Probe[LightProbeOptions]):
    """Have an instance be healthy, but where the spec says that a build is bad."""

    name = "light"

    def check(self, call: InstanceCall) -> Verdict:
        """What the options say."""
        if f"{call.build}@{call.host}" in self.options.bad:
            return Verdict.unhealthy(f"{call.build} is bad on {call.host}")
        return Verdict.healthy()


@hookimpl
def deployd_managers() -> list[type[LightManager]]:
    """Register the manager."""
    return [LightManager]


@hookimpl
def deployd_probes() -> list[type[LightProbe]]:
    """Register the probe."""
    return [LightProbe]


class LightAgent:
    """The agent of one host, for one service."""

    def __init__(
        self, address: str, host: str, zone: str, plugins: Plugins, *, clock: Clock | None = None, session_timeout: float = 6.0
    ) -> None:
        """Be the agent of that host on the ZooKeeper at ``host:port,…/chroot``, and tell the time by `clock`."""
        hosts, chroot = split_address(address, "")
        clock = clock or SystemClock()
        self.host = host
        self._zone = zone
        self._plugins = plugins
        self._clock = clock
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.engine: Engine | None = None
        self.session = Session(hosts, chroot, session_timeout=session_timeout)
        now = lambda: datetime.fromtimestamp(clock.time(), UTC)  # noqa: E731 - a parameter of the next line
        self.coordination = ZooKeeperCoordination(self.session, host, self._wake, clock=now)

    def start(self, service: str) -> LightAgent:
        """Connect, and follow a service."""
        identity = Identity(
            host=self.host,
            zone=self._zone,
            address="127.0.0.1",
            owner=owner_here(self.host),
            version="light",
            state_directory=Path("/nonexistent"),  # only for gates, of which there are none
        )
        self.session.start(timeout=None, stop=self._stop)
        with suppress(Unavailable):  # then it is announced as soon as ZooKeeper answers
            self.coordination.announce(AgentInfo(host=self.host, instance=f"light:{self.host}", zone=self._zone))
        self.coordination.join(service, self._zone)
        self.engine = Engine(
            service,
            identity,
            coordination=self.coordination,
            plugins=self._plugins,
            events=Events([]),
            clock=self._clock,
            observe_every=_OBSERVE_EVERY,
        )
        self._thread = threading.Thread(target=self.engine.run, args=(self._stop,), name=f"light-{self.host}", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End at a safe point, and close the session."""
        self._stop.set()
        if self.engine is not None and self._thread is not None:
            self.engine.wake()
            self._thread.join(30.0)
        self.session.close()

    def _wake(self, _service: str) -> None:
        if self.engine is not None:
            self.engine.wake()


class LightProcess:
    """Agents in a process of their own."""

    def __init__(self, address: str, service: str, plugin_directory: Path, hosts: dict[str, str], log: Path) -> None:
        """Run the agents of these hosts (host → zone); what they say goes into `log`."""
        named = [f"{host}@{zone}" for host, zone in hosts.items()]
        command = [sys.executable, "-P", "-m", "deployd_core.testing.light", address, service, str(plugin_directory), *named]
        with log.open("wb") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)

    def kill(self) -> None:
        """End it as a power cut would: no session is closed, no permit given back, and the instances are gone with it."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> LightProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def main(address: str, service: str, plugin_directory: str, *hosts: str) -> None:
    """Run agents until the standard input ends."""
    plugins = Plugins.load(directory=Path(plugin_directory))
    for named in hosts:
        host, _, zone = named.partition("@")
        LightAgent(address, host, zone, plugins).start(service)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
