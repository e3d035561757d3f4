"""What every gate guarantees: inherit `GateContract`, say how to make yours, and pytest runs it.

    class TestMyGate(GateContract):
        def make_gate(self):
            return MyGate(MyOptions())

Each test runs in a network of its own, which needs root; a gate that touches no firewall says ``own_network = False`` instead. Two
instances run behind it, small HTTP servers on `ports`. A gate with a balancer of its own overrides `started`, to start one,
and `client`, to come through it. What some gates can beyond that has contracts of its own: `deployd_core.testing.gate_abilities`.
"""

# ruff: noqa: SIM300 - expected == actual, as in all tests

from __future__ import annotations

import contextlib
import functools
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deployd_core.api import Gate, GateCall, HostCall, Instance, InstanceCall
from deployd_core.testing.instances import PATIENCE, Client, Server, eventually, free_port
from deployd_core.testing.netns import isolated

OWNER = "h1.example.com/4711/12345.67"


def alone(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test of a contract in a network of its own, or on free ports."""
    inside = isolated(test)

    @functools.wraps(test)
    def run(self: GateContract) -> None:
        if self.own_network:
            inside(self)
        else:
            self.ports = (free_port(), free_port())
            test(self)

    return run


class GateContract(ABC):
    """What every gate guarantees."""

    own_network = True
    """Whether each test needs a network of its own: for whatever touches a firewall."""
    ports = (8001, 8002)
    """Where the instances listen; free ones where the network is shared."""
    hosts: tuple[str, ...] = ("127.0.0.1", "::1")
    """Where clients come: every test is about each of them."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the instances are called."""
        return tuple(f"web@{port}" for port in self.ports)

    @abstractmethod
    def make_gate(self) -> Gate[Any]:
        """The gate to test."""

    @contextlib.contextmanager
    def started(self) -> Iterator[tuple[Gate[Any], tuple[Server, ...]]]:
        """Instances that serve, behind a gate that is open. Runs in a network of its own."""
        servers = tuple(Server(port) for port in self.ports)
        try:
            yield self.make_gate(), servers
        finally:
            for server in servers:
                server.shutdown()
                server.server_close()

    def client(self, port: int, host: str = "127.0.0.1") -> Client:
        """A client of the instance on that port; it need not ask that port."""
        return Client(host, port)

    def served(self, port: int) -> list[bool]:
        """Whether new clients are served, on each of `hosts`."""
        answers = []
        for host in self.hosts:
            client = self.client(port, host)
            answers.append(client.served())
            client.close()
        return answers

    def call(self, port: int = 0, service: str = "web") -> InstanceCall:
        """A call about the instance on that port; the first one by default."""
        port = port or self.ports[0]
        instance = Instance(service=service, name=f"{service}@{port}", port=port)
        return InstanceCall(
            service=service, host="h1.example.com", zone="a", root=Path("/run/web"), timeout=10.0, instance=instance
        )

    def closing(self, port: int = 0, service: str = "web", *, lease: float = 60.0, hold: bool = False) -> GateCall:
        """A call that closes it."""
        call = self.call(port, service)
        fields = {name: getattr(call, name) for name in call.__struct_fields__}
        return GateCall(**fields, until=time.time() + lease, owner=OWNER, hold=hold)

    def host_call(self, service: str = "web") -> HostCall:
        """A call about the service."""
        return self.call(service=service)

    @alone
    def test_a_closed_gate_turns_new_clients_away(self) -> None:
        """New clients are served, are not once the gate is closed, and are again once it is open."""
        everywhere = len(self.hosts)
        with self.started() as (gate, _):
            assert [True] * everywhere == self.served(self.ports[0])

            gate.close(self.closing())
            assert [False] * everywhere == self.served(self.ports[0])

            gate.open(self.call())
            assert [True] * everywhere == self.served(self.ports[0])

    @alone
    def test_a_gate_closes_one_instance_alone(self) -> None:
        """The other instances of the host go on serving."""
        with self.started() as (gate, _):
            gate.close(self.closing(self.ports[0]))

            assert [True] * len(self.hosts) == self.served(self.ports[1])

    @alone
    def test_a_request_under_way_is_answered(self) -> None:
        """A request that was sent before the gate closed gets its answer."""
        with self.started() as (gate, servers):
            for host in self.hosts:
                servers[0].asked.clear()
                answers: list[bool] = []
                client = self.client(self.ports[0], host)
                asking = threading.Thread(target=lambda client=client, answers=answers: answers.append(client.served(0.5)))
                asking.start()
                assert servers[0].asked.wait(PATIENCE)

                gate.close(self.closing())
                asking.join()
                client.close()
                gate.open(self.call())

                assert [True] == answers

    @alone
    def test_what_is_closed_is_told(self) -> None:
        """A closed gate is listed with its service, instance, owner and end; an open one, or another service's, is not."""
        with self.started() as (gate, _):
            assert () == gate.closed(self.host_call())
            closing = self.closing(self.ports[0])

            gate.close(closing)

            (found,) = gate.closed(self.host_call())
            assert ("web", self.names[0], OWNER) == (found.service, found.instance, found.owner)
            assert abs(closing.until - found.until) <= 1.0
            assert () == gate.closed(self.host_call("other"))
            gate.open(self.call())
            assert () == gate.closed(self.host_call())

    @alone
    def test_everything_can_be_repeated(self) -> None:
        """Closing a closed gate moves its end and nothing else; opening an open one does nothing."""
        with self.started() as (gate, _):
            gate.open(self.call())
            gate.close(self.closing(lease=30))
            later = self.closing(lease=90)

            gate.close(later)

            (found,) = gate.closed(self.host_call())
            assert abs(later.until - found.until) <= 1.0
            assert [False] * len(self.hosts) == self.served(self.ports[0])
            gate.open(self.call())
            gate.open(self.call())
            assert [True] * len(self.hosts) == self.served(self.ports[0])

    @alone
    def test_gates_are_closed_from_many_threads(self) -> None:
        """Calls from several threads at once lose nothing."""
        with self.started() as (gate, _):
            failures: list[BaseException] = []

            def toggle(port: int, last: str) -> None:
                for _ in range(5):
                    gate.close(self.closing(port))
                    gate.open(self.call(port))
                if last == "close":
                    gate.close(self.closing(port))

            threads = [
                threading.Thread(target=_collecting(failures, toggle), args=(port, last))
                for port, last in zip(self.ports, ("close", "open"), strict=True)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

            assert [] == failures
            assert [self.names[0]] == [found.instance for found in gate.closed(self.host_call())]

    @alone
    def test_a_gate_outlives_the_agent_that_closed_it(self) -> None:
        """What one object has closed another finds closed, and opens: the state is not in the process."""
        with self.started() as (gate, _):
            gate.close(self.closing())
            later = self.make_gate()

            assert [self.names[0]] == [found.instance for found in later.closed(self.host_call())]

            later.open(self.call())
            assert [True] * len(self.hosts) == self.served(self.ports[0])

    @alone
    def test_no_gate_stays_closed_for_ever(self) -> None:
        """A lease that nobody renews ends: the gate opens by itself, or `deployd drains reap` finds it and opens it."""
        with self.started() as (gate, _):
            closing = self.closing(lease=3.5)
            gate.close(closing)
            if eventually(lambda: all(self.served(self.ports[0])), closing.until + 1.5 - time.time()):
                return
            later = self.make_gate()

            over = [found.instance for found in later.closed_everywhere() if found.until <= time.time()]

            assert [self.names[0]] == over, (
                "its lease is over, and it neither opened by itself nor is it told of by closed_everywhere(): an agent that dies "
                "leaves it closed for ever. Have what closes it look at `until`, or define closed_everywhere() and clear()"
            )
            assert [self.names[0]] == [found.instance for found in later.clear("web", self.names[0])], "clear() did not open it"
            assert [True] * len(self.hosts) == self.served(self.ports[0]), "clear() says that it opened it, and it is closed"

    @alone
    def test_a_request_under_way_is_counted(self) -> None:
        """A connection counts as busy from its request to the answer, behind a gate that is closed meanwhile, and then no more."""
        with self.started() as (gate, servers):
            for host in self.hosts:
                servers[0].asked.clear()
                client = self.client(self.ports[0], host)
                asking = threading.Thread(target=client.served, args=(1.5,))
                asking.start()
                assert servers[0].asked.wait(PATIENCE)

                gate.close(self.closing())
                busy = gate.connections(self.call()).busy
                asking.join()
                client.close()
                gate.open(self.call())

                assert busy >= 1, "a request was under way, and connections() said busy=0: a drain would end, and a restart cut it"
                assert eventually(lambda: gate.connections(self.call()).busy == 0), "it is over, and connections() still counts it"


def _collecting(failures: list[BaseException], function: Callable[..., None]) -> Callable[..., None]:
    """Run a function on a thread; what it raises is collected."""

    class Collect(contextlib.AbstractContextManager[None]):
        def __exit__(self, kind: Any, value: BaseException | None, trace: Any) -> bool:
            failures.extend([value] if value else [])
            return True

    def run(*args: Any) -> None:
        with Collect():
            function(*args)

    return run
