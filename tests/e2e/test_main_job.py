"""The main job on a real fleet: enable a build in ZooKeeper, and every host serves it."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from deployd_core.model import Role

pytestmark = pytest.mark.zookeeper


def test_two_services_go_forth_and_back_on_three_hosts(deploy: Any) -> None:
    """Every instance of both services serves what was enabled, after one restart for each build, and the limit holds throughout."""
    job = deploy({"web": [8001, 8002], "api": [8101]}, hosts=3)
    job.apply("web", strategy="concurrency", options="limit = 1\ninstances_at_once = 1")
    job.apply("api", strategy="all-at-once")
    holders: list[int] = []
    done = threading.Event()

    def watch_permits() -> None:
        while not done.wait(0.005):
            children = job.session.children("/services/web/rollout/permits")
            holders.append(len(children.names) if children else 0)

    watcher = threading.Thread(target=watch_permits)
    watcher.start()
    try:
        for build in ("v1", "v2", "v1"):
            job.enable("web", build)
            job.enable("api", build)
            job.wait_converged("web", build)
            job.wait_converged("api", build)
            assert {build} == job.answers("web") | job.answers("api")
    finally:
        done.set()
        watcher.join()

    assert max(holders) == 1
    for host in job.fleet.hosts:
        assert job.starts(host, "web", 8001) == ["v1", "v2", "v1"]
        assert job.starts(host, "api", 8101) == ["v1", "v2", "v1"]


def test_what_is_right_already_is_not_restarted(deploy: Any) -> None:
    """Enabling the same build again, and restarting every agent, leaves every process as it is."""
    job = deploy({"web": [8001]}, hosts=2)
    job.apply("web")
    job.enable("web", "v1")
    job.wait_converged("web", "v1")
    before = job.pids("web")

    job.enable("web", "v1")
    for host in job.fleet.hosts.values():
        assert host.kill_agent(signal.SIGTERM) == 0
        host.start_agent()
    rollout = next(iter(job.statuses("web").values())).rollout
    job.wait("web", lambda found: all(report.step == "converged" for report in found.values()), "converged again")

    assert before == job.pids("web")
    assert rollout


def test_canary_hosts_go_first_and_the_others_stay(deploy: Any) -> None:
    """A canary build goes to canary hosts alone, and the fleet follows when it is enabled for all."""
    job = deploy({"web": [8001]}, hosts=3)
    job.apply("web")
    job.enable("web", "v1")
    job.wait_converged("web", "v1")
    from deployd_core import rollouts

    rollouts.set_role(job.session, "web", "h2", Role.CANARY)
    job.enable("web", "v2", role=Role.CANARY)
    job.wait_converged("web", "v2", hosts=["h2"])
    assert {"v2"} == job.answers("web", hosts=["h2"])
    assert {"v1"} == job.answers("web", hosts=["h1", "h3"])

    job.enable("web", "v2")
    job.wait_converged("web", "v2")
    assert {"v2"} == job.answers("web")
    assert job.starts("h2", "web", 8001) == ["v1", "v2"]


def test_a_newer_build_takes_over_in_mid_rollout(deploy: Any) -> None:
    """A build enabled while another rolls is what every host ends on."""
    job = deploy({"web": [8001]}, hosts=3)
    job.apply("web", strategy="concurrency", options="limit = 1")
    job.enable("web", "v1")
    job.wait_converged("web", "v1")

    job.enable("web", "v2")
    job.wait("web", lambda found: any(report.served == "v2" for report in found.values()), "one host on v2")
    job.enable("web", "v3")
    job.wait_converged("web", "v3")

    assert {"v3"} == job.answers("web")
    assert all(job.starts(host, "web", 8001)[-1] == "v3" for host in job.fleet.hosts)


def test_agents_that_start_before_anything_exists_wait_and_then_work(deploy: Any) -> None:
    """A service that is applied, and a build that is enabled, after the agents have started needs no restart of any agent."""
    job = deploy({"web": [8001]}, hosts=1)
    job.apply("web")
    job.enable("web", "v1")
    job.wait_converged("web", "v1")

    assert {"v1"} == job.answers("web")


def test_sighup_reads_agent_toml_again(deploy: Any) -> None:
    """A service added to agent.toml is followed after SIGHUP; a file that became wrong changes nothing and is logged."""
    job = deploy({"web": [8001], "api": [8101]}, hosts=1)
    [host] = job.fleet.hosts.values()
    text = host.config.read_text()
    host.kill_agent(signal.SIGTERM)
    host.config.write_text(text.replace('["web", "api"]', '["web"]'))
    host.start_agent()
    for service in ("web", "api"):
        job.apply(service)
        job.enable(service, "v1")
    job.wait_converged("web", "v1")
    assert job.statuses("api") == {}

    import os

    host.config.write_text("zone = 3")
    os.kill(host.agent_pid, signal.SIGHUP)
    job.wait("web", lambda found: "going on with the configuration as it was" in host.log(), "the error logged")
    host.config.write_text(text)
    os.kill(host.agent_pid, signal.SIGHUP)

    job.wait_converged("api", "v1")


def test_a_second_agent_of_one_host_is_refused(deploy: Any) -> None:
    """Two agents of one host name cannot work on the same directories: the second says who holds the lock, and ends."""
    import subprocess
    import sys

    job = deploy({"web": [8001]}, hosts=1)
    [host] = job.fleet.hosts.values()
    job.apply("web")
    job.enable("web", "v1")
    job.wait_converged("web", "v1")

    second = subprocess.run(
        [sys.executable, "-m", "deployd_core", "agent", "--config", str(host.config)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert second.returncode == 1
    assert f"an agent already runs for host h1: pid {host.agent_pid} holds" in second.stderr
