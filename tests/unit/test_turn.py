"""A host's turn: what it makes of answers, of permits held for too long, and of a rollout that is not complete yet."""

from __future__ import annotations

import random
import statistics

import pytest
from msgspec.structs import replace

from deployd_core.clock import rfc3339
from deployd_core.coordination import Denial, Denied, Membership, Permit, Snapshot
from deployd_core.model import Role, Veto
from deployd_core.setbacks import Setbacks
from deployd_core.spec import Promotion, RolloutTable, ServiceSpec, ServiceTable
from deployd_core.turn import ASK_AGAIN, Turn
from deployd_core.units import Duration

NOW, WALL = 100.0, 1_700_000_000.0
SPEC = ServiceSpec(
    service=ServiceTable(root="/srv/web"), source={"use": "file"}, rollout=RolloutTable(permit_alarm=Duration("15m"))
)
PERMIT = Permit(host="h1", zone="z1", rollout="v1-a", since=rfc3339(WALL - 901), nonce="n", token=7)
SNAPSHOT = Snapshot(service="web", host="h1", spec=SPEC, membership=Membership(), enabled=None, permit=PERMIT)


class StillClock:
    """Time that stands."""

    def monotonic(self) -> float:
        return NOW

    def time(self) -> float:
        return WALL


@pytest.fixture
def setbacks() -> Setbacks:
    """None yet."""
    return Setbacks(random.Random(1))


@pytest.fixture
def turn(setbacks: Setbacks) -> Turn:
    """Nobody has asked for anything."""
    return Turn(setbacks, StillClock(), random.Random(1))


@pytest.mark.parametrize(("asked_for", "least", "most"), [(30.0, 24.0, 36.0), (0.0, 0.8, 1.2), (-5.0, 0.8, 1.2)])
def test_a_veto_is_asked_again_when_it_says(turn: Turn, setbacks: Setbacks, asked_for: float, least: float, most: float) -> None:
    """And never without a pause: each time is a thread, and a line in the log."""
    assert not turn.answered(Veto(reason="not now", retry_after=asked_for), NOW)

    assert least <= setbacks.by_key["takepermit"].retry_at - NOW <= most


@pytest.mark.parametrize(
    ("until", "earliest", "latest"),
    [
        (None, 0.8 * ASK_AGAIN, 1.2 * ASK_AGAIN),
        (rfc3339(WALL + 10), 8.0, 12.0),
        (rfc3339(WALL + 3600), 0.8 * ASK_AGAIN, 1.2 * ASK_AGAIN),
        (rfc3339(WALL - 3600), 0.0, 1.0),
        ("soon", 0.0, 1.0),
    ],
)
def test_a_no_is_asked_again_when_it_ends(
    turn: Turn, setbacks: Setbacks, until: str | None, earliest: float, latest: float
) -> None:
    """What ends by itself is asked again at that time, and everything after a while, should a watch have been missed."""
    again = turn.answered(Denied(code=Denial.STAGGER, reason="one after the other", until=until), NOW)

    setback = setbacks.by_key["takepermit"]
    assert (False, "one after the other", True) == (again, setback.reason, earliest <= setback.retry_at - NOW <= latest)


@pytest.mark.parametrize("answer", [PERMIT, Denied(code=Denial.CHANGED, reason="look again")])
def test_a_permit_and_a_change_are_looked_at(turn: Turn, setbacks: Setbacks, answer: Permit | Denied) -> None:
    """What has changed shows in the next snapshot, and nothing is put off."""
    assert turn.answered(answer, NOW)
    assert {} == setbacks.by_key


def test_a_veto_says_when_to_ask_again(turn: Turn, setbacks: Setbacks) -> None:
    """A plugin that says no says for how long."""
    turn.answered(Veto(reason="ceph: repairing", retry_after=10.0), NOW)

    setback = setbacks.by_key["takepermit"]
    assert ("vetoed by ceph: repairing", True) == (setback.reason, 8.0 <= setback.retry_at - NOW <= 12.0)


def test_an_alarm_sounds_once_for_each_permit(turn: Turn) -> None:
    """A permit that is held for too long is said once; a later one again; one that is young, not at all."""
    young = replace(SNAPSHOT, permit=replace(PERMIT, since=rfc3339(WALL - 899), token=8))
    later = replace(SNAPSHOT, permit=replace(PERMIT, token=9))

    assert {"hosts": ("h1",), "since": PERMIT.since, "seconds": 901} == turn.alarm(SNAPSHOT)
    assert [None, None] == [turn.alarm(SNAPSHOT), turn.alarm(young)]
    assert turn.alarm(later) is not None


def test_whoever_waits_says_who_is_stuck(turn: Turn) -> None:
    """A host that holds a permit and is dead cannot say so itself."""
    waiting = replace(SNAPSHOT, permit=None)
    answer = Denied(code=Denial.SLOTS_FULL, reason="1 of 1 host at a time: h3", blockers=("h3",), stuck=("h3",))

    assert {"hosts": ("h3",), "reason": answer.reason} == turn.alarm(waiting, answer)
    assert turn.alarm(waiting, answer) is None


def test_a_rollout_is_looked_at_again_after_longer_and_longer(turn: Turn, setbacks: Setbacks) -> None:
    """The waits double up to what was asked for; when there is nothing left to do it is looked at no more."""
    turn.begin(SNAPSHOT)
    waits = []
    for _ in range(6):
        turn.looked(10.0, NOW)
        waits.append(setbacks.by_key["advance"].retry_at - NOW)
    assert all(0.8 * want <= wait <= 1.2 * want for want, wait in zip((1, 2, 4, 8, 10, 10), waits, strict=True)), waits

    turn.finished()
    assert "advance" not in setbacks.by_key
    turn.looked(None, NOW)
    assert turn.advanced
    turn.begin(replace(SNAPSHOT, hosts=30))
    assert (False, True) == (turn.advanced, 0 <= setbacks.by_key["advance"].retry_at - NOW <= 0.9)


@pytest.mark.parametrize("hosts", [2, 100, 1000, 5000])
def test_however_many_hosts_wait_for_one_that_is_dead_they_read_as_much(hosts: int, setbacks: Setbacks) -> None:
    """Each of them looks at all of them, and so the less often the more there are; from the first time on."""
    firsts, waits = [], []
    for seed in range(50):
        turn = Turn(setbacks, StillClock(), random.Random(seed))
        turn.begin(replace(SNAPSHOT, hosts=hosts))
        firsts.append(setbacks.by_key["advance"].retry_at - NOW)
        for _ in range(20):
            turn.looked(300.0, NOW)
        waits.append(setbacks.by_key["advance"].retry_at - NOW)

    reads_a_second = [hosts * hosts / wait for wait in (2 * statistics.median(firsts), min(waits))]
    assert max(reads_a_second) <= 1500, reads_a_second


def test_a_canary_that_is_to_promote_is_not_late(turn: Turn, setbacks: Setbacks) -> None:
    """The few that may have to promote a build look as often as they are told, however large the fleet is."""
    spec = replace(SPEC, rollout=RolloutTable(promotion=Promotion.AUTO))
    turn.begin(replace(SNAPSHOT, hosts=1000, spec=spec, membership=Membership(role=Role.CANARY)))
    for _ in range(20):
        turn.looked(60.0, NOW)

    assert setbacks.by_key["advance"].retry_at - NOW <= 72.0
