"""`deployd strategies simulate --service`: spec and roster as a real ZooKeeper has them, which is left as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from deployd_core import rollouts
from deployd_core.cli.main import run
from deployd_core.model import Role
from deployd_core.plugins import convert
from deployd_core.spec import ServiceSpec
from deployd_core.zookeeper.chroot import ensure_chroot
from deployd_core.zookeeper.coordination import ZooKeeperCoordination
from deployd_core.zookeeper.session import Session, split_address

pytestmark = pytest.mark.zookeeper

SPEC = {
    "service": {"root": "/srv/web"},
    "source": {"url": "https://builds.example.com/{build}.tar.gz"},
    "instances": {"count": 3, "pattern": "web@{port}", "first_port": 8001, "manager": {"use": "systemd", "unit": "web@{port}"}},
    "restart": {"strategy": "concurrency", "options": {"limit": "100%", "limit_per_zone": 1}},
}


@pytest.fixture
def session(zookeeper: str) -> Iterator[Session]:
    """A session with a service of five hosts in two zones, one of them a canary, that serves a build."""
    with Session(*split_address(zookeeper)) as started:
        ensure_chroot(started)
        rollouts.apply_spec(started, "web", convert(SPEC, ServiceSpec, where="web"))
        for number in range(5):
            coordination = ZooKeeperCoordination(started, f"web-{number}", bool)
            coordination.join("web", "north" if number % 2 else "south")
            coordination.snapshot("web")
        rollouts.set_role(started, "web", "web-4", Role.CANARY)
        rollouts.enable(started, "web", "2026.11.23-1", f"sha256:{'1' * 64}", by="test")
        yield started


def tree(session: Session, path: str = "") -> dict[str, object]:
    """Every node below one, with its data and version."""
    found: dict[str, object] = {}
    children = session.children(path or "/")
    for name in sorted(children.names if children else ()):
        below = f"{path}/{name}"
        node = session.get(below)
        found |= {below: (node.data, node.stat.version) if node else None} | tree(session, below)
    return found


def test_what_an_enable_will_do_is_told_for_the_hosts_there_are(capsys, zookeeper: str, session: Session) -> None:
    """Hosts, zones, instances and limits are those of the service; from the build that is enabled to the one that is named."""
    command = ["strategies", "simulate", "concurrency", "--service", "web", "--build", "2026.11.24-1", "--zookeeper", zookeeper]
    before = tree(session)

    assert 0 == run([*command, "--json"])
    found = json.loads(capsys.readouterr().out)

    assert ("web", 5, 15, "2026.11.23-1", "2026.11.24-1") == tuple(
        found[key] for key in ("service", "hosts", "instances", "before", "build")
    )
    assert [f"web-{number}" for number in range(5)] == sorted(found["shown"]["order"])
    assert {"north", "south"} == set(found["lowest_by_zone"])
    assert (2, 6, 15) == (found["most_permits"], found["most_out"], found["shown"]["capacity"][-1][1])
    assert "/services/web/hosts/web-4" in before
    assert before == tree(session)


def test_a_service_that_is_not_there_is_named(capsys, zookeeper: str, session: Session) -> None:
    """Which services there are is said instead."""
    assert 1 == run(["strategies", "simulate", "concurrency", "--service", "wbe", "--zookeeper", zookeeper])

    assert "web" in capsys.readouterr().err
