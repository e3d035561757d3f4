"""Whatever dies on the way, the deploy ends as it would have ended: no step lost, none doubled."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from deployd_core import rollouts
from deployd_core.testing.zookeeper import ZooKeeperServer, home_from_environment

pytestmark = pytest.mark.zookeeper

KILL_AT_EVENT = '''
"""Dies once, by SIGKILL, when the host reports the step that the file `kill-at` of its directory names."""

import os
import pathlib
import signal

from deployd_core.api import hookimpl


@hookimpl
def deployd_event(event):
    order = pathlib.Path({directory!r}) / event.host / "kill-at"
    if order.exists() and order.read_text() == event.name:
        order.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
'''

KILL_IN_RESTART = '''
"""The supervisor manager, but the agent dies once between the stop and the start."""

import os
import signal

from deployd_core.api import hookimpl
from deployd_plugins.managers.supervisor import SupervisorManager


class Deadly(SupervisorManager):
    """Restart programs of supervisor, and die halfway the first time."""

    name = "deadly"

    def restart(self, call):
        self.stop(call)
        order = call.root.parent / "kill-in-restart"
        if order.exists() and order.read_text() == call.instance.name:
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        self.start(call)


@hookimpl
def deployd_managers():
    return [Deadly]
'''

STEP = """
[[steps]]
use = "command"
argv = ["/bin/sh", "-c", "echo ran >> {release}/prepared"]
"""


@pytest.mark.parametrize("step", ["fetching", "unpacking", "preparing", "waiting", "flipping", "restarting"])
def test_an_agent_killed_at_any_step_goes_on_where_it_was(deploy: Any, step: str) -> None:
    """Killed with -9 and started again, the agent converges; every step ran, and each instance was restarted once."""
    job = deploy({"web": [8001, 8002]}, hosts=1, agents=False)
    [host] = job.fleet.hosts.values()
    directory = str(job.fleet.directory)
    (job.fleet.plugins / "deadly.py").write_text(KILL_AT_EVENT.replace("{directory!r}", repr(directory)))
    job.apply("web", strategy="concurrency", options="instances_at_once = 1", extra=STEP)
    job.enable("web", "v1")
    host.start_agent()
    job.wait_converged("web", "v1")

    (host.directory / "kill-at").write_text(f"host.{step}")
    job.enable("web", "v2")
    assert host.wait_agent() == -9
    host.start_agent()
    job.wait_converged("web", "v2")

    assert {"v2"} == job.answers("web")
    assert job.starts("h1", "web", 8001) == ["v1", "v2"]
    assert job.starts("h1", "web", 8002) == ["v1", "v2"]
    assert "ran" in (host.directory / "web" / "current" / "prepared").read_text()
    assert job.session.children("/services/web/rollout/permits").names == ()


def test_an_agent_killed_between_stop_and_start_starts_the_instance(deploy: Any) -> None:
    """The instance is down when the agent comes back, and it is the agent that brings it up, on the new build."""
    job = deploy({"web": [8001]}, hosts=1, agents=False)
    [host] = job.fleet.hosts.values()
    (job.fleet.plugins / "deadly.py").write_text(KILL_IN_RESTART)
    text = job.fleet.spec("web", job.builds).replace('use = "supervisor"', 'use = "deadly"')
    job.apply("web", text=text)
    job.enable("web", "v1")
    host.start_agent()
    job.wait_converged("web", "v1")

    (host.directory / "kill-in-restart").write_text("web@8001")
    job.enable("web", "v2")
    assert host.wait_agent() == -9
    assert job.pids("web") == {"h1/web-8001": 0}
    host.start_agent()
    job.wait_converged("web", "v2")

    assert job.starts("h1", "web", 8001) == ["v1", "v2"]


@pytest.mark.parametrize("step", ["reverting", "reverted"])
def test_an_agent_killed_on_the_way_back_goes_on_where_it_was(deploy: Any, step: str) -> None:
    """A build fails, and the agent dies on the way back to the last good one: it gets there, and restarts nothing twice."""
    job = deploy({"web": [8001, 8002]}, hosts=1, agents=False)
    [host] = job.fleet.hosts.values()
    (job.fleet.plugins / "deadly.py").write_text(KILL_AT_EVENT.replace("{directory!r}", repr(str(job.fleet.directory))))
    job.apply("web", strategy="concurrency", options="instances_at_once = 1", healthy_timeout="3s")
    job.enable("web", "v1")
    host.start_agent()
    job.wait_converged("web", "v1")

    (host.directory / "kill-at").write_text(f"host.{step}")
    job.pack(
        "web",
        "v2",
        server=job.server.replace("do_GET(self) -> None:", "do_GET(self) -> None:\n        return self.send_error(503)"),
    )
    job.enable("web", "v2")
    assert host.wait_agent() == -9
    host.start_agent()
    job.wait("web", lambda found: found["h1"].step == "reverted", "reverted")

    assert {"v1"} == job.answers("web")
    assert job.starts("h1", "web", 8001) == ["v1", "v2", "v1"]
    assert job.starts("h1", "web", 8002) == ["v1"]
    assert job.session.children("/services/web/rollout/permits").names == ()
    assert b"was not healthy" in job.session.get("/services/web/rollout").data


@pytest.mark.parametrize("death", ["", "waiting", "flipping", "restarting", "web@8001", "web@8002"])
def test_a_restart_restarts_each_instance_once_whatever_dies(deploy: Any, death: str) -> None:
    """No new build: every instance has one new process, also when the agent is killed at a step, or between a stop and a start."""
    job = deploy({"web": [8001, 8002, 8003]}, hosts=1, agents=False)
    [host] = job.fleet.hosts.values()
    (job.fleet.plugins / "deadly.py").write_text(KILL_IN_RESTART)
    (job.fleet.plugins / "mortal.py").write_text(KILL_AT_EVENT.replace("{directory!r}", repr(str(job.fleet.directory))))
    text = job.fleet.spec("web", job.builds, strategy="concurrency", options="instances_at_once = 1")
    job.apply("web", text=text.replace('use = "supervisor"', 'use = "deadly"'))
    job.enable("web", "v1")
    host.start_agent()
    job.wait_converged("web", "v1")
    before = job.pids("web")

    if death:
        by_manager = "@" in death
        (host.directory / ("kill-in-restart" if by_manager else "kill-at")).write_text(death if by_manager else f"host.{death}")
    rollout = rollouts.restart(job.session, "web", by="test", why="a leak")
    if death:
        assert host.wait_agent() == -9
        host.start_agent()
    job.wait("web", lambda found: (found["h1"].rollout, found["h1"].step) == (rollout, "converged"), "restarted")

    assert {"v1"} == job.answers("web")
    assert [["v1", "v1"]] * 3 == [job.starts("h1", "web", port) for port in (8001, 8002, 8003)]
    assert not set(before.values()) & set(job.pids("web").values())
    assert job.session.children("/services/web/rollout/permits").names == ()


def test_a_host_that_died_with_its_permit_keeps_others_out_until_it_is_back(deploy: Any) -> None:
    """A permit outlives its agent: with a limit of one nobody else restarts, and the host goes on when its agent does."""
    job = deploy({"web": [8001]}, hosts=2, agents=False, session_timeout="2s")
    first, second = job.fleet.hosts.values()
    directory = str(job.fleet.directory)
    (job.fleet.plugins / "deadly.py").write_text(KILL_AT_EVENT.replace("{directory!r}", repr(directory)))
    job.apply("web", strategy="concurrency", options="limit = 1")
    job.enable("web", "v1")
    first.start_agent()
    job.wait_converged("web", "v1", hosts=["h1"])
    (first.directory / "kill-at").write_text("host.flipping")
    job.enable("web", "v2")
    assert first.wait_agent() == -9
    second.start_agent()

    job.wait("web", lambda found: (found.get("h2") and found["h2"].step) == "waiting", "waiting")
    time.sleep(4)  # longer than the session of the dead agent: what was ephemeral would be gone
    assert job.starts("h2", "web", 8001) == []
    assert "h1" in job.statuses("web")["h2"].reason
    first.start_agent()
    job.wait_converged("web", "v2")

    assert {"v2"} == job.answers("web")


def test_zookeeper_away_for_twenty_seconds_stops_and_doubles_nothing(deploy: Any, tmp_path: Path) -> None:
    """In mid-rollout ZooKeeper dies for 20 s: every instance goes on serving, none is restarted twice, and the rollout ends."""
    with ZooKeeperServer(tmp_path / "zookeeper", home=home_from_environment()) as server:
        job = deploy({"web": [8001, 8002]}, hosts=3, address=f"{server.address}/deployd")
        job.apply("web", strategy="concurrency", options="limit = 1\ninstances_at_once = 1")
        job.enable("web", "v1")
        job.wait_converged("web", "v1")

        job.enable("web", "v2")
        job.wait("web", lambda found: any(report.step == "restarting" for report in found.values()), "restarting")
        server.kill()
        until = time.monotonic() + 20
        serving = [len(_up(job)) for _ in iter(lambda: time.sleep(0.25) or time.monotonic() < until, False)]
        server.start()
        job.wait_converged("web", "v2")

        assert min(serving) >= 5, "at most the instance that was being restarted is away"
        assert serving[-1] == 6
        for name in job.fleet.hosts:
            assert job.starts(name, "web", 8001) == ["v1", "v2"]
            assert job.starts(name, "web", 8002) == ["v1", "v2"]


def _up(job: Any) -> list[str]:
    found = []
    for host in job.fleet.hosts:
        for port in (8001, 8002):
            try:
                found.append(job.answer(host, port))
            except OSError:
                continue
    return found
