"""What comes at a bad moment: orders in the middle of what goes by itself, broken links, answers that overtake each other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kazoo.client import KazooClient
from kazoo.security import READ_ACL_UNSAFE

from deployd_core import rollouts
from deployd_core.coordination import AgentInfo, Denial, Denied, Failure, HostStatus, Link, Permit, Rollout, RolloutState, Verb
from deployd_core.errors import Conflict, Unavailable
from deployd_core.model import FleetLimit, Role
from deployd_core.spec import InstancesTable, Promotion, RolloutTable, ServiceSpec, ServiceTable
from deployd_core.testing.relay import Relay
from deployd_core.units import Duration, Share
from deployd_core.zookeeper import coordination, layout
from deployd_core.zookeeper.cache import NodeCache
from deployd_core.zookeeper.chroot import ensure_chroot
from deployd_core.zookeeper.coordination import ZooKeeperCoordination
from deployd_core.zookeeper.layout import ServicePaths
from deployd_core.zookeeper.session import Node, Session, split_address

pytestmark = pytest.mark.zookeeper

DIGEST = f"sha256:{'1' * 64}"
ONE, TWO = FleetLimit(hosts=Share(1)), FleetLimit(hosts=Share(2))


class Site:
    """A service, people, and hosts with a session each."""

    def __init__(self, address: str, stack: ExitStack) -> None:
        self.server, self.chroot = split_address(address)
        self.stack = stack
        self.people = stack.enter_context(Session(self.server, self.chroot))
        self.sessions: dict[str, Session] = {}
        self.relays: dict[str, Relay] = {}

    def apply(self, **rollout: Any) -> None:
        spec = ServiceSpec(
            service=ServiceTable(root="/srv/web"),
            source={"url": "file:///builds/{build}.tar.gz"},
            instances=InstancesTable(names=("web@8001",)),
            rollout=RolloutTable(**rollout),
        )
        rollouts.apply_spec(self.people, "web", spec)

    def host(self, name: str) -> ZooKeeperCoordination:
        """A member of the service whose agent lives."""
        self.relays[name] = self.stack.enter_context(Relay(self.server))
        session = Session(self.relays[name].address, self.chroot, session_timeout=8, operation_timeout=2)
        self.sessions[name] = self.stack.enter_context(session)
        host = ZooKeeperCoordination(session, name, bool)
        host.announce(AgentInfo(host=name, instance=name))
        host.join("web", "z1")
        host.snapshot("web")
        return host

    def enable(self, build: str, role: Role = Role.FLEET) -> str:
        return rollouts.enable(self.people, "web", build, DIGEST, role=role, by="ann")

    def cut(self, name: str) -> None:
        """Break a host's connection; its session lives on."""
        gone = threading.Event()
        self.sessions[name].listen(lambda link: gone.set() if link is not Link.CONNECTED else None)
        self.relays[name].down()
        assert gone.wait(5)

    def mend(self, name: str) -> None:
        self.relays[name].up()
        assert self.sessions[name].wait_connected(10)


@pytest.fixture
def site(zookeeper: str) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(zookeeper, stack)


def look(host: ZooKeeperCoordination):  # type: ignore[no-untyped-def]
    """The snapshot as of now: what another session wrote a moment ago may not have been heard of."""
    return host.snapshot("web", afresh=True)


def take(host: ZooKeeperCoordination) -> Permit | Denied:
    return host.take_permit(look(host), ONE)


def status_of(host: ZooKeeperCoordination, *, step: str = "converged", down: bool = False) -> HostStatus:
    """A report that the host has served what it should for an hour."""
    snapshot = look(host)
    build = snapshot.enabled.build if snapshot.enabled else None
    return HostStatus(
        host=snapshot.host,
        zone="z1",
        role=snapshot.membership.role,
        wanted=build,
        served=build,
        step=step,
        since=(datetime.now(UTC) - timedelta(hours=1)).isoformat(),
        rollout=snapshot.rollout_id,
        down=down,
    )


