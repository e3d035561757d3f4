"""What a simulation costs, against the rollout that it simulates. Needs nothing.

    python bench/simulate.py [HOSTS]

All in CPU seconds of one core, and each target is a ratio. 200 hosts one at a time, their instances drained one after another:
100,000 times as fast as the rollout itself. 200 hosts with faults: a hundred seeds in one minute. Memory linear in hosts: what a
host takes in a fleet of HOSTS (10,000, or as many as asked for; 4 instances, 5 % at a time) is held against a fleet an eighth as
large, and so is the time, which has no target. Exits 1 past a target.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

from deployd_core.plugins import Plugins
from deployd_core.simulate.faults import parse_faults
from deployd_core.simulate.runner import Run, simulate
from deployd_core.simulate.scenario import Behaviour, Scenario, roster, spec_for

FASTER, MINUTE, LINEAR = 100_000, 1.0, 1.25
FAULTS = "crash:4,reboot:2,session:2,lost-answer:4,late-watch:2,failed-start:2,slow-start:2,flap:4,join:1,new-spec"
SEEDS = 10
SMALLER = 8


def main() -> int:
    """Measure, and print one line for each number."""
    hosts = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    plugins = Plugins.load()
    simulate(scenario("concurrency", 20, 2), plugins, 1)  # whatever is imported late

    one_by_one = scenario("iptables-drain", 200, 8, start=60.0, limit=1)
    result, seconds = timed(one_by_one, plugins, 1)
    faster = result.seconds / seconds
    line(
        f"200 hosts, one at a time: {result.seconds / 3600:.1f} h in {seconds:.2f} s",
        f"{faster:,.0f} times as fast",
        f"{FASTER:,}",
        faster >= FASTER,
    )

    wide = scenario("concurrency", 200, 4, limit="10%")
    rolled, quick = timed(wide, plugins, 1)
    line(
        f"200 hosts, 10 % at a time: {rolled.seconds / 60:.1f} min in {quick:.2f} s",
        f"{rolled.seconds / quick:,.0f} times as fast",
        "-",
        True,
    )

    faulty = scenario("concurrency", 200, 4, faults=FAULTS, limit="10%")
    each = [timed(faulty, plugins, seed) for seed in range(SEEDS)]
    mean = sum(spent for _, spent in each) / SEEDS
    minute = mean * 100 / 60
    broken = sum(len(run.broken) for run, _ in each)
    words = f"200 hosts with faults, {SEEDS} seeds, {broken} rules broken: {mean:.2f} s a seed"
    line(words, f"{minute:.2f} minutes for a hundred", MINUTE, minute <= MINUTE and not broken)

    small, large = alone(hosts // SMALLER), alone(hosts)
    memory, slower = (large[what] / large["hosts"] / (small[what] / small["hosts"]) for what in ("bytes", "seconds"))
    words = (
        f"{hosts} hosts, 4 instances each, 5 %: {large['seconds']:.1f} s, {large['bytes'] / 1e6:.0f} MB, {large['rounds']} plans"
    )
    line(words, f"{memory:.2f} times the memory of a host among {hosts // SMALLER}", LINEAR, memory <= LINEAR)
    line("", f"{slower:.2f} times its time", "-", True)
    ratios = {"faster": faster, "wide": rolled.seconds / quick, "minute": minute, "memory": memory, "slower": slower}
    print(json.dumps({"bench": "simulate", **ratios, "broken": broken, "large": large}))
    return 0 if faster >= FASTER and minute <= MINUTE and not broken and memory <= LINEAR else 1


def scenario(strategy: str, hosts: int, instances: int, *, faults: str = "", start: float = 20.0, **options: object) -> Scenario:
    return Scenario(
        spec=spec_for(strategy, options, instances),
        hosts=roster(hosts, 3),
        behaviour=Behaviour(start=start),
        faults=parse_faults(faults),
    )


def timed(what: Scenario, plugins: Plugins, seed: int) -> tuple[Run, float]:
    """A run, and the CPU seconds that it took."""
    began = time.process_time()
    return simulate(what, plugins, seed)[0], time.process_time() - began


def alone(hosts: int) -> dict[str, float]:
    """A large fleet in a process of its own, whose memory is then that of the fleet."""
    done = subprocess.run([sys.executable, "-P", __file__, "--alone", str(hosts)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def run_alone(hosts: int) -> None:
    plugins = Plugins.load()
    simulate(scenario("concurrency", 20, 4), plugins, 1)
    before = most_memory()
    result, seconds = timed(scenario("concurrency", hosts, 4, limit="5%"), plugins, 1)
    taken = most_memory() - before
    print(json.dumps({"hosts": hosts, "seconds": seconds, "bytes": taken, "rounds": result.rounds}))


def most_memory() -> int:
    """The most bytes that this process has had in memory. (`ru_maxrss` would count what its parent had.)"""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def line(what: str, figure: str, target: object, met: bool) -> None:
    print(f"{what:75} {figure}   (target {target})   {'ok' if met else 'MISSED'}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        run_alone(int(sys.argv[2]))
    else:
        sys.exit(main())
