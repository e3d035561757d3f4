"""Download, verify and unpack a build of about 200 MB, beside `curl | tar`: medians of interleaved runs in memory (/dev/shm).

    python bench/build_sync.py [ROUNDS]

Targets (wall): .tar.gz at most 0.6 times `curl | tar xz`, .tar.zst at most 1.3 times `curl | tar --zstd`. The shell's pipe verifies
nothing, keeps no archive to go on with after a break, and publishes half of what it was killed in; we do all three. Both fetch
from the same local server, and take turns at going first. Exits 1 past a target.

Then, on the disk of the temporary directory: what it costs to have a release on the disk before it is published, by one fsync for
each file and by one syncfs.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deployd_core.disk import sync_filesystem
from deployd_core.model import Build
from deployd_core.releases import ReleaseStore
from deployd_plugins.sources.http import HttpOptions, HttpSource

TARGETS = {"tar.gz": 0.6, "tar.zst": 1.3}
SHELL = {"tar.gz": "curl -sSf {url} | tar xz -C {into}", "tar.zst": "curl -sSf {url} | tar x --zstd -C {into}"}
PACK = {"tar.gz": "tar c -C {tree} . | gzip -6 > {archive}", "tar.zst": "tar c -C {tree} . | zstd -q -3 > {archive}"}
FILES = 8_500
BYTES = 640_000_000
SYNCED_FILES = 2_000


def make_tree(tree: Path) -> None:
    """Files as builds have them: many small ones, some big ones, some noise in each and the rest like text."""
    source = random.Random(1)
    sizes = [source.lognormvariate(0, 1.6) for _ in range(FILES)]
    scale = BYTES / sum(sizes)
    words = [source.randbytes(4).hex().encode() for _ in range(2_000)]
    for number, share in enumerate(sizes):
        size = int(share * scale)
        directory = tree / f"package{number % 90}" / f"part{number % 7}"
        directory.mkdir(parents=True, exist_ok=True)
        text = bytearray()
        while len(text) < size * 85 // 100:
            text += b" ".join(source.choices(words, k=8)) + b" = some_function_name(argument, other_argument)\n"
        (directory / f"file{number}").write_bytes(source.randbytes(size * 15 // 100) + text)


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """Serve a directory from another process, on a free port."""
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(directory), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().split(" port ")[1].split()[0]
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def timed(act: Callable[[], None]) -> tuple[float, float]:
    """Wall and CPU seconds, those of children included."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    act()
    return time.perf_counter() - wall, sum(os.times()[:4]) - cpu


def shell_run(command: str, into: Path) -> tuple[float, float]:
    """The shell's way."""
    into.mkdir()

    def sync() -> None:
        subprocess.run(["sh", "-c", command], check=True)

    taken = timed(sync)
    shutil.rmtree(into)
    return taken


def our_run(url: str, build: Build, root: Path) -> tuple[float, float]:
    """Our way."""
    store = ReleaseStore("web", root)
    store.prepare()
    source = HttpSource(HttpOptions(url=url))
    stop = threading.Event()

    def sync() -> None:
        store.fetch(build, source, timeout=10, stop=stop, progress=lambda _done, _total: None)
        store.unpack(build, stop=stop)

    taken = timed(sync)
    shutil.rmtree(root)
    return taken


def compare(place: Path, form: str, rounds: int) -> dict[str, float]:
    """Both, in turns."""
    archive = place / f"build.{form}"
    subprocess.run(["sh", "-c", PACK[form].format(tree=place / "tree", archive=archive)], check=True)
    build = Build(id="v1", digest="sha256:" + hashlib.sha256(archive.read_bytes()).hexdigest())
    shell: list[tuple[float, float]] = []
    ours: list[tuple[float, float]] = []
    with served(place) as base:
        url = f"{base}/{archive.name}"
        for number in range(rounds + 1):
            for mine in (True, False) if number % 2 else (False, True):
                if mine:
                    ours.append(our_run(url, build, place / "root"))
                else:
                    shell.append(shell_run(SHELL[form].format(url=url, into=place / "into"), place / "into"))
    result = {"MB": archive.stat().st_size / 1e6}
    archive.unlink()
    for name, runs in (("shell", shell[1:]), ("ours", ours[1:])):
        result[f"{name}_wall"] = statistics.median(wall for wall, _ in runs)
        result[f"{name}_cpu"] = statistics.median(cpu for _, cpu in runs)
    result["ratio"] = statistics.median(mine[0] / theirs[0] for mine, theirs in zip(ours[1:], shell[1:], strict=True))
    return result


def synced(one_by_one: bool) -> float:
    """Seconds to write files and have them on the disk."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        begin = time.perf_counter()
        for number in range(SYNCED_FILES):
            with (directory / str(number)).open("wb", buffering=0) as file:
                file.write(bytes(20_000))
        paths = list(directory.iterdir()) if one_by_one else []
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        if not one_by_one:
            sync_filesystem(directory)
        return time.perf_counter() - begin


def main() -> int:
    """Run, print a table and a line of JSON."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    missed = 0
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        place = Path(name)
        make_tree(place / "tree")
        for form, target in TARGETS.items():
            result = results[form] = compare(place, form, rounds)
            verdict = "ok" if result["ratio"] <= target else "MISSED"
            missed += verdict != "ok"
            print(
                f".{form:8} {result['MB']:4.0f} MB  curl | tar {result['shell_wall']:5.2f} s wall {result['shell_cpu']:5.2f} s CPU"
                f"  deployd {result['ours_wall']:5.2f} s wall {result['ours_cpu']:5.2f} s CPU"
                f"  ratio {result['ratio']:.2f}, target {target}: {verdict}"
            )
    each, once = ([synced(one_by_one) for _ in range(3)] for one_by_one in (True, False))
    results["sync"] = {"fsync_each": statistics.median(each), "syncfs": statistics.median(once)}
    costs = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in results["sync"].items())
    print(f"{SYNCED_FILES} files written to {tempfile.gettempdir()}: {costs}")
    print(json.dumps({"bench": "build_sync", "rounds": rounds, "results": results}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