def test_a_second_agent_of_a_name_writes_nothing_under_it(site: Site) -> None:
    """Two agents that call themselves h1, in two zones, do not move the host to and fro, and what the first one reports stays."""
    site.apply()
    site.enable("v1")
    first = site.host("h1")
    first.report("web", status_of(first, step="degraded", down=True))
    second = ZooKeeperCoordination(site.stack.enter_context(Session(site.server, site.chroot)), "h1", bool)
    info = AgentInfo(host="h1", instance="another machine")
    with pytest.raises(Conflict, match="another agent calls itself 'h1'"):
        second.announce(info)
    second.join("web", "z2")

    assert "another agent" in second.snapshot("web").problem
    second.report("web", status_of(second, step="blocked"))

    (entry,) = rollouts.statuses(site.people, "web")
    assert ("z1", True, "degraded") == (entry.zone, entry.down, entry.status and entry.status.step)
    site.sessions["h1"].close()
    second.announce(info)
    assert "z2" == second.snapshot("web").membership.zone
    second.report("web", status_of(second))
    (entry,) = rollouts.statuses(site.people, "web")
    assert ("z2", False, "converged") == (entry.zone, entry.down, entry.status and entry.status.step)


def eventually(condition: Callable[[], bool]) -> None:
    """Look until it is so: a watch may take its time."""
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("never came true")


def test_an_agent_whose_node_was_removed_knows_it(site: Site) -> None:
    """Whatever took the node away, be it that everything was restored from a copy, the agent has to say again that it is alive."""
    site.apply()
    host = site.host("h1")
    for _ in range(2):
        site.people.delete("/agents/h1")
        eventually(lambda: not host.announced)

        host.announce(AgentInfo(host="h1", instance="h1"))

        assert host.announced
        assert site.people.stat("/agents/h1") is not None


def test_an_agent_gives_way_to_one_that_took_its_place(site: Site) -> None:
    """Of two machines that are copies of each other only one acts: the first one does nothing until the second is gone."""
    site.apply()
    site.enable("v1")
    first, info = site.host("h1"), AgentInfo(host="h1", instance="h1")
    copy = site.stack.enter_context(Session(site.server, site.chroot))
    second = ZooKeeperCoordination(copy, "h1", bool)
    second.announce(info)
    second.join("web", "z1")
    eventually(lambda: not first.announced)

    with pytest.raises(Conflict, match="another agent calls itself 'h1'"):
        first.announce(info)

    assert isinstance(take(second), Permit)
    assert look(first).permit is None
    assert second.announced
    copy.close()
    first.announce(info)
    assert look(first).permit is not None


def test_an_agent_that_may_not_announce_itself_hears_of_its_link_all_the_same(site: Site) -> None:
    """ZooKeeper's access list may be wrong for a while: once it is right the agent is announced, and until then it is awake."""
    site.apply()
    host = site.host("h1")
    admin = KazooClient(f"{site.server}{site.chroot}")
    admin.start()
    try:
        site.cut("h1")
        admin.delete("/agents/h1")
        admin.set_acls("/agents", READ_ACL_UNSAFE)
        heard = threading.Event()
        site.mend("h1")
        eventually(lambda: not host.announced)
        site.sessions["h1"].listen(lambda link: heard.set() if link is Link.CONNECTED else None)
        site.cut("h1")
        site.mend("h1")
        assert heard.wait(5)
    finally:
        admin.stop()
        admin.close()


