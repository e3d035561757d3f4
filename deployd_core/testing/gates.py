"""What every gate guarantees: inherit `GateContract`, say how to make yours, and pytest runs it.

    class TestMyGate(GateContract):
        def make_gate(self):
            return MyGate(MyOptions())

Each test runs in a network of its own, which needs root; a gate that touches no firewall says ``own_network = False`` instead. Two
instances run behind it, small HTTP servers on `ports`. A gate with a balancer of its own overrides `started`, to start one,
and `client`, to come through it. `ClearingContract`, `LeaseContract`, `BypassContract`, `HoldingContract`, `CountingContract`: for
gates that know what is closed on the whole host, open by themselves, let the probe pass, can have clients wait, and count.
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


def _alone(test: Callable[..., None]) -> Callable[..., None]:
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

    @_alone
    def test_a_closed_gate_turns_new_clients_away(self) -> None:
        """New clients are served, are not once the gate is closed, and are again once it is open."""
        everywhere = len(self.hosts)
        with self.started() as (gate, _):
            assert [True] * everywhere == self.served(self.ports[0])

            gate.close(self.closing())
            assert [False] * everywhere == self.served(self.ports[0])

            gate.open(self.call())
            assert [True] * everywhere == self.served(self.ports[0])

    @_alone
    def test_a_gate_closes_one_instance_alone(self) -> None:
        """The other instances of the host go on serving."""
        with self.started() as (gate, _):
            gate.close(self.closing(self.ports[0]))

            assert [True] * len(self.hosts) == self.served(self.ports[1])

    @_alone
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

    @_alone
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

    @_alone
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

    @_alone
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

    @_alone
    def test_a_gate_outlives_the_agent_that_closed_it(self) -> None:
        """What one object has closed another finds closed, and opens: the state is not in the process."""
        with self.started() as (gate, _):
            gate.close(self.closing())
            later = self.make_gate()

            assert [self.names[0]] == [found.instance for found in later.closed(self.host_call())]

            later.open(self.call())
            assert [True] * len(self.hosts) == self.served(self.ports[0])


class ClearingContract(GateContract):
    """For gates that can be looked through without a service."""

    @_alone
    def test_closed_gates_can_be_found_and_cleared_without_the_service(self) -> None:
        """Whoever closed it, a gate is found and opened by hand: of one service, or all."""
        with self.started() as (gate, _):
            gate.close(self.closing(self.ports[0]))
            gate.close(self.closing(self.ports[1]))

            assert {self.names[0], self.names[1]} == {found.instance for found in gate.closed_everywhere()}
            assert () == gate.clear("other")
            assert () == gate.clear(expired_only=True)
            assert [self.names[0]] == [found.instance for found in gate.clear("web", self.names[0])]
            assert [self.names[1]] == [found.instance for found in gate.clear()]
            assert () == gate.closed_everywhere()
            assert [True] * len(self.hosts) == self.served(self.ports[0])


class LeaseContract(GateContract):
    """For gates that open by themselves."""

    @_alone
    def test_a_lease_ends_by_itself(self) -> None:
        """A gate that nobody opens serves again after its lease, not before, and is then not listed any more."""
        with self.started() as (gate, _):
            closing = self.closing(lease=3.5)
            gate.close(closing)
            assert [False] * len(self.hosts) == self.served(self.ports[0])

            assert eventually(lambda: all(self.served(self.ports[0])))

            assert closing.until - 1.0 <= time.time() <= closing.until + 1.5
            assert () == gate.closed(self.host_call())


class BypassContract(GateContract):
    """For gates that let the probe pass."""

    mark = 0xDEB

    @_alone
    def test_the_probe_passes_a_closed_gate(self) -> None:
        """Connections from the bypass address, or with the mark, reach an instance whose gate is closed, and are no client's."""
        with self.started() as (gate, _):
            gate.close(self.closing())
            probes = [Client("127.0.0.1", self.ports[0], source="127.0.0.2")]
            probes += [Client(host, self.ports[0], mark=self.mark) for host in self.hosts]

            assert [True] * len(probes) == [probe.served() for probe in probes]

            found = gate.connections(self.call())
            assert (0, 0, 0) == (found.busy, found.idle, found.recent)

    @_alone
    def test_the_probe_passes_a_holding_gate(self) -> None:
        """So it does when clients are held."""
        with self.started() as (gate, _):
            gate.close(self.closing(hold=True))

            assert Client("127.0.0.1", self.ports[0], source="127.0.0.2").served()


