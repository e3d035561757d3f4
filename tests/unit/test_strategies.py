"""The strategies that ship, asked as the core asks them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployd_core.api import Action, Health, HostView, InstanceView, Phase, Role, Share, State
from deployd_core.plugins import Kind, Plugins

PLUGINS = Plugins.load()
PHASES = st.lists(st.sampled_from(Phase), min_size=1, max_size=12)


def host(phases):
    """A host whose instances are in these phases."""
    return HostView(
        service="web",
        host="h1",
        zone="a",
        role=Role.FLEET,
        build="v2",
        instances=tuple(
            InstanceView(
                name=f"web@{8001 + n}", port=8001 + n, phase=phase, serves=None, state=State.RUNNING, health=Health.HEALTHY
            )
            for n, phase in enumerate(phases)
        ),
    )


def plan(strategy, phases, **options):
    """What a strategy wants for such a host."""
    return PLUGINS.make(Kind.STRATEGY, strategy, options, where="test").plugin.plan(host(phases))


@given(PHASES)
def test_all_at_once_lets_every_stale_instance_go(phases):
    """No instance waits for another, and no host for another."""
    wanted = plan("all-at-once", phases)

    assert host(phases).stale == wanted.cycle
    assert (None, None) == (wanted.limit.hosts, wanted.limit.per_zone)
    assert Action.RESTART is wanted.action


@given(PHASES, st.one_of(st.integers(1, 15), st.integers(0, 100).map(lambda n: f"{n}%")))
def test_concurrency_fills_its_window_and_no_more(phases, at_once):
    """In the cycle are never more than the window allows, and never fewer while something is stale."""
    view = host(phases)
    window = Share(at_once).at_most(len(phases))

    wanted = plan("concurrency", phases, instances_at_once=at_once)

    assert len(wanted.cycle) == max(len(view.cycling), min(window, len(view.cycling) + len(view.stale)))
    assert set(view.cycling) <= set(wanted.cycle) <= {*view.cycling, *view.stale}


@given(st.integers(1, 12), st.integers(1, 12))
def test_concurrency_gets_through_a_host(count, window):
    """Asked again after every instance that is done, it brings all of them through, the first of the spec first."""
    phases = [Phase.STALE] * count
    order = []

    for _ in range(count):
        going = [int(name.rpartition("@")[2]) - 8001 for name in plan("concurrency", phases, instances_at_once=window).cycle]
        for number in going:
            phases[number] = Phase.WARMING
        order.append(going[0])
        phases[going[0]] = Phase.READY

    assert [Phase.READY] * count == phases
    assert list(range(count)) == order


def test_concurrency_states_its_limits():
    """The limits of the options are those of the plan."""
    wanted = plan("concurrency", [Phase.STALE], limit=3, limit_per_zone="50%", min_available=1)

    assert (Share(3), Share("50%"), Share(1)) == (wanted.limit.hosts, wanted.limit.per_zone, wanted.min_available)


@pytest.mark.parametrize(
    ("limit", "hosts"), [(1, "on 1 host at a time"), (3, "on 3 hosts at a time"), ("10%", "on 10% of the hosts at a time")]
)
@pytest.mark.parametrize("strategy", ["concurrency", "iptables-drain"])
def test_why_tells_instances_from_hosts(strategy, limit, hosts):
    """A count of hosts is not told as a part of them."""
    why = plan(strategy, [Phase.STALE] * 4, limit=limit, instances_at_once=2).why

    assert why.startswith("2 of 4 instances of a host at a time, ")
    assert why.endswith(hosts)


@pytest.mark.parametrize("found", PLUGINS.of_kind(Kind.STRATEGY), ids=lambda found: found.name)
@given(phases=PHASES)
def test_a_strategy_is_pure(found, phases):
    """Asked twice, a strategy says the same, with one line of why, and never names an instance that is not there."""
    view = host(phases)
    strategy = found.plugin(found.plugin.options_type())

    first = strategy.plan(view)

    assert first == found.plugin(found.plugin.options_type()).plan(view) == strategy.plan(view)
    assert set(first.cycle) <= {instance.name for instance in view.instances}
    assert first.why
    assert "\n" not in first.why


@pytest.mark.parametrize("found", PLUGINS.of_kind(Kind.STRATEGY), ids=lambda found: found.name)
def test_a_host_that_is_done_is_left_alone(found):
    """With everything ready there is nothing to cycle."""
    assert () == found.plugin(found.plugin.options_type()).plan(host([Phase.READY] * 4)).cycle
