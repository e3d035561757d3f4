"""The cycle behind a gate: what the planner does at the moments that matter, and what the engine makes of what it sees."""

import msgspec
import pytest

from deployd_core.acts import CloseGate, CloseIdle, OpenGate, RecordFailure, Restart
from deployd_core.contracts import AtDeadline, ClosedGate, Connections, Verdict
from deployd_core.errors import Unavailable
from deployd_core.model import Health, Instance, PermitView, Phase, Plan, ProcessId, State
from deployd_core.observation import Drain, InstanceFacts, Observation, Rules, Setback, Staging
from deployd_core.planner import HostStep, plan_host
from deployd_core.sightings import Sighting, Watch, unseen
from deployd_core.units import Share

NAME = "web@8001"
QUIET = Connections(busy=0, idle=0)
BUSY = Connections(busy=2, idle=3)
US = "h1/10/5.00"


def instance(name=NAME, **changes):
    """An instance of the old build, healthy and open."""
    facts = InstanceFacts(
        name=name,
        looked=True,
        state=State.RUNNING,
        running=True,
        serves="v1",
        health=Health.HEALTHY,
        streak=5,
        healthy_since=0.0,
        healthy_until=99.0,
        evidence="cwd is in releases/v1",
    )
    return msgspec.structs.replace(facts, **changes)


def closed(name=NAME, **changes):
    """One whose gate we have closed."""
    return instance(name, **{"gate_closed": True, "lease_left": 100.0, "connections": QUIET, **changes})


def fresh(name=NAME, **changes):
    """One that serves the new build."""
    return instance(name, **{"serves": "v2", "ordered": True, **changes})


def observe(*instances, drain=None, rules=None, **changes):
    """A host with a permit, in mid-roll, at the hundredth second."""
    drain = drain or Drain(settle=0.3, timeout=30.0, traffic_timeout=15.0, lease=120.0)
    seen = Observation(
        now=100.0,
        service="web",
        host="h1",
        build="v2",
        digest="sha256:" + "a" * 64,
        staging=Staging(fetched=True, unpacked=True, on_disk_digest="sha256:" + "a" * 64),
        current="v2",
        instances=instances,
        rules=rules or Rules(drain=drain, healthy_timeout=60.0, stable_for=1.0),
        permit=PermitView(held=True),
    )
    return msgspec.structs.replace(seen, **changes)


def plan(*instances, **changes):
    """What the host does; the strategy would have every instance go."""
    return plan_host(observe(*instances, **changes), lambda view: Plan(cycle=view.stale, why="all"))


def phases(decision):
    """The phases of the instances."""
    return [view.phase for view in decision.instances]


def test_a_stale_instance_is_closed_first():
    """Nothing is restarted in front of its clients."""
    assert (CloseGate(NAME),) == plan(instance()).acts


def test_a_gate_that_is_being_closed_says_so():
    """While another program keeps the lock of the firewall, that is what the report says."""
    decision = plan(instance(), busy=frozenset({CloseGate(NAME).key}))

    assert [Phase.DRAINING] == phases(decision)
    assert "web@8001: its gate is being closed" == decision.reason


def test_it_is_restarted_when_nothing_was_in_flight_three_times_and_it_has_settled():
    """Quiet counts and the least time since the gate was closed: both."""
    waits = {"closed:web@8001": 99.0, "draining:web@8001": 99.0}

    assert (Restart(NAME),) == plan(closed(quiet=3), waits=waits).acts
    assert () == plan(closed(quiet=2), waits=waits).acts
    assert () == plan(closed(quiet=3), waits={**waits, "closed:web@8001": 99.9}).acts


def test_connections_that_clients_keep_open_are_closed():
    """A pooled connection may get a request at any time: it counts, and is closed."""
    decision = plan(closed(connections=BUSY))

    assert (CloseIdle(NAME),) == decision.acts
    assert "web@8001: 2 connections busy, 3 kept open by clients" == decision.reason


