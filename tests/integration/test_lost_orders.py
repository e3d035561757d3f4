"""Orders whose answer never came, while somebody else orders something: each is carried out once, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from deployd_core import rollouts
from deployd_core.coordination import HistoryEntry, Permit, Verb
from deployd_core.errors import Conflict
from deployd_core.model import FleetLimit, Role
from deployd_core.spec import InstancesTable, RolloutTable, ServiceSpec, ServiceTable
from deployd_core.testing.relay import Relay
from deployd_core.units import Share
from deployd_core.zookeeper import members
from deployd_core.zookeeper.coordination import ZooKeeperCoordination
from deployd_core.zookeeper.layout import ServicePaths
from deployd_core.zookeeper.session import Session, split_address

pytestmark = pytest.mark.zookeeper

DIGEST = f"sha256:{'1' * 64}"
SPEC = ServiceSpec(
    service=ServiceTable(root="/srv/web"),
    source={"url": "file:///builds/{build}.tar.gz"},
    instances=InstancesTable(names=("web@8001",)),
)


class Two:
    """Ann, whose connection is bad, and Bob, whose is good; with a service that serves v1."""

    def __init__(self, address: str) -> None:
        hosts, chroot = split_address(address)
        self.relay = Relay(hosts)
        self.ann = Session(self.relay.address, chroot)
        self.bob = Session(hosts, chroot)
        for session in (self.bob, self.ann):
            session.start()
        rollouts.apply_spec(self.bob, "web", SPEC)
        self.enable(self.bob, "v1")

    def close(self) -> None:
        """End everything."""
        for session in (self.ann, self.bob):
            session.close()
        self.relay.close()

    def enable(self, session: Session, build: str, **more: Any) -> str:
        """Enable a build."""
        return rollouts.enable(session, "web", build, DIGEST, by="ann" if session is self.ann else "bob", **more)

    def lose(self, what: str, meanwhile: Callable[[], object]) -> None:
        """Have Ann's next transaction lost, or its answer, while Bob does something."""
        (self.relay.lose_next_answer if what == "answer" else self.relay.lose_next_transaction)(meanwhile)

    def host(self, name: str = "h1") -> ZooKeeperCoordination:
        """A host of the service, on the good connection."""
        host = ZooKeeperCoordination(self.bob, name, bool)
        host.join("web", "z1")
        host.snapshot("web")
        return host

    def take(self, host: ZooKeeperCoordination) -> Permit:
        """Have a host take its permit."""
        host._services["web"]._cache.forget()
        permit = host.take_permit(host.snapshot("web"), FleetLimit(hosts=Share(1)))
        assert isinstance(permit, Permit)
        return permit

    @property
    def record(self) -> Any:
        """The service as it is now."""
        return rollouts.read_service(self.bob, "web")

    def told(self, verb: Verb, by: str = "ann") -> list[HistoryEntry]:
        """What somebody has ordered so."""
        return [entry for entry in rollouts.history(self.bob, "web") if (entry.verb, entry.by) == (verb, by)]


@pytest.fixture
def two(zookeeper: str) -> Iterator[Two]:
    """Two people, and a service."""
    both = Two(zookeeper)
    yield both
    both.close()


@pytest.mark.parametrize("role", Role)
def test_a_build_that_was_enabled_and_superseded_is_not_enabled_again(two: Two, role: Role) -> None:
    """Ann's order was carried out, Bob's came after it: hers is known by its entry, and his stands."""
    two.lose("answer", lambda: two.enable(two.bob, "v3", role=role))

    rollout_id = two.enable(two.ann, "v2", role=role)

    assert rollout_id.startswith("v2-")
    assert "v3" == two.record.enabled_for(role).build
    assert two.record.rollout_for(role) > rollout_id
    assert ["v2"] == [entry.build for entry in two.told(Verb.ENABLE)]


def test_a_build_that_was_not_enabled_is_not_enabled_over_another(two: Two) -> None:
    """Ann's order never arrived, Bob's did: she is told what is there now, and by whom."""
    two.lose("transaction", lambda: two.enable(two.bob, "v3", why="a hot fix"))

    with pytest.raises(Conflict, match=r"this was not done: v3-\w+ is enabled by bob; the rollout is open by bob: a hot fix"):
        two.enable(two.ann, "v2")

    assert "v3" == two.record.enabled.build
    assert [] == two.told(Verb.ENABLE)


