"""What a rollout looks like: states of hosts, verdicts, and the words and lines for them."""

import re
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from deployd_core.cli.progress import Bars, Lines, follow
from deployd_core.coordination import Enabled, Freeze, HostStatus, InstanceStatus, Rollout, RolloutState
from deployd_core.model import Role
from deployd_core.picture import (
    HostState,
    Verdict,
    ago,
    count,
    ready_of,
    state_of,
    step_of,
    stopped,
    verdict_of,
)
from deployd_core.planner import HostStep
from deployd_core.spec import Promotion, RolloutTable, ServiceSpec, ServiceTable
from deployd_core.zookeeper.services import ServiceRecord
from deployd_core.zookeeper.status import FleetStatus, HostEntry

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


def make_record(**more):
    """A service with v2 enabled."""
    values = {
        "service": "web",
        "spec": None,
        "enabled": Enabled(build="v2"),
        "canary": None,
        "fleet_rollout": "v2-a",
        "canary_rollout": "v2-a",
        "rollout": Rollout(),
        "freeze": None,
        "hosts": 1,
    }
    return ServiceRecord(**values | more)


def make_host(host="h1", step="converged", *, role=Role.FLEET, alive=True, rollout="v2-a", wanted="v2", reported="v2-a", reason=""):
    """A host that reported a step; None for one that never did."""
    status = HostStatus(
        host=host,
        zone="z",
        role=role,
        wanted=wanted,
        served=wanted if step == "converged" else None,
        step=step or "",
        since="2026-11-23T11:59:00Z",
        rollout=reported,
        reason=reason,
    )
    return HostEntry(
        host=host,
        role=role,
        zone="z",
        alive=alive,
        status=status if step else None,
        permit=None,
        wanted=Enabled(build=wanted) if wanted else None,
        rollout_id=rollout,
    )


def make_spec(**rollout):
    """A spec that says something about rollouts."""
    return ServiceSpec(service=ServiceTable(root="/srv/web"), source={}, rollout=RolloutTable(**rollout))


CANARY = make_host("c1", role=Role.CANARY)


def make_fleet(*hosts, **more):
    """A service with hosts."""
    return FleetStatus(record=make_record(**more), hosts=hosts)


@pytest.mark.parametrize("step", [step for step in HostStep if step is not HostStep.IDLE])
def test_every_step_of_a_host_is_known(step):
    """No step that an agent reports falls under "unaware"."""
    assert HostState.UNAWARE is not state_of(make_host(step=step.value))


@pytest.mark.parametrize(
    ("host", "state", "step"),
    [
        (make_host(step="converged"), HostState.CONVERGED, "converged"),
        (make_host(step="converged", alive=False), HostState.CONVERGED, "converged, agent dead"),
        (make_host(step="converged", reported="v1-9"), HostState.UNAWARE, "unaware"),
        (make_host(step="converged", reported="v1-9", alive=False), HostState.DEAD, "dead"),
        (make_host(step="restarting", alive=False), HostState.DEAD, "dead"),
        (make_host(step="failed", alive=False), HostState.FAILED, "failed, agent dead"),
        (make_host(step=None), HostState.UNAWARE, "unaware"),
        (make_host(step=None, alive=False), HostState.DEAD, "dead"),
        (make_host(step="flipping"), HostState.RESTARTING, "flipping"),
        (make_host(step="checking"), HostState.CHECKING, "checking"),
        (make_host(step="idle", wanted=None), HostState.IDLE, "idle"),
        (make_host(step="a step of a newer agent"), HostState.UNAWARE, "unaware"),
    ],
)
def test_state_of_a_host(host, state, step):
    """A report counts for the rollout that it names, and while its agent lives or it has come to an end."""
    assert (state, step) == (state_of(host), step_of(host))


