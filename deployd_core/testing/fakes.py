"""A gate, a manager and a probe that need nothing but this process: for tests of what stands on them.

They are held to the same suites as the real ones. `from deployd_core.testing.fakes import *` in a single-file plugin gives them to
an agent as ``fake``; what they know outlives the objects, as a balancer outlives an agent, in a `FakeBalancer` or `FakeProcesses`.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated

from deployd_core.api import (
    ClosedGate,
    ConfigError,
    Connections,
    Gate,
    GateCall,
    HostCall,
    InstanceCall,
    Manager,
    Meta,
    Options,
    Probe,
    ProbeOptions,
    RestartFailed,
    State,
    Status,
    Verdict,
    hookimpl,
)

__all__ = [
    "FakeBalancer",
    "FakeGate",
    "FakeManager",
    "FakeManagerOptions",
    "FakeProbe",
    "FakeProcesses",
    "deployd_gates",
    "deployd_managers",
    "deployd_probes",
]


@dataclass
class FakeBalancer:
    """What a balancer would know: who is closed, and whose requests are in flight."""

    gates: dict[tuple[str, str], ClosedGate] = field(default_factory=dict)
    busy: dict[str, int] = field(default_factory=dict)
    """Requests in flight, by instance; a test says how many."""
    calls: list[tuple[str, str]] = field(default_factory=list)
    """What has been done, in order: ``("close", "web@8001")``."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def admits(self, service: str, instance: str) -> bool:
        """Whether new clients get through."""
        found = self.gates.get((service, instance))
        return found is None or found.until <= time.time()


class FakeGate(Gate[Options]):
    """Turn traffic off in a balancer of this process."""

    name = "fake"
    balancer = FakeBalancer()
    """The balancer of every object that was not given one."""

    def __init__(self, options: Options, balancer: FakeBalancer | None = None) -> None:
        super().__init__(options)
        self.balancer = balancer or type(self).balancer

    def close(self, call: GateCall) -> None:
        """Note that it is closed, and until when."""
        found = ClosedGate(service=call.service, instance=call.instance.name, owner=call.owner, until=call.until)
        self._note("close", call)
        self.balancer.gates[call.service, call.instance.name] = found

    def open(self, call: InstanceCall) -> None:
        """Forget it."""
        self._note("open", call)
        self.balancer.gates.pop((call.service, call.instance.name), None)

    def closed(self, call: HostCall) -> tuple[ClosedGate, ...]:
        """Those of the service whose lease has not run out."""
        return tuple(found for found in self.closed_everywhere() if found.service == call.service)

    def connections(self, call: InstanceCall) -> Connections:
        """As many as the test says; clients are back at once."""
        admitted = self.balancer.admits(call.service, call.instance.name)
        return Connections(busy=self.balancer.busy.get(call.instance.name, 0), recent=int(admitted))

    def closed_everywhere(self) -> tuple[ClosedGate, ...]:
        """Those of any service."""
        with self.balancer.lock:
            return tuple(found for found in self.balancer.gates.values() if not self.balancer.admits(found.service, found.instance))

    def clear(
        self, service: str | None = None, instance: str | None = None, *, expired_only: bool = False
    ) -> tuple[ClosedGate, ...]:
        """Open what is closed; a lease that has run out leaves nothing behind."""
        found = tuple(
            gate
            for gate in self.closed_everywhere()
            if not expired_only and service in (None, gate.service) and instance in (None, gate.instance)
        )
        with self.balancer.lock:
            for gate in found:
                self.balancer.gates.pop((gate.service, gate.instance), None)
        return found

    def _note(self, what: str, call: InstanceCall) -> None:
        with self.balancer.lock:
            self.balancer.calls.append((what, call.instance.name))


class FakeManagerOptions(Options, frozen=True, kw_only=True):
    """What instances run."""

    command: Annotated[tuple[str, ...], Meta(description="started in `current`; may use {instance} and {port}")]
    instances: Annotated[tuple[str, ...], Meta(description="names it knows; every name, when there are none")] = ()


@dataclass
class FakeProcesses:
    """The children that are instances, by service and name."""

    running: dict[tuple[str, str], subprocess.Popen[bytes]] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    """What has been done, in order: ``("restart", "web@8001")``."""

    def kill(self) -> None:
        """End them all."""
        for process in self.running.values():
            process.kill()
            process.wait()
        self.running.clear()


class FakeManager(Manager[FakeManagerOptions]):
    """Run instances as children of this process."""

    name = "fake"
    processes = FakeProcesses()
    """Those of every object that was not given any."""

    def __init__(self, options: FakeManagerOptions, processes: FakeProcesses | None = None) -> None:
        super().__init__(options)
        self.processes = processes or type(self).processes
        self._lock = threading.Lock()

    def state(self, call: InstanceCall) -> Status:
        """What became of the child."""
        process = self._find(call)
        if process is None:
            return Status(state=State.STOPPED)
        code = process.poll()
        if code is None:
            return Status(state=State.RUNNING, pid=process.pid)
        return Status(state=State.FAILED, detail=f"exited with {code}")

    def start(self, call: InstanceCall) -> None:
        """Start a child, unless it runs."""
        with self._doing("start", call):
            self._start(call)

    def stop(self, call: InstanceCall) -> None:
        """End the child with SIGTERM."""
        with self._doing("stop", call):
            self._stop(call)

    def restart(self, call: InstanceCall) -> None:
        """End the child, and start another."""
        with self._doing("restart", call):
            self._stop(call)
            self._start(call)

    def _find(self, call: InstanceCall) -> subprocess.Popen[bytes] | None:
        name = call.instance.name
        if self.options.instances and name not in self.options.instances:
            raise ConfigError(f"nobody has told of an instance {name!r}", hint="add it to `instances` of the manager")
        return self.processes.running.get((call.service, name))

    @contextlib.contextmanager
    def _doing(self, what: str, call: InstanceCall) -> Iterator[None]:
        self._find(call)
        self.processes.calls.append((what, call.instance.name))
        with self._lock:
            yield

    def _start(self, call: InstanceCall) -> None:
        process = self._find(call)
        if process is None or process.poll() is not None:
            command = [call.expand(word) for word in self.options.command]
            current = call.root / "current"
            self.processes.running[call.service, call.instance.name] = subprocess.Popen(
                command, cwd=current, env={"PWD": str(current)}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )

    def _stop(self, call: InstanceCall) -> None:
        process = self._find(call)
        if process is None:
            return
        process.terminate()
        try:
            process.wait(call.timeout)
        except subprocess.TimeoutExpired as error:
            raise RestartFailed(f"{call.instance.name} did not end within {call.timeout:g} s") from error
        del self.processes.running[call.service, call.instance.name]


class FakeProbe(Probe[ProbeOptions]):
    """Say what a test tells it to say."""

    name = "fake"
    verdict: Callable[[InstanceCall], Verdict] = staticmethod(lambda _: Verdict.healthy())
    """What every object answers that was not given anything else."""

    def __init__(self, options: ProbeOptions, verdict: Callable[[InstanceCall], Verdict] | None = None) -> None:
        super().__init__(options)
        self.verdict = verdict or type(self).verdict

    def check(self, call: InstanceCall) -> Verdict:
        """Say it."""
        return self.verdict(call)


@hookimpl
def deployd_gates() -> list[type[FakeGate]]:
    """Register the gate."""
    return [FakeGate]


@hookimpl
def deployd_managers() -> list[type[FakeManager]]:
    """Register the manager."""
    return [FakeManager]


@hookimpl
def deployd_probes() -> list[type[FakeProbe]]:
    """Register the probe."""
    return [FakeProbe]
