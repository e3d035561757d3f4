"""`deployd strategies simulate --service`: what an enable would do to a service as ZooKeeper has it, which is left as it was."""

import json

import pytest

from deployd_core import rollouts
from deployd_core.model import Role

pytestmark = pytest.mark.zookeeper

HOSTS = ("h1", "h2", "h3", "h4")


@pytest.fixture
def web(desk):
    """A service of four live hosts, one at a time, that all serve v1."""
    desk.apply(*HOSTS)
    for build in ("v1", "v2"):
        desk.build(build)
    enable(desk, "v1")
    desk.finish(*HOSTS)
    return desk


def enable(desk, build, **more):
    """Have a build enabled; the hosts report nothing."""
    rollouts.enable(desk.session, "web", build, f"sha256:{'1' * 64}", by="ann", **more)


def simulate(desk, *arguments, strategy="concurrency"):
    """Exit code, output and errors of a simulation of the service."""
    return desk.type("strategies", "simulate", strategy, "--service", "web", *arguments)


def shown(desk, *arguments):
    """What it says as JSON."""
    code, text, error = simulate(desk, *arguments, "--json")

    assert 0 == code, error
    return json.loads(text)


def tree(session, path=""):
    """Every node below one, with its data and version."""
    found = {}
    children = session.children(path or "/")
    for name in sorted(children.names if children else ()):
        below = f"{path}/{name}"
        node = session.get(below)
        found |= {below: (node.data, node.stat.version) if node else None} | tree(session, below)
    return found


def test_what_an_enable_will_do_is_told_for_the_hosts_there_are(web):
    """Hosts, instances and limits are those of the service, from the build they serve to the one that is named."""
    found = shown(web, "--build", "v2")

    assert ("web", 4, 8, "v1", "v2") == tuple(found[key] for key in ("service", "hosts", "instances", "before", "build"))
    assert ["v1 is enabled; 4 hosts serve v1"] == found["found"]
    assert ("converged", sorted(HOSTS)) == (found["shown"]["outcome"], sorted(found["shown"]["order"]))
    assert (1, 2) == (found["most_permits"], found["most_out"])


def test_zookeeper_is_left_as_it_was(web):
    """Not one node has been written, whatever is in the way."""
    web.die("h4")
    web.type("pause", "web", "--why", "lunch")
    before = tree(web.session)

    simulate(web, "--build", "v2", "--faults", "dead:1")

    assert "/services/web/hosts/h1" in before
    assert before == tree(web.session)


def test_a_freeze_holds_every_host(web):
    """Under a freeze no host begins, and who has frozen everything is said before all else."""
    web.type("freeze", "--by", "alice", "--until", "2099-12-27T08:00:00Z", "--why", "holidays")

    found = shown(web, "--build", "v2")

    assert "every service is frozen by alice until 2099-12-27T08:00:00Z: holidays" == found["found"][1]
    assert ("held", []) == (found["shown"]["outcome"], found["shown"]["order"])
    assert "frozen until 2099-12-27T08:00:00Z by alice: holidays" in found["shown"]["reason"]


def test_an_enable_opens_what_is_paused(web):
    """As the real one does: the pause is told, and the hosts go."""
    web.type("pause", "web", "--by", "bob", "--why", "lunch")

    found = shown(web, "--build", "v2")

    assert "the rollout is paused by bob: lunch (to enable a build opens it)" == found["found"][1]
    assert ("converged", 4) == (found["shown"]["outcome"], len(found["shown"]["order"]))


def test_a_dead_host_is_waited_for_and_takes_up_room(web):
    """With a limit of one host the dead one leaves no room: nobody gets a permit until it is excused."""
    web.die("h4")

    found = shown(web, "--build", "v2")

    assert "1 host is dead: h4" == found["found"][1]
    assert ("waiting", []) == (found["shown"]["outcome"], found["shown"]["order"])
    assert (2, 0.75) == (found["most_out"], found["lowest"])

    web.type("hosts", "excuse", "web", "h4", "--why", "gone for good")
    found = shown(web, "--build", "v2")

    assert "1 host is excused: h4" == found["found"][1]
    assert ("converged", ["h1", "h2", "h3"]) == (found["shown"]["outcome"], sorted(found["shown"]["order"]))


