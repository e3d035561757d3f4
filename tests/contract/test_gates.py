"""What every gate guarantees: one suite, run against the firewalls of real hosts, each in a network of its own."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from deployd_core.api import Gate
from deployd_core.testing.gates import BypassContract, CountingContract, GateContract, HoldingContract, LeaseContract
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


def firewall() -> list[str]:
    """All rules of this network, without the counters of policies."""
    commands = ("iptables-legacy-save", "ip6tables-legacy-save", "iptables-save", "ip6tables-save", "nft list ruleset")
    texts = [subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout for command in commands]
    return [re.sub(r"(?m)\[\d+:\d+\]|^#.*", "", text) for text in texts]


class FirewallContract(LeaseContract, BypassContract, HoldingContract, CountingContract):
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


class TestOneAddress(GateContract):
    """iptables, for one address alone."""

    hosts = ("127.0.0.1",)

    def make_gate(self) -> Gate[Any]:
        return IptablesGate(IptablesOptions(address="{address}"))


class TestOneAddressByNftables(GateContract):
    """nftables, for one address alone."""

    hosts = ("127.0.0.1",)

    def make_gate(self) -> Gate[Any]:
        return NftablesGate(NftablesOptions(address="{address}"))


class TestAuto(GateContract):
    """Whichever this host uses."""

    def make_gate(self) -> Gate[Any]:
        return AutoGate(AutoOptions())
