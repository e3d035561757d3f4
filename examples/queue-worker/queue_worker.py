"""A gate for queue workers: closed means that it takes no new job, drained that it has finished those it had.

The worker and the gate speak by files in the service's shared directory, so that they need neither a port nor each other:

- ``<instance>.pause`` is there while the worker is to take nothing new; its owner and its end are in it, and a worker that finds it
  expired goes on by itself (`paused` is all that a worker needs);
- ``<instance>.jobs/`` holds one file for each job under way.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

from deployd_core.api import ClosedGate, Connections, Gate, GateCall, HostCall, InstanceCall, Meta, Options, hookimpl


class QueueWorkerOptions(Options, frozen=True, kw_only=True):
    """What a spec can say of the gate."""

    directory: Annotated[str, Meta(description="where workers look for their pause file and keep their jobs")] = "{root}/shared"


class QueueWorker(Gate[QueueWorkerOptions]):
    """Have a queue worker take no new job, and wait until it has finished those it has.

    A job may take long: give the strategy a drain_timeout that covers the longest, and at_deadline = "abort" if none may be lost.
    """

    name = "queue-worker"

    def close(self, call: GateCall) -> None:
        """Write the pause file, whole or not at all."""
        path = self._directory(call) / f"{call.instance.name}.pause"
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps([call.service, call.instance.name, call.owner, call.until]), encoding="utf-8")
        aside.replace(path)

    def open(self, call: InstanceCall) -> None:
        """Remove it."""
        (self._directory(call) / f"{call.instance.name}.pause").unlink(missing_ok=True)

    def closed(self, call: HostCall) -> tuple[ClosedGate, ...]:
        """Read the pause files that have not expired."""
        found = []
        for path in sorted(self._directory(call).glob("*.pause")):
            service, instance, owner, until = json.loads(path.read_text(encoding="utf-8"))
            if service == call.service and until > time.time():
                found.append(ClosedGate(service=service, instance=instance, owner=owner, until=until))
        return tuple(found)

    def connections(self, call: InstanceCall) -> Connections:
        """Count jobs: those under way are busy, and one that was begun within the last second shows that the worker is used."""
        begun = [path.stat().st_mtime for path in (self._directory(call) / f"{call.instance.name}.jobs").glob("*")]
        return Connections(busy=len(begun), recent=sum(time.time() - moment < 1 for moment in begun))

    def _directory(self, call: HostCall) -> Path:
        return Path(self.options.directory.replace("{root}", str(call.root)))


def paused(directory: Path, instance: str) -> bool:
    """For the worker, before it takes a job: whether it is to take none."""
    try:
        *_, until = json.loads((directory / f"{instance}.pause").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    return bool(until > time.time())


@hookimpl
def deployd_gates() -> list[type[QueueWorker]]:
    """Register the gate."""
    return [QueueWorker]
