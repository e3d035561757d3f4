"""What people order about a rollout and its hosts, on a real server: each is one transaction, with its entry in the history."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from deployd_core import rollouts
from deployd_core.coordination import AgentInfo, Denial, Denied, HostStatus, Permit, RolloutState, Verb
from deployd_core.errors import ConfigError, Conflict, NotFound
from deployd_core.model import FleetLimit, Role
from deployd_core.spec import InstancesTable, OnBudget, Promotion, RolloutTable, ServiceSpec, ServiceTable
from deployd_core.units import Duration, Share
from deployd_core.zookeeper.coordination import ZooKeeperCoordination
from deployd_core.zookeeper.layout import ServicePaths
from deployd_core.zookeeper.session import Session, split_address

pytestmark = pytest.mark.zookeeper

DIGEST = f"sha256:{'1' * 64}"
ONE = FleetLimit(hosts=Share(1))


def spec_of(**rollout: object) -> ServiceSpec:
    """A spec with this ``[rollout]``."""
    return ServiceSpec(
        service=ServiceTable(root="/srv/web"),
        source={"url": "file:///builds/{build}.tar.gz"},
        instances=InstancesTable(names=("web@8001",)),
        rollout=RolloutTable(**rollout),  # type: ignore[arg-type]
    )


@pytest.fixture
def session(zookeeper: str) -> Iterator[Session]:
    """A person's session."""
    with Session(*split_address(zookeeper)) as started:
        yield started


class Fleet:
    """Hosts of the service ``web`` that live in one session, and converge when they are told to."""

    def __init__(self, session: Session, *names: str, canaries: tuple[str, ...] = (), **rollout: object) -> None:
        rollouts.apply_spec(session, "web", spec_of(**rollout))
        self.session = session
        self.hosts = {name: ZooKeeperCoordination(session, name, bool) for name in names}
        for name, host in self.hosts.items():
            host.announce(AgentInfo(host=name, instance=name))
            host.join("web", "z1")
            host.snapshot("web")
        for name in canaries:
            rollouts.set_role(session, "web", name, Role.CANARY)

    def enable(self, build: str, role: Role = Role.FLEET) -> str:
        """Enable a build, and have every host know of it."""
        return rollouts.enable(self.session, "web", build, DIGEST, role=role, by="ann")

    def converge(self, *names: str, since: datetime | None = None) -> None:
        """Have hosts serve what they should, and give their permits back."""
        for name in names or tuple(self.hosts):
            host = self.hosts[name]
            snapshot = self.look(name)
            assert snapshot.enabled is not None
            status = HostStatus(
                host=name,
                zone="z1",
                role=snapshot.membership.role,
                wanted=snapshot.enabled.build,
                served=snapshot.enabled.build,
                step="converged",
                since=(since or datetime.now(UTC)).isoformat(),
                rollout=snapshot.rollout_id,
            )
            host.release_permit(snapshot, status)

    def look(self, name: str):  # type: ignore[no-untyped-def]
        """The host's snapshot, as of now: what was written a moment ago by another session may not have been heard of."""
        self.hosts[name]._services["web"]._cache.forget()
        return self.hosts[name].snapshot("web")

    def take(self, name: str) -> Permit | Denied:
        """Ask for a permit."""
        return self.hosts[name].take_permit(self.look(name), ONE)

    def fail(self, name: str) -> None:
        """Have a host fail."""
        self.hosts[name].record_failure(self.look(name), "will not start")

    def advance(self, name: str, veto: str = "") -> float | None:
        """Have a host look whether the rollout goes further."""
        return self.hosts[name].advance(self.look(name), lambda build: veto)

    @property
    def verbs(self) -> list[Verb]:
        """What the history tells."""
        return [entry.verb for entry in rollouts.history(self.session, "web")]


def test_a_rollout_is_complete_when_every_host_has_finished(session: Session) -> None:
    """The last host to finish puts it on record; before that nobody does, and it is done once."""
    fleet = Fleet(session, "h1", "h2")
    rollout_id = fleet.enable("v1")
    fleet.converge("h1")
    assert fleet.advance("h1") is not None
    assert {} == rollouts.read_service(session, "web").rollout.done

    fleet.converge("h2")
    assert (None, None) == (fleet.advance("h2"), fleet.advance("h1"))

    rollout = rollouts.read_service(session, "web").rollout
    assert [rollout_id] == list(rollout.done)
    assert rollout.completed is not None
    assert ("v1", DIGEST) == (rollout.completed.build, rollout.completed.digest)
    assert [Verb.ENABLE, Verb.COMPLETE] == fleet.verbs


