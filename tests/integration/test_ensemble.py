"""A fleet of light agents on an ensemble of three servers, while servers, sessions, hosts and clocks fail.

What is demanded of the limits is checked in ZooKeeper's own log of transactions: there is no moment that it does not know.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kazoo.client import KazooClient

from deployd_core import rollouts
from deployd_core.clock import SystemClock
from deployd_core.coordination import Link, RolloutState, Verb
from deployd_core.errors import Unavailable
from deployd_core.packing import pack
from deployd_core.plugins import Plugins, convert
from deployd_core.spec import ServiceSpec
from deployd_core.testing.light import PLUGIN_FILE, LightAgent, LightProcess
from deployd_core.testing.transactions import Committed, Incomplete, read_transactions
from deployd_core.testing.zookeeper import ZooKeeperEnsemble, ZooKeeperServer, home_from_environment
from deployd_core.zookeeper import layout
from deployd_core.zookeeper.chroot import ensure_chroot
from deployd_core.zookeeper.layout import ServicePaths
from deployd_core.zookeeper.session import Refused, Session
from deployd_core.zookeeper.status import FleetStatus, Roster

pytestmark = pytest.mark.zookeeper

CHROOT = "/deployd"
PATHS = ServicePaths("web")
PATIENCE = 100.0
"""Seconds after which nothing more is expected to happen, on a machine that is busy with other things."""


class Site:
    """A service, its fleet, and what a person would do."""

    def __init__(self, directory: Path, ensemble: ZooKeeperEnsemble, stack: ExitStack) -> None:
        self.directory = directory
        self.ensemble = ensemble
        self.stack = stack
        self.address = ensemble.address + CHROOT
        self.plugins = directory / "plugins.d"
        self.plugins.mkdir()
        (self.plugins / "light.py").write_text(PLUGIN_FILE)
        self.people = stack.enter_context(Session(ensemble.address, CHROOT, session_timeout=6))
        ensure_chroot(self.people)
        self._roster = Roster(self.people, "web")

    def apply(
        self, *, limit: str | int, per_zone: int, budget: int, bad: tuple[str, ...] = (), healthy_timeout: str = "3s"
    ) -> None:
        """Write the spec; `bad` names builds that never get healthy, as BUILD@HOST: they fail after `healthy_timeout`."""
        table: dict[str, Any] = {
            "service": {"root": f"{self.directory}/{{host}}", "reserve": "0B"},
            "source": {"url": f"file://{self.directory}/{{build}}.tar.gz"},
            "instances": {
                "names": ["web"],
                "manager": {"use": "light"},
                "probe": {"use": "light", "stable_for": "0s", "healthy_after": 1, "bad": bad},
                "healthy_timeout": healthy_timeout,
            },
            "restart": {"strategy": "concurrency", "options": {"limit": limit, "limit_per_zone": per_zone}},
            "rollout": {"budget": budget},
        }
        rollouts.apply_spec(self.people, "web", convert(table, ServiceSpec, where="test"))

    def process(self, hosts: dict[str, str], name: str) -> LightProcess:
        """Run agents in a process of their own."""
        log = self.directory / f"{name}.log"
        return self.stack.enter_context(LightProcess(self.address, "web", self.plugins, hosts, log))

    def agent(self, host: str, zone: str, clock: SystemClock | None = None) -> LightAgent:
        """Run an agent in this process."""
        agent = LightAgent(self.address, host, zone, Plugins.load(directory=self.plugins), clock=clock, session_timeout=3)
        self.stack.callback(agent.stop)
        return agent.start("web")

    def enable(self, build: str) -> str:
        """Pack a build and enable it; returns the rollout's id."""
        source = self.directory / build
        source.mkdir()
        (source / "BUILD").write_text(build)
        digest = pack(source, self.directory / f"{build}.tar.gz").digest
        return self.insist(lambda: rollouts.enable(self.people, "web", build, digest, by="test"))

    def insist(self, order: Callable[[], Any]) -> Any:
        """Give an order again until ZooKeeper takes it, as a person would during an election."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return order()
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                self.people.wait_connected(1.0)

    def fleet(self) -> FleetStatus:
        """Everything about the fleet now."""
        found: FleetStatus = self.insist(self._roster.read)
        return found

    def wait(self, what: str, condition: Callable[[FleetStatus], bool]) -> FleetStatus:
        """Wait until the fleet is so; on time-out say what it is instead."""
        deadline = time.monotonic() + PATIENCE
        with suppress(Unavailable):
            while time.monotonic() < deadline:
                fleet = self.fleet()
                if condition(fleet):
                    return fleet
                time.sleep(0.02)
        states = {
            host.host: (host.status.step, host.status.served, host.status.reason, host.alive) if host.status else None
            for host in self.fleet().hosts
        }
        logs = {path.name: path.read_text()[-500:] for path in self.directory.glob("*.log")}
        pytest.fail(f"not {what} within {PATIENCE:g} s: {self.fleet().record.rollout} {states} {logs}")

    def serving(self, fleet: FleetStatus, build: str) -> set[str]:
        """The hosts that have completed a build."""
        return {host.host for host in fleet.hosts if host.converged and host.status and host.status.served == build}

    def transactions(self) -> list[Committed]:
        """What the ensemble has committed."""
        return read_transactions(server.data for server in self.ensemble.servers)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """An ensemble of three, and everything on it ends with the test."""
    with ExitStack() as stack:
        ensemble = stack.enter_context(ZooKeeperEnsemble(tmp_path / "zookeeper", home=home_from_environment()))
        yield Site(tmp_path, ensemble, stack)


class Ledger:
    """Follows permits, the rollout and what is enabled through the transactions, and notes every breach."""

    def __init__(self, limit: int, per_zone: int) -> None:
        self.limit = limit
        self.per_zone = per_zone
        self.permits: dict[str, str] = {}
        """Host → zone."""
        self.most = 0
        self.grants: Counter[str] = Counter()
        """By rollout."""
        self.breaches: list[str] = []
        self._enabled = ""
        self._state = RolloutState.OPEN

    def take(self, committed: Committed) -> None:
        """Apply one transaction, and judge what it has made of things."""
        granted = []
        for verb, chrooted, data in committed.changes:
            path = chrooted.removeprefix(CHROOT)
            parent, _, host = path.rpartition("/")
            if parent == PATHS.permits and verb == "create":
                permit = granted_to(path, data)
                granted.append(permit)
                self.permits[host] = permit.zone
            elif parent == PATHS.permits and verb == "delete":
                del self.permits[host]
            elif path == PATHS.enabled and verb == "set":
                enabled = layout.decode_enabled(path, data)
                self._enabled = layout.rollout_id(enabled.build, committed.zxid) if enabled else ""
            elif path == PATHS.rollout and verb == "set":
                self._state = layout.decode_rollout(path, data).state
        self._judge(committed.zxid, granted)

    def _judge(self, zxid: int, granted: list[Any]) -> None:
        self.most = max(self.most, len(self.permits))
        if len(self.permits) > self.limit:
            self.breaches.append(f"{zxid:#x}: {len(self.permits)} permits: {sorted(self.permits)}")
        for zone, held in Counter(self.permits.values()).items():
            if held > self.per_zone:
                self.breaches.append(f"{zxid:#x}: {held} permits in zone {zone}")
        for permit in granted:
            self.grants[permit.rollout] += 1
            if permit.rollout != self._enabled:
                self.breaches.append(f"{zxid:#x}: a permit for {permit.rollout} while {self._enabled} was enabled")
            if self._state is not RolloutState.OPEN:
                self.breaches.append(f"{zxid:#x}: a permit while the rollout was {self._state.value}")


def granted_to(path: str, data: bytes) -> Any:
    """The permit that a transaction created."""
    import msgspec

    from deployd_core.coordination import Permit

    return msgspec.json.decode(data, type=Permit)


def audit(site: Site, limit: int, per_zone: int) -> Ledger:
    """Go through all that was committed."""
    ledger = Ledger(limit, per_zone)
    for committed in site.transactions():
        ledger.take(committed)
    return ledger


def test_sixty_agents_keep_every_limit_while_the_leader_and_hosts_die(site: Site) -> None:
    """Limits hold in every transaction; a rollout completes once the dead are given up, and a bad one halts with the names."""
    hosts = {f"h{number:02}": f"z{number % 2}" for number in range(57)}
    doomed = {"holder": "z0", "waiter": "z1", "done": "z0"}
    bad = ("v2@h07", "v2@holder", "v4@h20", "v4@h30")
    # At first nothing fails: whoever is to be killed with a permit keeps it until then, however slow this machine is.
    apply = partial(site.apply, limit="10%", per_zone=4, budget=1, bad=bad)
    apply(healthy_timeout="1h")
    for number in range(2):
        site.process({host: zone for host, zone in hosts.items() if int(host[1:]) // 2 % 2 == number}, f"agents-{number}")
    victims = {host: site.process({host: zone}, host) for host, zone in doomed.items()}
    everybody = {*hosts, *doomed}
    site.wait("registered", lambda fleet: {host.host for host in fleet.hosts} == everybody)

    first = site.enable("v1")
    site.wait("on v1", lambda fleet: site.serving(fleet, "v1") == everybody)

    rollouts.freeze(site.people, by="test")
    second = site.enable("v2")
    site.wait("in the queue", lambda fleet: all(host.status and host.status.step == "waiting" for host in fleet.hosts))
    victims["waiter"].kill()
    rollouts.unfreeze(site.people)
    site.wait("a few on v2", lambda fleet: len(site.serving(fleet, "v2")) >= 6)
    leader = site.ensemble.leader()
    leader.kill()
    site.wait("holding", lambda fleet: any(host.host == "holder" and host.permit for host in fleet.hosts))
    victims["holder"].kill()
    site.insist(lambda: apply(healthy_timeout="3s"))
    site.wait("done", lambda fleet: "done" in site.serving(fleet, "v2"))
    victims["done"].kill()
    leader.start()
    failed = site.wait("failed on h07", lambda fleet: "h07" in fleet.record.rollout.failures)
    assert RolloutState.OPEN is failed.record.rollout.state

    third = site.enable("v3")
    site.wait("on v3 where there is life", lambda fleet: site.serving(fleet, "v3") == set(hosts))
    assert {"holder"} <= {permit.host for permit in rollouts.list_permits(site.people, "web")} <= set(doomed)
    site.wait("noticed", lambda fleet: {host.host for host in fleet.hosts if not host.alive} == set(doomed))
    for host in doomed:
        rollouts.lose(site.people, "web", host, by="test", why="its machine burnt down")
    completed = [entry for entry in rollouts.history(site.people, "web") if entry.verb is Verb.COMPLETE]
    assert third == completed[-1].rollout
    assert () == rollouts.list_permits(site.people, "web")

    fourth = site.enable("v4")
    halted = site.wait("halted", lambda fleet: fleet.record.rollout.state is RolloutState.HALTED).record.rollout
    assert {"h20", "h30"} == set(halted.failed_in(fourth))
    assert all(name in halted.why for name in ("h20: ", "h30: ", fourth))
    site.wait("at rest", lambda fleet: not any(host.permit for host in fleet.hosts))

    ledger = audit(site, limit=6, per_zone=4)
    assert [] == ledger.breaches
    assert 6 == ledger.most
    assert 60 == ledger.grants[first]
    # Who held a permit when v3 was enabled has kept it; at most the budget and all holders have begun with a bad build.
    assert len(hosts) - 6 <= ledger.grants[third] <= len(hosts)
    assert ledger.grants[second] >= 8
    assert 2 <= ledger.grants[fourth] <= len(hosts)


class JumpingClock(SystemClock):
    """A machine's clock that somebody sets."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def time(self) -> float:
        """Seconds since the epoch, as this machine believes."""
        return super().time() + self.ahead


