"""Whatever people and hosts do, in whatever order: the promises of a rollout hold, judged by what is true of the hosts.

The ensemble is the one in memory, which decides by the functions that deployd runs; the contract tests hold it to ZooKeeper's ways.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deployd_core.coordination import Denied, Freeze, HostStatus, Permit, RolloutState, Snapshot, Verb
from deployd_core.model import FleetLimit, Role
from deployd_core.spec import OnBudget, Promotion, RolloutTable, ServiceSpec, ServiceTable
from deployd_core.testing.coordination import MemoryCoordination, MemoryEnsemble
from deployd_core.units import Duration, Share

HOSTS = {"h1": "z1", "h2": "z2", "h3": "z1", "h4": "z2"}
STAGGER, BAKE = 10.0, 5.0


class Machine:
    """What is true of one host."""

    def __init__(self, handle: MemoryCoordination) -> None:
        self.handle = handle
        self.snapshot: Snapshot | None = None
        """What it looked at last, and decides from."""
        self.alive = True
        self.build = "v0"
        self.ours = False
        """Out because we are restarting it."""
        self.rotted = False
        """Out by itself."""
        self.taken = False
        """A person took its permit while it was out because of us."""
        self.excused = False
        self.done = ""
        """The last rollout that it completed."""
        self.since: datetime | None = None
        """Since when it reports that it is healthy with it; None while it reports something else."""

    @property
    def out(self) -> bool:
        return self.ours or self.rotted

    @property
    def counts(self) -> bool:
        """Whether it is known to be down."""
        return (not self.alive or self.out) and not self.excused


LIMITS = st.builds(
    FleetLimit,
    hosts=st.sampled_from([Share(1), Share(2), Share("50%"), None]),
    per_zone=st.sampled_from([None, None, Share(1)]),
)
ANY_POLICIES = st.builds(
    RolloutTable,
    budget=st.sampled_from([Share(0), Share(1), Share(1), Share("50%")]),
    on_budget=st.sampled_from(OnBudget),
    min_available=st.sampled_from([Share(0), Share(0), Share(0), Share(2), Share("75%")]),
    ramp=st.sampled_from([(), (), (), (Share(1), Share("50%"))]),
    stagger=st.sampled_from([Duration("0s"), Duration("0s"), Duration("0s"), Duration(f"{STAGGER:.0f}s")]),
    canary_first=st.sampled_from([False, False, True]),
    promotion=st.sampled_from(Promotion),
    bake=st.just(Duration(f"{BAKE:.0f}s")),
)
CAREFUL_POLICIES = st.builds(
    RolloutTable,
    budget=st.sampled_from([Share(1), Share("50%")]),
    ramp=st.sampled_from([(Share(1), Share("50%")), (Share(1), Share(1))]),
    stagger=st.sampled_from([Duration("0s"), Duration(f"{STAGGER:.0f}s")]),
    canary_first=st.just(True),
    promotion=st.just(Promotion.AUTO),
    bake=st.just(Duration(f"{BAKE:.0f}s")),
)
"""Canaries first and promoted by themselves, then a ramp, and time between any two hosts."""
POLICIES = ANY_POLICIES | CAREFUL_POLICIES
HOST = st.sampled_from(sorted(HOSTS))


class Rollouts(RuleBasedStateMachine):
    """Four hosts in two zones, and people who do as they like."""

    @initialize(policy=POLICIES, limit=LIMITS, canary=st.booleans())
    def begin(self, policy: RolloutTable, limit: FleetLimit, canary: bool) -> None:
        self.now = datetime(2026, 11, 23, 12, tzinfo=UTC)
        self.ensemble = MemoryEnsemble(lambda: self.now)
        self.policy, self.limit, self.frozen = policy, limit, False
        self.builds, self.token = 0, 0
        self.permits: set[str] = set()
        """Who holds one, as far as what was done here says."""
        self.most_held, self.most_budget = 0, 0
        self.last_grant = self.now - timedelta(days=1)
        self.began, self.finished = 0, 0
        """How many permits had been granted before the rollout that goes on, and how many hosts have finished since, or were taken
        their permits by a person."""
        self.apply(policy, limit)
        self.hosts = {name: Machine(self.ensemble.coordination(name)) for name in HOSTS}
        for name, zone in HOSTS.items():
            self.hosts[name].handle.join("web", zone)
            self.look(name)
        if canary:
            self.change_role("h1", Role.CANARY)
        self.enable(Role.FLEET)

    # What hosts do

    @rule(host=HOST)
    def look(self, host: str) -> None:
        it = self.hosts[host]
        if it.alive:
            it.snapshot = it.handle.snapshot("web")

    @rule(host=HOST, again=st.booleans())
    def take(self, host: str, again: bool) -> None:
        """Ask for a permit, by what was looked at some time ago, or now."""
        it = self.hosts[host]
        if again:
            self.look(host)
        snapshot = it.snapshot
        if not it.alive or snapshot is None or not snapshot.rollout_id or (it.done == snapshot.rollout_id and not it.taken):
            return
        held = host in self.permits
        answer = it.handle.take_permit(snapshot, self.limit_of(snapshot))
        if isinstance(answer, Denied):
            assert not held
        elif not held:
            self.granted(host, snapshot, answer)

    @rule(host=HOST)
    def restart(self, host: str) -> None:
        """With a permit, the service goes down, and what is wanted comes up."""
        it = self.hosts[host]
        self.look(host)
        if it.alive and it.snapshot and it.snapshot.permit and it.snapshot.enabled and not it.snapshot.failure:
            it.ours, it.build = True, it.snapshot.enabled.build

    @rule(host=HOST)
    def finish(self, host: str) -> None:
        """It gets healthy, and gives its permit back."""
        it = self.hosts[host]
        self.look(host)
        snapshot = it.snapshot
        if it.alive and snapshot and snapshot.permit and snapshot.enabled and it.ours and it.build == snapshot.enabled.build:
            it.ours = it.rotted = False
            it.done = snapshot.rollout_id
            it.handle.release_permit(snapshot, self.status(host, "converged"))
            self.permits.discard(host)
            self.counts_as_finished()

    @rule(host=HOST, reverts=st.booleans())
    def fail(self, host: str, reverts: bool) -> None:
        """It does not get healthy; it may go back to what it served before."""
        it = self.hosts[host]
        snapshot = it.snapshot
        if not it.alive or snapshot is None or not it.ours or host not in self.permits or not snapshot.rollout_id:
            return
        before, entries = self.ensemble.rollout("web"), len(self.ensemble.history("web"))
        it.handle.record_failure(snapshot, "not healthy")
        after, news = self.ensemble.rollout("web"), self.ensemble.history("web")[entries:]
        went_back = [entry for entry in news if entry.verb is Verb.ROLLBACK]
        assert not (went_back and before.rollback_of), "a rollback caused another"
        assert before.state is RolloutState.OPEN or after.state is before.state or after.state is RolloutState.HALTED
        self.look(host)
        if reverts and it.snapshot and it.snapshot.failure:
            it.ours, it.build = False, "v0"
            it.handle.release_permit(it.snapshot, self.status(host, "reverted"), keep_failure=True)
            self.permits.discard(host)

    @rule(host=HOST, ends=st.sampled_from(["well", "well", "well", "reverted", "broken"]))
    def roll(self, host: str, ends: str) -> None:
        """All of it, one after the other."""
        self.take(host, again=True)
        self.restart(host)
        if ends == "well":
            self.finish(host)
            self.advance(host)
        else:
            self.fail(host, reverts=ends == "reverted")

    @rule(order=st.permutations(sorted(HOSTS)), ends=st.sampled_from(["well", "well", "reverted"]), patient=st.booleans())
    def roll_all(self, order: list[str], ends: str, patient: bool = False) -> None:
        """Every host that may rolls; one that is away or down comes back first. Who is patient waits before each of them."""
        for host in order:
            self.come_back(host)
            self.mend(host)
            if patient:
                self.wait(STAGGER)
            self.roll(host, ends)

    @rule(order=st.permutations(sorted(HOSTS)))
    def bad_build(self, order: list[str]) -> None:
        """One build is completed, and the next one fails everywhere."""
        self.go_on(retry=True)
        self.roll_all(order, "well")
        self.enable(Role.FLEET)
        self.roll_all(order, "reverted")

    @rule(host=HOST, order=st.permutations(sorted(HOSTS)))
    def bad_canary_build(self, host: str, order: list[str]) -> None:
        """A build for the canary hosts alone fails on one of them, and the fleet goes on with its own."""
        self.go_on(retry=True)
        for name in order:
            self.come_back(name)
            self.mend(name)
        self.change_role(host, Role.CANARY)
        self.enable(Role.FLEET)
        self.promote()
        self.enable(Role.CANARY)
        self.roll(host, "reverted")
        self.wait(STAGGER)
        self.ask_all(order, restarts=False)

    @rule(order=st.permutations(sorted(HOSTS)), restarts=st.booleans())
    def ask_all(self, order: list[str], restarts: bool) -> None:
        """Every host asks, and begins if it may."""
        for host in order:
            self.take(host, again=True)
            if restarts:
                self.restart(host)

    @rule(host=HOST)
    def rot(self, host: str) -> None:
        it = self.hosts[host]
        if it.alive:
            it.rotted = True
            it.handle.report("web", self.status(host, "degraded"))

    @rule(host=HOST)
    def mend(self, host: str) -> None:
        it = self.hosts[host]
        if it.alive and it.rotted and not it.ours:
            it.rotted = False
            done = it.snapshot is not None and it.done == it.snapshot.rollout_id
            it.handle.report("web", self.status(host, "converged" if done else "waiting"))

    @rule(host=HOST)
    def crash(self, host: str) -> None:
        it = self.hosts[host]
        if it.alive:
            self.ensemble.went(host)
            it.alive, it.snapshot = False, None

    @rule(host=HOST)
    def come_back(self, host: str) -> None:
        it = self.hosts[host]
        if not it.alive:
            it.handle = self.ensemble.coordination(host)
            it.handle.join("web", HOSTS[host])
            it.alive, it.excused = True, False
            self.look(host)
            assert it.snapshot is not None
            assert (host in self.permits) is (it.snapshot.permit is not None)
            if it.out:
                it.handle.report("web", self.status(host, "degraded"))

    @rule(host=HOST)
    def advance(self, host: str) -> None:
        """It finds out that the rollout is complete, or that the canaries have baked."""
        it = self.hosts[host]
        if not it.alive or it.snapshot is None or it.done != it.snapshot.rollout_id:
            return
        entries = len(self.ensemble.history("web"))
        it.handle.advance(it.snapshot, lambda _build: "")
        for entry in self.ensemble.history("web")[entries:]:
            if entry.verb is Verb.COMPLETE:
                self.completed(entry.rollout)
            if entry.verb is Verb.PROMOTE:
                self.promoted(entry.build)

    @rule(order=st.permutations(sorted(HOSTS)))
    def bake(self, order: list[str]) -> None:
        """Time passes, and every host looks whether that was all that was missing."""
        self.wait(STAGGER)
        for host in order:
            self.look(host)
            self.advance(host)

    # What people do

    @rule(role=st.sampled_from(Role), verb=st.sampled_from([Verb.ENABLE, Verb.ENABLE, Verb.RESTART]))
    def enable(self, role: Role, verb: Verb = Verb.ENABLE) -> None:
        """A newer build, or the same once more."""
        self.builds += verb is Verb.ENABLE
        self.ensemble.enable("web", f"v{self.builds}", None, role=role, verb=verb)

    @rule(freeze=st.booleans())
    def stop(self, freeze: bool) -> None:
        if freeze:
            self.frozen = True
            self.ensemble.set_freeze(Freeze())
        elif self.ensemble.rollout("web").state is RolloutState.OPEN:
            self.ensemble.set_rollout("web", RolloutState.PAUSED)

    @rule(retry=st.booleans())
    def go_on(self, retry: bool) -> None:
        self.frozen = False
        self.ensemble.set_freeze(None)
        if retry:
            self.ensemble.retry("web")
        elif self.ensemble.rollout("web").state is RolloutState.PAUSED:
            self.ensemble.set_rollout("web", RolloutState.OPEN)

    @rule()
    def promote(self) -> None:
        self.ensemble.promote("web")

    @rule(policy=POLICIES, limit=LIMITS)
    def apply(self, policy: RolloutTable, limit: FleetLimit) -> None:
        self.policy, self.limit = policy, limit
        self.most_budget = max(self.most_budget, policy.budget.part_of(len(HOSTS)))
        options = {"hosts": limit.hosts, "per_zone": limit.per_zone}
        spec = ServiceSpec(service=ServiceTable(root="/srv/web"), source=options, rollout=policy)
        self.ensemble.apply_spec("web", spec)

    @rule(host=HOST, role=st.sampled_from(Role))
    def change_role(self, host: str, role: Role) -> None:
        self.ensemble.set_role("web", host, role)

    @rule(host=HOST)
    def take_away(self, host: str) -> None:
        """A person takes a permit away."""
        it = self.hosts[host]
        self.ensemble.remove_permit("web", host)
        if host in self.permits:
            self.counts_as_finished()
        self.permits.discard(host)
        it.taken = it.ours
        if it.alive and it.taken:
            self.look(host)
            it.handle.report("web", self.status(host, "failed"))

    @rule(host=HOST)
    @precondition(lambda self: not all(host.alive for host in self.hosts.values()))
    def excuse(self, host: str) -> None:
        if not self.hosts[host].alive:
            self.ensemble.excuse("web", host)
            self.hosts[host].excused = True

    @rule(seconds=st.sampled_from([1.0, STAGGER]))
    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    # What must be true

    def granted(self, host: str, snapshot: Snapshot, permit: Permit) -> None:
        """A permit that was just granted: I1, I3, I5, I7."""
        it, rollout, role = self.hosts[host], self.ensemble.rollout("web"), snapshot.membership.role
        current = it.handle.snapshot("web")
        failed = rollout.failed_in(snapshot.rollout_id)
        assert (RolloutState.OPEN, False) == (rollout.state, self.frozen), "granted while stopped"
        assert (current.rollout_id, current.spec) == (snapshot.rollout_id, snapshot.spec), "granted for what is no longer wanted"
        assert host not in failed, "granted to one that failed"
        assert len(failed) <= self.policy.budget.part_of(len(HOSTS)), "granted over the budget"
        assert permit.token > self.token, "tokens do not increase"
        if self.policy.canary_first and role is Role.FLEET:
            assert snapshot.enabled is not None
            assert rollout.promoted == snapshot.enabled.build, "granted before it was promoted"
        if self.policy.ramp and not rollout.rollback_of:
            self.since_it_began()
            assert len(self.permits) < self.step(), "more permits than the step of the ramp"
        if self.policy.stagger:
            assert (self.now - self.last_grant).total_seconds() >= STAGGER, "granted too soon after another"
        self.counted(host)
        self.token, self.last_grant = permit.token, self.now
        self.permits.add(host)
        self.most_held = max(self.most_held, len(self.permits))
        it.taken = False

    def counted(self, host: str) -> None:
        """Neither permits nor hosts that are out exceed what is allowed once this host has a permit, too."""
        others = {name for name in HOSTS if name != host}
        held = self.permits & others
        out = {name for name in others if name in held or self.hosts[name].counts}
        most = self.limit.hosts.at_most(len(HOSTS)) if self.limit.hosts else len(HOSTS)
        assert len(held) + 1 <= most, "more permits than the limit"
        if self.limit.per_zone:
            assert not [name for name in held if HOSTS[name] == HOSTS[host]], "more permits than the limit of the zone"
        if not self.hosts[host].counts:
            room = min(most, len(HOSTS) - self.policy.min_available.at_least(len(HOSTS)))
            assert len(out) + 1 <= room, "too few are left"

    def since_it_began(self) -> None:
        """Begin to count anew with each rollout, and each retry."""
        began = self.ensemble.rollout("web").grants_before
        if began != self.began:
            self.began, self.finished = began, 0

    def counts_as_finished(self) -> None:
        self.since_it_began()
        self.finished += 1

    def step(self) -> int:
        """How many may restart at a time: step by step as many must have finished as it lets begin."""
        behind = 0
        for share in self.policy.ramp:
            size = share.at_most(len(HOSTS))
            if self.finished < behind + size:
                return size
            behind += size
        return len(HOSTS)

    def promoted(self, build: str) -> None:
        """A build that was promoted by itself: every canary host has had the time to show what is wrong with it."""
        assert (Promotion.AUTO, RolloutState.OPEN) == (self.policy.promotion, self.ensemble.rollout("web").state)
        canaries = [name for name in HOSTS if self.role(name) is Role.CANARY]
        assert canaries, "promoted by nobody"
        for name in canaries:
            it = self.hosts[name]
            assert (build, True, False) == (it.build, it.alive, it.out), f"{name} does not serve it"
            assert name not in self.permits
            assert it.since is not None, f"{name} does not report it"
            assert (self.now - it.since).total_seconds() >= BAKE, f"{name} has not baked it"

    def completed(self, rollout_id: str) -> None:
        """A rollout that was put on record as complete."""
        for name, it in self.hosts.items():
            if self.ensemble.read("web", name, "").rollout_id == rollout_id and not (it.excused and not it.alive):
                assert rollout_id == it.done, f"{name} has not completed it"
                assert name not in self.permits

    @invariant()
    def permits_go_only_where_they_may(self) -> None:
        """I6: who holds a permit is who was granted one and has neither given it back nor lost it to a person."""
        assert self.permits == {permit.host for permit in self.ensemble.permits("web")}

    @invariant()
    def out_because_of_us_means_a_permit(self) -> None:
        """I2."""
        assert [] == [name for name, it in self.hosts.items() if it.ours and name not in self.permits and not it.taken]

    @invariant()
    def failures_are_bounded(self) -> None:
        """I4: at most the budget, and what was in flight."""
        for role in Role:
            rollout_id = next((self.ensemble.read("web", name, "").rollout_id for name in HOSTS if self.role(name) is role), "")
            assert len(self.ensemble.rollout("web").failed_in(rollout_id)) <= self.most_budget + self.most_held

    def role(self, host: str) -> Role:
        return self.ensemble.read("web", host, "").membership.role

    def limit_of(self, snapshot: Snapshot) -> FleetLimit:
        """What the strategy says, under the spec that the host knows."""
        assert snapshot.spec is not None
        options: dict[str, Any] = snapshot.spec.source
        return FleetLimit(hosts=options["hosts"], per_zone=options["per_zone"])

    def status(self, host: str, step: str) -> HostStatus:
        it = self.hosts[host]
        assert it.snapshot is not None
        it.since = self.now if step == "converged" else None
        return HostStatus(
            host=host,
            zone=HOSTS[host],
            role=it.snapshot.membership.role,
            served=None if it.out else it.build,
            step=step,
            since=self.now.isoformat(),
            rollout=it.snapshot.rollout_id,
            down=it.out,
        )


TestRollouts = Rollouts.TestCase
TestRollouts.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