def test_the_failure_over_the_budget_goes_back_once(session: Session) -> None:
    """With ``on_budget = "rollback"`` the failure that is one too many enables the last completed build; one in that only halts."""
    fleet = Fleet(session, "h1", "h2", on_budget=OnBudget.ROLLBACK)
    fleet.enable("v1")
    fleet.converge()
    fleet.advance("h1")
    bad = fleet.enable("v2")

    fleet.fail("h1")

    record = rollouts.read_service(session, "web")
    assert record.enabled is not None
    assert ("v1", DIGEST, RolloutState.OPEN, bad) == (
        record.enabled.build,
        record.enabled.digest,
        record.rollout.state,
        record.rollout.rollback_of,
    )
    assert {} == record.rollout.failures

    fleet.fail("h2")

    record = rollouts.read_service(session, "web")
    assert record.enabled is not None
    assert ("v1", RolloutState.HALTED) == (record.enabled.build, record.rollout.state)
    assert [Verb.ENABLE, Verb.COMPLETE, Verb.ENABLE, Verb.ROLLBACK, Verb.HALT] == fleet.verbs


def test_without_a_completed_build_there_is_no_way_back(session: Session) -> None:
    """The first build of a service can only halt."""
    fleet = Fleet(session, "h1", on_budget=OnBudget.ROLLBACK)
    fleet.enable("v1")

    fleet.fail("h1")

    assert RolloutState.HALTED is rollouts.read_service(session, "web").rollout.state


def test_a_person_goes_back_to_what_was_completed_last(session: Session) -> None:
    """Without a name it is the last completed build that is not the enabled one; a named one must have been enabled before."""
    fleet = Fleet(session, "h1")
    with pytest.raises(Conflict, match="nothing is enabled for web") as refused:
        rollouts.rollback(session, "web", by="ann")
    assert refused.value.hint == "deployd enable web BUILD"
    for build in ("v1", "v2"):
        fleet.enable(build)
        fleet.converge()
        fleet.advance("h1")
    fleet.enable("v3")

    rollouts.rollback(session, "web", by="ann", why="errors")
    record = rollouts.read_service(session, "web")
    assert record.enabled is not None
    assert ("v2", DIGEST, "errors") == (record.enabled.build, record.enabled.digest, record.rollout.why)

    rollouts.rollback(session, "web", by="ann", to="v1")
    with pytest.raises(NotFound, match="never told to serve 'v9'"):
        rollouts.rollback(session, "web", by="ann", to="v9")
    assert "v1-" in rollouts.read_service(session, "web").fleet_rollout


def test_rollbacks_do_not_lead_back_and_forth(session: Session) -> None:
    """A second rollback goes further back or is refused; nor does a failure take the fleet to what it was rolled back from."""
    fleet = Fleet(session, "h1", on_budget=OnBudget.ROLLBACK)
    for build in ("v1", "v2"):
        fleet.enable(build)
        fleet.converge()
        fleet.advance("h1")

    rollouts.rollback(session, "web", by="ann")
    with pytest.raises(Conflict, match="completed no build before v1 that was not rolled back from") as refused:
        rollouts.rollback(session, "web", by="ann")
    fleet.enable("v3")
    fleet.fail("h1")

    record = rollouts.read_service(session, "web")
    assert refused.value.hint.startswith("deployd rollback web --to BUILD")
    assert record.enabled is not None
    assert ("v3", RolloutState.HALTED) == (record.enabled.build, record.rollout.state)


def test_the_fleet_waits_for_its_canaries(session: Session) -> None:
    """With ``canary_first`` hosts of the fleet are denied until the build is promoted, which needs healthy canaries or a reason."""
    fleet = Fleet(session, "h1", "h2", canaries=("h1",), canary_first=True)
    rollout_id = fleet.enable("v1")
    denied = fleet.take("h2")
    assert isinstance(denied, Denied)
    assert Denial.PROMOTION is denied.code
    assert isinstance(fleet.take("h1"), Permit)
    with pytest.raises(Conflict, match="h1 is not healthy"):
        rollouts.promote(session, "web", by="ann")
    with pytest.raises(ConfigError, match="reason"):
        rollouts.promote(session, "web", by="ann", force=True)

    fleet.converge("h1")
    assert rollout_id == rollouts.promote(session, "web", by="ann", why="looks good")

    assert isinstance(fleet.take("h2"), Permit)
    with pytest.raises(Conflict, match="no build that waits"):
        rollouts.promote(session, "web", by="ann")


