"""What only the `nftables` gate does; what every firewall does is in tests/contract. Each test in a network of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from deployd_core.api import GateCall, Instance
from deployd_core.connecting import connect
from deployd_core.testing import netns
from deployd_core.testing.instances import Server
from deployd_core.testing.netns import isolated
from deployd_plugins.gates import libnftables
from deployd_plugins.gates.nftables import NftablesGate, NftablesOptions

pytestmark = pytest.mark.root


def gate(**options):
    """A gate."""
    return NftablesGate(NftablesOptions(**options))


def call(service="web"):
    """A call that closes an instance."""
    return GateCall(
        service=service,
        host="h1",
        zone="",
        root=Path("/srv") / service,
        timeout=10.0,
        instance=Instance(service=service, name=f"{service}@8001", port=8001),
        until=time.time() + 60.0,
        owner="h1/4711/12.34",
    )


def sh(command, **options):
    """Run a command line; what it says."""
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True, **options).stdout


@isolated
def test_without_the_library_the_error_says_so():
    """A library that cannot be loaded is named, with what brings it."""
    for line in sh("/sbin/ldconfig -p").splitlines():
        if "libnftables.so" in line:
            sh(f"mount --bind /dev/null {Path(line.rpartition('=> ')[2]).resolve()}")

    # In a process of its own: one that a library was loaded in keeps it.
    code = (
        "from deployd_plugins.gates import libnftables\n"
        "from deployd_core.api import ConfigError\n"
        "try:\n    libnftables.run('list tables')\n"
        "except ConfigError as error:\n    print(error, error.hint)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert "libnftables cannot be loaded" in told
    assert "apt install nftables" in told


@isolated
def test_a_closed_gate_says_how_it_works():
    """An explanation names the table, families and who passes."""
    assert "nftables, table inet deployd, IPv4 and IPv6" in gate().explain(call())
    assert "127.0.0.2 and mark 0xdeb pass" in gate(ipv6="off").explain(call())


@isolated
def test_opening_one_address_leaves_the_way_past_the_gate_of_another():
    """Two services on one port, each of an address of its own: the agent gets past the gate of one after the other's opened."""
    sh("ip address add fd00::1/128 dev lo nodad")
    Server(8001)
    for address, other in (("127.0.1.1", "127.0.1.2"), ("::1", "fd00::1")):
        gate(address=address).close(call("web"))
        gate(address=other).close(call("api"))
        gate(address=other).open(call("api"))

        with pytest.raises(ConnectionRefusedError):
            connect(address, 8001, 5.0)
        connect(other, 8001, 5.0).close()
        connect(address, 8001, 5.0, mark=0xDEB).close()
        if ":" not in address:
            connect(address, 8001, 5.0, source="127.0.0.2").close()
        gate(address=address).open(call("web"))
        assert () == gate(address=address).closed_everywhere()


@isolated
def test_a_handle_of_another_network_is_not_used():
    """What is done after a fork into another network is done there, and not where the handle was opened first."""
    libnftables.run("list tables")

    netns.run(lambda: libnftables.run("add table inet elsewhere") and None)

    assert [] == [item for item in libnftables.run("list tables") if item.get("table", {}).get("name") == "elsewhere"]
