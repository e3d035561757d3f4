"""What people do, on a real server: applying, enabling, looking, roles, stops, and nodes written by hand."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from deployd_core import rollouts
from deployd_core.coordination import AgentInfo, Denial, Denied, HistoryEntry, HostStatus, Permit, RolloutState
from deployd_core.errors import ConfigError, Conflict, NotFound
from deployd_core.model import FleetLimit, Role
from deployd_core.spec import InstancesTable, ServiceSpec, ServiceTable
from deployd_core.testing.relay import Relay
from deployd_core.units import Share
from deployd_core.zookeeper import services
from deployd_core.zookeeper.chroot import ensure_chroot
from deployd_core.zookeeper.coordination import ZooKeeperCoordination
from deployd_core.zookeeper.layout import ServicePaths
from deployd_core.zookeeper.session import Session, split_address

pytestmark = pytest.mark.zookeeper

DIGEST = f"sha256:{'1' * 64}"
WEB = ServicePaths("web")
SPEC = ServiceSpec(
    service=ServiceTable(root="/srv/web"),
    source={"url": "file:///builds/{build}.tar.gz"},
    instances=InstancesTable(names=("web@8001",)),
)
ONE = FleetLimit(hosts=Share(1))


@pytest.fixture
def session(zookeeper: str) -> Iterator[Session]:
    """A person's session; the chroot does not exist yet."""
    with Session(*split_address(zookeeper)) as started:
        yield started


def host_of(session: Session, name: str, service: str = "web", zone: str = "z1") -> ZooKeeperCoordination:
    """A host that is a member of a service."""
    coordination = ZooKeeperCoordination(session, name, bool)
    coordination.join(service, zone)
    coordination.snapshot(service)
    return coordination


def status_of(host: str, step: str = "converged") -> HostStatus:
    """A report."""
    return HostStatus(host=host, zone="z1", role=Role.FLEET, wanted="v1", served="v1", step=step, since="2026-11-23T12:00:00Z")


# Services


def test_applying_makes_a_service_and_writes_only_what_changed(session: Session) -> None:
    """The first spec makes the service and the chroot, an equal one writes nothing, another one changes it."""
    assert "created" == rollouts.apply_spec(session, "web", SPEC).outcome
    before = session.stat(WEB.spec)
    assert "unchanged" == rollouts.apply_spec(session, "web", SPEC).outcome
    assert before == session.stat(WEB.spec)

    other = replace(SPEC, service=ServiceTable(root="/srv/other"))
    assert "changed" == rollouts.apply_spec(session, "web", other).outcome

    record = rollouts.read_service(session, "web")
    assert (other, None, RolloutState.OPEN, 0, "") == (
        record.spec,
        record.enabled,
        record.rollout.state,
        record.hosts,
        record.problem,
    )


def test_a_service_that_does_not_exist_is_named_with_those_that_do(session: Session) -> None:
    """Every verb that needs a service says which there are, and which was probably meant."""
    with pytest.raises(NotFound, match="there is none yet"):
        rollouts.read_service(session, "web")
    rollouts.apply_spec(session, "web", SPEC)
    rollouts.apply_spec(session, "api", SPEC)

    for verb in (
        lambda: rollouts.read_service(session, "wbe"),
        lambda: rollouts.enable(session, "wbe", "v1", DIGEST),
        lambda: rollouts.statuses(session, "wbe"),
        lambda: rollouts.history(session, "wbe"),
        lambda: rollouts.pause(session, "wbe", by="ann"),
        lambda: rollouts.set_role(session, "wbe", "h1", Role.CANARY),
        lambda: rollouts.delete_service(session, "wbe"),
    ):
        with pytest.raises(NotFound, match="no service 'wbe'; known: api, web") as caught:
            verb()
        assert "did you mean 'web'?" == caught.value.hint
    assert ["api", "web"] == [record.service for record in rollouts.list_services(session)]


def test_a_name_that_cannot_be_a_node_is_refused(session: Session) -> None:
    """Nothing is written for a service or build that cannot be called that."""
    with pytest.raises(ConfigError, match="service 'a/b'"):
        rollouts.apply_spec(session, "a/b", SPEC)
    rollouts.apply_spec(session, "web", SPEC)
    with pytest.raises(ConfigError, match="build id"):
        rollouts.enable(session, "web", "../v1", DIGEST)
    with pytest.raises(ConfigError, match="digest"):
        rollouts.enable(session, "web", "v1", "md5:1")

    assert rollouts.read_service(session, "web").enabled is None


