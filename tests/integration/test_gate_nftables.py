"""The `nftables` gate among other people's rules, programs and accidents; each test in a network of its own."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deployd_core.api import ConfigError, GateCall, Instance
from deployd_core.testing import netns
from deployd_core.testing.instances import Client, Server, eventually
from deployd_core.testing.netns import firewall, isolated
from deployd_plugins.gates import libnftables
from deployd_plugins.gates.nftables import NftablesGate, NftablesOptions

pytestmark = pytest.mark.root

KINDS = (
    "tcp dport {{ 80, 443, 1000-2000 }} accept",
    "ct state established,related accept",
    'limit rate 5/minute burst 7 packets log prefix "n{number}"',
    "meta mark 0x{number:x} counter packets 3 bytes 180 drop",
    "udp dport {number} reject with icmpx port-unreachable",
    "ip dscp cs1 meta length 64-1500 return",
    "tcp flags syn tcp option maxseg size 500-1000 drop",
    "ip saddr @bad jump other",
    'numgen random mod 10 < 3 accept comment "deployd:not ours {number}"',
)


@pytest.fixture(scope="module", autouse=True)
def machine_untouched():
    """The firewall of the machine itself is the same after all of these tests."""
    before = firewall()
    yield
    assert before == firewall()


def gate(**options):
    """A gate."""
    return NftablesGate(NftablesOptions(**options))


def call(port=8001, *, service="web", lease=60.0, hold=False):
    """A call that closes the instance on that port."""
    return GateCall(
        service=service,
        host="h1",
        zone="",
        root=Path("/srv/web"),
        timeout=10.0,
        instance=Instance(service=service, name=f"{service}@{port}", port=port),
        until=time.time() + lease,
        owner="h1/4711/12.34",
        hold=hold,
    )


def sh(command, **options):
    """Run a command line; what it says."""
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True, **options).stdout


def fill(count=1000):
    """Other people's tables: `count` rules of many kinds, sets, maps and chains, the same in every run."""
    dice = random.Random(3)
    rules = "".join(f"    {dice.choice(KINDS).format(number=number + 1)}\n" for number in range(count))
    sh(
        "nft -f -",
        input="table inet foreign {\n"
        "  set bad { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.0.2.7 } }\n"
        "  map ports { type inet_service : verdict; elements = { 22 : accept } }\n"
        "  chain other { tcp dport vmap @ports; }\n"
        "  chain input {\n    type filter hook input priority filter; policy accept;\n" + rules + "  }\n}\n"
        "table ip nat {\n  chain pre { type nat hook prerouting priority dstnat; tcp dport 80 redirect to :8080\n  }\n}\n",
    )


def foreign():
    """All rules but ours."""
    return re.sub(r"(?ms)^table inet deployd \{.*?^\}\n", "", firewall()["nft list ruleset"])


def refused(host="127.0.0.1"):
    """Whether new clients are turned away."""
    return not Client(host, 8001, timeout=1.0).served()


@isolated
def test_rules_of_others_are_byte_identical():
    """A thousand rules of all kinds are the same while gates are closed, after they are opened, and after everything is cleared."""
    fill()
    before = firewall()

    for port in range(8001, 8006):
        gate().close(call(port))
        gate().close(call(port))
    during = foreign()
    for port in range(8001, 8006):
        gate().open(call(port))

    assert before["nft list ruleset"] == during == foreign()
    gate().clear()
    assert before == firewall()


@isolated
def test_nothing_is_lost_among_other_programs():
    """Forty instances, closed and opened by threads beside loops of nft and of iptables-nft: all arrives on either side."""
    fill(50)
    before = foreign()
    stop, done = threading.Event(), []

    def toggle(name, command):
        while not stop.is_set():
            sh(command)
            done.append(name)

    def work(ports):
        for port in [*ports] * 3:
            gate().close(call(port))
            gate().open(call(port))
        for port in ports:
            gate().close(call(port))

    commands = {
        "nft": "nft add element inet foreign bad { 203.0.113.9 }; nft delete element inet foreign bad { 203.0.113.9 }",
        "table": "nft add table inet more; nft add chain inet more some; nft delete table inet more",
    }
    others = [threading.Thread(target=toggle, args=item) for item in commands.items()]
    ours = [threading.Thread(target=work, args=(range(8000 + first, 8000 + first + 10),)) for first in (0, 10, 20, 30)]
    for thread in (*others, *ours):
        thread.start()
    for thread in ours:
        thread.join()
    stop.set()
    for thread in others:
        thread.join()

    assert {"nft", "table"} == set(done)
    assert set(range(8000, 8040)) == {int(found.instance[-4:]) for found in gate().closed_everywhere()}
    assert before == foreign()


@isolated
def test_two_processes_lose_nothing():
    """What two processes close at the same time is closed."""
    children = []
    for first in (8000, 8020):
        pid = os.fork()
        if pid == 0:
            for port in range(first, first + 20):
                gate().close(call(port))
            os._exit(0)
        children.append(pid)

    assert [0, 0] == [os.waitpid(pid, 0)[1] for pid in children]
    assert set(range(8000, 8040)) == {int(found.instance[-4:]) for found in gate().closed_everywhere()}


@isolated
def test_a_lease_ends_with_no_process_alive():
    """A gate whose closer was killed opens by itself when its lease ends."""
    server = Server(8001)
    pid = os.fork()
    if pid == 0:
        gate().close(call(lease=2.5))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert refused()

    assert eventually(lambda: not refused() and not refused("::1"))

    assert () == gate().closed_everywhere()
    server.server_close()


@pytest.mark.parametrize(
    "flush",
    ["flush ruleset", "flush table inet deployd", "flush chain inet deployd new", "flush set inet deployd reject_port"],
)
@isolated
def test_rules_flushed_by_others_are_noticed_and_repaired(flush):
    """A gate whose rules somebody flushed is not said to be closed; closing it again closes it."""
    server = Server(8001)
    gate().close(call())
    sh(f"nft {flush}")

    assert () == gate().closed(call())
    assert not refused()
    gate().close(call())

    assert 1 == len(gate().closed(call()))
    assert refused()
    server.server_close()


@isolated
def test_a_gate_that_holds_by_half_is_about_to_end():
    """Opened in one family by somebody, a gate is said to end now: it is then closed again, and holds."""
    server = Server(8001)
    gate().close(call())
    sh("nft delete element inet deployd reject_port { ipv6 . 8001 }")

    (found,) = gate().closed(call())
    assert found.until <= time.time()
    gate().close(call())

    assert [True, True] == [refused(host) for host in ("127.0.0.1", "::1")]
    assert next(iter(gate().closed(call()))).until > time.time()
    server.server_close()


@isolated
def test_only_root_may():
    """For anyone but root, every call says so."""
    gate().close(call())
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)

    for act in (lambda: gate().close(call()), lambda: gate().open(call()), lambda: gate().closed(call()), gate().clear):
        with pytest.raises(ConfigError, match="only root may") as told:
            act()
        assert "root" in told.value.hint


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
def test_a_handle_of_another_network_is_not_used():
    """What is done after a fork into another network is done there, and not where the handle was opened first."""
    libnftables.run("list tables")

    netns.run(lambda: libnftables.run("add table inet elsewhere") and None)

    assert [] == [item for item in libnftables.run("list tables") if item.get("table", {}).get("name") == "elsewhere"]