@pytest.mark.parametrize(
    ("policy", "acts"),
    [(AtDeadline.PROCEED, (Restart(NAME, cut=2),)), (AtDeadline.WAIT, (CloseIdle(NAME),))],
)
def test_at_the_deadline_of_the_drain(policy, acts):
    """Proceed restarts and says what it cuts; wait goes on waiting."""
    waits = {"draining:web@8001": 69.0}

    assert acts == plan(closed(connections=BUSY), drain=Drain(at_deadline=policy), waits=waits).acts


def test_a_drain_that_is_to_be_aborted_opens_the_gate_and_fails_the_host():
    """The old process serves on, at once and not only when ZooKeeper has taken the failure."""
    waits = {"draining:web@8001": 69.0}

    decision = plan(closed(connections=BUSY), drain=Drain(at_deadline=AtDeadline.ABORT), waits=waits)

    reason = "web@8001 was not drained after 30 s: 2 connections busy, 3 kept open by clients"
    assert (OpenGate(NAME), RecordFailure(reason=reason)) == decision.acts


def test_a_drain_that_was_aborted_does_not_begin_anew_while_its_failure_waits_to_be_recorded():
    """The gate is open again, and the failure stands."""
    drain = Drain(at_deadline=AtDeadline.ABORT)
    setbacks = {"recordfailure": Setback(reason="ZooKeeper is away", retry_at=200.0)}

    decision = plan(instance(), drain=drain, waits={"draining:web@8001": 60.0}, setbacks=setbacks)

    assert () == decision.acts
    assert "draining:web@8001" in decision.waits


def test_a_lease_is_renewed_while_the_instance_is_in_the_cycle():
    """At half its length, whatever the instance does: waits, restarts, gets healthy."""
    late = {"lease_left": 59.0, "quiet": 0, "connections": BUSY}

    assert CloseGate(NAME) in plan(closed(**late)).acts
    assert CloseGate(NAME) in plan(closed(**late), busy=frozenset({"restart:web@8001"})).acts
    assert CloseGate(NAME) in plan(fresh(gate_closed=True, lease_left=59.0, health=Health.UNHEALTHY, streak=0)).acts


def test_a_gate_is_never_closed_and_opened_at_once():
    """Of two acts under way on one gate nobody could say which came last."""
    healthy = fresh(gate_closed=True, lease_left=1.0)

    assert (OpenGate(NAME),) == plan(healthy).acts
    assert () == plan(healthy, busy=frozenset({"closegate:web@8001"})).acts
    assert () == plan(healthy, busy=frozenset({"opengate:web@8001"})).acts


def test_what_a_dead_agent_left_closed_is_taken_over_before_anything_else():
    """Somebody may open a gate whose owner is gone: it is made ours before the process behind it is restarted."""
    decision = plan(closed(gate_ours=False, quiet=9), waits={"closed:web@8001": 0.0})

    assert (CloseGate(NAME),) == decision.acts


def test_an_instance_that_is_being_closed_is_not_available():
    """Another one is not let in beside it below the floor."""
    rules = Rules(drain=Drain(), min_available=Share(1))

    decision = plan(instance(), instance("web@8002"), rules=rules, busy=frozenset({"closegate:web@8001"}))

    assert [Phase.DRAINING, Phase.STALE] == phases(decision)
    assert () == decision.acts


def test_clients_are_waited_for_until_the_deadline_that_is_told():
    """Whoever comes back at that very moment finds the wait over, however the two numbers were rounded."""
    opened = 4084.9451746712443
    waiting = plan(fresh(opened_at=opened), now=opened + 1)
    over = plan(fresh(opened_at=opened), now=waiting.deadline)

    assert [Phase.RETURNING] == phases(waiting)
    assert [Phase.READY] == phases(over)