def test_a_service_with_hosts_is_deleted_by_force_only(session: Session) -> None:
    """Deleting says which hosts and agents are left; forced, everything goes, and agents see no service any more."""
    rollouts.apply_spec(session, "web", SPEC)
    host = host_of(session, "h1")
    host.announce(AgentInfo(host="h1", instance="here"))
    rollouts.enable(session, "web", "v1", DIGEST)
    host.report("web", status_of("h1"))

    with pytest.raises(Conflict, match="1 registered hosts: h1; agents are running on h1"):
        rollouts.delete_service(session, "web")
    rollouts.delete_service(session, "web", force=True)

    assert () == rollouts.list_services(session)
    assert session.stat(WEB.root) is None
    with pytest.raises(NotFound):
        host.report("web", status_of("h1"))


# Enabling


def test_enabling_is_one_write_of_everything(session: Session) -> None:
    """The build, the rollout and the history change in one transaction, and say who and when."""
    rollouts.apply_spec(session, "web", SPEC)
    now = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)

    rollout_id = rollouts.enable(session, "web", "v1", DIGEST, by="ann", now=now)
    rollouts.enable(session, "web", "v2", None, role=Role.CANARY, by="bob", now=now)

    record = rollouts.read_service(session, "web")
    assert record.enabled is not None
    assert ("v1", DIGEST, "ann", rollout_id) == (
        record.enabled.build,
        record.enabled.digest,
        record.enabled.by,
        record.fleet_rollout,
    )
    assert record.canary is not None
    assert "v2" == record.canary.build
    at = "2026-11-23T12:00:00.000000+00:00"
    assert (
        HistoryEntry(build="v1", digest=DIGEST, role=Role.FLEET, by="ann", at=at),
        HistoryEntry(build="v2", role=Role.CANARY, by="bob", at=at),
    ) == tuple(replace(entry, nonce="") for entry in rollouts.history(session, "web"))
    stats = session.stat_many((WEB.canary, WEB.rollout))
    assert 1 == len({stat.mzxid for stat in stats.values() if stat})