@pytest.mark.parametrize(
    ("fleet", "verdict"),
    [
        (make_fleet(make_host()), Verdict.DONE),
        (make_fleet(make_host(), make_host("h2", "waiting")), Verdict.GOING),
        (make_fleet(), Verdict.GOING),
        (make_fleet(make_host(), make_host("h2", "failed")), Verdict.STUCK),
        (make_fleet(make_host("h1", "waiting"), make_host("h2", "failed")), Verdict.GOING),
        (make_fleet(make_host("h1", "failed"), rollout=Rollout(state=RolloutState.HALTED)), Verdict.HELD),
        (make_fleet(make_host(), rollout=Rollout(state=RolloutState.HALTED)), Verdict.DONE),
        (make_fleet(make_host("h1", "waiting"), freeze=Freeze(by="ann")), Verdict.HELD),
        (make_fleet(make_host("h1", "waiting"), freeze=Freeze(until="2020-01-01T00:00:00Z")), Verdict.GOING),
        (make_fleet(make_host("h1", "waiting"), fleet_rollout="v3-b"), Verdict.HELD),
        (make_fleet(make_host(), make_host("c1", "waiting", role=Role.CANARY, rollout="v1-7")), Verdict.DONE),
        (make_fleet(make_host(), make_host("h2", "waiting", alive=False), rollout=Rollout(done={"v2-a": "then"})), Verdict.DONE),
        (make_fleet(make_host("h1", "reverted"), make_host("h2", "broken")), Verdict.STUCK),
        (make_fleet(make_host("h1", "reverting"), make_host("h2", "broken")), Verdict.GOING),
        (make_fleet(CANARY, make_host("h2", "waiting"), spec=make_spec(canary_first=True)), Verdict.HELD),
        (
            make_fleet(CANARY, make_host("h2", "waiting"), spec=make_spec(canary_first=True, promotion=Promotion.AUTO)),
            Verdict.GOING,
        ),
        (
            make_fleet(CANARY, make_host("h2", "waiting"), spec=make_spec(canary_first=True), rollout=Rollout(promoted="v2")),
            Verdict.GOING,
        ),
        (
            make_fleet(make_host("c1", "waiting", role=Role.CANARY), make_host("h2"), spec=make_spec(canary_first=True)),
            Verdict.GOING,
        ),
    ],
)
def test_verdict_on_a_rollout(fleet, verdict):
    """Done is when every host that takes part is, or that is on record; a stop, a successor, a promotion that somebody has to
    order, or trouble everywhere else ends it too."""
    assert verdict is verdict_of(fleet, "v2-a", Role.FLEET)


def test_stop_says_who_and_why():
    """Of a freeze and a pause the freeze is told, since it stops more; one that has run out stops nothing."""
    paused = Rollout(state=RolloutState.PAUSED, by="ann", why="lunch")
    frozen = Freeze(by="bob", why="outage", until="2026-11-23T13:00:00Z")

    assert "" == stopped(make_record())
    assert "the rollout is paused by ann: lunch" == stopped(make_record(rollout=paused))
    assert "every service is frozen by bob until 2026-11-23T13:00:00Z: outage" == stopped(
        make_record(rollout=paused, freeze=frozen), NOW
    )
    assert "" == stopped(make_record(freeze=frozen), datetime(2026, 11, 23, 14, 0, tzinfo=UTC))
    assert "every service is frozen: no reason given" == stopped(make_record(freeze=Freeze()))


@pytest.mark.parametrize(
    ("moment", "words"),
    [
        ("2026-11-23T12:00:00Z", "0s"),
        ("2026-11-23T11:58:01Z", "119s"),
        ("2026-11-23T11:58:00+00:00", "2m"),
        ("2026-11-23T13:30:00+02:00", "30m"),
        ("2026-11-23T09:59:00Z", "2h"),
        ("2026-11-21T12:00:00Z", "2d"),
        ("2026-11-23T12:05:00Z", "0s"),
        ("yesterday", "yesterday"),
        ("2026-11-23T11:58:00", "2026-11-23T11:58:00"),
        ("", ""),
    ],
)
def test_moments_are_told_in_one_unit(moment, words):
    """A moment becomes how long ago it was; what is none, or has no zone, is shown as it is."""
    assert words == ago(moment, NOW)