def test_a_lagging_follower_a_lost_session_and_a_clock_that_jumps_break_no_limit(site: Site) -> None:
    """While a server stands still, a session expires in mid-restart and a clock is hours off, every limit holds and all finish."""
    clock = JumpingClock()
    site.apply(limit=3, per_zone=2, budget=0)
    agents = {
        f"h{number:02}": site.agent(f"h{number:02}", f"z{number % 2}", clock if number == 3 else None) for number in range(12)
    }
    first = site.enable("v1")
    site.wait("on v1", lambda fleet: site.serving(fleet, "v1") == set(agents))

    clock.ahead = 3 * 3600.0
    slow = site.ensemble.followers()[0]
    slow.pause()
    second = site.enable("v2")
    site.wait("begun", lambda fleet: len(site.serving(fleet, "v2")) >= 2)
    holder = site.wait("held", lambda fleet: any(host.permit for host in fleet.hosts))
    lost = agents[next(host.host for host in holder.hosts if host.permit)]
    expire(site.ensemble.leader().address, lost.session)
    clock.ahead = -3 * 3600.0
    site.wait("on v2", lambda fleet: site.serving(fleet, "v2") == set(agents))
    slow.resume()

    third = site.enable("v3")
    site.wait("on v3", lambda fleet: site.serving(fleet, "v3") == set(agents) and all(host.alive for host in fleet.hosts))

    ledger = audit(site, limit=3, per_zone=2)
    assert [] == ledger.breaches
    assert 3 == ledger.most
    assert {first: 12, second: 12, third: 12} == ledger.grants


