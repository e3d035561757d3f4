"""The `auto` gate picks what a host really uses; each test in a network of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deployd_core.api import GateCall, Instance
from deployd_core.testing.netns import firewall, isolated
from deployd_plugins.gates.auto import AutoGate, AutoOptions
from deployd_plugins.gates.iptables import IptablesGate, IptablesOptions
from deployd_plugins.gates.nftables import NftablesGate, NftablesOptions

pytestmark = pytest.mark.root

LEGACY = "iptables-legacy -A INPUT -s 10.0.0.1 -j DROP"
MODERN = "nft add table inet foreign"


def call():
    """A call that closes an instance."""
    return GateCall(
        service="web",
        host="h1",
        zone="",
        root=Path("/srv/web"),
        timeout=10.0,
        instance=Instance.parse("web", "web@8001"),
        until=time.time() + 60,
        owner="h1/4711/12.34",
    )


def auto():
    """The gate."""
    return AutoGate(AutoOptions(mark=77))


def sh(command):
    """Run a command line."""
    subprocess.run(command, shell=True, check=True, capture_output=True)


def closed_by():
    """Which of the two has closed something."""
    rules = firewall()
    return [name for name in ("iptables-legacy-save", "nft list ruleset") if "deployd:v1:" in rules[name]]


@pytest.mark.parametrize(
    ("rules", "expected", "why"),
    [
        ([LEGACY], "iptables-legacy-save", "iptables, because the legacy tables of iptables have rules, and nftables has none"),
        ([MODERN], "nft list ruleset", "nftables, because nftables has tables, and the legacy tables of iptables have no rules"),
        ([], "nft list ruleset", "neither iptables (legacy) nor nftables has rules, and the command iptables works on nftables"),
        ([LEGACY, MODERN], "nft list ruleset", "both iptables (legacy) and nftables have rules"),
        (["iptables-nft -A INPUT -j ACCEPT"], "nft list ruleset", "nftables has tables"),
    ],
    ids=["legacy", "nftables", "neither", "both", "iptables-nft"],
)
@isolated
def test_the_gate_is_what_the_host_uses(rules, expected, why):
    """The choice follows whose rules there are, and says so; the options are passed on."""
    for rule in rules:
        sh(rule)

    chosen = auto()
    assert why in chosen.explain(call())
    chosen.close(call())

    assert [expected] == closed_by()
    assert "mark 0x4d pass" in chosen.explain(call())


@pytest.mark.parametrize(
    ("held", "rules", "expected"),
    [
        (IptablesGate(IptablesOptions()), MODERN, "iptables, because it holds leases of ours already"),
        (NftablesGate(NftablesOptions()), LEGACY, "nftables, because it holds leases of ours already"),
    ],
    ids=["iptables", "nftables"],
)
@isolated
def test_leases_that_are_held_come_first(held, rules, expected):
    """A new agent chooses the gate that an earlier one has closed something with, whatever else there is by now."""
    held.close(call())
    sh(rules)

    chosen = auto()

    assert expected in chosen.explain(call())
    assert 1 == len(chosen.closed(call()))
    chosen.open(call())
    assert [] == closed_by()


@isolated
def test_what_cannot_be_used_is_not_chosen():
    """Without python-iptables it is nftables, and the reason is told."""
    sh(LEGACY)
    sys.modules["iptc"] = None

    assert "nftables, because iptables cannot be used here (python-iptables does not work here" in auto().explain(call())


@isolated
def test_a_host_where_neither_works_is_told_so():
    """Where neither can be used, the error names both reasons."""
    for line in subprocess.run(["/sbin/ldconfig", "-p"], check=True, capture_output=True, text=True).stdout.splitlines():
        if "libnftables.so" in line:
            sh(f"mount --bind /dev/null {Path(line.rpartition('=> ')[2]).resolve()}")

    # In a process of its own: one that a library was loaded in keeps it.
    code = (
        "import pathlib, sys\n"
        "sys.modules['iptc'] = None\n"
        "from deployd_core.api import ConfigError, HostCall\n"
        "from deployd_plugins.gates.auto import AutoGate, AutoOptions\n"
        "here = HostCall(service='web', host='h1', zone='', root=pathlib.Path('/srv'), timeout=5)\n"
        "try:\n    AutoGate(AutoOptions()).closed(here)\n"
        "except ConfigError as error:\n    print(error, error.hint)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert re.search("neither iptables nor nftables can be used.*python-iptables.*libnftables", told)
    assert "haproxy" in told