def test_a_whole_fleet_that_fails_fits_into_a_node(site: Site) -> None:
    """ZooKeeper drops the connection that writes more than 1 MB: however many have failed, one more can say so, and it halts."""
    site.apply()
    rollout_id = site.enable("v1")
    host, paths = site.host("h1"), ServicePaths("web")
    failure = Failure(rollout=rollout_id, reason="x" * 500, at=datetime.now(UTC).isoformat())
    one = len(layout.encode(Rollout(failures={"web-0000": failure})))
    failures = {f"web-{number:04d}": failure for number in range(1_048_000 // one)}
    while len(data := layout.encode(Rollout(failures=failures))) < 1_047_500:
        failures[f"web-{len(failures):04d}"] = failure
    site.people.set(paths.rollout, data)
    broke: list[Link] = []
    site.sessions["h1"].listen(broke.append)

    host.record_failure(look(host), "it will not start")

    rollout = rollouts.read_service(site.people, "web").rollout
    assert (len(failures) + 1, RolloutState.HALTED) == (len(rollout.failures), rollout.state)
    assert "it will not start" == rollout.failures["h1"].reason
    assert [] == broke


@pytest.fixture
def baked(site: Site) -> tuple[Site, ZooKeeperCoordination, ZooKeeperCoordination]:
    """v2 has baked on the canary h1 for long enough to be promoted by itself; the fleet, h2, serves v1."""
    site.apply(promotion=Promotion.AUTO, bake=Duration("1s"))
    canary, fleet = site.host("h1"), site.host("h2")
    site.enable("v1")
    rollouts.set_role(site.people, "web", "h1", Role.CANARY)
    site.enable("v2", Role.CANARY)
    for host in (canary, fleet):
        host.report("web", status_of(host))
    return site, canary, fleet


def test_what_a_person_has_stopped_is_not_promoted_by_itself(baked: Any) -> None:
    """A pause during the bake holds; after it the build is promoted."""
    site, canary, fleet = baked
    rollouts.pause(site.people, "web", by="bob", why="a move")

    assert canary.advance(look(canary), lambda build: "") is not None
    record = rollouts.read_service(site.people, "web")
    assert (RolloutState.PAUSED, "v1") == (record.rollout.state, record.enabled.build)
    denied = take(fleet)
    assert isinstance(denied, Denied)
    assert Denial.PAUSED is denied.code

    rollouts.resume(site.people, "web", by="bob")
    assert canary.advance(look(canary), lambda build: "") is None
    assert rollouts.read_service(site.people, "web").enabled.build == "v2"


@pytest.mark.parametrize("order", ["canary", "pause", "fleet"])
def test_an_order_that_comes_while_plugins_are_asked_wins(baked: Any, order: str) -> None:
    """Whatever a person does between the decision to promote and its write is not undone, and not overlooked."""
    site, canary, _ = baked
    orders: dict[str, Callable[[], object]] = {
        "canary": lambda: site.enable("v3", Role.CANARY),
        "fleet": lambda: site.enable("v3"),
        "pause": lambda: rollouts.pause(site.people, "web", by="bob"),
    }

    def asked(build: str) -> str:
        orders[order]()
        return ""

    assert canary.advance(look(canary), asked) is not None

    record = rollouts.read_service(site.people, "web")
    found = (record.enabled.build, record.canary.build, record.rollout.state)
    expected = {
        "canary": ("v1", "v3", RolloutState.OPEN),
        "fleet": ("v3", "v2", RolloutState.OPEN),
        "pause": ("v1", "v2", RolloutState.PAUSED),
    }
    assert expected[order] == found
    assert Verb.PROMOTE not in [entry.verb for entry in rollouts.history(site.people, "web")]


def test_a_build_for_the_canaries_does_not_end_a_pause(site: Site) -> None:
    """The fleet stays where a person has stopped it."""
    site.apply()
    fleet = site.host("h1")
    site.enable("v2")
    rollouts.pause(site.people, "web", by="bob", why="quiet")

    site.enable("v3", Role.CANARY)

    denied = take(fleet)
    assert isinstance(denied, Denied)
    assert (Denial.PAUSED, "the rollout is paused by bob: quiet") == (denied.code, denied.reason)


def test_looking_whether_a_rollout_is_complete_watches_nothing(baked: Any) -> None:
    """A host that looks again and again leaves no watch behind: each would live until its node changes."""
    site, canary, _ = baked
    canary.report("web", status_of(canary, step="degraded"))
    snapshot, client = look(canary), site.sessions["h1"]._client

    def watchers() -> int:
        return sum(len(found) for kind in (client._data_watchers, client._child_watchers) for found in kind.values())

    before = watchers()
    for _ in range(5):
        assert canary.advance(snapshot, lambda build: "") is not None

    assert before == watchers()


def test_a_host_that_could_not_leave_the_queue_leaves_it_later(site: Site) -> None:
    """Its node would be waited for by everybody behind it, for as long as its session lives."""
    site.apply()
    hosts = [site.host(f"h{number}") for number in range(3)]
    site.enable("v1")
    assert isinstance(take(hosts[0]), Permit)
    for host in hosts[1:]:
        assert isinstance(take(host), Denied)
    site.cut("h1")
    with pytest.raises(Unavailable):
        hosts[1].leave_queue("web")
    site.mend("h1")
    assert look(hosts[1]).queued

    hosts[1].leave_queue("web")

    assert not look(hosts[1]).queued
    assert {"z1": ["h2"]} == {zone: [one.host for one in all_] for zone, all_ in rollouts.read_queue(site.people, "web").items()}


def two_that_queue(site: Site) -> tuple[ZooKeeperCoordination, ZooKeeperCoordination]:
    """Two hosts that stand in the queue, the first before the second, while nobody is in their way any more."""
    site.apply()
    first, second = site.host("h1"), site.host("h2")
    site.enable("v1")
    rollouts.pause(site.people, "web", by="ann")
    for host in (first, second):
        assert isinstance(host.take_permit(look(host), TWO), Denied)
    rollouts.resume(site.people, "web", by="ann")
    return first, second


def test_a_host_that_is_admitted_while_it_asks_stands_in_nobodys_way(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks, is admitted by another host at that moment, and its engine sees the permit first: it does not queue once more."""
    first, second = two_that_queue(site)
    desk = second._service("web").desk
    attempt = desk._try

    def overtaken(asking: Any) -> Denied | None:
        monkeypatch.setattr(desk, "_try", attempt)
        assert isinstance(first.take_permit(look(first), TWO), Permit)
        assert look(second).permit is not None
        return attempt(asking)

    snapshot = look(second)
    monkeypatch.setattr(desk, "_try", overtaken)

    assert isinstance(second.take_permit(snapshot, TWO), Permit)
    assert {} == rollouts.read_queue(site.people, "web")
    assert not look(second).queued


def test_a_place_that_was_taken_after_the_permit_is_left(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch of the permit may be late: then the host is said to stand in the queue, which has its engine leave it."""
    first, second = two_that_queue(site)
    desk = second._service("web").desk
    snapshot, attempt = look(second), desk._try

    def overtaken(asking: Any) -> Denied | None:
        assert isinstance(first.take_permit(look(first), TWO), Permit)
        assert look(second).permit is not None
        monkeypatch.setattr(desk, "_own", lambda: None)
        return attempt(asking)

    monkeypatch.setattr(desk, "_try", overtaken)
    assert isinstance(second.take_permit(snapshot, TWO), Denied)

    assert look(second).queued
    second.leave_queue("web")
    assert {} == rollouts.read_queue(site.people, "web")
    assert not look(second).queued


def test_an_excuse_ends_although_the_first_write_fails(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that comes back is excused no more, be it with the second try."""
    site.apply()
    site.host("h1")
    site.people.delete(layout.agent("h1"))
    rollouts.excuse(site.people, "web", "h1", by="bob", why="away")
    session = site.sessions["h1"]
    again = ZooKeeperCoordination(session, "h1", bool)
    again.join("web", "z1")
    real = session.set

    def failing(path: str, *arguments: Any) -> Any:
        monkeypatch.setattr(session, "set", real)
        raise Unavailable(f"{path} was not written")

    monkeypatch.setattr(session, "set", failing)
    with pytest.raises(Unavailable):
        again.snapshot("web")

    assert again.snapshot("web").membership.excused is None


@pytest.fixture
def person(site: Site) -> Iterator[tuple[Session, Relay]]:
    """Somebody whose transactions can be overtaken."""
    with Relay(site.server) as relay, Session(relay.address, site.chroot) as session:
        yield session, relay


@pytest.mark.parametrize("order", [rollouts.excuse, rollouts.lose, rollouts.retire])
def test_an_order_about_a_host_that_is_gone_is_not_carried_out_on_one_that_has_come_back(
    site: Site, person: tuple[Session, Relay], order: Callable[..., bool]
) -> None:
    """Its agent starts between the look and the write: the write is refused as a whole, and the host is as it was."""
    site.apply()
    host = site.host("h1")
    site.enable("v1")
    assert isinstance(take(host), Permit)
    site.people.delete(layout.agent("h1"))
    session, relay = person
    relay.before_next_transaction(lambda: host.announce(AgentInfo(host="h1", instance="h1")))

    with pytest.raises(Conflict, match=r"is running: it is not gone|is well: its agent runs"):
        order(session, "web", "h1", by="ann", why="gone")

    (entry,) = rollouts.statuses(site.people, "web")
    assert (True, True, None) == (entry.alive, entry.permit is not None, entry.excused)
    assert [Verb.ENABLE] == [told.verb for told in rollouts.history(site.people, "web")]


def test_a_host_that_gets_well_just_before_it_is_excused_is_not(site: Site, person: tuple[Session, Relay]) -> None:
    """What it says of itself between the look and the write counts."""
    site.apply()
    host = site.host("h1")
    host.report("web", status_of(host, step="degraded", down=True))
    session, relay = person
    relay.before_next_transaction(lambda: host.report("web", status_of(host)))

    with pytest.raises(Conflict, match="h1 is well"):
        rollouts.excuse(session, "web", "h1", by="ann", why="a disk is on its way")

    assert [None] == [entry.excused for entry in rollouts.statuses(site.people, "web")]


@pytest.mark.parametrize("order", [rollouts.excuse, rollouts.lose, rollouts.retire])
def test_an_order_about_a_host_that_is_gone_leaves_no_agent_behind(site: Site, order: Callable[..., bool]) -> None:
    """That its agent is absent is demanded by a node that nobody ever sees."""
    site.apply()
    site.host("h1")
    site.people.delete(layout.agent("h1"))

    assert order(site.people, "web", "h1", by="ann", why="gone")

    assert site.people.stat(layout.agent("h1")) is None


def test_looking_afresh_sees_what_no_watch_has_told(site: Site) -> None:
    """The net under missed watches reads, and does not take for unchanged what nobody has spoken of."""
    site.apply()
    host = site.host("h1")
    site.enable("v1")
    assert look(host).enabled.build == "v1"
    host._services["web"]._cache.watch = None

    site.enable("v2")

    assert look(host).enabled.build == "v2"


def test_an_answer_that_was_overtaken_does_not_take_the_place_of_a_newer_one(site: Site) -> None:
    """Two threads read one node: whatever the order of their answers, what is known in the end is what is there."""
    ensure_chroot(site.people)
    site.people.create("/x", b"1")
    session = site.stack.enter_context(Session(site.server, site.chroot))
    asked, go_on, told = threading.Event(), threading.Event(), threading.Event()
    cache = NodeCache(session, told.set)
    real = session.get_many

    def slow(paths: Any, watch: Any = None) -> dict[str, Node | None]:
        found = real(paths, watch)
        if not asked.is_set():
            asked.set()
            go_on.wait(10)
        return found

    session.get_many = slow  # type: ignore[method-assign]
    first = threading.Thread(target=cache.read, args=(("/x",),))
    first.start()
    assert asked.wait(5)
    site.people.set("/x", b"2")
    assert told.wait(5)
    second = threading.Thread(target=cache.read, args=(("/x",),))
    second.start()
    go_on.set()
    for thread in (first, second):
        thread.join(10)

    node = cache.read(("/x",))["/x"]
    assert node is not None
    assert b"2" == node.data


def test_a_host_is_not_down_for_ever_when_two_reports_meet(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report that it is down, under way while the host gives its permit back, is taken back by what comes after."""
    from deployd_core.zookeeper import coordination

    site.apply()
    host = site.host("h1")
    site.enable("v1")
    host.report("web", status_of(host))
    assert isinstance(take(host), Permit)
    well, ill, snapshot = status_of(host), status_of(host, step="degraded", down=True), look(host)
    written, go_on, real = threading.Event(), threading.Event(), coordination.write_status

    def slow(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        written.set()
        go_on.wait(10)

    monkeypatch.setattr(coordination, "write_status", slow)
    reporting = threading.Thread(target=host.report, args=("web", ill))
    reporting.start()
    assert written.wait(5)
    releasing = threading.Thread(target=host.release_permit, args=(snapshot, well))
    releasing.start()
    go_on.set()
    for thread in (reporting, releasing):
        thread.join(10)
    monkeypatch.setattr(coordination, "write_status", real)

    host.report("web", well)

    assert site.people.stat(ServicePaths("web").down("h1")) is None


def test_a_host_that_turns_out_to_be_down_is_woken_to_go_first(site: Site) -> None:
    """It asked before that was on record, and stands behind a host that has to wait until it is well again: both would sleep."""
    site.apply()
    well, sick = site.host("h1"), site.host("h2")
    woken = threading.Event()
    sick._service("web")._wake = lambda _: woken.set()
    site.enable("v1")
    rollouts.pause(site.people, "web", by="ann")
    for host in (well, sick):
        assert isinstance(take(host), Denied)
    rollouts.resume(site.people, "web", by="ann")
    snapshot = look(sick)
    woken.clear()

    sick.report("web", status_of(sick, step="waiting", down=True))

    assert woken.is_set()
    assert isinstance(sick.take_permit(snapshot, ONE), Permit)


def test_a_host_that_is_down_keeps_its_place_while_it_reports(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a report about it is under way is no reason to take it for well, and to send it to the end of the queue."""
    site.apply()
    sick = site.host("h1")
    site.enable("v1")
    rollouts.pause(site.people, "web", by="ann")
    sick.report("web", status_of(sick, step="degraded", down=True))
    assert isinstance(take(sick), Denied)
    place = sick._service("web").desk.place
    before, write = place.path, coordination.write_status

    def write_status(*arguments: Any, **named: Any) -> None:
        assert isinstance(take(sick), Denied)
        write(*arguments, **named)

    monkeypatch.setattr(coordination, "write_status", write_status)
    sick.report("web", status_of(sick, step="waiting", down=True))

    assert before == place.path


def test_a_ramp_begins_anew_with_a_retry(site: Site) -> None:
    """A host that failed has not finished: after a retry the first step of the ramp holds."""
    site.apply(ramp=(Share(1), Share(5)))
    hosts = [site.host(f"h{number}") for number in range(4)]
    site.enable("v1")
    limit = FleetLimit(hosts=Share(4))
    first = hosts[0]
    assert isinstance(first.take_permit(look(first), limit), Permit)
    first.record_failure(look(first), "will not start")
    first.release_permit(look(first), status_of(first, step="reverted"), keep_failure=True)

    rollouts.retry(site.people, "web", by="bob")

    answers = [host.take_permit(look(host), limit) for host in hosts]
    assert 1 == sum(isinstance(answer, Permit) for answer in answers)


def test_a_rollout_that_nobody_finished_is_not_complete(site: Site) -> None:
    """Giving up the only host makes no build a completed one, which a rollback would go to."""
    site.apply()
    host = site.host("h1")
    site.enable("bad")
    assert isinstance(take(host), Permit)
    site.sessions["h1"].close()

    rollouts.lose(site.people, "web", "h1", by="bob", why="burnt")

    assert rollouts.read_service(site.people, "web").rollout.completed is None


def test_a_host_sees_its_own_failure_at_once(site: Site) -> None:
    """One that was admitted by another host has never watched the rollout, and no event tells it what it has written."""
    site.apply()
    host = site.host("h1")
    site.enable("v1")
    look(host)

    host.record_failure(host.snapshot("web"), "will not start")

    failure = host.snapshot("web").failure
    assert failure is not None
    assert failure.reason == "will not start"
