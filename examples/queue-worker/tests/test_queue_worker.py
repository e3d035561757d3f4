"""The contract of gates, with real workers that take real jobs."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from queue_worker import QueueWorker, QueueWorkerOptions, paused

from deployd_core.api import Gate
from deployd_core.testing import GateContract, LeaseContract, eventually


class Worker(threading.Thread):
    """Takes the jobs of its queue: files that say how many seconds they take; a job that is done has a file ``.done``."""

    def __init__(self, directory: Path, name: str) -> None:
        super().__init__(daemon=True)
        self.directory, self.instance = directory, name
        self.queue, self.jobs = directory / f"{name}.queue", directory / f"{name}.jobs"
        self.queue.mkdir()
        self.jobs.mkdir()
        self.asked = threading.Event()
        """Set when a job has been taken."""
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.wait(0.005):
            for job in [] if paused(self.directory, self.instance) else sorted(self.queue.glob("*.job")):
                taken = self.jobs / job.name
                taken.touch()
                seconds = float(job.read_text())
                job.unlink()
                self.asked.set()
                self.stopping.wait(seconds)
                (self.queue / f"{job.stem}.done").touch()
                taken.unlink()


class Producer:
    """Puts a job into a worker's queue; served means that it was done soon after."""

    count = 0

    def __init__(self, worker: Worker) -> None:
        self.queue = worker.queue

    def served(self, seconds: float = 0.0) -> bool:
        Producer.count += 1
        job = self.queue / f"{Producer.count}.job"
        aside = job.with_suffix(".new")
        aside.write_text(str(seconds))
        aside.replace(job)
        done = eventually(lambda: job.with_suffix(".done").exists(), seconds + 0.7)
        job.unlink(missing_ok=True)
        return done

    def close(self) -> None:
        """There is no connection."""


class TestQueueWorker(LeaseContract, GateContract):
    """All that every gate keeps to."""

    own_network = False
    hosts = ("127.0.0.1",)

    @contextmanager
    def started(self) -> Iterator[tuple[Gate[Any], Any]]:
        with tempfile.TemporaryDirectory() as name:
            self.directory = Path(name)
            self.workers = {port: Worker(self.directory, f"web@{port}") for port in self.ports}
            for worker in self.workers.values():
                worker.start()
            yield self.make_gate(), tuple(self.workers.values())
            for worker in self.workers.values():
                worker.stopping.set()
                worker.join()

    def make_gate(self) -> Gate[Any]:
        return QueueWorker(QueueWorkerOptions(directory=str(self.directory)))

    def client(self, port: int, host: str = "127.0.0.1") -> Any:
        return Producer(self.workers[port])

    def test_a_worker_is_busy_until_its_job_is_done(self) -> None:
        """Closed in the middle of a job, it counts as busy until that is done, and takes no other."""
        self.ports = (1, 2)
        with self.started() as (gate, workers):
            producer = self.client(1)
            working = threading.Thread(target=producer.served, args=(0.5,))
            working.start()
            assert workers[0].asked.wait(5)

            gate.close(self.closing(1))
            assert gate.connections(self.call(1)).busy == 1
            assert gate.connections(self.call(1)).recent == 1

            began = time.monotonic()
            assert eventually(lambda: gate.connections(self.call(1)).busy == 0)
            assert time.monotonic() - began < 5
            working.join()
            assert not producer.served()
