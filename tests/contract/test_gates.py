"""What every gate guarantees: one suite, run against the firewalls of real hosts, each in a network of its own."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import pytest

from deployd_core.api import ConfigError, Gate
from deployd_core.testing.gate_abilities import BypassContract, ClearingContract, CountingContract, HoldingContract, LeaseContract
from deployd_core.testing.instances import eventually
from deployd_core.testing.netns import firewall, isolated
from deployd_plugins.gates.auto import AutoGate, AutoOptions
from deployd_plugins.gates.iptables import IptablesGate, IptablesOptions
from deployd_plugins.gates.nftables import NftablesGate, NftablesOptions

pytestmark = pytest.mark.root


def sh(command: str, **options: Any) -> str:
    """Run a command line; what it says."""
    said: str = subprocess.run(command, shell=True, check=True, capture_output=True, text=True, **options).stdout
    return said


def forked(function: Callable[[], object]) -> int:
    """Run a function in a child; its status."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(KeyboardInterrupt):
            function()
        os._exit(0)
    return os.waitpid(pid, 0)[1]


class FirewallContract(ClearingContract, LeaseContract, BypassContract, HoldingContract, CountingContract):
    """All that a firewall can, among other people's rules, programs and accidents."""

    others: tuple[str, ...]
    """What other programs do to their own rules all the time; each leaves them as they were."""
    flushes: tuple[str, ...]
    """What opens a closed gate."""
    accidents: tuple[str, ...]
    """What leaves it closed in one family alone, or may."""

    @abstractmethod
    def fill(self, count: int) -> None:
        """Make other people's rules: `count` of many kinds, the same in every run."""

    @abstractmethod
    def foreign(self) -> object:
        """All rules but ours, with their counters."""

    @isolated
    def test_rules_of_others_are_byte_identical(self) -> None:
        """A thousand rules of all kinds are the same while gates are closed, after they are opened, and after all is cleared."""
        self.fill(1000)
        before, gate = firewall(counters=True), self.make_gate()
        foreign = self.foreign()

        for port in range(8001, 8006):
            gate.close(self.closing(port))
            gate.close(self.closing(port))
        assert 5 == len(gate.closed(self.host_call()))
        assert before != firewall(counters=True)
        assert foreign == self.foreign()
        for port in range(8001, 8006):
            gate.open(self.call(port))
        assert foreign == self.foreign()

        gate.clear()
        assert before == firewall(counters=True)

    @isolated
    def test_nothing_is_lost_among_other_programs(self) -> None:
        """Forty instances of two services, toggled by threads beside loops of other programs: all arrives on either side."""
        self.fill(50)
        before = self.foreign()
        stop, done, failed = threading.Event(), [0] * len(self.others), []

        def meddle(number: int, command: str) -> None:
            while not stop.is_set():
                try:
                    sh(command)
                except subprocess.CalledProcessError as error:
                    failed.append(error.stderr)
                done[number] += 1

        def work(ports: range) -> None:
            gate = self.make_gate()
            for port in [*ports] * 3:
                gate.close(self.closing(port, ("api", "web")[port % 2]))
                gate.open(self.call(port, ("api", "web")[port % 2]))
            for port in ports:
                gate.close(self.closing(port, ("api", "web")[port % 2]))

        others = [threading.Thread(target=meddle, args=item) for item in enumerate(self.others)]
        ours = [threading.Thread(target=work, args=(range(8000 + first, 8000 + first + 10),)) for first in (0, 10, 20, 30)]
        for thread in (*others, *ours):
            thread.start()
        for thread in ours:
            thread.join()
        stop.set()
        for thread in others:
            thread.join()

        assert [] == failed
        assert all(done)
        gate = self.make_gate()
        assert set(range(8000, 8040)) == {int(found.instance[-4:]) for found in gate.closed_everywhere()}
        assert [20, 20] == [len(gate.closed(self.host_call(service))) for service in ("web", "api")]
        assert before == self.foreign()

    @isolated
    def test_two_processes_lose_nothing(self) -> None:
        """What two processes close at the same time is closed."""
        children = []
        for first in (8000, 8020):
            pid = os.fork()
            if pid == 0:
                for port in range(first, first + 20):
                    self.make_gate().close(self.closing(port))
                os._exit(0)
            children.append(pid)

        assert [0, 0] == [os.waitpid(pid, 0)[1] for pid in children]
        assert set(range(8000, 8040)) == {int(found.instance[-4:]) for found in self.make_gate().closed_everywhere()}

    @isolated
    def test_a_lease_ends_with_no_process_alive(self) -> None:
        """A gate whose closer was killed opens by itself when its lease ends."""
        with self.started() as (gate, _):
            forked(lambda: (gate.close(self.closing(lease=3.5)), os.kill(os.getpid(), signal.SIGKILL)))
            assert [False] * len(self.hosts) == self.served(8001)

            assert eventually(lambda: all(self.served(8001)))

            assert () == gate.closed(self.host_call())

    @isolated
    def test_rules_flushed_by_others_are_noticed_and_repaired(self) -> None:
        """A gate whose rules somebody flushed is not said to be closed; closing it again closes it."""
        with self.started() as (gate, _):
            for flush in self.flushes:
                gate.close(self.closing())
                sh(flush)

                assert () == gate.closed(self.host_call()), flush
                assert [True] * len(self.hosts) == self.served(8001), flush
                gate.close(self.closing())

                assert 1 == len(gate.closed(self.host_call())), flush
                assert [False] * len(self.hosts) == self.served(8001), flush
                gate.open(self.call())

    @isolated
    def test_a_gate_that_holds_by_half_is_about_to_end(self) -> None:
        """Opened in one family by somebody, or overtaken by another rule, a gate is said to end now: closed again, it holds."""
        with self.started() as (gate, _):
            for accident in self.accidents:
                gate.close(self.closing())
                sh(accident)

                (found,) = gate.closed(self.host_call())
                assert found.until <= time.time(), accident
                gate.close(self.closing())

                (found,) = gate.closed(self.host_call())
                assert found.until > time.time(), accident
                assert [False] * len(self.hosts) == self.served(8001), accident

    @isolated
    def test_only_root_may(self) -> None:
        """For anyone but root, every call says so."""
        gate = self.make_gate()
        gate.close(self.closing())
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

        for act in (
            lambda: gate.close(self.closing()),
            lambda: gate.open(self.call()),
            lambda: gate.closed(self.host_call()),
            lambda: gate.connections(self.call()),
            gate.closed_everywhere,
            gate.clear,
        ):
            with pytest.raises(ConfigError, match="only root may|may not be used") as told:
                act()
            assert "root" in told.value.hint


