"""Many runs of a scenario, spread over processes: each run is one seed's alone, so how many there are changes no run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager

from deployd_core.plugins import Plugins
from deployd_core.simulate.runner import Run, simulate
from deployd_core.simulate.scenario import Scenario

_AHEAD = 4
"""Seeds for each process that wait for it to be free: memory stays bounded however many there are."""


def cores() -> int:
    """How many processes can run at a time here."""
    return len(os.sched_getaffinity(0))


def simulate_seeds(
    scenario: Scenario, plugins: Callable[[], Plugins], seeds: Sequence[int], *, jobs: int = 1
) -> Generator[Run, None, None]:
    """Run a scenario once from each seed, in the order of the seeds whichever is done first.

    Whoever stops listening, or is interrupted, ends the processes with it.

    Args:
        scenario: What to run.
        plugins: Loads them; with more than one process it is called in each, and has to be picklable.
        seeds: One for each run.
        jobs: How many processes; with one there is none but ours.

    Raises:
        ConfigError: As `simulate` says.
        BrokenProcessPool: A process was killed.
    """
    if min(jobs, len(seeds)) < 2:
        loaded = plugins()
        for seed in seeds:
            yield simulate(scenario, loaded, seed)[0]
        return
    before = set(multiprocessing.active_children())
    # Not forked: the threads of a ZooKeeper session, and the locks that they hold, are nothing to inherit.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(seeds)), mp_context=context, initializer=_begin, initargs=(scenario, plugins))
    try:
        yield from _in_order(pool, seeds, jobs * _AHEAD)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()  # what it is at is of no use any more


def _in_order(pool: ProcessPoolExecutor, seeds: Sequence[int], ahead: int) -> Iterator[Run]:
    pending: deque[Future[Run]] = deque()
    for seed in seeds:
        with _uninterrupted():
            pending.append(pool.submit(_run, seed))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Have processes that begin meanwhile never hear of a Ctrl-C, which a terminal sends to all: we end them. Ours comes later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Process:
    """What a process of the pool runs all its seeds with."""

    scenario: Scenario
    plugins: Plugins


def _begin(scenario: Scenario, plugins: Callable[[], Plugins]) -> None:
    # A pool's processes wait for ever when the one that they work for is killed.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _Process.scenario, _Process.plugins = scenario, plugins()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(seed: int) -> Run:
    return simulate(_Process.scenario, _Process.plugins, seed)[0]
