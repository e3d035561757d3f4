"""`deployd demo`: a small fleet on this machine, rolled from one build to the next, as a story on the screen.

Everything in it is real (ZooKeeper, agents, supervisors, the service) and lies below one temporary directory, on loopback. However
it ends, by itself, by an error or by a signal, it takes everything down.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from deployd_core import rollouts
from deployd_core.config import load_spec
from deployd_core.demo_client import Client, ask
from deployd_core.demo_story import Story
from deployd_core.errors import ConfigError, DeploydError, Unavailable
from deployd_core.packing import Packed, pack
from deployd_core.plugins import Plugins
from deployd_core.processes import process_id
from deployd_core.rollouts import FleetStatus
from deployd_core.testing.fleet import Fleet, FleetHost
from deployd_core.testing.zookeeper import ZooKeeperServer, find_classpath, find_java, home_from_environment
from deployd_core.zookeeper.session import Session

SERVICE = "web"
CHROOT = "/deployd"
INSTANCES = 2
"""Of each host."""

_STRATEGY = "concurrency"
_OPTIONS = "limit = 1\ninstances_at_once = 1"
_START_TIMEOUT = 30.0
_SECONDS_PER_HOST = 20.0
_AGENT_PAUSE = 3.0
"""Seconds until an agent is started again."""
_LONGEST_TMP = 40
"""Bytes of a temporary directory: below it lie the sockets of supervisors, whose paths Linux limits to 107."""
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def run_demo(*, keep: bool, hosts: int = 3) -> int:
    """Show a fleet that rolls from v1 to v2.

    Args:
        keep: Whether to leave it running at the end, until Ctrl-C or SIGTERM.
        hosts: How many hosts, with two instances each.

    Returns:
        0 when every instance really serves v2 at the end, otherwise 1.

    Raises:
        ConfigError: Java, ZooKeeper's jars or supervisor are missing; the hint says what to install.
        Unavailable: Something did not start, ended, or took too long.
        RestartFailed: A host failed.
    """
    home = home_from_environment()
    _require(home)
    logging.getLogger("kazoo").setLevel(logging.CRITICAL)  # it speaks of every attempt
    with ExitStack() as stack:
        signals = stack.enter_context(_Signals())
        directory = _directory(stack)
        try:
            demo = Demo(directory, stack, signals, home=home, hosts=hosts)
            done = demo.tell()
            demo.say(demo.next_steps() if keep else _last_words())
            if keep:
                demo.stay()
        except DeploydError:
            signals.check()  # what a signal cut off may have failed for that
            raise
        finally:
            signals.ignore()  # from here on everything is taken down
    return 0 if done else 1


class _Signals:
    """Has signals end the demo by an exception, so that everything is taken down.

    kazoo catches whatever is raised while it talks, that exception too: so the signal is remembered and asked for.
    """

    def __init__(self) -> None:
        self._caught = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:  # nohup, or a shell that runs us in the background
                signal.signal(number, self._end)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise again for a signal that has come."""
        if self._caught:
            sys.exit(128 + self._caught)

    def ignore(self) -> None:
        """Take no more signals."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _end(self, number: int, _frame: object) -> None:
        self._caught = number
        self.check()


class Demo:
    """The fleet, and the story told of it."""

    def __init__(self, directory: Path, stack: ExitStack, signals: _Signals, *, home: Path | None, hosts: int) -> None:
        self._directory = directory
        self._spec_file = directory / f"{SERVICE}.toml"
        self._stack = stack
        self._signals = signals
        self._zookeeper = ZooKeeperServer(directory / "zookeeper", home=home)
        self._hosts = hosts
        self._fleet: Fleet
        self._session: Session

    @property
    def address(self) -> str:
        """The address of its ZooKeeper, with the chroot."""
        return self._zookeeper.address + CHROOT

    def tell(self) -> bool:
        """Tell the story; whether it ended well."""
        began = time.monotonic()
        self.say(f"deployd demo: {self._hosts} hosts with {INSTANCES} instances each, everything below {self._directory}\n")
        self._start()
        builds = {build: self._pack(build) for build in ("v1", "v2")}
        self._spec_file.write_text(
            self._fleet.spec(SERVICE, self._directory / "builds", strategy=_STRATEGY, options=_OPTIONS), encoding="utf-8"
        )
        rollouts.apply_spec(
            self._session, SERVICE, load_spec(self._spec_file, Plugins.load(directory=self._fleet.plugins), SERVICE)
        )
        self._wait(self._all_alive, _START_TIMEOUT)
        self.say(f"1. ZooKeeper, {self._hosts} agents and as many supervisors run   ({time.monotonic() - began:.1f} s)")
        self.say(
            f"2. Service {SERVICE}: strategy {_STRATEGY}, one host at a time, one instance at a time; builds v1 and v2 are packed\n"
        )
        self.say(f"3. Enable v1, as `deployd enable {SERVICE} v1` does")
        self._roll("v1", builds["v1"])
        self._curl()
        self.say(f"\n4. Enable v2, as `deployd enable {SERVICE} v2` does, while a client asks one instance after the other")
        with Client(self._urls()) as client:
            self._roll("v2", builds["v2"])
        self.say(f"   The client: {client.summary()}")
        if client.failed:
            self.say("   (this strategy restarts under traffic; one that drains loses none: docs/gates.md)")
        answers = self._curl()
        if answers != ["v2"] * len(answers):
            self.say("\n5. That went wrong: not every instance serves v2")
            return False
        self.say(f"\n5. All {self._hosts} hosts serve v2, and so does every instance   ({time.monotonic() - began:.1f} s)")
        return True

    def say(self, text: str) -> None:
        """Print a part of the story."""
        self._signals.check()
        click.echo(text)

    def next_steps(self) -> str:
        """What to try while everything runs."""
        program, host = _program(), next(iter(self._fleet.hosts.values()))
        return f"""