class HoldingContract(GateContract):
    """For gates that can have new clients wait."""

    @_alone
    def test_held_clients_are_served_in_the_end(self) -> None:
        """A client that comes while the gate holds is not turned away, and served when it opens."""
        with self.started() as (gate, servers):
            for host in self.hosts:
                gate.close(self.closing(hold=True))
                servers[0].asked.clear()
                answers: list[bool] = []
                client = self.client(self.ports[0], host)
                asking = threading.Thread(target=lambda client=client, answers=answers: answers.append(client.served()))
                asking.start()
                assert not servers[0].asked.wait(0.3)

                gate.open(self.call())
                asking.join(PATIENCE)

                assert [True] == answers

    @_alone
    def test_a_gate_that_held_can_reject_and_back(self) -> None:
        """Closing again in the other way replaces the first."""
        with self.started() as (gate, _):
            gate.close(self.closing(hold=True))
            gate.close(self.closing(hold=False))
            assert [False] * len(self.hosts) == self.served(self.ports[0])

            gate.close(self.closing(hold=True))
            quick = Client("127.0.0.1", self.ports[0], timeout=0.3)
            assert not quick.served()
            gate.open(self.call())

            assert [True] * len(self.hosts) == self.served(self.ports[0])


class CountingContract(GateContract):
    """For gates that count in the kernel."""

    @_alone
    def test_connections_are_busy_while_a_request_is_under_way(self) -> None:
        """A connection is busy from its request to the answer, then idle, and gone when the client closes it."""
        with self.started() as (gate, servers):
            for host in self.hosts:
                client = self.client(self.ports[0], host)
                servers[0].asked.clear()
                asking = threading.Thread(target=client.served, args=(0.6,))
                asking.start()
                assert servers[0].asked.wait(PATIENCE)

                assert (1, 0) == _open(gate, self.call())
                asking.join()
                assert eventually(lambda: _open(gate, self.call()) == (0, 1))
                client.close()
                assert eventually(lambda: _open(gate, self.call()) == (0, 0))

    @_alone
    def test_idle_connections_are_closed_and_busy_ones_are_not(self) -> None:
        """What has been idle for a second is closed; what is busy, or has just been used, goes on."""
        with self.started() as (gate, _):
            pooled, busy = ([self.client(self.ports[0], host) for host in self.hosts] for _ in range(2))
            assert all(client.served(0.1) for client in pooled)
            assert 0 == gate.close_idle(self.call())
            asking = [threading.Thread(target=client.served, args=(3.0,)) for client in busy]
            for thread in asking:
                thread.start()
            count = len(self.hosts)
            assert eventually(lambda: _open(gate, self.call()) == (count, count))
            time.sleep(1.1)  # what is waited for is that nothing happens

            assert count == gate.close_idle(self.call())

            assert (count, 0) == _open(gate, self.call())
            for thread in asking:
                thread.join()
            assert eventually(lambda: _open(gate, self.call()) == (0, count))

    @_alone
    def test_recent_use_is_seen(self) -> None:
        """A connection that carried something within the last second is recent, and then no more."""
        with self.started() as (gate, _):
            assert 0 == gate.connections(self.call()).recent
            client = self.client(self.ports[0])
            assert client.served()

            assert 1 == gate.connections(self.call()).recent

            assert eventually(lambda: gate.connections(self.call()).recent == 0)


def _open(gate: Gate[Any], call: InstanceCall) -> tuple[int, int]:
    found = gate.connections(call)
    return found.busy, found.idle


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
