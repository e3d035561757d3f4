"""What every `Coordination` guarantees: one suite, run against the one in memory and the one on a real ZooKeeper."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import pytest
from msgspec.structs import replace

from deployd_core import rollouts
from deployd_core.coordination import (
    PATIENCE,
    AgentInfo,
    Coordination,
    Denial,
    Denied,
    Freeze,
    HistoryEntry,
    HostStatus,
    Link,
    Membership,
    Permit,
    Rollout,
    RolloutState,
    Snapshot,
    Verb,
)
from deployd_core.errors import Conflict, Unavailable
from deployd_core.model import FleetLimit, Role
from deployd_core.spec import InstancesTable, OnBudget, Promotion, RolloutTable, ServiceSpec, ServiceTable
from deployd_core.testing.coordination import MemoryCoordination, MemoryEnsemble
from deployd_core.testing.relay import Relay
from deployd_core.units import Duration, Share
from deployd_core.zookeeper import layout, permits
from deployd_core.zookeeper.chroot import ensure_chroot
from deployd_core.zookeeper.coordination import ZooKeeperCoordination
from deployd_core.zookeeper.session import Session

DIGEST = f"sha256:{'0' * 64}"
ONE = FleetLimit(hosts=Share(1))


def make_spec(budget: Share | None = None, root: str = "/srv/web", **policy: Any) -> ServiceSpec:
    """A spec that differs from another by its root, its budget or what else it says about rollouts."""
    return ServiceSpec(
        service=ServiceTable(root=root),
        source={"url": "file:///builds/{build}.tar.gz"},
        instances=InstancesTable(names=("web@8001",)),
        rollout=RolloutTable(budget=budget or Share(0), **policy),
    )


class Clock:
    """The time that every host believes in; a test can let it pass."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


class World(Protocol):
    """A place where hosts agree, and what people and accidents do to it."""

    clock: Clock

    def host(self, name: str, wake: Callable[[str], object] = bool) -> Coordination: ...
    def apply(self, spec: ServiceSpec) -> None: ...
    def enable(self, build: str, role: Role = Role.FLEET) -> str: ...
    def set_role(self, host: str, role: Role) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def freeze(self, until: datetime | None = None) -> None: ...
    def remove_permit(self, host: str) -> None: ...
    def excuse(self, host: str) -> None: ...
    def promote(self) -> None: ...
    def restart(self) -> None: ...
    def gone(self, host: str) -> None: ...
    def before_next_write(self, host: str, action: Callable[[], object]) -> None: ...
    def history(self) -> tuple[HistoryEntry, ...]: ...
    def rollout(self) -> Rollout: ...
    def permits(self) -> tuple[Permit, ...]: ...
    def statuses(self) -> dict[str, HostStatus | None]: ...
    def lose_next_answer(self, host: str) -> None: ...
    def disconnect(self, host: str) -> None: ...
    def connect(self, host: str) -> None: ...


class MemoryWorld:
    """The one in memory."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.ensemble = MemoryEnsemble(self.clock)
        self.handles: dict[str, MemoryCoordination] = {}

    def host(self, name: str, wake: Callable[[str], object] = bool) -> Coordination:
        self.handles[name] = self.ensemble.coordination(name, wake)
        return self.handles[name]

    def apply(self, spec: ServiceSpec) -> None:
        self.ensemble.apply_spec("web", spec)

    def enable(self, build: str, role: Role = Role.FLEET) -> str:
        return self.ensemble.enable("web", build, DIGEST, role=role, by="test")

    def set_role(self, host: str, role: Role) -> None:
        self.ensemble.set_role("web", host, role)

    def pause(self) -> None:
        self.ensemble.set_rollout("web", RolloutState.PAUSED, by="test")

    def resume(self) -> None:
        self.ensemble.set_rollout("web", RolloutState.OPEN, by="test")

    def freeze(self, until: datetime | None = None) -> None:
        self.ensemble.set_freeze(Freeze(by="test", until=until.isoformat() if until else None))

    def remove_permit(self, host: str) -> None:
        self.ensemble.remove_permit("web", host)

    def excuse(self, host: str) -> None:
        self.ensemble.excuse("web", host, by="test", why="it burnt down")

    def promote(self) -> None:
        self.ensemble.promote("web", by="test")

    def restart(self) -> None:
        enabled = self.ensemble.read("web", "", "").enabled
        assert enabled is not None
        self.ensemble.enable("web", enabled.build, enabled.digest, by="test", verb=Verb.RESTART)

    def gone(self, host: str) -> None:
        self.handles[host].link = Link.LOST

    def before_next_write(self, host: str, action: Callable[[], object]) -> None:
        action()  # there is nothing between reading and writing

    def history(self) -> tuple[HistoryEntry, ...]:
        return self.ensemble.history("web")

    def rollout(self) -> Rollout:
        return self.ensemble.rollout("web")

    def permits(self) -> tuple[Permit, ...]:
        return self.ensemble.permits("web")

    def statuses(self) -> dict[str, HostStatus | None]:
        return self.ensemble.statuses("web")

    def lose_next_answer(self, host: str) -> None:
        self.handles[host].lose_next_answer()

    def disconnect(self, host: str) -> None:
        self.handles[host].link = Link.SUSPENDED

    def connect(self, host: str) -> None:
        self.handles[host].link = Link.CONNECTED


class ZooKeeperWorld:
    """The one on ZooKeeper: each host has a session of its own, behind a relay of its own."""

    def __init__(self, address: str, stack: ExitStack) -> None:
        self.server, _, self.chroot = address.partition("/")
        self.stack = stack
        self.clock = Clock()
        self.relays: dict[str, Relay] = {}
        self.sessions: dict[str, Session] = {}
        self.people = stack.enter_context(Session(self.server, f"/{self.chroot}"))
        ensure_chroot(self.people)

    def host(self, name: str, wake: Callable[[str], object] = bool) -> Coordination:
        self.relays[name] = self.stack.enter_context(Relay(self.server))
        session = Session(self.relays[name].address, f"/{self.chroot}", session_timeout=4, operation_timeout=2)
        coordination = ZooKeeperCoordination(session, name, wake, clock=self.clock)
        self.sessions[name] = self.stack.enter_context(session)
        coordination.announce(AgentInfo(host=name, instance=f"test:{name}"))
        return coordination

    def apply(self, spec: ServiceSpec) -> None:
        rollouts.apply_spec(self.people, "web", spec)

    def enable(self, build: str, role: Role = Role.FLEET) -> str:
        return rollouts.enable(self.people, "web", build, DIGEST, role=role, by="test")

    def set_role(self, host: str, role: Role) -> None:
        rollouts.set_role(self.people, "web", host, role)

    def pause(self) -> None:
        rollouts.pause(self.people, "web", by="test")

    def resume(self) -> None:
        rollouts.resume(self.people, "web", by="test")

    def freeze(self, until: datetime | None = None) -> None:
        rollouts.freeze(self.people, by="test", until=until)

    def remove_permit(self, host: str) -> None:
        self.people.delete(layout.ServicePaths("web").permit(host))

    def excuse(self, host: str) -> None:
        rollouts.excuse(self.people, "web", host, by="test", why="it burnt down")

    def promote(self) -> None:
        rollouts.promote(self.people, "web", by="test", force=True, why="test")

    def restart(self) -> None:
        rollouts.restart(self.people, "web", by="test")

    def gone(self, host: str) -> None:
        self.sessions[host].close()

    def before_next_write(self, host: str, action: Callable[[], object]) -> None:
        self.relays[host].before_next_transaction(action)

    def history(self) -> tuple[HistoryEntry, ...]:
        return rollouts.history(self.people, "web")

    def rollout(self) -> Rollout:
        return rollouts.read_service(self.people, "web").rollout

    def permits(self) -> tuple[Permit, ...]:
        return permits.read_permits(self.people, "web")

    def statuses(self) -> dict[str, HostStatus | None]:
        return {entry.host: entry.status for entry in rollouts.statuses(self.people, "web")}

    def lose_next_answer(self, host: str) -> None:
        self.relays[host].lose_next_answer()

    def disconnect(self, host: str) -> None:
        gone = threading.Event()
        self.sessions[host].listen(lambda link: gone.set() if link is not Link.CONNECTED else None)
        self.relays[host].down()
        assert gone.wait(5)

    def connect(self, host: str) -> None:
        self.relays[host].up()
        assert self.sessions[host].wait_connected(10)


@pytest.fixture(params=["memory", pytest.param("zookeeper", marks=pytest.mark.zookeeper)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Each place, with the service ``web`` applied."""
    with ExitStack() as stack:
        made: World = MemoryWorld() if request.param == "memory" else ZooKeeperWorld(request.getfixturevalue("zookeeper"), stack)
        made.apply(make_spec())
        yield made