class LegacyContract(FirewallContract):
    """Among rules in the legacy tables."""

    others = (
        "iptables-legacy -w -A foreign -s 10.99.0.1 -j ACCEPT; iptables-legacy -w -D foreign -s 10.99.0.1 -j ACCEPT",
        r"""for what in A D; do
          printf '*filter\n-%s foreign2 -s 10.98.0.1 -j DROP\nCOMMIT\n' $what | iptables-legacy-restore -w --noflush
        done""",
    )
    accidents = ("ip6tables-legacy -F INPUT", "iptables-legacy -I INPUT -p tcp -j ACCEPT")
    matches = (
        "-m multiport --dports 80,443,1000:2000",
        "-m limit --limit 5/min --limit-burst 7",
        "-m hashlimit --hashlimit-upto 50/sec --hashlimit-mode srcip --hashlimit-name h{number}",
        "-m recent --name r{number} --rcheck --seconds 60",
        "-m conntrack --ctstate RELATED,ESTABLISHED",
        "-m string --algo bm --string attack{number}",
        "-m statistic --mode random --probability 0.25",
        "-m connlimit --connlimit-above 100",
        "-m length --length 64:1500",
        "-m dscp --dscp 0x0a",
        "-m mac --mac-source 02:00:00:00:00:01",
        "-m mark --mark 0x{number:x}/0xffff",
        "-m quota --quota 1000000",
        "-m time --timestart 01:00:00 --timestop 02:00:00",
        '-m comment --comment "deployd: not ours, number {number} \\"quoted\\""',
        "-m tcpmss --mss 500:1000",
        "-m u32 --u32 0x6&0xff=0x6",
    )
    targets = ("ACCEPT", "DROP", "RETURN", 'LOG --log-prefix "n{number} "', "foreign", "REJECT --reject-with tcp-reset")

    def fill(self, count: int) -> None:
        dice = random.Random(3)
        for program, source in (("iptables", "10.{}.{}.0/24"), ("ip6tables", "fd00:{}:{}::/64")):
            rules = []
            for number in range(count):
                match, target = (dice.choice(kinds).format(number=number) for kinds in (self.matches, self.targets))
                chain = dice.choice(("INPUT", "FORWARD", "foreign2") if target == "foreign" else ("INPUT", "foreign"))
                rules.append(f"-A {chain} -s {source.format(number // 250, number % 250)} -p tcp {match} -j {target}")
            head = ["*filter", ":INPUT ACCEPT [7:420]", ":FORWARD DROP [0:0]", ":foreign - [0:0]", ":foreign2 - [0:0]"]
            nat = [
                "*nat",
                "-A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 8080",
                "-A OUTPUT -p udp -j ACCEPT",
                "COMMIT",
                "",
            ]
            sh(f"{program}-legacy-restore", input="\n".join([*head, *rules, "COMMIT", *nat]))

    def foreign(self) -> object:
        ours = (":deployd ", "-j deployd\n", "deployd:v1:")
        return {
            command: "".join(line for line in text.splitlines(keepends=True) if not any(mark in line for mark in ours))
            for command, text in firewall(counters=True).items()
        }