def test_enabling_at_the_same_time_loses_nothing(session: Session) -> None:
    """Ten who enable at once all succeed, one after the other; the last one is what is enabled."""
    rollouts.apply_spec(session, "web", SPEC)
    begun: list[str] = []

    threads = [
        threading.Thread(target=lambda number=number: begun.append(rollouts.enable(session, "web", f"v{number}", DIGEST)))
        for number in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    history = rollouts.history(session, "web")
    assert {f"v{number}" for number in range(10)} == {entry.build for entry in history}
    enabled = rollouts.read_service(session, "web").enabled
    assert enabled is not None
    assert history[-1].build == enabled.build
    assert 10 == len(set(begun))


def test_the_history_is_bounded(session: Session) -> None:
    """The oldest entries go."""
    rollouts.apply_spec(session, "web", SPEC)
    for number in range(services.HISTORY_LIMIT + 5):
        rollouts.enable(session, "web", f"v{number}", DIGEST)

    history = rollouts.history(session, "web")

    assert (services.HISTORY_LIMIT, "v5") == (len(history), history[0].build)


def test_enabling_survives_a_lost_answer(session: Session, zookeeper: str) -> None:
    """When the answer is lost the build is enabled once, and its rollout is the one returned."""
    rollouts.apply_spec(session, "web", SPEC)
    hosts, chroot = split_address(zookeeper)
    with Relay(hosts) as relay, Session(relay.address, chroot) as person:
        relay.lose_next_answer()

        rollout_id = rollouts.enable(person, "web", "v1", DIGEST)

    assert rollout_id == rollouts.read_service(session, "web").fleet_rollout
    assert 1 == len(rollouts.history(session, "web"))


def test_stops_are_lifted_by_those_who_may(session: Session) -> None:
    """A pause does not hide a halt, which only a retry ends, forgetting the failures; enabling opens everything but a freeze."""
    rollouts.apply_spec(session, "web", SPEC)
    rollouts.enable(session, "web", "v1", DIGEST)
    host = host_of(session, "h1")
    host.record_failure(host.snapshot("web"), "will not start")

    assert RolloutState.HALTED is rollouts.pause(session, "web", by="ann").state
    with pytest.raises(Conflict, match="not paused but halted"):
        rollouts.resume(session, "web", by="ann")
    resumed = rollouts.retry(session, "web", by="ann", why="mended")
    assert (RolloutState.OPEN, {}, "ann") == (resumed.state, resumed.failures, resumed.by)

    rollouts.freeze(session, by="ann", why="incident", until=datetime.now(UTC) + timedelta(hours=1))
    rollouts.enable(session, "web", "v2", DIGEST)
    record = rollouts.read_service(session, "web")
    assert record.freeze is not None
    assert ("ann", "incident", RolloutState.OPEN) == (record.freeze.by, record.freeze.why, record.rollout.state)
    late = host_of(session, "h2")
    answer = late.take_permit(late.snapshot("web"), ONE)
    assert isinstance(answer, Denied)
    assert (Denial.FROZEN, True) == (answer.code, "incident" in answer.reason)

    rollouts.unfreeze(session)
    assert rollouts.read_service(session, "web").freeze is None


# Hosts


def test_the_roster_shows_who_is_alive_and_what_they_said(session: Session, zookeeper: str) -> None:
    """Each registered host has its role, zone, report and permit, and whether its agent lives."""
    rollouts.apply_spec(session, "web", SPEC)
    rollout_id = rollouts.enable(session, "web", "v1", DIGEST)
    silent = host_of(session, "h2", zone="z2")
    with Session(*split_address(zookeeper)) as agent:
        host = host_of(agent, "h1")
        host.announce(AgentInfo(host="h1", instance="here", version="0.1.0"))
        host.report("web", status_of("h1"))
        silent.take_permit(silent.snapshot("web"), ONE)

        first, second = rollouts.statuses(session, "web")
    gone = rollouts.statuses(session, "web")[0]

    assert ("h1", "z1", True, status_of("h1"), None, True) == (
        first.host,
        first.zone,
        first.alive,
        first.status,
        first.permit,
        first.converged,
    )
    assert ("h2", "z2", False, None, False) == (second.host, second.zone, second.alive, second.status, second.converged)
    assert isinstance(second.permit, Permit)
    assert first.wanted is not None
    assert ("v1", rollout_id) == (first.wanted.build, first.rollout_id)
    assert (False, status_of("h1")) == (gone.alive, gone.status)


def test_roles_are_set_for_registered_hosts(session: Session) -> None:
    """A role changes once; a host that is not there is named with those that are."""
    rollouts.apply_spec(session, "web", SPEC)
    host_of(session, "web-01")

    assert rollouts.set_role(session, "web", "web-01", Role.CANARY)
    assert not rollouts.set_role(session, "web", "web-01", Role.CANARY)
    with pytest.raises(NotFound, match="no host 'web-10' in service 'web'; known: web-01") as caught:
        rollouts.set_role(session, "web", "web-10", Role.CANARY)

    assert "did you mean 'web-01'?" == caught.value.hint
    assert Role.CANARY is rollouts.statuses(session, "web")[0].role


def test_a_watcher_sees_each_change_and_outlives_the_connection(session: Session, zookeeper: str) -> None:
    """Watching yields at once, after reports, registrations and enabling, after an outage too, and ends when it is told to."""
    rollouts.apply_spec(session, "web", SPEC)
    hosts, chroot = split_address(zookeeper)
    stop = threading.Event()
    seen: queue.Queue[rollouts.FleetStatus] = queue.Queue()

    def until(condition: str) -> None:
        while condition not in _picture(status := seen.get(timeout=10)):
            assert status

    with Relay(hosts) as relay, Session(relay.address, chroot) as watcher:

        def look() -> None:
            for status in rollouts.watch_statuses(watcher, "web", stop):
                seen.put(status)

        watching = threading.Thread(target=look)
        watching.start()
        until("enabled=None hosts=[]")
        host = host_of(session, "h1")
        until("hosts=[('h1', None)]")
        for step in ("fetching", "restarting", "converged"):
            host.report("web", status_of("h1", step))
            until(f"hosts=[('h1', '{step}')]")
        relay.down()
        rollouts.enable(session, "web", "v1", DIGEST)
        relay.up()
        until("enabled=v1")
        stop.set()
        watching.join(10)
        assert not watching.is_alive()


def _picture(status: rollouts.FleetStatus) -> str:
    """What a watcher saw, in one line."""
    enabled = status.record.enabled.build if status.record.enabled else None
    return f"enabled={enabled} hosts={[(entry.host, entry.status.step if entry.status else None) for entry in status.hosts]}"


# Nodes written by hand


def test_a_bare_build_id_is_a_rollout_like_any_other(session: Session) -> None:
    """What one writes in zkCli begins a rollout, without a digest."""
    rollouts.apply_spec(session, "web", SPEC)

    session.set(WEB.enabled, b"v7\n")

    record = rollouts.read_service(session, "web")
    assert record.enabled is not None
    assert ("v7", None) == (record.enabled.build, record.enabled.digest)
    assert record.fleet_rollout.startswith("v7-")
    assert record.fleet_rollout == host_of(session, "h1").snapshot("web").rollout_id


@pytest.mark.parametrize(("role", "path"), [(Role.FLEET, WEB.enabled), (Role.CANARY, WEB.canary), (Role.CANARY, WEB.enabled)])
def test_no_grant_commits_after_a_build_was_written_by_hand(session: Session, role: Role, path: str) -> None:
    """A build written in zkCli, which changes nothing but its node, stops a grant that obeyed what was there before."""
    rollouts.apply_spec(session, "web", SPEC)
    rollouts.enable(session, "web", "v1", DIGEST)
    host_of(session, "h1")
    rollouts.set_role(session, "web", "h1", role)
    host = host_of(session, "h1")
    snapshot = host.snapshot("web")

    session.set(path, b"v2")

    answer = host.take_permit(snapshot, ONE)
    assert isinstance(answer, Denied)
    assert Denial.CHANGED is answer.code


def test_failures_of_rollouts_that_are_over_are_dropped(session: Session) -> None:
    """The rollout's node holds the failures of what is under way, and does not grow for ever."""
    rollouts.apply_spec(session, "web", SPEC)
    for number in range(2):
        session.set(WEB.enabled, f"v{number}".encode())
        host = host_of(session, f"h{number}")
        host.record_failure(host.snapshot("web"), "will not start")

    assert {"h1"} == set(rollouts.read_service(session, "web").rollout.failures)


@pytest.mark.parametrize(
    ("path", "denial"),
    [(WEB.rollout, Denial.PAUSED), ("/freeze", Denial.FROZEN), (WEB.enabled, None), (WEB.spec, None), (WEB.host("h1"), None)],
)
def test_nonsense_in_a_node_is_a_problem_and_never_a_permission(session: Session, path: str, denial: Denial | None) -> None:
    """A node that cannot be read is named with its full path, and the host does nothing because of it."""
    rollouts.apply_spec(session, "web", SPEC)
    host_of(session, "h1")
    rollouts.enable(session, "web", "v1", DIGEST)
    session.set(path, b"{nonsense")

    host = ZooKeeperCoordination(session, "h1", bool)
    snapshot = host.snapshot("web")

    assert session.where(path) in snapshot.problem
    if denial is None:
        assert snapshot.enabled is None or snapshot.spec is None
    else:
        answer = host.take_permit(snapshot, ONE)
        assert isinstance(answer, Denied)
        assert denial is answer.code


def test_a_service_made_by_hand_is_completed_before_a_permit_is_granted(session: Session) -> None:
    """A spec and a build written by zkCli alone are enough: what a grant has to check is made, then granted."""
    ensure_chroot(session)
    for path in ("/services", WEB.root, WEB.enabled, WEB.hosts):
        session.create(path)
    session.create(WEB.spec, json.dumps({"service": {"root": "/srv/web"}, "source": {"url": "file:///b"}}).encode())
    session.set(WEB.enabled, b"v1")
    host = ZooKeeperCoordination(session, "h1", bool)
    host.join("web", "z1")

    answers = [host.take_permit(host.snapshot("web"), ONE) for _ in range(2)]

    assert isinstance(answers[0], Denied)
    assert Denial.CHANGED is answers[0].code
    assert isinstance(answers[1], Permit)


def test_a_permit_outlives_the_agent_that_took_it(session: Session, zookeeper: str) -> None:
    """After the agent and its session are gone the permit still counts, and its successor finds it."""
    rollouts.apply_spec(session, "web", SPEC)
    rollouts.enable(session, "web", "v1", DIGEST)
    with Session(*split_address(zookeeper)) as agent:
        first = host_of(agent, "h1")
        permit = first.take_permit(first.snapshot("web"), ONE)
    other = host_of(session, "h2")
    denied = other.take_permit(other.snapshot("web"), ONE)
    with Session(*split_address(zookeeper)) as agent:
        successor = host_of(agent, "h1")

        assert isinstance(denied, Denied)
        assert Denial.SLOTS_FULL is denied.code
        assert permit == successor.snapshot("web").permit == successor.take_permit(successor.snapshot("web"), ONE)
