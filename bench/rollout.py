"""A whole rollout on real agents: how much the coordination adds to the restarts, how soon agents act, what an idle one costs.

    python bench/rollout.py [HOSTS] [LIMIT]

Targets: the rollout takes at most 1.15 times HOSTS / LIMIT times what one restart takes when it is done by hand; from `enable` to
the agents' first action 50 ms (median); an idle agent at most 60 MB of memory and 0.2 % of a core. Everything is measured in one
run on one machine, which the agents, their supervisors, the services and ZooKeeper share. Exits 1 past a target.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
import tomllib
import urllib.request
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import psutil

import deployd_core.demo_app
from deployd_core import rollouts
from deployd_core.packing import pack
from deployd_core.plugins import Kind, Plugins, convert
from deployd_core.spec import ServiceSpec
from deployd_core.testing.fleet import Fleet, FleetHost
from deployd_core.testing.zookeeper import ZooKeeperServer, home_from_environment
from deployd_core.zookeeper.chroot import ensure_chroot
from deployd_core.zookeeper.session import Session

START_SECONDS = 1.0
PORT = 8001
ROUNDS = 5
IDLE_SECONDS = 20
TARGETS = {"rollout": 1.15, "first action, ms": 50.0, "idle RSS, MB": 60.0, "idle CPU, %": 0.2}


def main() -> int:
    """Measure, and print a table and a line of JSON."""
    hosts = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    limit = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    directory = Path(tempfile.mkdtemp(prefix="deployd-bench-"))
    try:
        with ZooKeeperServer(directory / "zookeeper", home=home_from_environment()) as server:
            measured = measure(directory, f"{server.address}/deployd", hosts, limit)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    missed = [name for name, target in TARGETS.items() if measured[name] > target]
    for name, target in TARGETS.items():
        print(f"{name:20} {measured[name]:8.2f}   target {target:g}   {'MISSED' if name in missed else 'ok'}")
    print(json.dumps(measured))
    return 1 if missed else 0


def measure(directory: Path, address: str, hosts: int, limit: int) -> dict[str, float]:
    """Roll, wait and look."""
    fleet = Fleet(directory / "fleet", address, {"web": [PORT]}, hosts=hosts, start_seconds=START_SECONDS, session_timeout="10s")
    builds = directory / "builds"
    builds.mkdir()
    servers, _, chroot = address.partition("/")
    session = Session(servers, f"/{chroot}")
    with fleet:
        session.start()
        ensure_chroot(session)
        spec = fleet.spec("web", builds, strategy="concurrency", options=f"limit = {limit}").replace("200ms", "0s")
        spec = spec.replace("healthy_after = 2", "healthy_after = 1")
        rollouts.apply_spec(session, "web", convert(tomllib.loads(spec), ServiceSpec, where="bench"))
        fleet.start()
        roll(session, fleet, builds, 0)
        rolls, actions, by_hand = [], [], []
        for number in range(1, ROUNDS + 1):
            by_hand.append(restart_by_hand(fleet))
            enabled = time.time()
            rolls.append(roll(session, fleet, builds, number))
            actions += [first_action(host, f"v{number}") - enabled for host in fleet.hosts.values()]
        idle = idle_cost(fleet)
        session.close()
    ideal = hosts / limit * statistics.median(by_hand)
    return {
        "hosts": hosts,
        "limit": limit,
        "restart by hand, s": statistics.median(by_hand),
        "rollout, s": statistics.median(rolls),
        "rollout": statistics.median(rolls) / ideal,
        "first action, ms": statistics.median(actions) * 1000,
        **idle,
    }


def roll(session: Session, fleet: Fleet, builds: Path, number: int) -> float:
    """Enable a build and wait until every host serves it; seconds from the one to the other."""
    build, source = f"v{number}", builds / f"v{number}"
    source.mkdir()
    shutil.copy(Path(deployd_core.demo_app.__file__).with_name("server.py"), source)
    (source / "VERSION").write_text(build)
    digest = pack(source, builds / f"web-{build}.tar.gz").digest
    began = time.perf_counter()
    rollouts.enable(session, "web", build, digest, by="bench")
    stop = threading.Event()
    for fleet_status in rollouts.watch_statuses(session, "web", stop):
        if len(fleet_status.hosts) == len(fleet.hosts) and all(entry.converged for entry in fleet_status.hosts):
            stop.set()
    seconds = time.perf_counter() - began
    if not all(answer(host) == build for host in fleet.hosts.values()):
        raise SystemExit(f"some host says that it serves {build}, and does not")
    return seconds


def answer(host: FleetHost) -> str:
    """What an instance answers; empty when it does not."""
    try:
        with urllib.request.urlopen(f"http://{host.address}:{PORT}/health", timeout=2) as response:
            return str(response.read().decode().strip())
    except OSError:
        return ""


def restart_by_hand(fleet: Fleet) -> float:
    """Seconds from `supervisorctl restart` to the first answer, with nothing of ours in between."""
    from deployd_core.api import InstanceCall
    from deployd_core.model import Instance

    host = next(iter(fleet.hosts.values()))
    options = {"url": host.supervisor.url, "program": f"web-{PORT}"}
    manager = Plugins.load().make(Kind.MANAGER, "supervisor", options, where="bench").plugin
    call = InstanceCall(
        service="web",
        host=host.name,
        zone=host.zone,
        root=host.directory,
        timeout=60,
        instance=Instance.parse("web", f"web@{PORT}"),
    )
    began = time.perf_counter()
    manager.restart(call)
    wait(lambda: bool(answer(host)), every=0.005)
    return time.perf_counter() - began


def first_action(host: FleetHost, build: str) -> float:
    """When an agent began to do something about a build."""
    for line in (host.directory / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["build"] == build and event["name"] == "host.fetching":
            return datetime.fromisoformat(event["at"]).timestamp()
    raise SystemExit(f"{host.name} never fetched {build}")


def idle_cost(fleet: Fleet) -> dict[str, float]:
    """Memory and CPU of agents that have nothing to do, with the interval of an agent.toml that says nothing of it."""
    for host in fleet.hosts.values():
        host.kill_agent(15)
        host.config.write_text(host.config.read_text().replace('observe_every = "2s"\n', ""))
        host.start_agent()
    time.sleep(5)
    agents = [psutil.Process(host.agent_pid) for host in fleet.hosts.values()]
    before = [sum(agent.cpu_times()[:2]) for agent in agents]
    time.sleep(IDLE_SECONDS)
    used = [sum(agent.cpu_times()[:2]) - start for agent, start in zip(agents, before, strict=True)]
    return {
        "idle RSS, MB": max(agent.memory_info().rss for agent in agents) / 1e6,
        "idle CPU, %": statistics.median(used) / IDLE_SECONDS * 100,
    }


def wait(condition: Callable[[], bool], *, every: float = 0.02, timeout: float = 300.0) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the fleet did not get there")
        time.sleep(every)


if __name__ == "__main__":
    sys.exit(main())