class Bell:
    """A `wake` that a test can wait for."""

    def __init__(self) -> None:
        self.rung = threading.Event()

    def __call__(self, service: str) -> None:
        assert service == "web"
        self.rung.set()

    def wait(self) -> bool:
        """Wait until it rang, and be ready for the next time."""
        rang = self.rung.wait(5)
        self.rung.clear()
        return rang


def joined(world: World, name: str, zone: str = "z1", wake: Callable[[str], object] = bool) -> Coordination:
    """A host that is a member."""
    host = world.host(name, wake)
    host.join("web", zone)
    host.snapshot("web")
    return host


def take(host: Coordination, limit: FleetLimit = ONE) -> Permit | Denied:
    """Look, and ask for a permit."""
    return host.take_permit(host.snapshot("web"), limit)


def code_of(answer: Permit | Denied) -> Denial | None:
    """Why it was denied; None when it was granted."""
    return answer.code if isinstance(answer, Denied) else None


def status_of(snapshot: Snapshot, step: str = "converged", *, down: bool = False) -> HostStatus:
    """A report."""
    build = snapshot.enabled.build if snapshot.enabled else "v1"
    return HostStatus(
        host=snapshot.host,
        zone=snapshot.membership.zone,
        role=snapshot.membership.role,
        wanted=build,
        served=build,
        step=step,
        since="2026-11-23T12:00:00Z",
        rollout=snapshot.rollout_id,
        down=down,
    )


# Looking


def test_a_service_that_does_not_exist_is_waited_for(world: World) -> None:
    """A missing service is an empty snapshot, and its creation wakes the engine."""
    bell = threading.Event()
    host = world.host("h1", lambda _: bell.set())

    assert host.snapshot("other").spec is None
    host.join("web", "z1")
    assert make_spec() == host.snapshot("web").spec


def test_joining_registers_a_host_and_keeps_its_role(world: World) -> None:
    """The first snapshot after joining registers the host; joining again moves its zone and leaves its role."""
    host = joined(world, "h1", "z1")
    assert Membership(role=Role.FLEET, zone="z1") == host.snapshot("web").membership

    world.set_role("h1", Role.CANARY)
    host.join("web", "z2")

    assert Membership(role=Role.CANARY, zone="z2") == host.snapshot("web").membership
    assert {"h1": None} == world.statuses()


def test_enabling_wakes_and_begins_a_rollout(world: World) -> None:
    """An enabled build wakes the engine and is in the next snapshot, with the id that enabling returned."""
    bell = Bell()
    host = joined(world, "h1", wake=bell)
    assert host.snapshot("web").enabled is None
    bell.rung.clear()

    rollout_id = world.enable("v1")

    assert bell.wait()
    snapshot = settled(host, rollout_id)
    assert snapshot.enabled is not None
    assert ("v1", DIGEST, rollout_id) == (snapshot.enabled.build, snapshot.enabled.digest, snapshot.rollout_id)
    assert rollout_id != world.enable("v1")


@pytest.mark.parametrize("change", ["spec", "freeze", "role", "permit"])
def test_every_change_that_matters_to_a_host_wakes_it(world: World, change: str) -> None:
    """Spec, freeze, its own role and its own permit are watched, again and again."""
    bell = Bell()
    host = joined(world, "h1", wake=bell)
    world.enable("v1")
    take_until_known(host)
    changes: dict[str, Callable[[], None]] = {
        "spec": lambda: world.apply(make_spec(root="/srv/other")),
        "freeze": world.freeze,
        "role": lambda: world.set_role("h1", Role.CANARY),
        "permit": lambda: world.remove_permit("h1"),
    }
    quieten(host, bell)

    changes[change]()

    assert bell.wait()
    quieten(host, bell)
    world.enable("v2")
    assert bell.wait()


