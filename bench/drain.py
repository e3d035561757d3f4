"""What a roll costs that no client notices: its time, and the latency of the requests meanwhile. Needs root, nginx and HAProxy.

    python bench/drain.py

Eight instances go from v1 to v2 under 40 clients, in a network namespace. Time is held against the sum, over all instances, of what
cannot be saved: the wait that requests themselves impose (from the closing of the gate to the end of the last request on the old
process), and start-up and warm-up, both measured by hand. Latency is that of the requests that take 20 to 200 ms. Targets: 1.25
times the sum, and a p99 of 1.5 times what it was before the roll. A failed request or one that was cut fails the bench as well.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import deployd_core.testing
from deployd_core.testing.rolling import Rolled, Scenario, roll

SCENARIOS = {
    "HAProxy, its own gate, 2 at a time": Scenario(balancer="haproxy", gate="haproxy", before=6),
    "nginx, iptables, 4 at a time": Scenario(options="instances_at_once = 4", before=6),
    "nginx with a pool, iptables, 4 at a time": Scenario(keep_alive=64, options="instances_at_once = 4", before=6),
}
TIME, P99 = 1.25, 1.5
_CLOSING = re.compile(r"closing the gate of web@(\d+)")


def main() -> int:
    """Roll, and print one line for each scenario."""
    if os.geteuid() != 0:
        print("needs root, for a network namespace: left out")
        return 0
    start = by_hand()
    print(f"start-up and warm-up by hand: {start:.2f} s")
    measured = {}
    missed = False
    for name, scenario in SCENARIOS.items():
        rolled = roll(scenario)
        imposed = sum(waits(rolled).values())
        before, during = rolled.before.quick.latency(99), rolled.during.quick.latency(99)
        ratio = rolled.seconds / (imposed + scenario.instances * start)
        lost = len(rolled.load.failures) + rolled.cut
        bad = ratio > TIME or during / before > P99 or lost
        missed = missed or bool(bad)
        measured[name] = {"seconds": rolled.seconds, "imposed": imposed, "time": ratio, "p99": during / before, "lost": lost}
        print(
            f"{name:42} {rolled.seconds:5.1f} s, {imposed:4.1f} s of them for requests: {ratio:4.2f} (target {TIME}); "
            f"p99 {before * 1000:.0f} -> {during * 1000:.0f} ms: {during / before:4.2f} (target {P99}); "
            f"lost {lost} of {len(rolled.load.requests)}   {'MISSED' if bad else 'ok'}"
        )
    print(json.dumps(measured))
    return 1 if missed else 0


def waits(rolled: Rolled) -> dict[int, float]:
    """By port: seconds from the closing of its gate to the end of the last request on the old process."""
    wall = time.time() - time.monotonic()
    closed: dict[int, float] = {}
    for line in rolled.log.splitlines():
        entry = json.loads(line)
        found = _CLOSING.search(entry["event"])
        if found:
            closed.setdefault(int(found[1]), dt.datetime.fromisoformat(entry["timestamp"]).timestamp() - wall)
    last = dict.fromkeys(closed, 0.0)
    for request in rolled.load.requests:
        if request.build == "v1" and request.port in last:
            last[request.port] = max(last[request.port], request.at + request.seconds)
    return {port: max(0.0, last[port] - closed[port]) for port in closed}


def by_hand() -> float:
    """Seconds from the start of an instance to the end of its first request, with nothing of ours in between."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    server = Path(deployd_core.testing.__file__).with_name("load_server.py")
    with tempfile.TemporaryDirectory() as directory:
        release = Path(directory) / "releases" / "v1"
        release.mkdir(parents=True)
        (Path(directory) / "shared").mkdir()
        (release / "VERSION").write_text("v1")
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-S", "-E", str(server), str(port)], cwd=release)
        try:
            wait_for(port)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/work?ms=20", timeout=10) as answer:
                answer.read()
            return time.perf_counter() - began
        finally:
            process.kill()
            process.wait()


def wait_for(port: int) -> None:
    """Until something listens."""
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return


if __name__ == "__main__":
    sys.exit(main())
