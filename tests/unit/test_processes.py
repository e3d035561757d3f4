from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployd_core.model import Flip
from deployd_core.processes import TOLERANCE, Place, judge, restarted_for

ROOT = Path("/srv/web")
PYTHON = "/usr/bin/python3.11"


def flip(build: str, when: float, boot: str = "now") -> Flip:
    return Flip(build=build, boot=boot, boot_time=when, at="2026-11-23T12:00:00Z")


def place(build: str) -> Place:
    return Place(cwd=f"/srv/web/releases/{build}", exe=PYTHON)


def serves(started: float, where: Place, *flips: Flip) -> str | None:
    return judge(started, where, ROOT, flips, "now")[0]


def why(started: float, where: Place, *flips: Flip) -> str:
    return judge(started, where, ROOT, flips, "now")[1]


def test_process_in_the_current_release_started_after_the_flip_serves_it() -> None:
    """A process that started after the flip, in the release that was flipped to, serves that release."""
    assert serves(20, place("v2"), flip("v1", 1), flip("v2", 10)) == "v2"
    assert why(20, place("v2"), flip("v1", 1), flip("v2", 10)) == "cwd is in releases/v2, which was current when it started"


def test_process_started_before_the_flip_goes_on_serving_the_old_build() -> None:
    """A process that nobody restarted after a flip serves what was current when it started."""
    assert serves(5, place("v1"), flip("v1", 1), flip("v2", 10)) == "v1"


@pytest.mark.parametrize(
    ("started", "expected"),
    [(5, ""), (9.94, ""), (9.99, "v1-7"), (10.01, "v1-7"), (15, "v1-7"), (25, ""), (35, "v1-9")],
)
def test_a_restart_is_known_by_the_last_flip_before_the_process(started: float, expected: str) -> None:
    """About the moment of the flip a process counts as fresh: the kernel tells its start a little early."""
    asked = msgspec.structs.replace(flip("v1", 10), rollout="v1-7")
    again = msgspec.structs.replace(flip("v1", 30), rollout="v1-9")

    assert expected == restarted_for(started, (flip("v1", 1), asked, flip("v2", 20), again), "now")


def test_a_process_of_this_boot_started_after_every_flip_of_another() -> None:
    """The machine was rebooted in the middle of a restart: everything is fresh."""
    assert "v1-7" == restarted_for(1, (msgspec.structs.replace(flip("v1", 99, boot="then"), rollout="v1-7"),), "now")


def test_process_that_moved_into_a_release_does_not_serve_it() -> None:
    """A reload that changes the directory of an older process proves nothing about the code that it runs."""
    flips = (flip("v1", 1), flip("v2", 10))
    assert serves(5, place("v2"), *flips) is None
    assert "v1 was current when it started" in why(5, place("v2"), *flips)
    assert "nothing shows that it serves v2" in why(5, place("v2"), *flips)


def test_process_of_the_first_visit_serves_a_build_that_came_back() -> None:
    """After v1, v2, v1, an instance that was never restarted in between serves v1: no restart is needed."""
    assert serves(5, place("v1"), flip("v1", 1), flip("v2", 10), flip("v1", 20)) == "v1"


def test_process_of_the_middle_visit_is_stale_after_a_rollback() -> None:
    """After v1, v2, v1, an instance that was restarted under v2 serves v2."""
    assert serves(15, place("v2"), flip("v1", 1), flip("v2", 10), flip("v1", 20)) == "v2"


@pytest.mark.parametrize("offset", [-0.04, -0.01, 0.0, 0.01, 0.04])
@pytest.mark.parametrize("build", ["v1", "v2"])
def test_either_build_is_believed_close_to_a_flip(build: str, offset: float) -> None:
    """Within the granularity of start times, the directory decides between the two builds around a flip."""
    assert serves(10 + offset, place(build), flip("v1", 1), flip("v2", 10)) == build


