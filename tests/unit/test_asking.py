"""What a strategy is asked before a spec is written: whether it could restart anything at all."""

import msgspec
import pytest

from deployd_core.api import Options, Plan, Strategy
from deployd_core.asking import check_plan, refuse_impossible
from deployd_core.boundary import Bound, Provider
from deployd_core.config import set_up
from deployd_core.errors import ConfigError, PluginError
from deployd_core.plugins import Kind, Plugins
from deployd_core.spec import InstancesTable, RestartTable, ServiceSpec, ServiceTable

MANAGER = {"use": "command", "start": ["true"], "stop": ["true"], "status": ["true"]}


class Wary(Strategy[Options]):
    """Restart nothing in a small fleet."""

    name = "wary"

    def plan(self, view):
        return Plan(cycle=view.stale, why="all", impossible="" if view.fleet.hosts > 2 else "the fleet is too small")


class Curious(Strategy[Options]):
    """Restart nothing before it has looked at the host."""

    name = "curious"

    def plan(self, view):
        return Plan(cycle=view.stale, why="all", impossible="" if view.facts else "nobody has looked")

    def facts(self, host):
        return {"looked": True}


def refused(strategy, count, **options):
    """Why a spec with so many instances is refused; empty when it is not."""
    plugins = Plugins.load()
    for own in (Wary, Curious):
        plugins.add(Kind.STRATEGY, own)
    spec = ServiceSpec(
        service=ServiceTable(root="/srv/web"),
        source={"url": "file:///builds/{build}.tar.gz"},
        instances=InstancesTable(count=count, pattern="web@{port}", first_port=8001, manager=MANAGER),
        restart=RestartTable(strategy=strategy, options=options),
    )
    try:
        refuse_impossible(set_up(spec, "web", plugins), "web", where="web.toml", hint="mend it")
    except ConfigError as error:
        return f"{error.message} [{error.hint}]"
    return ""


@pytest.mark.parametrize(("returned", "said"), [(None, "returned no Plan: None"), ("all", "returned no Plan: 'all'")])
def test_what_a_strategy_returned_in_place_of_a_plan_is_shown(returned, said):
    """As Python writes it, to whoever writes Python."""
    provider = Provider(entry="mine", distribution="file", version="", origin="mine.py")

    with pytest.raises(PluginError) as caught:
        check_plan(Bound(Wary(Options()), "wary", provider), returned)

    assert f"strategy wary [mine (mine.py)] {said}" == caught.value.message


@pytest.mark.parametrize(
    ("strategy", "count", "floor", "why"),
    [
        ("concurrency", 4, 3, ""),
        ("concurrency", 4, 4, "min_available keeps 4 of 4 instances up, which leaves none to restart"),
        ("concurrency", 4, "75%", ""),
        ("concurrency", 4, "76%", "min_available keeps 4 of 4 instances up"),
        ("concurrency", 1, 1, ""),
        ("iptables-drain", 2, 1, ""),
        ("iptables-drain", 2, 2, "2 instances less 1 at a time leave 1, but min_available keeps 2: add instances"),
        ("iptables-drain", 3, "100%", "but min_available keeps 3"),
        (
            "iptables-drain",
            1,
            1,
            "1 instance less 1 at a time leaves 0, but min_available keeps 1: add instances, or lower",
        ),
        ("iptables-drain", 1, 0, ""),
    ],
)
def test_a_floor_of_the_strategy_that_leaves_none_is_refused(strategy, count, floor, why):
    """The spec says how many instances a host has: that none of them could be restarted is known before any host is asked."""
    said = refused(strategy, count, min_available=floor)

    assert bool(why) is bool(said)
    assert why in said
    assert not why or said.startswith(f"web.toml: [restart] strategy {strategy} could restart no instance: ")
    assert not why or said.endswith("[mend it]")


@pytest.mark.parametrize("strategy", ["wary", "curious"])
def test_what_only_a_host_can_tell_is_left_to_the_hosts(strategy):
    """Neither how many hosts there will be nor what a strategy finds on one is in a spec."""
    assert "" == refused(strategy, 2)


def test_a_service_without_instances_has_nothing_to_restart():
    """And that is no obstacle."""
    plugins = Plugins.load()
    spec = ServiceSpec(service=ServiceTable(root="/srv/web"), source={"url": "file:///builds/{build}.tar.gz"})
    options = msgspec.structs.replace(spec, restart=RestartTable(strategy="iptables-drain"))

    refuse_impossible(set_up(options, "web", plugins), "web", where="web.toml")
