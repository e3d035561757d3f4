"""What is promised, judged by what is true of the hosts, not by what the protocol believes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deployd_core.coordination import RolloutState
from fleet_model.world import Build, Fleet, Host, Read, Rules, Service, Violation

_GIVES_BACK = ("gives its permit back, healthy", "gives its permit back, reverted")
_PEOPLE = ("permit is released", "is given up as lost")


def judge(
    rules: Rules, label: str, fleet: Fleet, fleet_after: Fleet, me: Host, me_after: Host, others: Sequence[Host]
) -> Iterator[Violation]:
    """The promises that a move of one host breaks; the fleet and the others are as they were before it."""
    if me.permit and not me_after.permit:
        given_back = label in _GIVES_BACK and me.alive and not me.out
        if not given_back and label not in _PEOPLE:
            yield Violation.PERMIT_VANISHED
    if me_after.service == Service.OURS and not me_after.permit and not me_after.taken:
        yield Violation.OUT_WITHOUT_PERMIT
    yield from _counts(rules, me_after, others)
    if me_after.permit and not me.permit:
        yield from _grant(rules, fleet, me, others)
    failed = sum(host.failed for host in others) + me_after.failed
    if me_after.failed and not me.failed and failed > rules.most_failures:
        yield Violation.TOO_MANY_FAILED
    if fleet.state is not RolloutState.OPEN and fleet_after.state is RolloutState.OPEN:
        yield Violation.OPENED_BY_ITSELF
    if label == "promotes it" and not all(host.baked and host.finished for host in (me, *others) if host.canary):
        yield Violation.NOT_BAKED
    if label == "fails, and all go back" and fleet.went_back:
        yield Violation.WENT_BACK_TWICE


def _counts(rules: Rules, me: Host, others: Sequence[Host]) -> Iterator[Violation]:
    if sum(bool(host.permit) for host in others) + bool(me.permit) > rules.limit:
        yield Violation.TOO_MANY_PERMITS
    if rules.per_zone is not None and me.permit:
        within = sum(bool(host.permit) for host in others if host.zone == me.zone)
        if within + 1 > rules.per_zone:
            yield Violation.TOO_MANY_PERMITS


def _grant(rules: Rules, fleet: Fleet, me: Host, others: Sequence[Host]) -> Iterator[Violation]:
    if fleet.stopped:
        yield Violation.GRANTED_WHILE_STOPPED
    if me.read & Read.ENABLED:
        yield Violation.GRANTED_FOR_OLDER
    if me.failed:
        yield Violation.FAILED_AGAIN
    if fleet.recent:
        yield Violation.TOO_SOON
    if not fleet.allowed and not me.canary:
        yield Violation.NOT_PROMOTED
    if not fleet.went_back:
        finished = sum(host.build == host.good == Build.WANTED and not host.permit for host in others)
        if sum(bool(host.permit) for host in others) + 1 > rules.step(finished):
            yield Violation.BEYOND_THE_RAMP
    # A host that went down between the read and the grant is known to nobody yet: then only permits are counted.
    if not me.out and not me.read & Read.DOWN:
        out = sum(bool(host.permit) or (host.out and not host.excused) for host in others)
        if out + 1 > rules.room:
            yield Violation.TOO_FEW_LEFT
