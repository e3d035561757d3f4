"""What can happen next in a fleet: hosts read, are granted permits, restart, fail; agents and machines die; people intervene.

Who may hold a permit, what a failure does to a rollout and what a newer build does to it is decided by the functions that deployd
runs: `admit`, `with_failure`, `begun`, `lacking`, `until_promoted`. Here is only what is around them: the state, the transactions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from deployd_core.admission import Granted, Request, over_budget
from deployd_core.advancing import Now, Standing, begun, lacking, until_promoted, with_failure
from deployd_core.coordination import Enabled, Failure, Freeze, HistoryEntry, HostStatus, Rollout, RolloutState, Verb
from deployd_core.coordination import Permit as HeldPermit
from deployd_core.model import Role
from deployd_core.spec import Promotion
from fleet_model.world import NOTHING, Build, Event, Fleet, Host, Permit, Read, Rules, Service, aged

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
AT = NOW.isoformat()
WANTED, COMPLETED = "v2-1", "v1"


class Move(NamedTuple):
    """One thing that may happen: to the fleet, to one host, and what that means for the others."""

    label: str
    fleet: Fleet
    me: Host
    event: Event = NOTHING


def of_host(rules: Rules, fleet: Fleet, me: Host, others: Sequence[Host]) -> Iterator[Move]:
    """What may happen on one host, or to it."""
    yield from _accidents(rules, fleet, me)
    yield from _permits(rules, fleet, me, others)
    yield from _restart(rules, fleet, me, others)
    yield from _people_about(rules, fleet, me)
    if "goes back" in rules.may and not fleet.completed and _complete(me, others):
        event = Event(written=Read.ROLLOUT, completes=True)
        yield Move("completes", fleet._replace(completed=True), me._replace(read=aged(me.read, Read.ROLLOUT, rules)), event)
    if me.canary and me.finished and rules.policy.promotion is Promotion.AUTO:
        yield from _bakes(rules, fleet, me, others)


def of_fleet(rules: Rules, fleet: Fleet, hosts: Sequence[Host]) -> Iterator[tuple[str, Fleet, Event]]:
    """What people may do about all hosts, and what any host may find out."""
    open_, paused, halted = RolloutState.OPEN, RolloutState.PAUSED, RolloutState.HALTED
    if "pause" in rules.may and fleet.state is open_:
        yield "pause", fleet._replace(state=paused), Event(written=Read.ROLLOUT)
    if "pause" in rules.may and (fleet.state is paused or (fleet.state is halted and rules.resumes_halted)):
        yield "resume", fleet._replace(state=open_), Event(written=Read.ROLLOUT)
    if "retry" in rules.may and (fleet.state is not open_ or any(host.failed for host in hosts)):
        yield "retry", fleet._replace(state=open_, granted=0), Event(written=Read.ROLLOUT, forgives=True)
    if "freeze" in rules.may:
        yield "unfreeze" if fleet.frozen else "freeze", fleet._replace(frozen=not fleet.frozen), Event(written=Read.FREEZE)
    if "supersede" in rules.may:
        yield _supersede(rules, fleet, hosts)
    if "by hand" in rules.may:
        # Another build written into the node with ZooKeeper's own tools: what is on record of the last one counts no more.
        event = Event(written=Read.ENABLED, supersedes=True, was_completed=fleet.completed)
        free = not _needs_promotion(rules, hosts)
        yield "a newer build is written by hand", fleet._replace(completed=False, promoted=free, allowed=free), event
    if "promote" in rules.may and not fleet.promoted:
        yield "promote", fleet._replace(promoted=True, allowed=True), Event(written=Read.ROLLOUT)
    if fleet.recent:
        yield "the stagger has passed", fleet._replace(recent=False), NOTHING
    over = over_budget(_rollout(fleet, hosts), WANTED, rules.policy.budget, rules.hosts)
    if not rules.halts_at_once and fleet.state is open_ and over:
        yield "halt", fleet._replace(state=halted), Event(written=Read.ROLLOUT)


def may_hold(rules: Rules, fleet: Fleet, me: Host, others: Sequence[Host]) -> bool:
    """Whether the real admission says yes to a host that reads the truth."""
    named = {f"h{number}": host for number, host in enumerate((me, *others))}
    counted = {Permit.HELD, Permit.OLDER} if rules.counts_older else {Permit.HELD}
    request = Request(
        host="h0",
        zone=_zone(me),
        role=_role(me),
        build="v2",
        rollout_id=WANTED,
        rollout=_rollout(fleet, tuple(named.values())),
        freeze=Freeze() if fleet.frozen else None,
        policy=rules.policy,
        holders={name: _zone(host) for name, host in named.items() if host.permit in counted},
        down={name: _zone(host) for name, host in named.items() if host.counts_as_down},
        hosts=rules.hosts,
        zone_hosts=sum(host.zone == me.zone for host in named.values()),
        granted=fleet.granted,
        last_grant=NOW - timedelta(seconds=float(rules.policy.stagger) * (0.5 if fleet.recent else 1.0)),
        limit=rules.fleet_limit,
        now=NOW,
    )
    return isinstance(rules.decide(request), Granted)


def granted(me: Host) -> Host:
    """A host with the permit that it asked for."""
    return me._replace(permit=Permit.HELD, read=Read.NOT, taken=False)


GRANT = Event(written=Read.PERMITS)


def _accidents(rules: Rules, fleet: Fleet, me: Host) -> Iterator[Move]:
    # Whoever read who is down has read that before.
    went = Event(written=Read.DOWN)
    if me.alive:
        dead = me._replace(alive=False, read=Read.NOT, permit=Permit.NONE if rules.ephemeral else me.permit)
        if "crash" in rules.may:
            yield Move("agent crashes", fleet, dead, went)
        if "reboot" in rules.may:
            off = Service.OFF if me.service == Service.SERVES else me.service
            yield Move("machine goes down", fleet, dead._replace(service=off), went)
    else:
        back = me._replace(
            alive=True, excused=False, baked=False, service=Service.SERVES if me.service == Service.OFF else me.service
        )
        yield Move("agent comes back", fleet, back, went if me.excused else NOTHING)
        if rules.expires and me.permit:
            yield Move("permit expires", fleet, me._replace(permit=Permit.NONE))
    if "rot" in rules.may and me.service == Service.SERVES:
        yield Move("service dies", fleet, me._replace(service=Service.ROTTED), went)
    if me.alive and not me.permit and me.build == Build.WANTED and me.service in (Service.OURS, Service.ROTTED):
        yield Move("manager mends it", fleet, me._replace(service=Service.SERVES, taken=False, read=Read.NOT))


def _permits(rules: Rules, fleet: Fleet, me: Host, others: Sequence[Host]) -> Iterator[Move]:
    if not me.wants:
        return
    if me.read != Read.FRESH and may_hold(rules, fleet, me, others):
        yield Move("reads", fleet, me._replace(read=Read.FRESH))
    if me.read != Read.NOT:
        yield Move("is granted a permit", fleet.with_grant(rules), granted(me), GRANT)


def _restart(rules: Rules, fleet: Fleet, me: Host, others: Sequence[Host]) -> Iterator[Move]:
    """With a permit: what `deployd_core.planner` has a host do."""
    if not me.alive:
        return
    if me.permit and not me.broken:
        yield from _under_way(rules, fleet, me, others)
    there = me.build == Build.WANTED and (me.service == Service.SERVES or (rules.releases_early and me.service == Service.OURS))
    if there and (me.permit or me.failed or me.good != Build.WANTED):
        done = me._replace(permit=Permit.NONE, good=Build.WANTED, failed=False, broken=False)
        yield _cleared(rules, "gives its permit back, healthy", fleet, me, done)
    if me.permit and me.failed and me.service == Service.SERVES and me.build == me.good != Build.WANTED:
        yield Move("gives its permit back, reverted", fleet, me._replace(permit=Permit.NONE))


def _under_way(rules: Rules, fleet: Fleet, me: Host, others: Sequence[Host]) -> Iterator[Move]:
    down = me.service in (Service.OURS, Service.ROTTED)
    if not me.failed and me.build != Build.WANTED:
        yield Move("restarts", fleet, me._replace(build=Build.WANTED, service=Service.OURS))
    if down and (me.build == Build.WANTED or not me.failed):
        yield Move("gets healthy", fleet, me._replace(service=Service.SERVES))
    if down and not me.failed and me.build == Build.WANTED and "fail" in rules.may:
        yield _fails(rules, fleet, me, others)
    if down and me.failed:
        yield Move("is broken", fleet, me._replace(broken=True))
        if me.good != Build.WANTED:
            yield Move("reverts", fleet, me._replace(build=me.good, service=Service.SERVES))


def _people_about(rules: Rules, fleet: Fleet, me: Host) -> Iterator[Move]:
    taken = me._replace(permit=Permit.NONE, taken=me.taken or me.service == Service.OURS)
    if "release" in rules.may and me.permit:
        yield Move("permit is released", fleet, taken)
    if "lost" in rules.may and not me.alive and (me.permit or not me.excused):
        yield Move("is given up as lost", fleet, taken._replace(excused=True))


def _fails(rules: Rules, fleet: Fleet, me: Host, others: Sequence[Host]) -> Move:
    """The failure is on record, with what the real function makes of it."""
    hosts = (me, *others)
    failure = Failure(rollout=WANTED, reason="not healthy", at=AT)
    after, entry = with_failure(_rollout(fleet, hosts), "h0", failure, _now(rules, fleet), rules.policy)
    failed = me._replace(failed=True, read=Read.NOT)
    if entry is not None and entry.verb is Verb.ROLLBACK:
        event = Event(written=Read.ROLLOUT | Read.ENABLED, supersedes=True, goes_back=True)
        back = _begins(fleet, after, COMPLETED)._replace(completed=True, allowed=True)
        return Move("fails, and all go back", back, failed, event)
    state = after.state if rules.halts_at_once else fleet.state
    label = "fails, and halts the rollout" if state is not fleet.state else "fails"
    return Move(label, fleet._replace(state=state), failed, Event(written=Read.ROLLOUT))


def _supersede(rules: Rules, fleet: Fleet, hosts: Sequence[Host]) -> tuple[str, Fleet, Event]:
    entry = HistoryEntry(verb=Verb.ENABLE, build="v3", by="ann", at=AT)
    needs_promotion = _needs_promotion(rules, hosts)
    after = begun(_rollout(fleet, hosts), entry, _now(rules, fleet), needs_promotion=needs_promotion)
    event = Event(written=Read.ROLLOUT | Read.ENABLED, supersedes=not after.failures, was_completed=fleet.completed)
    newer = _begins(fleet, after, "v3")._replace(completed=False, allowed=not needs_promotion)
    return "a newer build is enabled", newer, event


def _needs_promotion(rules: Rules, hosts: Sequence[Host]) -> bool:
    return rules.policy.canary_first and any(host.canary for host in hosts)


def _begins(fleet: Fleet, after: Rollout, build: str) -> Fleet:
    """The fleet under a rollout that has just begun, as it is on record."""
    return fleet._replace(
        state=after.state,
        went_back=bool(after.rollback_of),
        granted=fleet.granted - after.grants_before,
        promoted=after.promoted == build,
    )


def _bakes(rules: Rules, fleet: Fleet, me: Host, others: Sequence[Host]) -> Iterator[Move]:
    """Time passes for a canary; one that finds the build baked promotes it, unless somebody has stopped the rollout."""
    if not me.baked:
        yield Move("bakes", fleet, me._replace(baked=True))
    left = until_promoted("v2", _standings((me, *others)), rules.policy, NOW)
    if fleet.state is RolloutState.OPEN and not fleet.promoted and left == 0:
        event = Event(written=Read.ROLLOUT)
        yield Move("promotes it", fleet._replace(promoted=True, allowed=True), me, event)


def _cleared(rules: Rules, label: str, fleet: Fleet, me: Host, done: Host) -> Move:
    """A release; it writes the rollout only when a failure is to go."""
    return Move(label, fleet, done, Event(written=Read.ROLLOUT) if me.failed else NOTHING)


def _complete(me: Host, others: Sequence[Host]) -> bool:
    return me.alive and not lacking(WANTED, _standings((me, *others)))


def _standings(hosts: Sequence[Host]) -> list[Standing]:
    return [
        Standing(
            host=f"h{number}",
            role=_role(host),
            rollout_id=WANTED,
            build="v2",
            alive=host.alive,
            excused=host.excused,
            status=_status(host),
            permit=HeldPermit(host="", zone="", rollout=WANTED, since="", nonce="") if host.permit else None,
        )
        for number, host in enumerate(hosts)
    ]


def _status(host: Host) -> HostStatus:
    done = host.build == host.good == Build.WANTED and not host.out
    step, since = "converged" if done else "restarting", (NOW - timedelta(days=1)).isoformat() if host.baked else AT
    return HostStatus(host="", zone="", role=_role(host), served="v2" if done else None, step=step, since=since, rollout=WANTED)


def _rollout(fleet: Fleet, hosts: Sequence[Host]) -> Rollout:
    failure = Failure(rollout=WANTED, reason="not healthy", at=AT)
    completed = Enabled(build="v2" if fleet.completed else COMPLETED)
    return Rollout(
        state=fleet.state,
        failures={f"h{number}": failure for number, host in enumerate(hosts) if host.failed},
        promoted="v2" if fleet.promoted else "",
        rollback_of="v1-0" if fleet.went_back else "",
        completed=completed,
    )


def _now(rules: Rules, fleet: Fleet) -> Now:
    return Now(fleet=WANTED, canary="", enabled=Enabled(build="v2"), hosts=rules.hosts, granted=fleet.granted)


def _role(host: Host) -> Role:
    return Role.CANARY if host.canary else Role.FLEET


def _zone(host: Host) -> str:
    return f"z{host.zone}"
