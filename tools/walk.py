"""A walk through the verbs of a rollout, with real agents on a real ZooKeeper: what docs/rollouts.md types, and what comes back.

    .venv/bin/python tools/walk.py

writes the outputs into the page; tests/e2e/test_walk.py checks that they are still what is printed, but for times and the like.
Each block stands between ``<!-- walked: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import io
import logging
import re
import shlex
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from importlib.resources import files
from pathlib import Path

from deployd_core import rollouts
from deployd_core.cli.main import run
from deployd_core.demo import free_ports
from deployd_core.packing import pack
from deployd_core.rollouts import FleetStatus, HostEntry
from deployd_core.testing.fleet import Fleet
from deployd_core.testing.zookeeper import ZooKeeperServer, home_from_environment
from deployd_core.zookeeper.address import split_address
from deployd_core.zookeeper.session import Session

PAGE = Path(__file__).resolve().parents[1] / "docs" / "rollouts.md"
BLOCK = re.compile(r"(<!-- walked: ([\w-]+) -->\n\n```console\n)(.*?)(```\n\n<!-- end -->)", re.DOTALL)

NETWORK = "127.0.251"
TIMEOUT = 90.0
CANARY_FIRST = "[rollout]\ncanary_first = true\n"

LATECOMER = """
import pathlib

from deployd_core.api import Veto, hookimpl


@hookimpl
def deployd_veto(request):
    if pathlib.Path("{directory}", "late-" + request.host).exists():
        return Veto(reason="others go first", retry_after=0.1)
"""
"""Says who goes first, which is otherwise up to chance."""

SERVER = """\
import pathlib, time
LACKING = pathlib.Path.cwd().resolve().parents[2].joinpath("no-certificate").exists() and "{build}" == "v3"
while not pathlib.Path("{directory}/go-{build}").exists():
    time.sleep(0.02)