def test_canary_hosts_follow_their_own_build_once_there_is_one(world: World) -> None:
    """A canary host follows the fleet until a canary build is enabled; a fleet host never follows that."""
    canary, fleet = joined(world, "h1"), joined(world, "h2")
    world.set_role("h1", Role.CANARY)
    first = world.enable("v1")
    settled(canary, first)
    settled(fleet, first)

    second = world.enable("v2", Role.CANARY)

    settled(canary, second)
    assert first == fleet.snapshot("web").rollout_id


def quieten(host: Coordination, bell: Bell) -> None:
    """Look until the last event of what was done before has come: it would pass for the next, or swallow it."""
    while True:
        bell.rung.clear()
        host.snapshot("web")
        if not bell.rung.wait(0.2):
            return


def eventually(condition: Callable[[], bool]) -> None:
    """Look until it is so: what was written a moment ago may not have been heard of."""
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("never came true")


def settled(host: Coordination, rollout_id: str) -> Snapshot:
    """The snapshot once the host has been told of a rollout."""
    eventually(lambda: host.snapshot("web").rollout_id == rollout_id)
    return host.snapshot("web")


# Permits


def test_a_permit_is_kept_until_it_is_released(world: World) -> None:
    """Asking again returns the same permit, also in the next rollout; after release and asking anew the token is higher."""
    host = joined(world, "h1")
    first_rollout = world.enable("v1")
    settled(host, first_rollout)
    first = take_until_known(host)
    assert isinstance(first, Permit)
    assert ("h1", "z1", first_rollout) == (first.host, first.zone, first.rollout)
    assert first == take(host)

    second_rollout = world.enable("v2")
    snapshot = settled(host, second_rollout)
    assert first == snapshot.permit == host.take_permit(snapshot, ONE)

    host.release_permit(snapshot, status_of(snapshot))
    assert () == world.permits()
    again = take_until_known(host)
    assert isinstance(again, Permit)
    assert again.token > first.token


def take_until_known(host: Coordination, limit: FleetLimit = ONE) -> Permit | Denied:
    """Ask, looking again as long as something has changed."""
    answers: list[Permit | Denied] = []

    def known() -> bool:
        answers.append(take(host, limit))
        return code_of(answers[-1]) is not Denial.CHANGED

    eventually(known)
    return answers[-1]


def take_until(host: Coordination, code: Denial) -> None:
    """Ask until the answer is this one."""
    eventually(lambda: code_of(take(host)) is code)


def test_a_release_wakes_the_host_that_waits_for_room(world: World) -> None:
    """Beyond the limit a host is denied with the holder's name; the release wakes it, and it is granted then."""
    bell = Bell()
    first, second = joined(world, "h1"), joined(world, "h2", wake=bell)
    world.enable("v1")
    assert isinstance(take_until_known(first), Permit)

    denied = take_until_known(second)
    assert isinstance(denied, Denied)
    assert (Denial.SLOTS_FULL, True) == (denied.code, "h1" in denied.reason)
    second.snapshot("web")
    bell.rung.clear()
    snapshot = first.snapshot("web")
    first.release_permit(snapshot, status_of(snapshot))

    assert bell.wait()
    assert isinstance(take_until_known(second), Permit)
    assert ["h2"] == [permit.host for permit in world.permits()]


def test_what_happens_while_a_host_asks_wakes_it_although_it_was_woken_before(world: World) -> None:
    """A host that was woken, and asks before it looks again, is woken once more by the release that it waits for."""
    bell = Bell()
    first, second = joined(world, "h1"), joined(world, "h2", wake=bell)
    world.enable("v1")
    assert isinstance(take_until_known(first), Permit)
    take_until(second, Denial.SLOTS_FULL)
    snapshot = second.snapshot("web")
    quieten(second, bell)
    world.pause()
    assert bell.wait()

    assert Denial.PAUSED is code_of(second.take_permit(snapshot, ONE))
    bell.rung.clear()
    snapshot = first.snapshot("web")
    first.release_permit(snapshot, status_of(snapshot))

    assert bell.wait()


def test_a_limit_counts_registered_hosts_and_zones(world: World) -> None:
    """A percentage is one of the hosts registered, or of those in the zone, rounded down and at least 1."""
    hosts = {f"h{number}": joined(world, f"h{number}", "z1" if number < 3 else "z2") for number in range(6)}
    world.enable("v1")
    limit = FleetLimit(hosts=Share("60%"), per_zone=Share("50%"))

    answers = {name: code_of(take_until_known(host, limit)) for name, host in hosts.items()}

    first = {"h0": None, "h1": Denial.ZONE_FULL, "h2": Denial.QUEUED, "h3": None, "h4": Denial.ZONE_FULL, "h5": Denial.QUEUED}
    assert first == answers
    assert Denial.SLOTS_FULL is code_of(take_until_known(hosts["h1"], FleetLimit(hosts=Share("34%"))))


def test_without_a_limit_everybody_goes(world: World) -> None:
    """A plan without a limit hands out a permit to each."""
    hosts = [joined(world, f"h{number}") for number in range(3)]
    world.enable("v1")

    assert [None] * 3 == [code_of(take_until_known(host, FleetLimit())) for host in hosts]


@pytest.mark.parametrize("limit", [FleetLimit(), ONE], ids=["no limit", "one"])
def test_who_was_denied_while_the_rollout_was_paused_is_woken_when_it_goes_on(world: World, limit: FleetLimit) -> None:
    """A host that a pause has stopped is woken by its end, whether it stands in a queue or its strategy knows no limit."""
    bell = Bell()
    host = joined(world, "h1", wake=bell)
    world.enable("v1")
    world.pause()
    eventually(lambda: code_of(take_until_known(host, limit)) is Denial.PAUSED)
    host.snapshot("web")
    quieten(host, bell)

    world.resume()

    assert bell.wait()
    assert isinstance(take_until_known(host, limit), Permit)


@pytest.mark.parametrize("change", ["spec", "enabled", "pause", "freeze", "role"])
def test_no_grant_commits_after_what_it_obeyed_has_changed(world: World, change: str) -> None:
    """A permit asked for under a snapshot from before a change is not granted."""
    host = joined(world, "h1")
    snapshot = settled(host, world.enable("v1"))
    changes: dict[str, Callable[[], object]] = {
        "spec": lambda: world.apply(make_spec(root="/srv/other")),
        "enabled": lambda: world.enable("v2"),
        "pause": world.pause,
        "freeze": world.freeze,
        "role": lambda: world.set_role("h1", Role.CANARY),
    }

    changes[change]()

    assert {"pause": Denial.PAUSED}.get(change, Denial.CHANGED) is code_of(host.take_permit(snapshot, ONE))
    assert () == world.permits()


