"""The contract of gates, with clients that come through a real balancer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from balancer import Backend, Balancer
from balancer_api import BalancerApi, BalancerApiOptions

from deployd_core.api import ConfigError, Gate, Unavailable
from deployd_core.testing import ClearingContract, LeaseContract, free_port
from deployd_core.testing.instances import Client, Server


class Through(Client):
    """A client of the balancer, which sends it on."""

    name = ""

    def request(self, method: str, url: str, *arguments: Any, **keywords: Any) -> None:
        super().request(method, f"/via/{self.name}{url}", *arguments, **keywords)


class TestBalancerApi(LeaseContract, ClearingContract):
    """All that every gate keeps to."""

    own_network = False  # it touches no firewall
    hosts = ("127.0.0.1",)

    @contextmanager
    def started(self) -> Iterator[tuple[Gate[Any], tuple[Server, ...]]]:
        self.balancer = Balancer([Backend(f"h1.example.com-web@{port}", port) for port in self.ports])
        try:
            with super().started() as started:
                yield started
        finally:
            self.balancer.stop()

    def make_gate(self) -> Gate[Any]:
        return BalancerApi(BalancerApiOptions(url=self.balancer.url))

    def client(self, port: int, host: str = "127.0.0.1") -> Client:
        client = Through(host, self.balancer.server_port)
        client.name = f"h1.example.com-web@{port}"
        return client

    def test_an_instance_is_busy_until_it_has_answered(self) -> None:
        """What the balancer has under way counts."""
        self.ports = (free_port(), free_port())
        with self.started() as (gate, servers):
            client = self.client(self.ports[0])
            asking = threading.Thread(target=client.served, args=(0.3,))
            asking.start()
            assert servers[0].asked.wait(5)

            assert gate.connections(self.call()).busy == 1
            asking.join()
            client.close()
            assert gate.connections(self.call()).busy == 0

    def test_a_server_that_the_balancer_does_not_know_is_an_error_of_the_configuration(self) -> None:
        """Closing it and counting its connections name it."""
        self.ports = (free_port(), free_port())
        with self.started() as (gate, _):
            with pytest.raises(ConfigError, match="web@1"):
                gate.close(self.closing(1))
            with pytest.raises(ConfigError, match="web@1"):
                gate.connections(self.call(1))


def test_a_balancer_that_is_away_is_unavailable() -> None:
    """The core tries again."""
    gate = BalancerApi(BalancerApiOptions(url=f"http://127.0.0.1:{free_port()}"))

    with pytest.raises(Unavailable, match="did not answer"):
        gate.closed_everywhere()