def expire(server: str, session: Session) -> None:
    """End a session without its owner's knowledge, by a second connection that says it is the same."""
    client = session._client
    before = session.generation
    thief = KazooClient(server, client_id=client.client_id)
    thief.start()
    thief.stop()
    thief.close()
    deadline = time.monotonic() + PATIENCE
    while session.generation == before or session.link is not Link.CONNECTED:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_log_of_transactions_tells_what_happened_and_nothing_else(tmp_path: Path) -> None:
    """It has every write in its order, nothing of a transaction that was refused, and a hole in it does not pass for nothing."""
    with ZooKeeperServer(tmp_path / "zookeeper", home=home_from_environment()) as server:
        with Session(server.address, "/t") as session:
            ensure_chroot(session)
            session.create("/a", b"1")
            with pytest.raises(Refused):
                session.transaction().set("/a", b"2").delete("/missing").commit()
            session.transaction().set("/a", b"3").create("/b").commit()
        server.kill()
        server.start()
        with Session(server.address, "/t") as session:
            session.delete("/b")

        changes = [change for committed in read_transactions([server.data]) for change in committed.changes]
        (server.data / "version-2").joinpath("log.1").unlink()

        assert [("create", "/t"), ("create", "/t/a"), ("set", "/t/a"), ("create", "/t/b"), ("delete", "/t/b")] == [
            (change.verb, change.path) for change in changes
        ]
        assert [b"1", b"3"] == [change.data for change in changes if change.path == "/t/a"]
        with pytest.raises(Incomplete):
            read_transactions([server.data])