def test_no_grant_commits_after_a_canary_build_was_enabled(world: World) -> None:
    """A canary host that read the fleet's build is not let through once there is a canary build."""
    host = joined(world, "h1")
    world.set_role("h1", Role.CANARY)
    world.enable("v1")
    eventually(lambda: host.snapshot("web").membership.role is Role.CANARY and host.snapshot("web").enabled is not None)
    snapshot = host.snapshot("web")

    world.enable("v2", Role.CANARY)

    assert Denial.CHANGED is code_of(host.take_permit(snapshot, ONE))


def test_a_stop_is_named(world: World) -> None:
    """A host that looked after a stop is told which; one that holds a permit goes on."""
    holder, other = joined(world, "h1"), joined(world, "h2")
    world.enable("v1")
    assert isinstance(take_until_known(holder), Permit)

    world.pause()
    take_until(other, Denial.PAUSED)
    world.freeze()
    take_until(other, Denial.FROZEN)
    assert isinstance(take_until_known(holder), Permit)


def test_a_freeze_ends_by_itself(world: World) -> None:
    """A freeze whose end has passed stops nobody."""
    host = joined(world, "h1")
    world.enable("v1")

    world.freeze(datetime.now(UTC) - timedelta(seconds=1))

    assert isinstance(take_until_known(host), Permit)