@pytest.mark.parametrize("what", ["answer", "transaction"])
def test_an_order_that_nobody_has_answered_otherwise_is_carried_out_once(two: Two, what: str) -> None:
    """With nobody else about, it is repeated when it did not arrive, and not when it did."""
    two.lose(what, bool)

    rollout_id = two.enable(two.ann, "v2")

    assert rollout_id == two.record.fleet_rollout
    assert ["v2"] == [entry.build for entry in two.told(Verb.ENABLE)]


def test_a_failure_that_came_between_is_no_order(two: Two) -> None:
    """What a host reports meanwhile is nobody's decision: the order that did not arrive is repeated."""
    rollouts.apply_spec(two.bob, "web", replace(SPEC, rollout=RolloutTable(budget=Share(1))))
    host = two.host()
    two.lose("transaction", lambda: host.record_failure(host.snapshot("web"), "will not start"))

    assert two.enable(two.ann, "v2") == two.record.fleet_rollout


def test_a_pause_that_was_lifted_is_not_made_again(two: Two) -> None:
    """Ann's pause was carried out, and Bob has lifted it: it stays lifted."""
    two.lose("answer", lambda: rollouts.resume(two.bob, "web", by="bob"))

    rollouts.pause(two.ann, "web", by="ann")

    assert "open" == two.record.rollout.state.value
    assert 1 == len(two.told(Verb.PAUSE))


def test_a_pause_that_never_was_is_not_made_of_what_came_instead(two: Two) -> None:
    """Ann wanted to pause v1, and Bob has enabled v3 by now: that is hers to decide anew."""
    two.lose("transaction", lambda: two.enable(two.bob, "v3"))

    with pytest.raises(Conflict, match="v3-.* is enabled by bob"):
        rollouts.pause(two.ann, "web", by="ann")

    assert "open" == two.record.rollout.state.value
    assert [] == two.told(Verb.PAUSE)


def test_a_permit_that_was_taken_away_and_taken_again_is_left(two: Two) -> None:
    """Ann's order took the permit of h1 away, and h1 has a new one: that is not taken away, too."""
    host = two.host()
    before = two.take(host)
    two.lose("answer", lambda: two.take(host))

    assert rollouts.release_permit(two.ann, "web", "h1", by="ann", why="stuck")

    assert [before.token] < [permit.token for permit in rollouts.list_permits(two.bob, "web")]
    assert 1 == len(two.told(Verb.RELEASE))


def test_another_permit_than_was_meant_is_not_taken_away(two: Two) -> None:
    """Ann's order never arrived, and h1 has given its permit back and taken another: she is told."""
    host = two.host()
    two.take(host)

    def anew() -> None:
        two.bob.delete(ServicePaths("web").permit("h1"))
        two.take(host)

    two.lose("transaction", anew)

    with pytest.raises(
        Conflict, match=r"h1 has gone on meanwhile, and this was not done: it holds another permit, since .* for v1-"
    ):
        rollouts.release_permit(two.ann, "web", "h1", by="ann", why="stuck")

    assert ["h1"] == [permit.host for permit in rollouts.list_permits(two.bob, "web")]


def test_a_host_that_was_excused_and_is_back_is_not_excused_again(two: Two) -> None:
    """Ann's order was carried out, and the host has come back: it counts again."""
    two.host()
    two.lose("answer", lambda: members.register(two.bob, "web", "h1", "z1", is_back=True))

    assert rollouts.excuse(two.ann, "web", "h1", by="ann", why="a new disk")

    assert [None] == [entry.excused for entry in rollouts.statuses(two.bob, "web")]


def test_a_host_that_has_changed_is_not_excused_unseen(two: Two) -> None:
    """Ann's order never arrived, and the host has another role by now: she is told."""
    two.host()
    two.lose("transaction", lambda: rollouts.set_role(two.bob, "web", "h1", Role.CANARY))

    with pytest.raises(Conflict, match="h1 has gone on meanwhile, and this was not done: it is registered anew"):
        rollouts.excuse(two.ann, "web", "h1", by="ann", why="a new disk")

    assert [None] == [entry.excused for entry in rollouts.statuses(two.bob, "web")]


def test_a_host_that_was_retired_is_found_gone(two: Two) -> None:
    """Ann's order was carried out: that there is no such host any more is what she wanted."""
    two.host()
    two.lose("answer", bool)

    assert rollouts.retire(two.ann, "web", "h1", by="ann", why="sold")

    assert () == rollouts.statuses(two.bob, "web")
