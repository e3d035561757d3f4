"""What the demo tells of a rollout, whatever its readings of the fleet have missed."""

import pytest

from deployd_core.coordination import Enabled, HostStatus, Permit
from deployd_core.demo_story import Story
from deployd_core.errors import RestartFailed
from deployd_core.model import Role
from deployd_core.rollouts import HostEntry

BEGINS, DONE = "restarts its instances", "serves v2"


def entry(host, step):
    """A host as a reading finds it, in that step of the rollout."""
    served = "v2" if step == "converged" else "v1"
    holds = step in ("restarting", "checking")
    return HostEntry(
        host=host,
        role=Role.FLEET,
        zone="a",
        alive=True,
        status=HostStatus(
            host=host, zone="a", role=Role.FLEET, served=served, step=step, since="", rollout="v2-1", reason="no answer"
        ),
        permit=Permit(host=host, rollout="v2-1", zone="a", since="", nonce="n") if holds else None,
        wanted=Enabled(build="v2"),
        rollout_id="v2-1",
    )


def told(*readings):
    """What is told after readings of several hosts, each a step by host."""
    story = Story("v2-1", "v2")
    news = []
    for reading in readings:
        news += story.news([entry(host, step) for host, step in reading.items()])
    return news


def test_an_end_is_told_before_the_beginning_that_it_made_possible():
    """A host gives its permit back before the next one gets it, and so it is told, whatever their names."""
    news = told({"h1": "waiting", "h3": "checking"}, {"h1": "restarting", "h3": "converged"})

    assert [("h3", BEGINS), ("h3", DONE), ("h1", BEGINS)] == news


def test_a_reading_that_has_missed_an_end_gives_way_to_the_next_one():
    """A reading is no snapshot: the end that a beginning shows to have come is told first, when it is seen."""
    news = told(
        {"h1": "checking", "h3": "waiting"}, {"h1": "checking", "h3": "restarting"}, {"h1": "converged", "h3": "restarting"}
    )

    assert [("h1", BEGINS), ("h1", DONE), ("h3", BEGINS)] == news


def test_one_that_was_held_back_and_is_done_is_told_from_its_beginning():
    """Both of its news come, after those of the host before it."""
    news = told({"h1": "waiting", "h3": "checking"}, {"h1": "restarting", "h3": "checking"}, {"h1": "converged", "h3": "converged"})

    assert [("h3", BEGINS), ("h3", DONE), ("h1", BEGINS), ("h1", DONE)] == news


def test_two_that_restart_at_once_are_told_all_the_same():
    """Were a limit of 1 broken, the story would show it."""
    both = {"h1": "restarting", "h2": "restarting"}

    assert [("h1", BEGINS), ("h2", BEGINS)] == told({"h1": "restarting", "h2": "waiting"}, both, both, both)


def test_nothing_is_told_twice():
    """A reading without a change has no news."""
    done = {"h1": "converged"}

    assert [("h1", DONE)] == told(done, done)


def test_a_host_that_fails_ends_the_story():
    """With its reason."""
    with pytest.raises(RestartFailed, match="h1 failed: no answer"):
        told({"h1": "failed"})
