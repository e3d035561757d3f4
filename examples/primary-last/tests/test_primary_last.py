"""The contract of strategies, and the order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from primary_last import PrimaryLast, PrimaryLastOptions

from deployd_core.api import HostCall, Unavailable
from deployd_core.testing import StrategyContract, host_view, virtual_fleet

PLAN = PrimaryLast(PrimaryLastOptions()).plan


class TestPrimaryHere(StrategyContract):
    """All that every strategy keeps to, on a host that has the primary."""

    strategy = PrimaryLast

    def facts(self, instances: Sequence[str]) -> Mapping[str, object]:
        return {"primary": instances[0] if instances else "web@9999"}


class TestPrimaryElsewhere(StrategyContract):
    """And on one that has replicas alone."""

    strategy = PrimaryLast

    def facts(self, instances: Sequence[str]) -> Mapping[str, object]:
        return {"primary": "db7@5432"}


def test_the_primary_goes_last() -> None:
    """However the spec orders the instances."""
    facts = {"primary": "web@8001"}

    assert PLAN(host_view("stale", "stale", "stale", facts=facts)).cycle == ("web@8002",)
    assert PLAN(host_view("stale", "ready", "stale", facts=facts)).cycle == ("web@8003",)
    assert PLAN(host_view("stale", "ready", "ready", facts=facts)).cycle == ("web@8001",)


def test_hosts_without_the_primary_are_served_first() -> None:
    """They ask for their permit with a higher number."""
    here = PLAN(host_view("stale", facts={"primary": "web@8001"}))
    elsewhere = PLAN(host_view("stale", facts={"primary": "db7@5432"}))

    assert elsewhere.priority > here.priority


def test_in_a_fleet_the_host_of_the_primary_goes_last() -> None:
    """But where it asks for its permit while nobody else waits: then it goes first, and holds nobody up."""
    facts = {"": {"primary": ""}, "host-3": {"primary": "web@8001"}}

    runs = [virtual_fleet(PrimaryLast, hosts=6, zones=1, facts=facts, seed=seed) for seed in range(10)]
    places = [run.order.index("host-3") for run in runs]

    assert {6} == {run.converged for run in runs}
    assert {0, 5} >= set(places)
    assert places.count(5) > 5


def test_while_nobody_knows_the_primary_nothing_is_touched() -> None:
    """The host is blocked, with the reason."""
    plan = PLAN(host_view("stale", "stale"))

    assert plan.cycle == ()
    assert plan.impossible == "nobody says which instance is the primary"


def test_the_command_is_asked(tmp_path: Path) -> None:
    """What it prints is the primary; when it fails, that is said."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "primary").write_text("web@8002\n")
    host = HostCall(service="db", host="h1", zone="a", root=tmp_path, timeout=5.0)

    assert PrimaryLast(PrimaryLastOptions()).facts(host) == {"primary": "web@8002"}
    with pytest.raises(Unavailable, match="nobody says which instance is the primary"):
        PrimaryLast(PrimaryLastOptions(primary=("false",))).facts(host)
