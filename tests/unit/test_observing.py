"""What a host can go back to, from what lies on its disk."""

from __future__ import annotations

from typing import Any

import pytest

from deployd_core.config import set_up
from deployd_core.coordination import Enabled, Membership, Snapshot
from deployd_core.model import Build, Flip
from deployd_core.observing import stand
from deployd_core.plugins import Plugins, convert
from deployd_core.releases import Disk, ReleaseInfo
from deployd_core.spec import ServiceSpec

SPEC: dict[str, Any] = {
    "service": {"root": "/srv/web"},
    "source": {"url": "file:///builds/{build}.tar.gz"},
    "steps": [{"use": "command", "argv": ["true"]}],
}
SETUP = set_up(convert(SPEC, ServiceSpec, where="test"), "web", Plugins.load())
DONE = frozenset(SETUP.step_markers)


def release(build: str, steps: frozenset[str] = DONE, at: str = "2026-01-02") -> ReleaseInfo:
    return ReleaseInfo(build=Build(id=build, digest="sha256:" + "a" * 64), steps=steps, size=1, published_at=at)


def last_good(*releases: ReleaseInfo, good: tuple[str, ...], flipped: str = "") -> str | None:
    flips = (Flip(build="v1", boot="b", boot_time=1.0, at=flipped),) if flipped else ()
    disk = Disk(
        releases={info.build.id: info for info in releases},
        current=None,
        fetched=frozenset(),
        good=good,
        flips=flips,
        problem="",
    )
    snapshot = Snapshot(service="web", host="h1", spec=None, membership=Membership(), enabled=Enabled(build="v3"), rollout_id="r")
    return stand(snapshot, SETUP, disk, digest=None).last_good


@pytest.mark.parametrize(
    ("releases", "good", "expected"),
    [
        ([release("v1"), release("v2"), release("v3")], ("v2", "v1"), "v2"),
        ([release("v1"), release("v2"), release("v3")], ("v3", "v1"), "v1"),
        ([release("v1"), release("v3")], ("v2", "v1"), "v1"),
        ([release("v1"), release("v2", steps=frozenset()), release("v3")], ("v2", "v1"), "v1"),
        ([release("v2"), release("v3")], (), None),
        ([release("v3")], ("v3", "v2"), None),
    ],
    ids=["the newest", "not the wanted one", "one that is there", "one whose steps have run", "none was good", "none is there"],
)
def test_a_host_goes_back_to_the_newest_good_release_that_can_serve_at_once(releases: Any, good: Any, expected: Any) -> None:
    """It was good here, it is on the disk, and nothing has to be done to it any more."""
    assert expected == last_good(*releases, good=good)


@pytest.mark.parametrize(("flipped", "expected"), [("2026-01-03", "v1"), ("2026-01-01", None)])
def test_a_release_that_has_served_is_complete_whatever_steps_the_spec_names_now(flipped: str, expected: str | None) -> None:
    """New steps came with the new build; only one that was unpacked again since it last served may be half-made."""
    assert expected == last_good(release("v1", steps=frozenset({"01-old"})), good=("v1",), flipped=flipped)