def test_a_dead_host_that_holds_a_permit_keeps_it(web):
    """Its permit is counted from the first moment on, and no other is handed out: also when it is excused, and so not down."""
    enable(web, "v2")
    web.take("h2")
    web.die("h2")
    web.type("hosts", "excuse", "web", "h2", "--why", "gone for good")

    found = shown(web, "--build", "v3")

    assert {"1 host is excused: h2", "1 permit is held: h2"} <= set(found["found"])
    assert ("waiting", [], 1) == (found["shown"]["outcome"], found["shown"]["order"], found["most_permits"])
    assert "h2 is dead: its agent does not run" == found["shown"]["reason"]


def test_hosts_begin_with_what_they_serve_and_not_with_what_is_enabled(web):
    """A host that serves the build already is left alone, whatever the `enabled` node says."""
    enable(web, "v2")
    web.finish("h3")

    back, on = shown(web, "--build", "v1"), shown(web, "--build", "v2")

    assert "v2 is enabled; 3 hosts serve v1, 1 host serves v2" == back["found"][0] == on["found"][0]
    assert (["h3"], "converged") == (back["shown"]["order"], back["shown"]["outcome"])
    assert (["h1", "h2", "h4"], "converged") == (sorted(on["shown"]["order"]), on["shown"]["outcome"])


def test_nothing_would_happen_only_where_every_host_serves_it(web):
    """What is enabled says nothing of that: v2 is enabled and all serve v1. Without a name the build is one that nobody knows."""
    enable(web, "v2")

    code, _, error = simulate(web, "--build", "v1")

    assert (1, True) == (code, "every host serves v1 already: nothing would happen" in error)
    assert "v2" == shown(web, "--build", "v2")["build"]
    assert "v3" == shown(web)["build"]


def test_canary_hosts_with_a_build_of_their_own_keep_it(web):
    """Enabling a build for the fleet leaves them alone."""
    rollouts.set_role(web.session, "web", "h1", Role.CANARY)
    enable(web, "v9", role=Role.CANARY)
    web.finish("h1")

    found = shown(web, "--build", "v2")

    assert "v1 is enabled, and v9 for the canary hosts; 3 hosts serve v1, 1 host serves v9" == found["found"][0]
    assert (["h2", "h3", "h4"], "converged") == (sorted(found["shown"]["order"]), found["shown"]["outcome"])


def test_a_build_that_fails_is_taken_back_to_what_the_fleet_had_completed(desk):
    """With `on_budget = "rollback"` the fleet ends with the build that ZooKeeper has on record as completed."""
    desk.apply(*HOSTS, more='[rollout]\nbudget = 0\non_budget = "rollback"\n')
    enable(desk, "v1")
    desk.finish(*HOSTS)

    found = shown(desk, "--build", "v2", "--faults", "bad-build:100%")

    assert "taken-back" == found["shown"]["outcome"]
    assert "budget" in found["shown"]["reason"]


def test_limits_that_enable_refuses_are_refused_here(desk):
    """A spec that leaves no host to restart is no rollout that waits."""
    desk.apply("h1", more="[rollout]\nmin_available = 1\n")

    code, _, error = simulate(desk, "--build", "v2")

    assert (1, True) == (code, "leaves none to restart" in error)


def test_a_service_that_is_not_there_is_named(web):
    """Which services there are is said instead."""
    code, _, error = web.type("strategies", "simulate", "concurrency", "--service", "wbe")

    assert (1, True) == (code, "known: web" in error)


def test_a_freeze_is_over_at_a_time_after_it(web):
    """`--at` is the time by which stops and windows are judged; without it that is now."""
    web.type("freeze", "--by", "alice", "--until", "2099-12-27T08:00:00Z", "--why", "holidays")

    found = shown(web, "--build", "v2", "--at", "2099-12-28T08:00:00Z")

    assert ("2099-12-28T08:00:00Z", 1, "converged") == (found["at"], len(found["found"]), found["shown"]["outcome"])