def test_an_instance_counts_as_gone_until_its_clients_are_back():
    """The balancer may still think it down: with two instances and a floor of one, the other one waits."""
    rules = Rules(drain=Drain(traffic_timeout=15.0), min_available=Share(1), stable_for=1.0)
    other = instance("web@8002")

    away = plan(fresh(opened_at=95.0), other, rules=rules)
    back = plan(fresh(opened_at=95.0, traffic_back=True), other, rules=rules)
    night = plan(fresh(opened_at=84.0), other, rules=rules)

    assert [Phase.RETURNING, Phase.STALE] == phases(away)
    assert () == away.acts
    assert (CloseGate("web@8002"),) == back.acts == night.acts


def test_a_gate_that_was_lost_before_the_instance_can_serve_is_closed_again():
    """Its lease ran out, or somebody flushed the rules: clients are kept off a process that still starts."""
    starting = fresh(gate_lost=True, opened_at=99.0, health=Health.UNHEALTHY, streak=0, healthy_since=None)

    assert (CloseGate(NAME),) == plan(starting).acts


def test_a_gate_that_cannot_be_closed_fails_the_host_in_the_end():
    """Retries do not move the deadline: it runs from the first try."""
    setbacks = {"closegate:web@8001": Setback(reason="xtables lock is taken", retry_at=0.0)}

    decision = plan(instance(), waits={"draining:web@8001": 69.0}, setbacks=setbacks)

    assert "web@8001 was not drained after 30 s: xtables lock is taken" == decision.reason
    assert any(isinstance(act, RecordFailure) for act in decision.acts)


def test_a_gate_that_cannot_be_looked_at_blocks_the_host_before_the_permit():
    """Not root, no iptables: said at once, and nothing is disturbed."""
    decision = plan(instance(gate_problem="only root may change the firewall"), permit=PermitView())

    assert HostStep.BLOCKED is decision.step
    assert "web@8001: only root may change the firewall" == decision.reason
    assert () == decision.acts


def test_on_a_failed_host_what_cannot_serve_stays_closed_while_others_serve():
    """And what can serve is opened."""
    sick = fresh(gate_closed=True, lease_left=10.0, health=Health.UNHEALTHY, streak=0)
    others = (closed("web@8002"), instance("web@8003"))

    decision = plan(sick, *others, failure="web@8001 was not healthy")

    assert HostStep.BROKEN is decision.step
    assert {CloseGate(NAME), OpenGate("web@8002")} == set(decision.acts)


def test_a_failed_host_of_one_instance_lets_its_lease_run_out():
    """Nobody else serves: clients may as well try."""
    sick = fresh(gate_closed=True, lease_left=10.0, health=Health.UNHEALTHY, streak=0)

    assert () == plan(sick, failure="web@8001 was not healthy").acts


def test_a_build_that_is_superseded_in_mid_drain_opens_what_can_serve():
    """While the next build is fetched the old process serves; one that is still starting stays behind its gate."""
    starting = fresh("web@8002", gate_closed=True, lease_left=100.0, health=Health.UNHEALTHY, streak=0)

    decision = plan(closed(), starting, instance("web@8003"), build="v3", staging=Staging())

    assert HostStep.FETCHING is decision.step
    assert [OpenGate(NAME)] == [act for act in decision.acts if isinstance(act, OpenGate | CloseGate)]


def test_what_another_living_process_holds_closed_is_left_alone_until_it_is_needed():
    """A rehearsal goes on while nothing is deployed; a deploy takes the gate over."""
    held = closed(gate_ours=False, gate_held=True)

    assert () == plan_host(observe(msgspec.structs.replace(held, serves="v2"), good=True, permit=PermitView()), never).acts
    assert (CloseGate(NAME),) == plan(held).acts


def never(view):
    """A strategy that is not to be asked."""
    raise AssertionError(view)


def test_a_strategy_without_gates_opens_what_one_with_gates_left_closed():
    """The spec was changed in mid-drain."""
    assert (OpenGate(NAME),) == plan(closed(), rules=Rules()).acts