def test_never_more_permits_than_the_limit(world: World) -> None:
    """Twenty hosts that ask at once for one of three permits are all served, and never more than three hold one."""
    hosts = [joined(world, f"h{number:02}") for number in range(20)]
    world.enable("v1")
    limit = FleetLimit(hosts=Share(3))
    lock = threading.Lock()
    holding: set[int] = set()
    most: list[int] = []
    served: list[int] = []

    def life(number: int) -> None:
        host = hosts[number]
        while not isinstance(take(host, limit), Permit):
            threading.Event().wait(0.005)
        with lock:
            holding.add(number)
            most.append(len(holding))
        threading.Event().wait(0.01)
        with lock:
            holding.remove(number)
            served.append(number)
        snapshot = host.snapshot("web")
        host.release_permit(snapshot, status_of(snapshot))

    threads = [threading.Thread(target=life, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert list(range(20)) == sorted(served)
    assert max(most) <= 3
    assert () == world.permits()


# Failures


def test_the_failure_over_the_budget_halts_for_everyone(world: World) -> None:
    """The failure that exceeds the budget halts the rollout, by whom and why; nobody gets a permit after it."""
    world.apply(make_spec(Share(1)))
    hosts = [joined(world, f"h{number}") for number in range(3)]
    rollout_id = world.enable("v1")
    snapshots = [settled(host, rollout_id) for host in hosts]

    hosts[0].record_failure(snapshots[0], "will not start")
    hosts[0].record_failure(snapshots[0], "will not start, again")
    assert (RolloutState.OPEN, {"h0"}) == (world.rollout().state, set(world.rollout().failed_in(rollout_id)))
    hosts[1].record_failure(snapshots[1], "has no disk")

    rollout = world.rollout()
    assert (RolloutState.HALTED, "h1") == (rollout.state, rollout.by)
    assert all(text in rollout.why for text in ("2 hosts", rollout_id, "h0: will not start", "h1: has no disk"))
    take_until(hosts[2], Denial.HALTED)


def test_a_failed_host_is_not_tried_again_in_the_same_rollout(world: World) -> None:
    """A host that failed and lost its permit gets no other in this rollout, and does in the next."""
    world.apply(make_spec(Share(5)))
    host = joined(world, "h1")
    snapshot = settled(host, world.enable("v1"))
    assert isinstance(take_until_known(host), Permit)
    host.record_failure(snapshot, "will not start")
    assert isinstance(take_until_known(host), Permit)

    world.remove_permit("h1")
    take_until(host, Denial.FAILED)

    settled(host, world.enable("v2"))
    assert isinstance(take_until_known(host), Permit)


def test_a_failure_of_an_earlier_rollout_changes_nothing(world: World) -> None:
    """A host that reports a failure after a newer build was enabled neither halts that rollout nor counts in it."""
    host = joined(world, "h1")
    snapshot = settled(host, world.enable("v1"))
    world.enable("v2")

    host.record_failure(snapshot, "too late")

    assert (RolloutState.OPEN, {}) == (world.rollout().state, world.rollout().failures)


def test_enabling_opens_a_halted_rollout_and_forgets_its_failures(world: World) -> None:
    """A new build begins with an open rollout and no failures."""
    host = joined(world, "h1")
    host.record_failure(settled(host, world.enable("v1")), "will not start")
    assert RolloutState.HALTED is world.rollout().state

    world.enable("v2")

    assert (RolloutState.OPEN, {}) == (world.rollout().state, world.rollout().failures)


def test_a_canary_build_leaves_the_failures_of_the_fleet_alone(world: World) -> None:
    """Failures count for the rollout they happened in, whatever is enabled for the other role."""
    world.apply(make_spec(Share(5)))
    host = joined(world, "h1")
    fleet = world.enable("v1")
    host.record_failure(settled(host, fleet), "will not start")

    world.enable("v2", Role.CANARY)

    assert {"h1"} == set(world.rollout().failed_in(fleet))


def test_releasing_reports_and_clears_the_failure(world: World) -> None:
    """A host that recovered gives its permit back, reports and is no failure any more; doing it twice is doing it once."""
    world.apply(make_spec(Share(5)))
    host = joined(world, "h1")
    snapshot = settled(host, world.enable("v1"))
    permit = take_until_known(host)
    host.record_failure(snapshot, "will not start")
    snapshot = replace(snapshot, permit=permit)

    for _ in range(2):
        host.release_permit(snapshot, status_of(snapshot))

    assert ((), {}) == (world.permits(), world.rollout().failures)
    assert {"h1": status_of(snapshot)} == world.statuses()


def test_a_host_that_went_back_keeps_its_failure(world: World) -> None:
    """It gives its permit back with its report, and is granted none until a person or a newer build clears the failure."""
    world.apply(make_spec(Share(5)))
    host = joined(world, "h1")
    rollout_id = world.enable("v1")
    snapshot = settled(host, rollout_id)
    permit = take_until_known(host)
    host.record_failure(snapshot, "will not start")
    snapshot = replace(snapshot, permit=permit)

    for _ in range(2):
        host.release_permit(snapshot, status_of(snapshot, "reverted"), keep_failure=True)

    assert ((), {"h1"}) == (world.permits(), set(world.rollout().failed_in(rollout_id)))
    assert {"h1": status_of(snapshot, "reverted")} == world.statuses()
    take_until(host, Denial.FAILED)


def test_a_permit_that_was_granted_later_is_not_given_back(world: World) -> None:
    """A release that comes late, after an operator took the permit and the host has a new one, takes nothing from it."""
    world.apply(make_spec(Share(5)))
    host = joined(world, "h1")
    snapshot = settled(host, world.enable("v1"))
    permit = take_until_known(host)
    late = replace(snapshot, permit=replace(permit, token=permit.token - 1))

    host.release_permit(late, status_of(snapshot))

    assert ["h1"] == [held.host for held in world.permits()]


def test_reports_replace_each_other(world: World) -> None:
    """The last report of a host is what others see."""
    host = joined(world, "h1")
    snapshot = host.snapshot("web")

    for step in ("fetching", "waiting"):
        host.report("web", status_of(snapshot, step))

    assert {"h1": status_of(snapshot, "waiting")} == world.statuses()


# Accidents


def test_a_lost_answer_leaves_one_permit(world: World) -> None:
    """When the answer to a grant is lost, the permit is there and the host finds it."""
    host, other = joined(world, "h1"), joined(world, "h2")
    world.enable("v1")
    take_until_known(other)
    snapshot = other.snapshot("web")
    other.release_permit(snapshot, status_of(snapshot))
    snapshot = host.snapshot("web")
    world.lose_next_answer("h1")

    try:
        host.take_permit(snapshot, ONE)
    except Unavailable:
        world.connect("h1")

    assert ["h1"] == [permit.host for permit in world.permits()]
    assert world.permits()[0] == take_until_known(host)
    assert Denial.SLOTS_FULL is code_of(take_until_known(other))


@pytest.mark.parametrize("write", ["release", "fail"])
def test_a_write_whose_answer_was_lost_can_be_repeated(world: World, write: str) -> None:
    """Releasing and recording a failure come to the same when they are done again after a lost answer."""
    world.apply(make_spec(Share(5)))
    host = joined(world, "h1")
    rollout_id = world.enable("v1")
    snapshot = settled(host, rollout_id)
    snapshot = replace(snapshot, permit=take_until_known(host))
    world.lose_next_answer("h1")

    for _ in range(2):
        try:
            if write == "release":
                host.release_permit(snapshot, status_of(snapshot))
            else:
                host.record_failure(snapshot, "will not start")
        except Unavailable:
            world.connect("h1")

    if write == "release":
        assert ((), {"h1": status_of(snapshot)}) == (world.permits(), world.statuses())
    else:
        assert ["will not start"] == [failure.reason for failure in world.rollout().failed_in(rollout_id).values()]


def test_without_a_connection_everything_is_unavailable_and_permits_stay(world: World) -> None:
    """A cut-off host is told so at once, keeps its permit, is woken when the connection is back, and sees what it missed."""
    bell = Bell()
    host = joined(world, "h1", wake=bell)
    snapshot = settled(host, world.enable("v1"))
    permit = take_until_known(host)
    world.disconnect("h1")
    assert host.link is not Link.CONNECTED

    calls: list[Callable[[], object]] = [
        lambda: host.snapshot("web"),
        lambda: host.take_permit(snapshot, ONE),
        lambda: host.release_permit(snapshot, status_of(snapshot)),
        lambda: host.record_failure(snapshot, "no"),
        lambda: host.report("web", status_of(snapshot)),
    ]
    for call in calls:
        with pytest.raises(Unavailable):
            call()
    missed = world.enable("v2")
    bell.rung.clear()
    world.connect("h1")

    assert bell.wait()
    assert (Link.CONNECTED, missed) == (host.link, host.snapshot("web").rollout_id)
    assert permit == host.snapshot("web").permit


def test_the_hosts_of_a_record_are_counted(world: World) -> None:
    """A snapshot counts the hosts that are registered."""
    first = joined(world, "h1")
    for name in ("h2", "h3"):
        joined(world, name)
    world.enable("v1")
    take_until_known(first)

    assert 3 == settled(first, first.snapshot("web").rollout_id).hosts


# Whose turn it is


def give_back(host: Coordination, step: str = "converged") -> None:
    """Release, and report."""
    snapshot = host.snapshot("web")
    host.release_permit(snapshot, status_of(snapshot, step))


def ask_all(hosts: dict[str, Coordination], limit: FleetLimit = ONE) -> dict[str, Denial | None]:
    """Have every host ask, in this order."""
    return {name: code_of(take_until_known(host, limit)) for name, host in hosts.items()}


def holders(world: World) -> list[str]:
    """Who holds a permit."""
    return [permit.host for permit in world.permits()]


def next_holder(world: World, hosts: dict[str, Coordination]) -> str:
    """Have the holder give back, and the others ask again and again until one of them holds a permit: who?"""
    (holder,) = holders(world)
    give_back(hosts.pop(holder))
    eventually(lambda: bool(ask_all(dict(reversed(hosts.items())))) and bool(holders(world)))
    return holders(world)[0]


def waiting(world: World, names: str, limit: FleetLimit = ONE) -> dict[str, Coordination]:
    """Hosts that asked one after the other for the one permit there is; the first has it."""
    hosts = {name: joined(world, name) for name in names.split()}
    world.enable("v1")
    ask_all(hosts, limit)
    return hosts


def test_waiters_are_served_as_they_came(world: World) -> None:
    """Whoever asks first after a release, the one who waits longest is next."""
    hosts = waiting(world, "h3 h1 h4 h2")

    served = [next_holder(world, hosts) for _ in range(3)]

    assert ["h1", "h4", "h2"] == served


def test_hosts_that_are_down_come_first_then_canaries_then_the_important(world: World) -> None:
    """The order in the queue is: repair, canary role, priority, arrival."""
    hosts = {name: joined(world, name) for name in ("holder", "late", "early", "vital", "canary", "sick")}
    world.set_role("canary", Role.CANARY)
    world.enable("v1")
    two = FleetLimit(hosts=Share(2))  # one of them is what the sick host takes by being down
    assert None is code_of(take_until_known(hosts["holder"], two))
    sick = hosts["sick"].snapshot("web")
    hosts["sick"].report("web", status_of(sick, "degraded", down=True))
    wanted = {name: {"vital": 5, "late": -5}.get(name, 0) for name in hosts if name != "holder"}

    def ask(name: str) -> Denial | None:
        return code_of(hosts[name].take_permit(hosts[name].snapshot("web"), ONE, priority=wanted[name]))

    eventually(lambda: all(ask(name) in (Denial.QUEUED, Denial.SLOTS_FULL) for name in wanted))
    served = []
    while wanted:
        give_back(hosts[holders(world)[0]])
        eventually(lambda: any(ask(name) is None for name in wanted))
        served += holders(world)
        del wanted[served[-1]]

    assert ["sick", "canary", "vital", "early", "late"] == served


@pytest.mark.parametrize("dead", ["h2", "h3"])
def test_a_dead_waiter_does_not_stop_those_behind_it(world: World, dead: str) -> None:
    """Whether the head dies or one in the middle, the others get their turn; the dead one counts as down until it is excused."""
    hosts = waiting(world, "h1 h2 h3 h4")

    world.gone(dead)
    del hosts[dead]
    give_back(hosts.pop("h1"))
    eventually(lambda: Denial.CAPACITY in ask_all(hosts).values())
    assert [] == holders(world)
    world.excuse(dead)

    eventually(lambda: None in ask_all(hosts).values())
    (first,) = holders(world)
    assert ({"h2", "h3"} - {dead}, "h4") == ({first}, next_holder(world, hosts))


def test_whoever_waits_for_a_dead_one_is_woken(world: World) -> None:
    """The death of the one before it wakes a waiter."""
    bell = Bell()
    hosts = {name: joined(world, name) for name in ("h1", "h2")}
    hosts["h3"] = joined(world, "h3", wake=bell)
    world.enable("v1")
    ask_all(hosts)
    quieten(hosts["h3"], bell)

    world.gone("h2")

    assert bell.wait()


def test_leaving_the_queue_makes_room_for_the_next(world: World) -> None:
    """A host that has nothing to restart any more stands in nobody's way; leaving twice is leaving once."""
    bell = Bell()
    hosts = {name: joined(world, name) for name in ("h1", "h2")}
    hosts["h3"] = joined(world, "h3", wake=bell)
    world.enable("v1")
    ask_all(hosts)
    assert hosts["h2"].snapshot("web").queued
    quieten(hosts["h3"], bell)

    for _ in range(2):
        hosts["h2"].leave_queue("web")

    assert bell.wait()
    assert not hosts["h2"].snapshot("web").queued
    give_back(hosts["h1"])
    eventually(lambda: code_of(take(hosts["h3"])) is None)


def test_a_head_that_waits_for_room_is_never_passed(world: World) -> None:
    """However long there is no room, those behind the head stay behind it."""
    hosts = waiting(world, "h1 h2 h3")
    assert {"h2": Denial.SLOTS_FULL, "h3": Denial.QUEUED} == {name: code_of(take(hosts[name])) for name in ("h2", "h3")}

    for _ in range(3):
        world.clock.ahead += PATIENCE + timedelta(seconds=1)
        assert Denial.QUEUED is code_of(take(hosts["h3"]))


@pytest.mark.parametrize("why", ["pause", "freeze", "stagger"])
def test_nobody_loses_patience_with_a_head_that_may_not_go(world: World, why: str) -> None:
    """There is room, and however long nobody may take it, those behind the head stay behind it."""
    if why == "stagger":
        world.apply(make_spec(stagger=Duration("1h")))
    hosts = waiting(world, "h1 h2 h3")
    {"pause": world.pause, "freeze": world.freeze, "stagger": bool}[why]()
    give_back(hosts["h1"])
    eventually(lambda: not world.permits())

    for _ in range(3):
        assert Denial.QUEUED is code_of(take_until_known(hosts["h3"]))
        world.clock.ahead += PATIENCE + timedelta(seconds=1)


def test_a_head_that_stands_still_is_passed_after_a_while(world: World) -> None:
    """When there is room and the head does not take it, the next one does, though not at once."""
    hosts = waiting(world, "h1 h2 h3")
    give_back(hosts["h1"])
    eventually(lambda: not world.permits())
    assert Denial.QUEUED is code_of(take_until_known(hosts["h3"]))

    world.clock.ahead += PATIENCE + timedelta(seconds=1)

    assert None is code_of(take_until_known(hosts["h3"]))
    assert ["h3"] == holders(world)


def test_room_for_several_is_filled_at_once(world: World) -> None:
    """When three permits come back, the three that waited longest have them after each of them has asked once."""
    three = FleetLimit(hosts=Share(3))
    hosts = waiting(world, "h1 h2 h3 h4 h5 h6 h7", three)
    assert ["h1", "h2", "h3"] == holders(world)
    for name in ("h1", "h2", "h3"):
        give_back(hosts.pop(name))

    eventually(lambda: None is ask_all(hosts, three)["h4"])

    assert ["h4", "h5", "h6"] == holders(world)


def test_a_waiter_that_sleeps_through_its_change_stops_nobody(world: World) -> None:
    """A host whose role was changed while it waits, and that does not say so, gets no permit by another and is in nobody's way."""
    two = FleetLimit(hosts=Share(2))
    hosts = waiting(world, "h1 h2 h3 h4 h5", two)
    world.set_role("h4", Role.CANARY)
    for name in ("h1", "h2"):
        give_back(hosts[name])

    eventually(lambda: not world.permits())
    answer = take_until_known(hosts["h3"], two)

    assert None is code_of(answer)
    assert ["h3"] == holders(world)


@pytest.mark.zookeeper
def test_the_head_admits_those_behind_it(zookeeper: str) -> None:
    """On ZooKeeper one transaction admits as many as there is room for, and they are woken and need not ask."""
    with ExitStack() as stack:
        world = ZooKeeperWorld(zookeeper, stack)
        world.apply(make_spec())
        bell = Bell()
        hosts = {name: joined(world, name) for name in ("h1", "h2", "h3")}
        hosts["h4"] = joined(world, "h4", wake=bell)
        world.enable("v1")
        two = FleetLimit(hosts=Share(2))
        ask_all(hosts, two)
        give_back(hosts["h1"])
        give_back(hosts["h2"])
        quieten(hosts["h4"], bell)

        eventually(lambda: None is code_of(take(hosts["h3"], two)))

        assert ["h3", "h4"] == holders(world)
        assert bell.wait()
        permit = hosts["h4"].snapshot("web").permit
        assert permit is not None
        assert permit == hosts["h4"].take_permit(hosts["h4"].snapshot("web"), two)


@pytest.mark.parametrize("stop", ["halt", "pause", "freeze", "enable"])
def test_what_commits_between_reading_and_granting_stops_the_grant(world: World, stop: str) -> None:
    """A stop that is committed after a host has read everything, and before its grant arrives, is obeyed."""
    host, other = joined(world, "h1"), joined(world, "h2")
    rollout_id = world.enable("v1")
    snapshot, others = settled(host, rollout_id), settled(other, rollout_id)
    stops: dict[str, Callable[[], object]] = {
        "halt": lambda: other.record_failure(others, "will not start"),
        "pause": world.pause,
        "freeze": world.freeze,
        "enable": lambda: world.enable("v2"),
    }
    world.before_next_write("h1", stops[stop])

    answer = host.take_permit(snapshot, ONE)

    assert {"halt": Denial.HALTED, "pause": Denial.PAUSED}.get(stop, Denial.CHANGED) is code_of(answer)
    assert () == world.permits()


# Hosts that are down, and the rest of the policy


def test_hosts_that_are_gone_use_up_the_limit_and_repair_does_not_wait_for_it(world: World) -> None:
    """With a host gone there is no room for a healthy one, while one that is down itself may be repaired."""
    hosts = {name: joined(world, name) for name in ("h1", "h2", "h3", "h4")}
    world.enable("v1")
    world.gone("h1")
    take_until(hosts["h2"], Denial.CAPACITY)
    denied = take_until_known(hosts["h2"])
    assert isinstance(denied, Denied)
    assert ("h1",) == denied.blockers

    sick = hosts["h3"].snapshot("web")
    hosts["h3"].report("web", status_of(sick, "degraded", down=True))

    eventually(lambda: None is code_of(take(hosts["h3"])))
    assert Denial.SLOTS_FULL is code_of(take_until_known(hosts["h4"])) or Denial.QUEUED is code_of(take_until_known(hosts["h4"]))


def test_an_excuse_ends_when_the_agent_comes_back(world: World) -> None:
    """An excused host is not waited for, until its agent is there again; gone once more it counts again."""
    first, second = joined(world, "h1"), joined(world, "h2")
    world.enable("v1")
    world.gone("h1")
    take_until(second, Denial.CAPACITY)
    world.excuse("h1")
    eventually(lambda: None is code_of(take(second)))
    give_back(second)

    first = joined(world, "h1")
    assert None is first.snapshot("web").membership.excused
    world.gone("h1")

    take_until(second, Denial.CAPACITY)


def test_a_host_that_is_well_is_not_excused(world: World) -> None:
    """An excuse that nobody needs would still count when the host goes down later; one that says it is down needs it."""
    host = joined(world, "h1")
    world.enable("v1")

    with pytest.raises(Conflict, match="h1 is well: its agent runs"):
        world.excuse("h1")
    refused = host.snapshot("web", afresh=True).membership.excused
    host.report("web", status_of(host.snapshot("web"), "degraded", down=True))
    world.excuse("h1")

    assert refused is None
    assert host.snapshot("web", afresh=True).membership.excused is not None


def test_a_ramp_begins_small(world: World) -> None:
    """The first step lets one host go, and the next ones only when it has finished."""
    world.apply(make_spec(ramp=(Share(1), Share(2))))
    four = FleetLimit(hosts=Share(4))
    hosts = {name: joined(world, name) for name in ("h1", "h2", "h3", "h4", "h5")}
    world.enable("v1")

    assert None is code_of(take_until_known(hosts["h1"], four))
    denied = take_until_known(hosts["h2"], four)
    assert isinstance(denied, Denied)
    assert (Denial.SLOTS_FULL, True) == (denied.code, "step 1 of the ramp" in denied.reason)
    give_back(hosts.pop("h1"))

    eventually(lambda: bool(ask_all(hosts, four)) and len(world.permits()) == 2)
    assert ["h2", "h3"] == holders(world)


def test_a_stagger_keeps_hosts_apart(world: World) -> None:
    """The next host is told when it may begin, and may then."""
    world.apply(make_spec(stagger=Duration("10m")))
    first, second = joined(world, "h1"), joined(world, "h2")
    world.enable("v1")
    assert None is code_of(take_until_known(first))
    give_back(first)

    take_until(second, Denial.STAGGER)
    denied = take_until_known(second)
    assert isinstance(denied, Denied)
    assert denied.until is not None
    assert timedelta(minutes=9) < datetime.fromisoformat(denied.until) - world.clock() <= timedelta(minutes=10)
    world.clock.ahead += timedelta(minutes=11)

    assert None is code_of(take_until_known(second))


def test_a_stagger_holds_from_one_rollout_to_the_next(world: World) -> None:
    """A newer build in mid-rollout is no reason to have the next host begin at once."""
    world.apply(make_spec(stagger=Duration("10m")))
    first, second = joined(world, "h1"), joined(world, "h2")
    world.enable("v1")
    four = FleetLimit(hosts=Share(4))
    assert None is code_of(take_until_known(first, four))

    settled(second, world.enable("v2"))

    assert Denial.STAGGER is code_of(take_until_known(second, four))
    world.clock.ahead += timedelta(minutes=11)
    assert None is code_of(take_until_known(second, four))


def test_min_available_is_kept(world: World) -> None:
    """No host begins while fewer others would be left than must stay."""
    world.apply(make_spec(min_available=Share(2)))
    hosts = {name: joined(world, name) for name in ("h1", "h2", "h3")}
    world.enable("v1")

    assert None is code_of(take_until_known(hosts["h1"], FleetLimit(hosts=Share(3))))
    denied = take_until_known(hosts["h2"], FleetLimit(hosts=Share(3)))

    assert isinstance(denied, Denied)
    assert (Denial.CAPACITY, True) == (denied.code, "min_available 2" in denied.reason)


def test_the_fleet_waits_for_the_canaries_and_then_for_a_promotion(world: World) -> None:
    """With `canary_first` a host of the fleet is refused until the build is promoted, and woken by that."""
    bell = Bell()
    world.apply(make_spec(canary_first=True))
    canary, host = joined(world, "h1"), joined(world, "h2", wake=bell)
    world.set_role("h1", Role.CANARY)
    world.enable("v1")
    take_until(host, Denial.PROMOTION)
    eventually(lambda: canary.snapshot("web").membership.role is Role.CANARY and None is code_of(take(canary)))
    give_back(canary)
    quieten(host, bell)
    assert Denial.PROMOTION is code_of(take(host))

    world.promote()

    assert bell.wait()
    eventually(lambda: None is code_of(take(host)))


# How a rollout goes on


def nobody_minds(build: str) -> str:
    """A veto that is none."""
    return ""


def complete(hosts: dict[str, Coordination]) -> None:
    """Have every host restart, one after the other, and take the rollout further."""
    for host in hosts.values():
        eventually(lambda host=host: None is code_of(take(host)))  # type: ignore[misc]
        give_back(host)
    for host in hosts.values():
        host.advance(host.snapshot("web"), nobody_minds)


def verbs(world: World) -> list[str]:
    """What the history tells."""
    return [entry.verb.value for entry in world.history()]


def test_a_restart_promotes_nothing(world: World) -> None:
    """Whoever wants new certificates read does not give the fleet a build that waits for its canaries."""
    world.apply(make_spec(canary_first=True))
    fleet, canary = joined(world, "h1"), joined(world, "c1")
    world.set_role("c1", Role.CANARY)
    eventually(lambda: canary.snapshot("web").membership.role is Role.CANARY)
    world.enable("v1")
    world.promote()
    world.enable("v2")

    world.restart()

    eventually(lambda: fleet.snapshot("web").enabled == canary.snapshot("web").enabled)
    assert Denial.PROMOTION is code_of(take_until_known(fleet))
    assert None is code_of(take_until_known(canary))
    give_back(canary)
    world.promote()
    world.restart()
    eventually(lambda: None is code_of(take(fleet)))


def test_a_restart_of_the_fleet_leaves_a_canary_build_alone(world: World) -> None:
    """The canary hosts go on with the build that they try out."""
    world.apply(make_spec(canary_first=True))
    fleet, canary = joined(world, "h1"), joined(world, "c1")
    world.set_role("c1", Role.CANARY)
    world.enable("v1")
    world.promote()
    tried = world.enable("v2", Role.CANARY)

    world.restart()

    wanted = fleet.snapshot("web", afresh=True).enabled
    assert wanted is not None
    assert ("v1", True) == (wanted.build, wanted.restart)
    assert tried == canary.snapshot("web", afresh=True).rollout_id


def test_a_rollout_is_complete_once_and_by_the_last(world: World) -> None:
    """While a host has not finished nothing is put on record, and afterwards one entry, whoever notices."""
    hosts = {name: joined(world, name) for name in ("h1", "h2")}
    rollout_id = world.enable("v1")
    settled(hosts["h1"], rollout_id)
    assert None is code_of(take_until_known(hosts["h1"]))
    give_back(hosts["h1"])
    assert isinstance(hosts["h1"].advance(hosts["h1"].snapshot("web"), nobody_minds), float)
    assert ["enable"] == verbs(world)

    eventually(lambda: None is code_of(take(hosts["h2"])))
    give_back(hosts["h2"])

    assert [None, None] == [host.advance(host.snapshot("web"), nobody_minds) for host in hosts.values()]
    assert ["enable", "complete"] == verbs(world)
    completed = world.rollout().completed
    assert completed is not None
    assert ({rollout_id}, "v1") == (set(world.rollout().done), completed.build)


def test_over_budget_a_rollout_goes_back_exactly_once(world: World) -> None:
    """The failure over the budget enables the last completed build; another one changes nothing, and one on the way back halts."""
    world.apply(make_spec(on_budget=OnBudget.ROLLBACK))
    hosts = {name: joined(world, name) for name in ("h1", "h2")}
    settled(hosts["h1"], world.enable("v1"))
    complete(hosts)
    bad = world.enable("v2")
    snapshots = {name: settled(host, bad) for name, host in hosts.items()}

    for name, host in hosts.items():
        host.record_failure(snapshots[name], "will not start")

    back = eventual_build(hosts["h1"], "v1")
    assert (bad, RolloutState.OPEN) == (world.rollout().rollback_of, world.rollout().state)
    assert ["enable", "complete", "enable", "rollback"] == verbs(world)

    hosts["h1"].record_failure(back, "will not start either")

    assert RolloutState.HALTED is world.rollout().state
    assert ["enable", "complete", "enable", "rollback", "halt"] == verbs(world)
    assert "v1" == eventual_build(hosts["h2"], "v1").rollout_id.partition("-")[0]


def test_without_a_completed_build_a_rollout_over_budget_halts(world: World) -> None:
    """There is nothing to go back to."""
    world.apply(make_spec(on_budget=OnBudget.ROLLBACK))
    host = joined(world, "h1")

    host.record_failure(settled(host, world.enable("v1")), "will not start")

    assert RolloutState.HALTED is world.rollout().state
    assert ["enable", "halt"] == verbs(world)


def test_a_build_is_promoted_by_itself_when_it_has_baked(world: World) -> None:
    """The canary hosts ask again when the time is over, a veto is heard, and without one the fleet has the build."""
    world.apply(make_spec(canary_first=True, promotion=Promotion.AUTO, bake=Duration("10m")))
    canary, host = joined(world, "h1"), joined(world, "h2")
    world.set_role("h1", Role.CANARY)
    world.enable("v1")
    eventually(lambda: canary.snapshot("web").membership.role is Role.CANARY and None is code_of(take(canary)))
    snapshot = canary.snapshot("web")
    canary.release_permit(snapshot, replace(status_of(snapshot), since=world.clock().isoformat()))

    wait = canary.advance(canary.snapshot("web"), nobody_minds)
    assert wait is not None
    assert 0 < wait <= 600
    world.clock.ahead += timedelta(minutes=11)
    asked: list[str] = []
    assert None is not canary.advance(canary.snapshot("web"), lambda build: asked.append(build) or "not on my watch")
    assert ["v1"] == asked
    take_until(host, Denial.PROMOTION)
    canary.advance(canary.snapshot("web"), nobody_minds)

    assert "promote" in verbs(world)
    eventually(lambda: None is code_of(take(host)))


def eventual_build(host: Coordination, build: str) -> Snapshot:
    """Wait until a host has heard that a build is enabled."""
    eventually(lambda: getattr(host.snapshot("web").enabled, "build", None) == build)
    return host.snapshot("web")
