"""How nodes are written and read: what a person types in zkCli, what an older or newer deployd wrote, and nonsense."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from deployd_core.coordination import Enabled, Failure, HostStatus, InstanceStatus, Membership, Permit, Rollout, RolloutState
from deployd_core.errors import ConfigError
from deployd_core.model import Role
from deployd_core.spec import InstancesTable, RestartTable, RolloutTable, ServiceSpec, ServiceTable
from deployd_core.units import Duration, Share, Size
from deployd_core.zookeeper import layout
from deployd_core.zookeeper.address import split_address
from deployd_core.zookeeper.answers import Stat

DIGEST = f"sha256:{'ab' * 32}"
SPEC = ServiceSpec(
    service=ServiceTable(root="/srv/web", keep_bytes=Size("3GB")),
    source={"url": "https://builds.example.com/{build}.tar.gz"},
    steps=({"use": "pip"},),
    instances=InstancesTable(
        count=2, pattern="web@{port}", first_port=8001, min_available=Share("50%"), restart_timeout=Duration("90s")
    ),
    restart=RestartTable(strategy="concurrency", options={"limit": "10%"}),
    rollout=RolloutTable(budget=Share(2)),
)
STAT = Stat(czxid=7, mzxid=8, version=0, owner=0, children=0, mtime=0.0)


def test_a_spec_survives_being_written_and_read() -> None:
    """Units, tables and absent keys come back as they were."""
    assert SPEC == layout.decode_spec("/x/spec", layout.encode(SPEC))


def test_a_spec_reads_like_the_file_it_came_from() -> None:
    """Units are text with a unit, and what is not set is not written."""
    written = json.loads(layout.encode(SPEC))

    assert ("3GB", "1m30s", "50%") == (
        written["service"]["keep_bytes"],
        written["instances"]["restart_timeout"],
        written["instances"]["min_available"],
    )
    assert "manager" not in written["instances"]


def test_keys_of_a_newer_deployd_are_ignored_when_reading() -> None:
    """Unknown keys at any depth do not hide the rest of a spec."""
    written = json.loads(layout.encode(SPEC))
    written["from_the_future"] = 1
    written["instances"]["also"] = {"x": 1}

    assert SPEC == layout.decode_spec("/x/spec", json.dumps(written).encode())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", None),
        (b"  \n", None),
        (b"2026.11.23-1\n", Enabled(build="2026.11.23-1")),
        (b'"v2"', Enabled(build="v2")),
        (b"42", Enabled(build="42")),
        (b'{"build": "v2"}', Enabled(build="v2")),
        (f'{{"build": "v2", "digest": "{DIGEST}", "by": "ann", "new": 1}}'.encode(), Enabled(build="v2", digest=DIGEST, by="ann")),
    ],
)
def test_enabled_is_an_object_or_a_bare_build_id(data: bytes, expected: Enabled | None) -> None:
    """What one types in zkCli does; nothing is nothing enabled."""
    assert expected == layout.decode_enabled("/x/enabled", data)


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[1]",
        b"a b",
        b"../etc",
        b'{"digest": "sha256:0"}',
        b'{"build": "v2", "digest": "md5:1"}',
        b"\xff\xfe",
        b'{"build": 3}',
    ],
)
def test_nonsense_in_enabled_is_named_with_its_node(data: bytes) -> None:
    """An error names the node, and its hint what to type."""
    with pytest.raises(ConfigError, match="/x/enabled") as caught:
        layout.decode_enabled("/x/enabled", data)

    assert "deployd enable" in caught.value.hint


@pytest.mark.parametrize(
    "decode", [layout.decode_spec, layout.decode_membership, layout.decode_rollout, layout.decode_freeze, layout.decode_status]
)
@pytest.mark.parametrize("data", [b"{", b"3", b'"x"', b"\xff", b"[]"])
def test_nonsense_is_named_with_its_node(decode: Callable[[str, bytes], object], data: bytes) -> None:
    """Whatever a node holds, reading it ends in a value or in an error that names the node."""
    with pytest.raises(ConfigError, match="/x/node"):
        decode("/x/node", data)


def test_empty_nodes_mean_their_defaults() -> None:
    """An empty membership is a fleet host, an empty rollout is open, an empty freeze is none."""
    assert Membership() == layout.decode_membership("/x", b"")
    assert Rollout() == layout.decode_rollout("/x", b"")
    assert layout.decode_freeze("/x", b"") is None


def test_a_rollout_survives_being_written_and_read() -> None:
    """Failures keep their hosts."""
    failure = Failure(rollout="v1-a", reason="no", at="2026-11-23T12:00:00Z")
    rollout = Rollout(state=RolloutState.HALTED, by="h1", why="1 host failed", failures={"h1": failure})

    assert rollout == layout.decode_rollout("/x", layout.encode(rollout))


def test_a_permit_is_the_node_whatever_it_holds() -> None:
    """The name of a permit's node is its host and its czxid the token, even if its data is broken."""
    whole = Permit(host="h1", zone="z1", rollout="v1-a", since="2026-11-23T12:00:00Z", nonce="n")

    assert ("h1", "z1", 7) == _facts(layout.decode_permit("/p/h1", layout.encode(whole), STAT))
    assert ("h2", "z1", 7) == _facts(layout.decode_permit("/p/h2", layout.encode(whole), STAT))
    assert ("h1", "", 7) == _facts(layout.decode_permit("/p/h1", b"{broken", STAT))


def _facts(permit: Permit) -> tuple[str, str, int]:
    return permit.host, permit.zone, permit.token


@pytest.mark.parametrize("instances", [1, 300, 5000])
@pytest.mark.parametrize("reason", ["", "r" * 100_000])
def test_a_report_is_never_too_large_for_a_node(instances: int, reason: str) -> None:
    """Details are dropped before a report grows beyond its limit; what the host does always stays."""
    status = HostStatus(
        host="h1",
        zone="z1",
        role=Role.FLEET,
        wanted="v2",
        served="v1",
        step="restarting",
        since="2026-11-23T12:00:00Z",
        last_error=reason,
        instances=tuple(
            InstanceStatus(name=f"web@{number}", phase="stale", serves="v1", state="running", health="healthy", reason=reason)
            for number in range(instances)
        ),
    )

    data = layout.encode_status(status)
    read = layout.decode_status("/x", data)

    assert len(data) <= layout.STATUS_LIMIT
    assert read is not None
    assert ("h1", "v2", "v1", "restarting") == (read.host, read.wanted, read.served, read.step)
    if instances < 5000:
        assert instances == len(read.instances)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("zk1:2181", ("zk1:2181", "/deployd")),
        ("zk1", ("zk1", "/deployd")),
        ("zk1:2181,zk2:2181/prod/deployd/", ("zk1:2181,zk2:2181", "/prod/deployd")),
        ("[::1]:2181/x", ("[::1]:2181", "/x")),
    ],
)
def test_an_address_is_hosts_and_a_chroot(address: str, expected: tuple[str, str]) -> None:
    """Without a chroot it is the default one."""
    assert expected == split_address(address)


@pytest.mark.parametrize("address", ["", "/deployd", "zk1:", "zk1:http", "zk1,,zk2", "zk1:99999"])
def test_what_is_no_address_is_refused(address: str) -> None:
    """A missing host or a wrong port is an error that shows how to write it."""
    with pytest.raises(ConfigError, match="host:port") as caught:
        split_address(address)

    assert "zk1:2181" in caught.value.hint
