"""How long `deployd strategies list` takes beside an empty Python: medians of interleaved runs.

    python bench/startup.py [ROUNDS]

Target: at most 2.5 times `python -c pass` plus 60 ms. Both keep their bytecode in a directory of this run, as an installed
program would, and the first round is not counted. Exits 1 past the target.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

RATIO = 2.5
EXTRA_MS = 60
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "deployd --version": [sys.executable, "-m", "deployd_core", "--version"],
    "deployd strategies list": [sys.executable, "-m", "deployd_core", "strategies", "list"],
    "deployd plugins list": [sys.executable, "-m", "deployd_core", "plugins", "list"],
}


def measure(argv: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU milliseconds of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    subprocess.run(argv, env=environment, stdout=subprocess.DEVNULL, check=True)
    wall = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall * 1000, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


def main() -> int:
    """Run, print a table and a line of JSON."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    wall: dict[str, list[float]] = {name: [] for name in COMMANDS}
    cpu: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as cache:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = cache
        for number in range(rounds + 1):
            for name, argv in COMMANDS.items():
                taken = measure(argv, environment)
                if number:
                    wall[name].append(taken[0])
                    cpu[name].append(taken[1])
    median = {name: statistics.median(values) for name, values in wall.items()}
    base = median["python -c pass"]
    for name, value in median.items():
        print(f"{name:26} {value:6.1f} ms wall  {statistics.median(cpu[name]):6.1f} ms CPU  {value / base:5.1f} x pass")
    limit = RATIO * base + EXTRA_MS
    listed = median["deployd strategies list"]
    verdict = "ok" if listed <= limit else "MISSED"
    print(f"target: strategies list <= {RATIO} x pass + {EXTRA_MS} ms = {limit:.1f} ms")
    print(f"        took {listed:.1f} ms, {listed / limit:.2f} of it: {verdict}")
    medians = {name: round(value, 1) for name, value in median.items()}
    print(json.dumps({"bench": "startup", "rounds": rounds, "ms": medians, "target_ms": round(limit, 1)}))
    return 0 if listed <= limit else 1


if __name__ == "__main__":
    sys.exit(main())