def test_canaries_that_have_a_build_already_go_first_with_the_next(session: Session) -> None:
    """A build of their own does not keep canary hosts from the next one of the fleet, which waits for them."""
    fleet = Fleet(session, "h1", "h2", canaries=("h1",), canary_first=True)
    fleet.enable("v1", Role.CANARY)
    rollout_id = fleet.enable("v2")

    assert (rollout_id, rollout_id) == (fleet.look("h1").rollout_id, fleet.look("h2").rollout_id)
    denied = fleet.take("h2")
    assert isinstance(denied, Denied)
    assert (Denial.PROMOTION, False) == (denied.code, fleet.look("h2").queued)


def test_without_canary_hosts_nobody_waits_for_them(session: Session) -> None:
    """``canary_first`` in a service that has no canary host holds nobody up."""
    fleet = Fleet(session, "h1", canary_first=True)
    fleet.enable("v1")

    assert isinstance(fleet.take("h1"), Permit)


@pytest.mark.parametrize("own_build", [True, False])
def test_a_build_that_has_baked_is_promoted_by_itself(session: Session, own_build: bool) -> None:
    """A canary host promotes it when every canary has been healthy for long enough and nobody objects: once."""
    policy = {"canary_first": not own_build, "promotion": Promotion.AUTO, "bake": Duration("10m")}
    fleet = Fleet(session, "h1", "h2", canaries=("h1",), **policy)
    if own_build:
        fleet.enable("v1")
        fleet.converge("h2")
    fleet.enable("v2", Role.CANARY if own_build else Role.FLEET)
    fleet.converge("h1", since=datetime.now(UTC) - timedelta(minutes=5))
    soon = fleet.advance("h1")
    assert soon is not None
    assert 0 < soon <= 300

    fleet.converge("h1", since=datetime.now(UTC) - timedelta(minutes=11))
    assert fleet.advance("h1", veto="too many errors") is not None
    assert Verb.PROMOTE not in fleet.verbs
    assert fleet.advance("h1") is None
    assert fleet.advance("h1") is None

    record = rollouts.read_service(session, "web")
    assert record.enabled is not None
    assert ("v2", "v2", 1) == (record.enabled.build, record.rollout.promoted, fleet.verbs.count(Verb.PROMOTE))
    assert record.canary is None, "canary hosts follow the fleet again"


def test_a_restart_is_a_rollout_of_the_same_build(session: Session) -> None:
    """It has an id of its own, keeps the digest, and can be asked for again."""
    fleet = Fleet(session, "h1")
    with pytest.raises(Conflict, match="nothing is enabled"):
        rollouts.restart(session, "web", by="ann")
    first = fleet.enable("v1")

    second = rollouts.restart(session, "web", by="ann", why="leaks memory")
    third = rollouts.restart(session, "web", by="ann")

    enabled = rollouts.read_service(session, "web").enabled
    assert enabled is not None
    assert ("v1", DIGEST, True) == (enabled.build, enabled.digest, enabled.restart)
    assert 3 == len({first, second, third})


def test_a_host_that_follows_the_service_no_more_can_be_retired(session: Session) -> None:
    """Its agent lives, for other services; while it follows this one the host is not gone."""
    fleet = Fleet(session, "h1", "h2")
    rollout = fleet.enable("v1")
    fleet.converge("h1")
    assert fleet.advance("h1") is not None
    fleet.hosts["h2"].announce(AgentInfo(host="h2", instance="h2", services=("web", "db")))
    with pytest.raises(Conflict, match="the agent of h2 is running"):
        rollouts.retire(session, "web", "h2", by="ann", why="runs the database now")

    fleet.hosts["h2"].announce(AgentInfo(host="h2", instance="h2", services=("db",)))

    assert rollouts.retire(session, "web", "h2", by="ann", why="runs the database now")
    assert ["h1"] == [entry.host for entry in rollouts.statuses(session, "web")]
    assert rollout in rollouts.read_service(session, "web").rollout.done


def test_an_impossible_limit_is_refused_with_its_arithmetic(session: Session) -> None:
    """What would never let a host restart is refused when a build is enabled, before anything is written."""
    fleet = Fleet(session, "h1", min_available=Share("75%"))

    with pytest.raises(ConfigError, match="75% of 1 host is 1, rounded up, which leaves none to restart"):
        fleet.enable("v1")

    assert rollouts.read_service(session, "web").enabled is None


def test_a_stored_floor_that_leaves_no_instance_is_refused(session: Session) -> None:
    """A spec that was stored with such a floor is refused when a build is enabled."""
    fleet = Fleet(session, "h1")
    table = InstancesTable(names=("web@8001", "web@8002"), min_available=Share(2))
    rollouts.apply_spec(session, "web", replace(spec_of(), instances=table))

    with pytest.raises(ConfigError, match="keeps 2 of 2 instances up"):
        fleet.enable("v1")


