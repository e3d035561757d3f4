"""What permits cost: many light hosts, each with a session of its own, that ask, restart for 50 ms and release, ten at a time.

    python bench/permits.py [ROUNDS]

Beside it kazoo's `Semaphore` recipe: the same work, in the same processes, on the same server. Medians of interleaved rounds; the
hosts are spread over several processes, since threads of one would measure Python. Targets for 200 hosts: in all at most 1.2 times
50 ms for each ten of them, and no slower than the recipe; at most 6 writes and 12 requests a host, as the server counts; from a
release to the next host's start 15 ms (median). Watch events a grant must not grow with the fleet, shown at 50, 200 and 800 hosts.
Then a holder is killed: the recipe gives its lease away while the host is half restarted, a permit stays. Exits 1 past a target.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kazoo.client import KazooClient
from msgspec.structs import replace

from deployd_core import rollouts
from deployd_core.coordination import AgentInfo, HostStatus, Permit, Snapshot
from deployd_core.model import FleetLimit
from deployd_core.spec import ServiceSpec, ServiceTable
from deployd_core.testing.zookeeper import ZooKeeperServer, home_from_environment
from deployd_core.units import Share
from deployd_core.zookeeper.coordination import ZooKeeperCoordination
from deployd_core.zookeeper.session import Session

RESTART = 0.05
HOSTS, LIMIT = 200, 10
SIZES = (50, 200, 800)
PROCESSES = 4
ROUNDS = 3
QUIET = 60.0
"""Session timeout, so long that no ping comes while something is measured: requests counted are requests made."""
BRIEF = 2.0
TARGETS = {"time": 1.2, "time, by kazoo's": 1.0, "writes a host": 6.0, "requests a host": 12.0, "release to start, ms": 15.0}
SPEC = ServiceSpec(service=ServiceTable(root="/srv/web"), source={"url": "file:///builds/{build}.tar.gz"})


def main() -> int:
    """Measure, and print tables and a line of JSON."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    directory = Path(tempfile.mkdtemp(prefix="deployd-bench-"))
    try:
        with ZooKeeperServer(directory / "zookeeper", home=home_from_environment()) as server:
            runs = [(measure(server, "permits", HOSTS), measure(server, "semaphore", HOSTS)) for _ in range(rounds)]
            by_size = {size: measure(server, "permits", size) for size in SIZES}
            kept = {kind: outlives_its_holder(server, kind) for kind in ("permits", "semaphore")}
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return report(runs, by_size, kept)


def report(runs: list[tuple[dict[str, float], ...]], by_size: dict[int, dict[str, float]], kept: dict[str, bool]) -> int:
    """Print what was measured; 1 past a target."""
    ours, theirs = ({key: statistics.median(run[which][key] for run in runs) for key in runs[0][which]} for which in (0, 1))
    measured = {**ours, "time, by kazoo's": statistics.median(our["time"] / their["time"] for our, their in runs)}
    missed = [name for name, target in TARGETS.items() if measured[name] > target]
    for name, target in TARGETS.items():
        verdict = "MISSED" if name in missed else "ok"
        print(f"{name:24} {measured[name]:8.2f}   target {target:g}   {verdict:6}   kazoo's Semaphore {theirs.get(name, 1):.2f}")
    for size, run in by_size.items():
        print(f"{size:4} hosts: {run['events a grant']:.2f} watch events a grant, {run['requests a host']:.2f} requests a host")
    if by_size[SIZES[-1]]["events a grant"] > 1.5 * by_size[SIZES[0]]["events a grant"]:
        missed.append("events a grant")
    print("a holder is killed: " + ", ".join(f"{kind} {'kept' if held else 'GIVEN AWAY'}" for kind, held in kept.items()))
    if not kept["permits"]:
        missed.append("kept")
    print(json.dumps({**measured, "semaphore": theirs, "by size": by_size, "kept": kept, "missed": missed}))
    return 1 if missed else 0


def measure(server: ZooKeeperServer, kind: str, hosts: int) -> dict[str, float]:
    """Have all hosts restart once."""
    chroot = f"/{kind}-{time.monotonic_ns()}"
    prepare(server, chroot)
    workers = [Worker(server, chroot, kind, range(first, hosts, PROCESSES)) for first in range(PROCESSES)]
    for worker in workers:
        worker.wait("ready")
    before = counters(server)
    began = time.monotonic()
    for worker in workers:
        worker.say("go")
    for worker in workers:
        worker.wait("done")
    after = counters(server)
    spans = [span for worker in workers for span in worker.result()]
    starts, releases = sorted(span[0] for span in spans), sorted(span[1] for span in spans)
    if len(spans) != hosts or most_at_once(spans) > LIMIT:
        raise SystemExit(f"{len(spans)} of {hosts} hosts restarted, {most_at_once(spans)} of them at once")
    return {
        "time": (releases[-1] - began) / (hosts / LIMIT * RESTART),
        "writes a host": (after["writes"] - before["writes"]) / hosts,
        "requests a host": (after["requests"] - before["requests"] - 2) / hosts,  # without our own questions
        "events a grant": (after["events"] - before["events"]) / hosts,
        "release to start, ms": 1000 * statistics.median(s - r for s, r in zip(starts[LIMIT:], releases, strict=False)),
    }


def outlives_its_holder(server: ZooKeeperServer, kind: str) -> bool:
    """Whether what a killed process held is still kept from others when its session has run out."""
    chroot = f"/{kind}-killed"
    prepare(server, chroot)
    holder = Worker(server, chroot, f"{kind}-hold", range(1))
    holder.wait("holding")
    holder.kill()
    other = Worker(server, chroot, f"{kind}-try", range(1, 2))
    other.wait("done")
    return not other.result()