def test_flips_of_an_earlier_boot_come_before_every_process() -> None:
    """Seconds since another boot are not compared with those since this one."""
    assert serves(5, place("v1"), flip("v1", 90_000, boot="earlier")) == "v1"
    assert serves(5, place("v1"), flip("v1", 1, boot="earlier"), flip("v2", 2, boot="earlier")) is None
    assert serves(5, place("v2"), flip("v1", 1, boot="earlier"), flip("v2", 90_000, boot="earlier")) == "v2"


def test_directory_alone_decides_without_flips() -> None:
    """A service that was there before the agent is believed by its directory."""
    assert serves(5, place("v1")) == "v1"
    assert "no flip is recorded" in why(5, place("v1"))


def test_process_older_than_the_record_is_believed_about_an_unrecorded_build() -> None:
    """An adopted instance serves the release it lives in, unless a recorded flip could have moved it there."""
    assert serves(5, place("v0"), flip("v1", 10)) == "v0"
    assert serves(5, place("v1"), flip("v1", 10)) is None
    assert "an unrecorded build was current when it started" in why(5, place("v1"), flip("v1", 10))


def test_compiled_executable_tells_the_build_of_a_daemon_in_the_root_directory() -> None:
    """The executable counts when the working directory is in no release."""
    assert serves(20, Place(cwd="/", exe="/srv/web/releases/v2/bin/server"), flip("v2", 10)) == "v2"


def test_working_directory_comes_before_the_executable() -> None:
    """When both lie in releases, the working directory decides."""
    assert serves(20, Place(cwd="/srv/web/releases/v2", exe="/srv/web/releases/v1/bin/server"), flip("v2", 10)) == "v2"


def test_deleted_directory_still_names_its_build() -> None:
    """A process whose release was removed under it is told by the path, and the removal is mentioned."""
    gone = Place(cwd="/srv/web/releases/v1/app (deleted)", exe=PYTHON)
    assert serves(5, gone, flip("v1", 1)) == "v1"
    assert "deleted" in why(5, gone, flip("v1", 1))


@pytest.mark.parametrize("cwd", ["/", "/srv/web", "/srv/web/releases", "/srv/web/shared", "/srv/website/releases/v1"])
def test_process_outside_every_release_serves_nothing_that_can_be_told(cwd: str) -> None:
    """A working directory beside the releases is no evidence, and the reason says how to start it instead."""
    assert serves(20, Place(cwd=cwd, exe=PYTHON), flip("v1", 1)) is None
    assert "start it with directory /srv/web/current" in why(20, Place(cwd=cwd, exe=PYTHON), flip("v1", 1))


def test_unreadable_process_asks_for_the_right_user() -> None:
    """A process of another user is not guessed at."""
    assert serves(20, Place(cwd=None, exe=None), flip("v1", 1)) is None
    assert "as root or as the user of the service" in why(20, Place(cwd=None, exe=None), flip("v1", 1))


builds = st.sampled_from(["v1", "v2", "v3"])
times = st.integers(min_value=0, max_value=50).map(float)


@given(order=st.lists(builds, max_size=6), moments=st.sets(times, min_size=6, max_size=6), started=times, living_in=builds)
def test_a_build_is_only_believed_where_the_process_lives(
    order: list[str], moments: set[float], started: float, living_in: str
) -> None:
    """Whatever was flipped when, the answer is the release that the process lives in, or nothing; and there is always a reason."""
    flips = tuple(flip(build, when) for build, when in zip(order, sorted(moments), strict=False))
    build, reason = judge(started, place(living_in), ROOT, flips, "now")
    assert build in (living_in, None)
    assert reason


@given(order=st.lists(builds, min_size=1, max_size=6), moments=st.sets(times, min_size=6, max_size=6), after=st.integers(0, 5))
def test_a_process_started_properly_is_always_recognised(order: list[str], moments: set[float], after: int) -> None:
    """A process started while a build is current, in its release, serves it, however many flips follow."""
    flips = tuple(flip(build, when) for build, when in zip(order, sorted(moments), strict=False))
    current = flips[after % len(flips)]
    assert serves(current.boot_time + TOLERANCE, place(current.build), *flips) == current.build