class TestReject(LegacyContract):
    """iptables, rejecting."""

    flushes = tuple(
        f"iptables-legacy {flush}; ip6tables-legacy {flush}" for flush in ("-F INPUT", "-F deployd", "-F", "-F; iptables-legacy -X")
    )

    def make_gate(self) -> Gate[Any]:
        return IptablesGate(IptablesOptions(mode="reject"))


class TestRedirect(LegacyContract):
    """iptables, redirecting."""

    flushes = tuple(f"iptables-legacy -t nat {flush}; ip6tables-legacy -t nat {flush}" for flush in ("-F deployd", "-F"))
    accidents = ("ip6tables-legacy -t nat -F", "iptables-legacy -t nat -I OUTPUT -p tcp -j ACCEPT")

    def make_gate(self) -> Gate[Any]:
        return IptablesGate(IptablesOptions(mode="redirect"))


class TestNftables(FirewallContract):
    """nftables."""

    others = (
        "nft add element inet foreign bad { 203.0.113.9 }; nft delete element inet foreign bad { 203.0.113.9 }",
        "nft add table inet more; nft add chain inet more some; nft delete table inet more",
        "iptables-nft -A INPUT -s 10.99.0.1 -j ACCEPT; iptables-nft -D INPUT -s 10.99.0.1 -j ACCEPT",
    )
    flushes = tuple(
        f"nft {flush}"
        for flush in (
            "flush ruleset",
            "flush table inet deployd",
            "flush chain inet deployd new",
            "flush set inet deployd reject_port",
        )
    )
    accidents = ("nft delete element inet deployd reject_port { ipv6 . 8001 }",)
    kinds = (
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

    def make_gate(self) -> Gate[Any]:
        return NftablesGate(NftablesOptions())

    def fill(self, count: int) -> None:
        dice = random.Random(3)
        rules = "".join(f"    {dice.choice(self.kinds).format(number=number + 1)}\n" for number in range(count))
        sh("iptables-nft -A INPUT -s 10.97.0.1 -j DROP")
        sh(
            "nft -f -",
            input="table inet foreign {\n"
            "  set bad { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.0.2.7 } }\n"
            "  map ports { type inet_service : verdict; elements = { 22 : accept } }\n"
            "  chain other { tcp dport vmap @ports; }\n"
            "  chain input {\n    type filter hook input priority filter; policy accept;\n" + rules + "  }\n}\n"
            "table ip nat {\n  chain pre { type nat hook prerouting priority dstnat; tcp dport 80 redirect to :8080\n  }\n}\n",
        )

    def foreign(self) -> object:
        return re.sub(r"(?ms)^table inet deployd \{.*?^\}\n", "", firewall()["nft list ruleset"])


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