def test_hosts_are_counted_in_the_order_of_a_bar():
    """States without hosts are left out, and what is done comes first."""
    counted = count([make_host("h1", "failed"), make_host("h2"), make_host("h3", "unpacking"), make_host("h4", "fetching")])

    assert [(HostState.CONVERGED, 1), (HostState.STAGING, 2), (HostState.FAILED, 1)] == list(counted.items())


def test_lines_are_printed_for_changes_alone(capsys):
    """In a pipe nothing is said twice: a line per step of a host, and one per stop of the rollout."""
    lines = Lines()
    halted = Rollout(state=RolloutState.HALTED, by="h2", why="over budget")
    moments = [
        make_fleet(make_host("h1", "waiting", reason="slots full")),
        make_fleet(make_host("h1", "waiting", reason="slots are full")),
        make_fleet(make_host("h1", "restarting")),
        make_fleet(make_host("h1", "restarting"), rollout=halted),
        make_fleet(make_host("h1", "converged")),
    ]

    for fleet in moments:
        lines.show(fleet, fleet.hosts)

    printed = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in capsys.readouterr().out.splitlines()]
    expected = [
        "web h1 waiting: slots full",
        "web h1 restarting",
        "web the rollout is halted by h2: over budget",
        "web goes on",
        "web h1 converged",
    ]
    assert expected == printed


def test_bars_have_a_line_per_state(capsys):
    """A bar is as long as its share of the hosts, and hosts that are not done follow with their reasons."""
    bars = Bars("v2")
    moments = [
        make_fleet(make_host("h1", "waiting", reason="slots full"), make_host("h2")),
        make_fleet(make_host("h1"), make_host("h2")),
    ]

    for fleet in moments:
        bars.show(fleet, fleet.hosts)

    expected = [
        "web v2  1 of 2 hosts  0s",
        f"  converged   {'█' * 20} 1",
        f"  waiting     {'█' * 20} 1",
        f"  h1  waiting  {ago('2026-11-23T11:59:00Z')}  slots full",
        "web v2  2 of 2 hosts  0s",
        f"  converged   {'█' * 40} 2",
    ]
    assert expected == capsys.readouterr().out.splitlines()


def test_following_ends_with_the_last_look(capsys):
    """A rollout that is not over when time is up is going on; one that is done ends the view at once."""
    going, done = make_fleet(make_host("h1", "waiting")), make_fleet(make_host())

    assert (Verdict.GOING, going) == follow([going, going], Lines(), rollout="v2-a", role=Role.FLEET)
    assert (Verdict.DONE, done) == follow([going, done, going], Lines(), rollout="v2-a", role=Role.FLEET)
    assert (Verdict.GOING, None) == follow([], Lines(), rollout="v2-a", role=Role.FLEET)


def test_trouble_that_passes_does_not_end_the_view():
    """A host that is blocked for a moment has not failed the rollout."""
    blocked, done = make_fleet(make_host("h1", "blocked")), make_fleet(make_host())

    assert Verdict.DONE is follow([blocked, blocked, done], Lines(), rollout="v2-a", role=Role.FLEET)[0]


@pytest.mark.parametrize(
    ("instances", "ready"),
    [
        ([], ""),
        (["stale healthy", "stale healthy"], "2/2"),
        (["stale healthy", "stale unhealthy"], "1/2"),
        (["draining healthy", "restarting healthy", "warming healthy", "stale healthy"], "1/4"),
        (["returning healthy", "ready healthy", "ready unhealthy"], "2/3"),
        (["stale unknown"], "0/1"),
    ],
    ids=", ".join,
)
def test_ready_counts_the_instances_that_can_serve(instances, ready):
    """A host that waits with the old build is not out of service, and one whose instances are closed or sick is."""
    told = tuple(
        InstanceStatus(name=f"web@{number}", phase=line.split()[0], state="running", health=line.split()[1])
        for number, line in enumerate(instances)
    )
    entry = make_host(step="waiting")

    assert ready == ready_of(replace(entry, status=replace(entry.status, instances=told)))
