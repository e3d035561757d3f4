"""Why hosts wait: the words of the function that grants permits, who is in the way, and what to type."""

from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from deployd_core.coordination import (
    Denial,
    Enabled,
    Excuse,
    Failure,
    Freeze,
    HostStatus,
    InstanceStatus,
    Permit,
    Rollout,
    RolloutState,
    Waiter,
)
from deployd_core.explaining import explain
from deployd_core.model import FleetLimit, Role
from deployd_core.noticing import notices
from deployd_core.planner import HostStep, Remedy
from deployd_core.spec import Promotion, RolloutTable, ServiceSpec, ServiceTable, WindowsTable
from deployd_core.units import Duration, Share
from deployd_core.zookeeper.services import ServiceRecord
from deployd_core.zookeeper.status import FleetStatus, HostEntry

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
ONE = FleetLimit(hosts=Share(1))


def at(minutes):
    """So many minutes ago."""
    return (NOW - timedelta(minutes=minutes)).isoformat()


def host(name, step="waiting", *, permit=None, alive=True, zone="a", role=Role.FLEET, **more):
    """A host that should serve v2; `permit` is since how many minutes it holds one."""
    status = HostStatus(
        host=name,
        zone=zone,
        role=role,
        wanted="v2",
        served="v2" if step == "converged" else "v1",
        step=step,
        since=at(3),
        rollout="v2-b",
        reason=more.pop("reason", ""),
        remedy=more.pop("remedy", ""),
        last_error=more.pop("last_error", ""),
        instances=more.pop("instances", ()),
    )
    held = Permit(host=name, zone=zone, rollout="v2-b", since=at(permit), nonce="n") if permit is not None else None
    values = {"excused": None, "down": False, "wanted": Enabled(build="v2"), "rollout_id": "v2-b"} | more
    return HostEntry(host=name, role=role, zone=zone, alive=alive, status=status, permit=held, **values)


def blocked(remedy, name="h1"):
    """A host that is blocked, and says by what that ends."""
    return host(name, "blocked", remedy=remedy.value)


def fleet(*hosts, rollout=None, freeze=None, canary=None, permits=(), grants=0, granted_at=None, **policy):
    """A service with hosts on their way to v2."""
    record = ServiceRecord(
        service="web",
        spec=ServiceSpec(service=ServiceTable(root="/srv/web"), source={}, rollout=RolloutTable(**policy)),
        enabled=Enabled(build="v2"),
        canary=canary,
        fleet_rollout="v2-b",
        canary_rollout="v3-c" if canary else "v2-b",
        rollout=rollout or Rollout(promoted="v2"),
        freeze=freeze,
        hosts=len(hosts),
        grants=grants,
    )
    return FleetStatus(record=record, hosts=hosts, permits=permits, granted_at=granted_at)


def waiter(name, limit=ONE):
    """A host in the queue."""
    return Waiter(host=name, role=Role.FLEET, rollout="v2-b", limit=limit, nonce="n", membership=0)


def why(seen, name, *, queue=None, limit=ONE, previous="v1"):
    """The explanation of one host."""
    [one] = explain(seen, NOW, queue=queue or {}, limit=limit, previous=previous, host=name)
    return one


HALTED = Rollout(
    state=RolloutState.HALTED,
    by="h2",
    why="over budget",
    promoted="v2",
    failures={"h2": Failure(rollout="v2-b", reason="sick", at=at(2))},
)
WINDOWS = WindowsTable(allow=("Mon-Fri 14:00-16:00",))


