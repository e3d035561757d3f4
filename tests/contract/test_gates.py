"""What every gate guarantees: one suite, run against the firewalls of real hosts, each in a network of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from deployd_core.api import Gate
from deployd_core.testing.gates import BypassContract, ClearingContract, CountingContract, HoldingContract, LeaseContract
from deployd_core.testing.netns import firewall
from deployd_plugins.gates.auto import AutoGate, AutoOptions
from deployd_plugins.gates.iptables import IptablesGate, IptablesOptions
from deployd_plugins.gates.nftables import NftablesGate, NftablesOptions

pytestmark = pytest.mark.root


@pytest.fixture(scope="module", autouse=True)
def machine_untouched() -> Iterator[None]:
    """The firewall of the machine itself is the same after all of these tests."""
    before = firewall()
    yield
    assert before == firewall()


class FirewallContract(ClearingContract, LeaseContract, BypassContract, HoldingContract, CountingContract):
    """All that a firewall can."""


class TestReject(FirewallContract):
    """iptables, rejecting."""

    def make_gate(self) -> Gate[Any]:
        return IptablesGate(IptablesOptions(mode="reject"))


class TestRedirect(FirewallContract):
    """iptables, redirecting."""

    def make_gate(self) -> Gate[Any]:
        return IptablesGate(IptablesOptions(mode="redirect"))


class TestNftables(FirewallContract):
    """nftables."""

    def make_gate(self) -> Gate[Any]:
        return NftablesGate(NftablesOptions())


class TestOneAddress(ClearingContract):
    """iptables, for one address alone."""

    hosts = ("127.0.0.1",)

    def make_gate(self) -> Gate[Any]:
        return IptablesGate(IptablesOptions(address="{address}"))


class TestOneAddressByNftables(ClearingContract):
    """nftables, for one address alone."""

    hosts = ("127.0.0.1",)

    def make_gate(self) -> Gate[Any]:
        return NftablesGate(NftablesOptions(address="{address}"))


class TestAuto(ClearingContract):
    """Whichever this host uses."""

    def make_gate(self) -> Gate[Any]:
        return AutoGate(AutoOptions())