"""
"""What builds begin with: it lets the story go on when it has been told, and v3 needs something that a host may lack."""


class Walk:
    """A small fleet, and the person who types."""

    def __init__(self, directory: Path, address: str) -> None:
        self.directory = directory
        self.address = address
        self.blocks: dict[str, str] = {}
        hosts = [f"{NETWORK}.{10 + number}" for number in range(1, 5)]
        self.port = free_ports(hosts, 1)[0]
        self.fleet = Fleet(directory, address, {"web": [self.port]}, hosts=4, start_seconds=0.0, network=NETWORK)
        (self.fleet.plugins / "late.py").write_text(LATECOMER.format(directory=directory), encoding="utf-8")
        (directory / "builds").mkdir()
        self.session = Session(*split_address(address))

    def type(self, name: str, *lines: str) -> None:
        """Type commands, and keep what they print under a name."""
        self.blocks[name] = "\n".join(self.run(line) for line in lines) + "\n"

    def run(self, line: str) -> str:
        """Type a command; the prompt, and what it prints."""
        command, _, filtered = line.partition(" | ")
        program, *arguments = shlex.split(command)
        assert program == "deployd", line
        output = io.StringIO()
        with chdir(self.directory), redirect_stdout(output), redirect_stderr(output):
            code = run([*arguments, "--zookeeper", self.address, "--plugins-dir", str(self.fleet.plugins)])
        printed = output.getvalue().rstrip().splitlines()
        if filtered:
            assert filtered == "tail -1", line
            printed = printed[-1:]
        assert code == 0, (line, code, output.getvalue())
        return f"$ {line}\n" + "\n".join(self._shown(text) for text in printed)

    def _shown(self, text: str) -> str:
        """A line without what is only true of this run."""
        return text.replace(str(self.directory), "/srv").replace(str(self.port), "8001").rstrip()

    def build(self, build: str, *, go: bool = True) -> None:
        """Publish a build; with `go`, its instances start at once."""
        source = self.directory / f"source-{build}"
        source.mkdir()
        server = (files("deployd_core.demo_app") / "server.py").read_text(encoding="utf-8")
        server = server.replace("HTTPStatus.OK if found", "HTTPStatus.SERVICE_UNAVAILABLE if LACKING else HTTPStatus.OK if found")
        head, rest = server.split("from __future__ import annotations\n", 1)
        begin = SERVER.format(build=build, directory=self.directory)
        (source / "server.py").write_text(f"{head}from __future__ import annotations\n{begin}{rest}", encoding="utf-8")
        (source / "VERSION").write_text(build, encoding="utf-8")
        pack(source, self.directory / "builds" / f"web-{build}.tar.gz")
        if go:
            self.go(build)

    def go(self, build: str) -> None:
        """Let the instances of a build start."""
        (self.directory / f"go-{build}").touch()

    def late(self, *hosts: str) -> None:
        """Have these hosts, and no others, ask for no permit."""
        for name in self.fleet.hosts:
            mark = self.directory / f"late-{name}"
            mark.touch() if name in hosts else mark.unlink(missing_ok=True)

    def lack(self, host: str, *, certificate: bool) -> None:
        """Take away what v3 needs on a host, or give it back."""
        mark = self.fleet.hosts[host].directory / "no-certificate"
        mark.unlink(missing_ok=True) if certificate else mark.touch()

    def until(self, what: str, holds: Callable[[FleetStatus], bool]) -> None:
        """Wait until something is so.

        Raises:
            AssertionError: It is not, in time.
        """
        stop, seen = threading.Event(), None
        timer = threading.Timer(TIMEOUT, stop.set)
        timer.start()
        try:
            for seen in rollouts.watch_statuses(self.session, "web", stop, every=0.2):
                if holds(seen):
                    return
        finally:
            timer.cancel()
        told = [(entry.host, entry.alive, entry.status) for entry in seen.hosts] if seen is not None else None
        raise AssertionError(f"not {what} within {TIMEOUT:g} s: {told}")

    def until_steps(self, **steps: str) -> None:
        """Wait until hosts are in these steps of the rollout that they are to be part of; a name stands for itself."""

        def holds(fleet: FleetStatus) -> bool:
            entries = {entry.host: entry for entry in fleet.hosts}
            return all(host in entries and _step(entries[host]) == step for host, step in steps.items())

        self.until(f"{steps}", holds)

    def until_complete(self) -> None:
        """Wait until it is on record that every host has completed the rollout."""
        self.until("complete", lambda fleet: fleet.record.fleet_rollout in fleet.record.rollout.done)

    def until_queued(self, *hosts: str) -> None:
        """Wait until these hosts, and no others, wait for their turn."""

        def holds(_: FleetStatus) -> bool:
            queue = rollouts.read_queue(self.session, "web")
            return {waiter.host for waiters in queue.values() for waiter in waiters} == set(hosts)

        self.until(f"{hosts} queued", holds)


def _step(entry: HostEntry) -> str:
    if entry.status is None or entry.status.rollout != entry.rollout_id:
        return "unaware"
    return entry.status.step


def _reason(fleet: FleetStatus, host: str) -> str:
    """What a host says of its step."""
    return next((entry.status.reason for entry in fleet.hosts if entry.host == host and entry.status is not None), "")


def begin(walk: Walk) -> None:
    """A service, its agents and its canary; the first build."""
    path = walk.directory / "web.toml"
    spec = walk.fleet.spec(
        "web", walk.directory / "builds", strategy="concurrency", options="limit = 1", extra=CANARY_FIRST, healthy_timeout="10s"
    )
    path.write_text(spec, encoding="utf-8")
    walk.build("v1")
    walk.type("apply", "deployd services apply web.toml")
    walk.session.start()
    walk.fleet.start()
    walk.until("four agents", lambda fleet: [entry.alive for entry in fleet.hosts] == [True] * 4)
    walk.type("role", "deployd hosts role web h1 canary")
    walk.type("enable", "deployd enable web v1 --by ann")
    walk.until_steps(h1="converged", h2="waiting", h3="waiting", h4="waiting")
    walk.type("why-promotion", "deployd why web")
    walk.type("promote", "deployd promote web --by ann --wait | tail -1")
    walk.until_complete()


def pause(walk: Walk) -> None:
    """A pause in mid-rollout; hosts that wait for each other."""
    walk.build("v2", go=False)
    walk.type("enable-2", "deployd enable web v2 --by ann --why 'issue 17'")
    walk.until_steps(h1="restarting")
    walk.type("pause", "deployd pause web --by bob --why 'the database is being moved'", "deployd permits list web")
    walk.go("v2")
    walk.until_steps(h1="converged", h2="waiting", h3="waiting", h4="waiting")
    walk.type("why-paused", "deployd why web h2", "deployd resume web --by bob")
    (walk.directory / "go-v2").unlink()
    walk.late("h3", "h4")
    walk.type("promote-2", "deployd promote web --by ann")
    walk.until("h2 without an answer", lambda fleet: "refused" in _reason(fleet, "h2"))
    walk.late("h4")
    walk.until_queued("h3")
    walk.late()
    walk.until_queued("h3", "h4")
    walk.until_steps(h3="waiting", h4="waiting")
    walk.type("why-slots", "deployd why web")


def lose(walk: Walk) -> None:
    """A host dies with its permit; a person gives it up; it comes back."""
    walk.fleet.hosts["h2"].kill_agent()
    walk.until("h2 gone", lambda fleet: not next(entry.alive for entry in fleet.hosts if entry.host == "h2"))
    walk.type("why-dead", "deployd why web h3")
    walk.type("lost", "deployd hosts lost web h2 --by ann --why 'its disk is dead'")
    walk.go("v2")
    walk.until_steps(h3="converged", h4="converged")
    walk.until_complete()
    walk.type("hosts", "deployd hosts list web")
    walk.fleet.hosts["h2"].start_agent()
    walk.until_steps(h2="converged")


def fail(walk: Walk) -> None:
    """A host fails for its own reasons, and is tried again; then another, and the fleet goes back."""
    walk.build("v3")
    walk.lack("h1", certificate=False)
    walk.run("deployd enable web v3 --by ann")
    walk.until_steps(h1="reverted", h2="waiting", h3="waiting", h4="waiting")
    walk.type("why-halted", "deployd why web h1")
    walk.lack("h1", certificate=True)
    walk.type("retry", "deployd retry web --by ann --why 'h1 has its certificate again'")
    walk.until_steps(h1="converged")
    walk.lack("h3", certificate=False)
    walk.late("h2", "h4")
    walk.run("deployd promote web --by ann")
    walk.until_steps(h3="reverted")
    walk.late("h4")
    walk.until_queued("h2")
    walk.late()
    walk.until_queued("h2", "h4")
    walk.until_steps(h2="waiting", h4="waiting")
    walk.type("why-halted-2", "deployd why web")
    walk.type("rollback", "deployd rollback web --by ann --why 'certificates are missing' --wait | tail -1")
    walk.until_complete()


def end(walk: Walk) -> None:
    """A restart, a freeze, and what the history tells of it all."""
    walk.type("restart", "deployd restart web --by ann --why 'new certificates' --wait | tail -1")
    walk.until_complete()
    walk.type("freeze", "deployd freeze --until 2h --by bob --why 'the network is being mended'", "deployd status web")
    walk.type("unfreeze", "deployd unfreeze")
    walk.type("history", "deployd history web")


@contextmanager
def started(directory: Path, address: str) -> Iterator[Walk]:
    """A walk whose fleet is stopped at the end."""
    with ExitStack() as stack:
        walk = Walk(directory, address)
        stack.callback(walk.fleet.stop)
        stack.callback(walk.session.close)
        yield walk


def tell(directory: Path, address: str) -> dict[str, str]:
    """Walk the whole way; what was typed and printed, by the name of its block."""
    with started(directory, address) as walk:
        for part in (begin, pause, lose, fail, end):
            part(walk)
        return walk.blocks


def normal(text: str) -> str:
    """An output without what differs from run to run: times, lengths of time, digests, the numbers of rollouts, widths."""
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)?", "TIME", text)
    text = re.sub(r"sha256:[0-9a-f]{64}", "sha256:DIGEST", text)
    text = re.sub(r"\b(v\d)-[0-9a-f]+\b", r"\1-ROLLOUT", text)
    text = re.sub(r"(?<![\w.])(\d+(\.\d+)?(ms|s|m|h|d))+\b", "LENGTH", text)
    return "\n".join(re.sub(r" {2,}", "  ", line) for line in text.splitlines())


def main() -> None:
    """Write the outputs into the page, when they are no longer what is printed."""
    logging.getLogger("kazoo").setLevel(logging.CRITICAL)
    directory = Path(tempfile.mkdtemp(prefix="deployd-walk-", dir="/tmp"))
    try:
        with ZooKeeperServer(directory / "zookeeper", home=home_from_environment()) as server:
            blocks = tell(directory / "fleet", f"{server.address}/deployd")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    text = PAGE.read_text(encoding="utf-8")
    same = all(normal(blocks[name]) == normal(written) for _, name, written, _ in BLOCK.findall(text))
    if not same:  # all of them, so that the times are those of one run
        PAGE.write_text(BLOCK.sub(lambda match: f"{match[1]}{blocks[match[2]]}{match[4]}", text), encoding="utf-8")
        sys.stdout.write(f"walked {PAGE.name}\n")


if __name__ == "__main__":
    main()