@pytest.mark.parametrize(
    ("seen", "code", "next_words"),
    [
        (fleet(host("h1"), freeze=Freeze(by="ann", why="outage")), Denial.FROZEN, "deployd unfreeze"),
        (fleet(host("h1"), host("h2", "failed"), rollout=HALTED), Denial.HALTED, "deployd retry web tries the failed hosts again"),
        (fleet(host("h1"), rollout=Rollout(state=RolloutState.PAUSED, promoted="v2")), Denial.PAUSED, "deployd resume web"),
        (fleet(host("h1"), windows=WINDOWS), Denial.WINDOW, "nothing: it goes on when the window opens"),
        (
            fleet(host("h1"), host("c1", "converged", role=Role.CANARY), rollout=Rollout(), canary_first=True),
            Denial.PROMOTION,
            "deployd promote web",
        ),
        (
            fleet(host("h1"), host("c1", "restarting", role=Role.CANARY), rollout=Rollout(), canary_first=True),
            Denial.PROMOTION,
            "deployd why web c1",
        ),
        (fleet(host("h1"), host("h2", "restarting", permit=1)), Denial.SLOTS_FULL, "nothing: it goes on by itself"),
        (
            fleet(host("h1"), host("h2", "restarting", permit=1, alive=False)),
            Denial.SLOTS_FULL,
            "deployd hosts lost web h2 --why TEXT",
        ),
        (fleet(host("h1"), host("h2", "broken", permit=1)), Denial.SLOTS_FULL, "deployd why web h2"),
        (fleet(host("h1"), host("h2", "converged", alive=False)), Denial.CAPACITY, "deployd hosts excuse web h2 --why TEXT"),
        (fleet(host("h1"), host("h2", "degraded", down=True)), Denial.CAPACITY, "mend h2"),
        (
            fleet(host("h1"), grants=1, granted_at=NOW - timedelta(seconds=20), stagger=Duration("1m")),
            Denial.STAGGER,
            "nothing: it goes on by itself",
        ),
    ],
    ids=lambda value: value.value if isinstance(value, Denial) else None,
)
def test_host_that_waits_is_told_what_it_would_be_told_and_what_to_type(seen, code, next_words):
    """Each answer of the function that grants permits comes with the command that ends it, or with the word that none is needed."""
    one = why(seen, "h1")

    assert code is one.code
    assert one.reason
    assert next_words in one.next


def test_per_zone_limit_counts_the_zone_alone():
    """A holder of another zone is in nobody's way."""
    limit = FleetLimit(hosts=Share(5), per_zone=Share(1))
    seen = fleet(host("h1"), host("h2", "restarting", permit=1), host("h3", zone="b"))

    assert Denial.ZONE_FULL is why(seen, "h1", limit=limit).code
    assert None is why(seen, "h3", limit=limit).code


def test_blocker_says_how_long_and_why():
    """Of a host in the way it is told since when it holds its permit, what it does, and whether its agent is there."""
    busy = host("h2", "restarting", permit=7, reason="web@8001 is starting")
    gone = host("h2", "restarting", permit=7, alive=False)

    [blocker] = why(fleet(host("h1"), busy), "h1").blockers
    [lost] = why(fleet(host("h1"), gone), "h1").blockers

    assert ("h2", "holds a permit", at(7), "restarting: web@8001 is starting", False) == (
        blocker.host,
        blocker.how,
        blocker.since,
        blocker.why,
        blocker.gone,
    )
    assert ("its agent is gone, it last said restarting", True) == (lost.why, lost.gone)


def test_host_of_nobody_is_in_the_way_too():
    """A permit of a host that is not registered counts, as it does for the machine."""
    stray = Permit(host="h9", zone="a", rollout="v1-a", since=at(100), nonce="n")
    seen = fleet(host("h1"), permits=(stray,))

    [blocker] = why(seen, "h1").blockers
    [notice] = notices(seen, NOW)

    assert ("h9", "it is not registered for the service") == (blocker.host, blocker.why)
    assert ("permit-held-long", "deployd permits release web h9 --why TEXT") == (notice.code, notice.next)


def test_place_in_the_queue_is_told():
    """Whoever would be admitted but for those before it is told so; the first is told nothing is in the way."""
    seen, queue = fleet(host("h1"), host("h2")), {"a": (waiter("h2"), waiter("h1"))}

    first, second = why(seen, "h2", queue=queue), why(seen, "h1", queue=queue)

    assert (None, 1, 2) == (first.code, first.place, first.queue)
    assert (Denial.QUEUED, 2, "asked later than h2") == (second.code, second.place, second.reason)
    assert ["h2 waits before it"] == [f"{blocker.host} {blocker.how}" for blocker in second.blockers]


def test_waiter_asks_under_its_own_limit():
    """What a host says in the queue counts for more than the options of a spec that has changed since."""
    seen = fleet(host("h1"), host("h2", "restarting", permit=1))

    assert None is why(seen, "h1", queue={"a": (waiter("h1", FleetLimit(hosts=Share(2))),)}).code
    assert Denial.SLOTS_FULL is why(seen, "h1").code