# What is seen.


def sighting(*, closed_by="", until=1000.0, connections=None, process=1, health=Verdict.healthy):
    """A look at an instance."""
    gate = ClosedGate(service="web", instance=NAME, owner=closed_by, until=until) if closed_by else None
    return Sighting(
        state=State.RUNNING,
        process=ProcessId(pid=process, started=float(process)),
        serves="v1",
        verdict=health(),
        closed=gate,
        connections=connections,
    )


@pytest.fixture
def watch():
    """A watch that has just begun."""
    return Watch(Instance.parse("web", NAME))


def look(watch, now, **what):
    """A look that took a hundredth of a second; what is known then."""
    watch.saw(sighting(**what), started=now - 0.01, ended=now)
    return watch.facts(0.0, US)


def test_quiet_counts_are_in_a_row_and_of_a_closed_gate(watch):
    """One count that finds something begins again; an open gate says nothing."""
    assert 0 == look(watch, 1.0, connections=QUIET).quiet
    assert [1, 2, 0, 1] == [
        look(watch, 2.0 + n, closed_by=US, connections=found).quiet for n, found in enumerate([QUIET, QUIET, BUSY, QUIET])
    ]


def test_one_request_does_not_bring_the_clients_back(watch):
    """It shows in the counts of one second; only what lasts longer is traffic."""
    watch.gate_opened(10.0)
    used = Connections(busy=0, recent=1)

    for n in range(11):
        facts = look(watch, 10.1 + n / 10, connections=used)
    assert not facts.traffic_back
    for n in range(6):
        facts = look(watch, 11.2 + n / 10, connections=used)
    assert facts.traffic_back


def test_one_request_is_enough_where_the_balancer_says_that_it_trusts_the_instance(watch):
    """Its word alone is not enough, and it holds until the gate is closed and opened again."""
    watch.gate_opened(10.0)
    assert not look(watch, 10.1, connections=Connections(busy=0, in_rotation=True)).traffic_back
    assert look(watch, 10.2, connections=Connections(busy=0, recent=1, in_rotation=True)).traffic_back

    watch.gate_opened(20.0)
    assert not look(watch, 20.1, connections=Connections(busy=0, recent=1)).traffic_back


def test_a_gate_that_opens_by_itself_is_noticed(watch):
    """Clients are waited for from then on, and the planner is told that it was lost."""
    look(watch, 1.0, closed_by=US)

    facts = look(watch, 2.0)

    assert facts.gate_lost
    assert 2.0 == facts.opened_at


def test_a_failed_look_says_nothing_of_the_gate(watch):
    """What is closed stays closed for all we know."""
    look(watch, 1.0, closed_by=US)

    watch.saw(unseen(Unavailable("the probe hangs")), started=1.5, ended=2.0)

    facts = watch.facts(0.0, US)
    assert facts.gate_closed
    assert "the probe hangs" == facts.gate_problem


def test_the_gate_is_known_while_the_process_is_being_restarted(watch):
    """Its lease goes on, and must be renewed, though nobody looks."""
    look(watch, 1.0, closed_by=US, until=100.0)

    watch.restarting(2.0)

    facts = watch.facts(40.0, US)
    assert facts.gate_closed
    assert 60.0 == facts.lease_left


def test_after_it_is_opened_an_instance_must_stay_healthy_again(watch):
    """What it did behind its gate is no proof of what it does in front of clients."""
    look(watch, 1.0, closed_by=US)
    look(watch, 2.0, closed_by=US)

    watch.gate_opened(3.0)

    facts = watch.facts(0.0, US)
    assert facts.looked
    assert 0 == facts.streak
    assert not facts.gate_closed


def test_a_gate_of_another_owner_is_not_ours(watch):
    """The planner takes it over in its own time."""
    assert not look(watch, 1.0, closed_by="h1/9/1.00").gate_ours
    assert look(watch, 2.0, closed_by=US).gate_ours
