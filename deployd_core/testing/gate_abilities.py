"""What some gates guarantee beyond `GateContract`, each ability a class to inherit.

They know what is closed on the whole host (`ClearingContract`), open by themselves (`LeaseContract`), let the probe pass
(`BypassContract`), can have clients wait (`HoldingContract`), and count in the kernel (`CountingContract`).
"""

# ruff: noqa: SIM300 - expected == actual, as in all tests

from __future__ import annotations

import threading
import time
from typing import Any

from deployd_core.api import Gate, InstanceCall
from deployd_core.testing.gates import GateContract, alone
from deployd_core.testing.instances import PATIENCE, Client, eventually


class ClearingContract(GateContract):
    """For gates that can be looked through without a service."""

    @alone
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

    @alone
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

    @alone
    def test_the_probe_passes_a_closed_gate(self) -> None:
        """Connections from the bypass address, or with the mark, reach an instance whose gate is closed, and are no client's."""
        with self.started() as (gate, _):
            gate.close(self.closing())
            probes = [Client("127.0.0.1", self.ports[0], source="127.0.0.2")]
            probes += [Client(host, self.ports[0], mark=self.mark) for host in self.hosts]

            assert [True] * len(probes) == [probe.served() for probe in probes]

            found = gate.connections(self.call())
            assert (0, 0, 0) == (found.busy, found.idle, found.recent)

    @alone
    def test_the_probe_passes_a_holding_gate(self) -> None:
        """So it does when clients are held."""
        with self.started() as (gate, _):
            gate.close(self.closing(hold=True))

            assert Client("127.0.0.1", self.ports[0], source="127.0.0.2").served()


class HoldingContract(GateContract):
    """For gates that can have new clients wait."""

    @alone
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

    @alone
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

    @alone
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

    @alone
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

    @alone
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