def test_unknown_limit_is_said_and_not_guessed():
    """Without the strategy's plugin at hand nothing is claimed about how many may restart."""
    seen = fleet(host("h1", reason="asks for a permit"), host("h2", "restarting", permit=1))

    one = why(seen, "h1", limit=None)

    assert (None, "asks for a permit; the limit of its strategy is not known here") == (one.code, one.reason)


def test_excused_host_is_in_nobodys_way():
    """An excuse takes a host that is down out of the count."""
    excuse = Excuse(by="ann", why="in repair", at=at(9))

    seen = fleet(host("h1"), host("h2", "waiting", alive=False, excused=excuse))

    assert None is why(seen, "h1").code
    assert why(seen, "h2").reason.endswith("; excused by ann: in repair")


def test_window_and_stagger_say_when_they_end():
    """A reason that ends by itself has a moment."""
    staggered = fleet(host("h1"), grants=1, granted_at=NOW - timedelta(seconds=20), stagger=Duration("1m"))

    assert "2026-11-23T14:00:00+00:00" == why(fleet(host("h1"), windows=WINDOWS), "h1").until
    assert "2026-11-23T12:00:40.000+00:00" == why(staggered, "h1").until


@pytest.mark.parametrize(
    ("entry", "next_words"),
    [
        (host("h1", "failed"), "mend h1, then deployd retry web; or deployd rollback web goes back to v1"),
        (host("h1", "reverted"), "mend h1, then deployd retry web; or deployd rollback web goes back to v1"),
        (host("h1", "broken", permit=1), "mend h1, it goes on when it is healthy; or deployd rollback web goes back to v1"),
        (host("h1", "blocked"), "mend what the reason names"),
        (blocked(Remedy.INSTALL), "install it there and reload the agent: systemctl reload deployd-agent (SIGHUP)"),
        (blocked(Remedy.PLUGIN), "there and restart the agent: systemctl restart deployd-agent"),
        (blocked(Remedy.SPEC), "mend the spec: deployd services apply FILE --name web; it goes on by itself then"),
        (blocked(Remedy.BUILD), "deployd rollback web goes back to v1"),
        (blocked(Remedy.HOST), "mend that there; it goes on by itself then"),
        (host("h1", "degraded"), "look at that instance on h1"),
        (host("h1", "restarting", alive=False, permit=1), "should it never come back: deployd hosts lost web h1 --why TEXT"),
        (host("h1", "waiting", alive=False), "should it never come back: deployd hosts retire web h1 --why TEXT"),
        (host("h1", "reverting", permit=1), "nothing: it goes on by itself"),
        (host("h1", "converged"), ""),
    ],
    ids=lambda value: value.status.step if isinstance(value, HostEntry) else None,
)
def test_host_that_does_not_wait_is_told_what_to_do(entry, next_words):
    """Trouble has a way on and a way back; what goes on by itself is said to."""
    assert why(fleet(entry), "h1").next.endswith(next_words)


@pytest.mark.parametrize("remedy", Remedy)
def test_hosts_that_the_same_thing_blocks_are_given_the_same_advice(remedy):
    """So that `deployd why` tells a whole fleet that lacks a plugin together."""
    found = explain(fleet(blocked(remedy), blocked(remedy, "h2")), NOW, queue={}, limit=ONE)

    assert found[0].next == found[1].next


@pytest.mark.parametrize("step", HostStep)
@pytest.mark.parametrize("alive", [True, False])
def test_everything_that_is_not_done_has_advice(step, alive):
    """Whatever the step of a host, there is something to type or it is said that there is nothing to do."""
    found = explain(fleet(host("h1", step.value, alive=alive)), NOW, queue={}, limit=ONE)

    assert all(one.next and one.step for one in found)
    assert len(found) == (0 if step is HostStep.CONVERGED else 1)


def test_reverted_host_gives_its_own_reason_under_the_code_of_the_denial():
    """It is denied a permit, but what people want to know is what failed."""
    failures = {"h1": Failure(rollout="v2-b", reason="web@8001 is sick", at=at(1))}
    seen = fleet(host("h1", "reverted", reason="serves v1; v2 failed"), rollout=Rollout(promoted="v2", failures=failures))

    one = why(seen, "h1")

    assert (Denial.FAILED, "serves v1; v2 failed") == (one.code, one.reason)


