"""The promise: eight instances go from v1 to v2 under load, and no client notices. Real everything, in a network namespace."""

from __future__ import annotations

import pytest

from deployd_core.testing.rolling import Rolled, Scenario, roll

pytestmark = [pytest.mark.zookeeper, pytest.mark.root]

FOUR = "instances_at_once = 4"
"""nginx with its defaults comes back to an instance only after 10 s: four at a time are two such waits, and not eight."""


def unnoticed(rolled: Rolled, *, instances: int = 8) -> None:
    """Hold a roll to the promise; on failure show what was lost and when, and the agent's log."""
    story = f"{rolled}\n{rolled.log[-6000:]}"
    assert [] == rolled.load.failures, story
    assert (0, []) == (rolled.cut, rolled.broken), story
    assert [] == [event for event in rolled.events if event["name"] == "instance.cut"], story
    assert set(rolled.load.builds) == {"v1", "v2"}, story
    assert set(rolled.after.builds) == {"v2"}, story
    assert rolled.lives == 2 * instances, story


@pytest.mark.parametrize(
    ("gate", "keep_alive"), [("iptables", 0), ("iptables", 64), ("nftables", 64)], ids=["no pool", "pool", "nftables, pool"]
)
def test_nginx(gate: str, keep_alive: int) -> None:
    """Behind nginx, nothing is lost: with connections to the instances that are pooled, and without."""
    unnoticed(roll(Scenario(balancer="nginx", keep_alive=keep_alive, gate=gate, options=FOUR)))


def test_haproxy_through_its_own_gate() -> None:
    """Behind HAProxy that pools connections, its own gate loses nothing."""
    unnoticed(roll(Scenario(balancer="haproxy", gate="haproxy")))


def test_haproxy_that_closes_through_iptables() -> None:
    """Behind HAProxy with `option http-server-close`, iptables loses nothing.

    It has health checks, as HAProxy should: without them it goes on to try instances that refuse, and gives up after three.
    """
    unnoticed(roll(Scenario(balancer="haproxy", close=True, check=True, gate="iptables")))


def test_balancer_and_clients_on_another_host() -> None:
    """Behind a balancer in another network namespace, nothing is lost."""
    unnoticed(roll(Scenario(balancer="nginx", keep_alive=64, remote=True, gate="iptables", options=FOUR)))


def test_clients_that_connect_directly() -> None:
    """Clients in another namespace that choose an instance by themselves, and another one when it refuses, lose nothing."""
    unnoticed(roll(Scenario(balancer="none", remote=True, gate="iptables", options=FOUR)))


def test_two_instances() -> None:
    """With two instances behind nginx's defaults the second goes when nginx really uses the first again: nothing is lost."""
    unnoticed(roll(Scenario(instances=2, clients=20, gate="iptables", options="instances_at_once = 1")), instances=2)


def test_same_load_on_all_at_once_is_noticed() -> None:
    """The load can tell: all at once, requests fail and are cut in flight."""
    rolled = roll(Scenario(balancer="nginx", drained=False))

    assert rolled.load.failures
    assert rolled.cut
    assert rolled.broken