def test_a_host_that_is_gone_counts_until_somebody_decides(session: Session, zookeeper: str) -> None:
    """A dead host holds its permit and counts as down; ``lost`` gives both up; when it comes back it is excused no more."""
    fleet = Fleet(session, "h1", "h2")
    fleet.enable("v1")
    with Session(*split_address(zookeeper)) as other:
        dead = ZooKeeperCoordination(other, "h3", bool)
        dead.announce(AgentInfo(host="h3", instance="h3"))
        dead.join("web", "z1")
        assert isinstance(dead.take_permit(dead.snapshot("web"), ONE), Permit)
        with pytest.raises(Conflict, match="is running"):
            rollouts.lose(session, "web", "h3", by="ann", why="burnt")
    assert ["h3"] == [permit.host for permit in rollouts.list_permits(session, "web")]
    full = fleet.take("h1")
    assert isinstance(full, Denied)
    assert (Denial.SLOTS_FULL, ("h3",)) == (full.code, full.blockers)

    assert rollouts.release_permit(session, "web", "h3", by="ann", why="burnt")
    down = fleet.take("h1")
    assert isinstance(down, Denied)
    assert (Denial.CAPACITY, ("h3",)) == (down.code, down.blockers)

    assert rollouts.lose(session, "web", "h3", by="ann", why="burnt")
    assert not rollouts.lose(session, "web", "h3", by="ann", why="burnt")
    assert isinstance(fleet.take("h1"), Permit)
    fleet.converge("h1", "h2")
    fleet.advance("h1")
    assert [Verb.ENABLE, Verb.RELEASE, Verb.LOST, Verb.COMPLETE] == fleet.verbs

    back = ZooKeeperCoordination(session, "h3", bool)
    back.announce(AgentInfo(host="h3", instance="h3"))
    back.join("web", "z1")
    assert back.snapshot("web").membership.excused is None


def test_giving_up_the_last_straggler_completes_the_rollout(session: Session) -> None:
    """There may be no other host left to notice."""
    fleet = Fleet(session, "h1")
    ghost = ZooKeeperCoordination(session, "h2", bool)
    ghost.join("web", "z1")
    ghost.snapshot("web")
    fleet.enable("v1")
    fleet.converge("h1")
    assert fleet.advance("h1") is not None

    rollouts.retire(session, "web", "h2", by="ann", why="sold")

    assert [Verb.ENABLE, Verb.RETIRE, Verb.COMPLETE] == fleet.verbs
    assert ["h1"] == [entry.host for entry in rollouts.statuses(session, "web")]


def test_orders_about_hosts_need_a_reason_and_a_host(session: Session) -> None:
    """An unknown host is named with those there are; a reason is kept, so there must be one."""
    Fleet(session, "h1")

    with pytest.raises(ConfigError, match="needs a reason"):
        rollouts.excuse(session, "web", "h1", by="ann", why=" ")
    with pytest.raises(NotFound, match="known: h1"):
        rollouts.excuse(session, "web", "h9", by="ann", why="gone")
    assert not rollouts.release_permit(session, "web", "h1", by="ann", why="no permit there")


def test_hosts_that_say_they_are_down_count_and_are_repaired_first(session: Session) -> None:
    """A host whose report says that it cannot serve takes room from others, and not from itself."""
    fleet = Fleet(session, "h1", "h2")
    fleet.enable("v1")
    report = HostStatus(host="h2", zone="z1", role=Role.FLEET, wanted="v1", served=None, step="waiting", since="", down=True)
    fleet.hosts["h2"].report("web", report)

    denied = fleet.take("h1")
    assert isinstance(denied, Denied)
    assert (Denial.CAPACITY, ("h2",)) == (denied.code, denied.blockers)
    assert isinstance(fleet.take("h2"), Permit)

    fleet.converge("h2")
    assert session.stat(ServicePaths("web").down("h2")) is None
    fleet.hosts["h2"].report("web", report)
    assert Denial.CAPACITY is fleet.take("h1").code  # type: ignore[union-attr]

    rollouts.excuse(session, "web", "h2", by="ann", why="a disk is on its way")
    assert fleet.look("h2").membership.excused is not None
    assert isinstance(fleet.take("h1"), Permit)
    fleet.converge("h1")
    fleet.hosts["h2"].report("web", replace(report, down=False, step="converged"))
    assert fleet.look("h2").membership.excused is None
    assert isinstance(fleet.take("h1"), Permit)