def test_last_words_of_probes_are_kept():
    """What is wrong with an instance is told in its own words, in one line."""
    sick = InstanceStatus(name="web@8001", phase="fresh", state="running", health="unhealthy", reason="GET /health:\n 503")
    well = InstanceStatus(name="web@8002", phase="ready", state="running", health="healthy", reason="answered 200")

    one = why(fleet(host("h1", "failed", reason="not healthy", last_error="exit 1", instances=(sick, well))), "h1")

    assert ["web@8001 fresh, unhealthy: GET /health: 503"] == [probed.text for probed in one.probes]
    assert "exit 1" == one.last_error


def test_canaries_with_a_build_of_their_own_go_back_to_the_fleets():
    """Their way back is not the fleet's rollback."""
    canary = host("c1", "failed", role=Role.CANARY, wanted=Enabled(build="v3"), rollout_id="v3-c")
    canary = replace(canary, status=replace(canary.status, rollout="v3-c"))

    assert "deployd enable web v2 --canary goes back" in why(fleet(canary, canary=Enabled(build="v3")), "c1").next


CANARY_FIRST = {"rollout": Rollout(), "canary_first": True}
C1 = host("c1", "converged", role=Role.CANARY)


@pytest.mark.parametrize(
    ("seen", "code", "text", "next_words"),
    [
        (
            fleet(host("h1"), host("h2", "failed"), rollout=HALTED),
            "halted",
            "halted by h2: over budget",
            "rollback web goes back to v1",
        ),
        (
            fleet(host("h1"), rollout=Rollout(state=RolloutState.PAUSED, by="ann")),
            "paused",
            "paused by ann: no reason",
            "resume web",
        ),
        (fleet(host("h1"), freeze=Freeze(by="bob", why="outage")), "frozen", "every service is frozen by bob: outage", "unfreeze"),
        (fleet(host("h1"), windows=WINDOWS), "outside-window", "no host may begin now: outside the allowed windows", "by itself"),
        (fleet(C1, **CANARY_FIRST), "needs-promotion", "on 1 canary host, healthy with it for 3m", "deployd promote web"),
        (fleet(replace(C1, alive=False), **CANARY_FIRST), "needs-promotion", "c1 (converged, agent dead)", "deployd why web c1"),
        (fleet(host("h1"), **CANARY_FIRST), "needs-promotion", "web has no canary host", "deployd hosts role web HOST canary"),
        (
            fleet(C1, promotion=Promotion.AUTO, bake=Duration("5m"), **CANARY_FIRST),
            "needs-promotion",
            "v2 bakes on 1 canary host for 5m",
            "at once: deployd promote web",
        ),
        (
            fleet(host("h1", "restarting", permit=180, alive=False)),
            "permit-held-long",
            "h1 holds a permit for 3h: its agent is gone, it last said restarting",
            "deployd hosts lost web h1 --why TEXT",
        ),
        (fleet(host("h1", "restarting", permit=16)), "permit-held-long", "h1 holds a permit for 16m", "deployd why web h1"),
        (
            fleet(host("h1"), rollout=Rollout(by="h1", why="over budget", rollback_of="v3-c")),
            "taken-back",
            "v3-c was taken back, and the fleet goes to v2: over budget",
            "deployd history web",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_notice_tells_what_concerns_the_service_and_what_to_type(seen, code, text, next_words):
    """Stops, windows, promotions and old permits are each told once, with a way on."""
    [notice] = notices(seen, NOW, previous="v1")

    assert code == notice.code
    assert text in notice.text
    assert next_words in notice.next


def test_service_that_goes_on_has_no_notice():
    """A permit that is held for a while is no news, and neither is a person's rollback or a build that is promoted."""
    assert () == notices(fleet(host("h1", "restarting", permit=14), rollout=Rollout(rollback_of="v1-a", by="ann")), NOW)
    assert () == notices(fleet(C1, canary_first=True), NOW)


def test_bake_tells_when_it_ends():
    """The moment of an automatic promotion is known as soon as the last canary host is healthy."""
    [notice] = notices(fleet(C1, promotion=Promotion.AUTO, bake=Duration("5m"), **CANARY_FIRST), NOW)

    assert "2026-11-23T12:02:00+00:00" == notice.until