def prepare(server: ZooKeeperServer, chroot: str) -> None:
    """Make the service, with a build enabled."""
    with Session(server.address, chroot) as session:
        rollouts.apply_spec(session, "web", SPEC)
        rollouts.enable(session, "web", "v1", f"sha256:{'0' * 64}", by="bench")


def most_at_once(spans: list[tuple[float, float]]) -> int:
    """How many of the spans overlapped."""
    moments = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    now = most = 0
    for _, change in moments:
        now += change
        most = max(most, now)
    return most


def counters(server: ZooKeeperServer) -> dict[str, int]:
    """Transactions, requests and fired watches, as the server counts them."""
    numbers = dict(line.split("\t") for line in server.ask("mntr").splitlines() if line.count("\t") == 1)
    zxid = next(line.split()[1] for line in server.ask("srvr").splitlines() if line.startswith("Zxid"))
    fired = [f"zk_sum_node_{what}_watch_count" for what in ("created", "deleted", "changed", "children")]
    return {
        "writes": int(zxid, 16),
        "requests": int(numbers["zk_packets_received"]),
        "events": sum(int(float(numbers[name])) for name in fired),
    }


class Worker:
    """A process with some of the hosts."""

    def __init__(self, server: ZooKeeperServer, chroot: str, kind: str, hosts: range) -> None:
        command = [sys.executable, __file__, "--worker", kind, server.address, chroot, json.dumps(list(hosts))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(self, word: str) -> None:
        assert self._process.stdin is not None
        print(word, file=self._process.stdin, flush=True)

    def wait(self, word: str) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line.strip() != word:
            raise SystemExit(f"a process with hosts said {line!r} where {word!r} was expected")

    def result(self) -> list[tuple[float, float]]:
        """When each of its hosts began, and when it released; the process ends."""
        assert self._process.stdout is not None
        spans = [(start, end) for start, end in json.loads(self._process.stdout.readline())]
        self.kill()
        return spans

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


class PermitHost:
    """A host that asks for permits, as the engine does it."""

    def __init__(self, address: str, chroot: str, name: str, session_timeout: float) -> None:
        self._limit = FleetLimit(hosts=Share(LIMIT if session_timeout == QUIET else 1))
        self._awake = threading.Event()
        self.session = Session(address, chroot, session_timeout=session_timeout)
        self._coordination = ZooKeeperCoordination(self.session, name, lambda _: self._awake.set())
        self.session.start(timeout=60)
        self._coordination.announce(AgentInfo(host=name, instance=name))
        self._coordination.join("web", "z1")
        self._coordination.report("web", status_of(self._coordination.snapshot("web")))

    def acquire(self, patience: float) -> bool:
        """Ask until it is granted, whenever there is news."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            self._awake.clear()
            answer = self._coordination.take_permit(self._coordination.snapshot("web"), self._limit)
            if isinstance(answer, Permit):
                return True
            self._awake.wait(max(0.0, deadline - time.monotonic()))
        return False

    def release(self) -> None:
        snapshot = self._coordination.snapshot("web")
        self._coordination.release_permit(snapshot, replace(status_of(snapshot), step="converged", served="v1"))


class SemaphoreHost:
    """A host that asks for a lease of kazoo's recipe."""

    def __init__(self, address: str, chroot: str, name: str, session_timeout: float) -> None:
        self._client: Any = KazooClient(address + chroot, timeout=session_timeout)
        self._client.start(timeout=60)
        self._lease = self._client.Semaphore("/leases", name, max_leases=LIMIT if session_timeout == QUIET else 1)

    def acquire(self, patience: float) -> bool:
        try:
            return bool(self._lease.acquire(timeout=patience))
        except Exception as error:
            if type(error).__name__ != "LockTimeout":
                raise
            return False

    def release(self) -> None:
        self._lease.release()


def status_of(snapshot: Snapshot) -> HostStatus:
    return HostStatus(
        host=snapshot.host,
        zone=snapshot.membership.zone,
        role=snapshot.membership.role,
        wanted="v1",
        step="waiting",
        since=datetime.now(UTC).isoformat(),
        rollout=snapshot.rollout_id,
    )


def work(kind: str, address: str, chroot: str, numbers: list[int]) -> None:
    """Be a process with hosts; see `Worker`."""
    kind, _, part = kind.partition("-")
    make: Callable[..., PermitHost | SemaphoreHost] = PermitHost if kind == "permits" else SemaphoreHost
    hosts = [make(address, chroot, f"h{number:04}", BRIEF if part else QUIET) for number in numbers]
    spans: list[tuple[float, float]] = []
    if part == "hold":
        print("holding" if hosts[0].acquire(10) else "refused", flush=True)
        sys.stdin.read()
    elif part == "try":
        # Long after the session of the one that was killed has run out.
        if hosts[0].acquire(3 * BRIEF):
            spans.append((0.0, 0.0))
        print("done", flush=True)
    else:
        live(hosts, spans)
    print(json.dumps(spans), flush=True)


def live(hosts: list[PermitHost | SemaphoreHost], spans: list[tuple[float, float]]) -> None:
    """Have every host restart once, when it is told to."""
    go = threading.Event()

    def restart(host: PermitHost | SemaphoreHost) -> None:
        go.wait()
        if not host.acquire(300):
            return
        start = time.monotonic()
        time.sleep(RESTART)
        spans.append((start, time.monotonic()))
        host.release()

    threads = [threading.Thread(target=restart, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.readline()
    go.set()
    for thread in threads:
        thread.join()
    print("done", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:5], json.loads(sys.argv[5]))
        os._exit(0)  # without closing the sessions one by one
    sys.exit(main())