It goes on running: Ctrl-C ends it, and so does: kill {os.getpid()}
What to try next, in another terminal:
   export DEPLOYD_ZOOKEEPER={self.address}
   export DEPLOYD_PLUGINS_DIR={self._fleet.plugins}
   {program} status {SERVICE}
   {program} why {SERVICE}
   {program} enable {SERVICE} v1 --wait
   {program} restart {SERVICE} --wait
   {program} history {SERVICE}
Another strategy, or other options: edit the spec, and store it
   {program} services apply {self._spec_file}
A strategy of your own is a file in $DEPLOYD_PLUGINS_DIR; agents load it when they start, or by: kill -HUP {host.agent_pid}
An agent that is killed is started again, as by systemd, and goes on from what it finds:
   kill -9 {host.agent_pid}   (the agent of {host.name})"""

    def stay(self) -> None:
        """Leave everything running until a signal comes, or ZooKeeper or a supervisor ends by itself.

        An agent that has ended is started again, as systemd would: to kill one is among what there is to try.
        """
        pause = threading.Event()
        due: dict[str, float] = {}
        while not pause.wait(0.5):
            self._check_children(agents=False)
            for host in self._fleet.hosts.values():
                if host.agent_pid is None:
                    self._start_again(host, due)

    def _start_again(self, host: FleetHost, due: dict[str, float]) -> None:
        """Say that an agent has ended, and start it again when it is due."""
        now = time.monotonic()
        if host.name not in due:
            code = host.wait_agent()
            how = f"was killed by signal {-code}" if code < 0 else f"has ended with exit code {code}"
            self.say(f"The agent of {host.name} {how}. It is started again in {_AGENT_PAUSE:.0f} s, as systemd would")
            due[host.name] = now + _AGENT_PAUSE
        elif now >= due[host.name]:
            del due[host.name]
            host.start_agent()
            self.say(f"The agent of {host.name} runs again, with pid {host.agent_pid}")

    def _start(self) -> None:
        self._stack.callback(self._zookeeper.stop)
        self._zookeeper.start()
        addresses = [f"127.0.1.{10 + number}" for number in range(1, self._hosts + 1)]
        self._fleet = Fleet(self._directory, self.address, {SERVICE: free_ports(addresses, INSTANCES)}, hosts=self._hosts)
        self._stack.callback(self._fleet.stop)
        self._fleet.start()
        self._session = Session(self._zookeeper.address, CHROOT)
        self._stack.callback(self._session.close)
        self._session.start()

    def _pack(self, build: str) -> Packed:
        content = self._directory / "sources" / build
        content.mkdir(parents=True)
        server = files("deployd_core.demo_app") / "server.py"
        (content / "server.py").write_bytes(server.read_bytes())
        (content / "VERSION").write_text(f"{build}\n", encoding="utf-8")
        archives = self._directory / "builds"
        archives.mkdir(exist_ok=True)
        return pack(content, archives / f"{SERVICE}-{build}.tar.gz")

    def _roll(self, build: str, packed: Packed) -> None:
        """Enable a build and follow the hosts until all of them are done."""
        began = time.monotonic()
        rollout = rollouts.enable(self._session, SERVICE, build, packed.digest, by="deployd demo")
        story = Story(rollout, build)

        def done(fleet: FleetStatus) -> bool:
            for host, words in story.news(fleet.hosts):
                self.say(f"   {time.monotonic() - began:5.1f} s  {host}  {words}")
            return story.ended(fleet.hosts)

        self._wait(done, _START_TIMEOUT + _SECONDS_PER_HOST * self._hosts)

    def _wait(self, done: Callable[[FleetStatus], bool], timeout: float) -> None:
        """Watch the hosts until `done` says so; an end of something that should run is an error at once."""
        deadline = time.monotonic() + timeout
        for fleet in rollouts.watch_statuses(self._session, SERVICE, threading.Event(), every=0.5):
            if done(fleet):
                return
            self._check_children()
            if time.monotonic() > deadline:
                break
        raise Unavailable(f"the hosts did not get there in {timeout:.0f} s", hint=f"try again; {_end_of_logs(self._fleet)}")

    def _all_alive(self, fleet: FleetStatus) -> bool:
        return len(fleet.hosts) == self._hosts and all(entry.alive for entry in fleet.hosts)

    def _check_children(self, *, agents: bool = True) -> None:
        """Raise when something that we started has ended by itself, perhaps but for agents, or we are to end."""
        self._signals.check()
        pid = self._zookeeper.pid
        if pid is None or process_id(pid) is None:
            raise Unavailable("the demo's ZooKeeper has ended")
        for host in self._fleet.hosts.values():
            if agents and host.agent_pid is None:
                raise Unavailable(f"the agent of {host.name} has ended; the end of its log: {_tail(host.log())}")
            if process_id(host.supervisor.pid) is None:
                raise Unavailable(f"the supervisor of {host.name} has ended")

    def _urls(self) -> list[str]:
        return [url for urls in self._urls_by_host().values() for url in urls]

    def _urls_by_host(self) -> dict[str, list[str]]:
        ports = self._fleet.services[SERVICE]
        return {host.name: [f"http://{host.address}:{port}/" for port in ports] for host in self._fleet.hosts.values()}

    def _curl(self) -> list[str]:
        """Ask every instance and print what it answers."""
        answers: list[str] = []
        for urls in self._urls_by_host().values():
            found = [ask(url) for url in urls]
            self.say(f"   $ curl {' '.join(urls)}   {'  '.join(found)}")
            answers += found
        return answers


def _require(home: Path | None) -> None:
    find_java()
    find_classpath(home)
    if importlib.util.find_spec("supervisor") is None:
        raise ConfigError(
            "supervisor, which runs the demo's service, is not installed", hint="install it: pip install 'deployd[demo]'"
        )


def _directory(stack: ExitStack) -> Path:
    parent = tempfile.gettempdir()
    short = parent if len(parent) <= _LONGEST_TMP else "/tmp"  # noqa: S108 - mkdtemp makes a directory of its own there
    directory = Path(tempfile.mkdtemp(prefix="deployd-demo-", dir=short))
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    return directory


def free_ports(addresses: list[str], count: int) -> list[int]:
    """Ports that nobody listens on at any of the addresses."""
    found: list[int] = []
    while len(found) < count:
        with ExitStack() as stack:
            port = 0
            try:
                for address in addresses:
                    probe = stack.enter_context(socket.socket())
                    probe.bind((address, port))
                    port = probe.getsockname()[1]
            except OSError:
                continue  # taken on a later address: try another
        if port not in found:
            found.append(port)
    return sorted(found)


def _end_of_logs(fleet: Fleet) -> str:
    return "; ".join(f"{host.name} last logged: {_tail(host.log(), 1)}" for host in fleet.hosts.values())


def _tail(text: str, lines: int = 3) -> str:
    return " | ".join(text.strip().splitlines()[-lines:]) or "nothing"


def _program() -> str:
    """How to call deployd from the shell that called us."""
    path = Path(sys.executable).with_name("deployd")
    found = shutil.which("deployd")
    if found is not None and Path(found).resolve() == path.resolve():
        return "deployd"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _last_words() -> str:
    program = _program()
    return f"""
Everything is taken down again. What to try next:
   {program} demo --keep       leave it running, and talk to it
   {program} strategies list   which ways to restart there are
   {"docs/plugins.md":{len(program) + 16}}   a way of your own, in fifteen lines"""
