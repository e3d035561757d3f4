"""The `iptables` gate among other people's rules, programs and accidents; each test in a network of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deployd_core.api import ConfigError, GateCall, Instance, Unavailable
from deployd_core.testing.instances import Client, Server, eventually
from deployd_core.testing.netns import firewall, isolated
from deployd_plugins.gates.iptables import IptablesGate, IptablesOptions

pytestmark = pytest.mark.root

LOCK = "/run/xtables.lock"
MATCHES = (
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
TARGETS = ("ACCEPT", "DROP", "RETURN", 'LOG --log-prefix "n{number} "', "foreign", "REJECT --reject-with tcp-reset")


@pytest.fixture(scope="module", autouse=True)
def machine_untouched():
    """The firewall of the machine itself is the same after all of these tests."""
    before = firewall()
    yield
    assert before == firewall()


def gate(**options):
    """A gate that rejects."""
    return IptablesGate(IptablesOptions(**options))


def call(port=8001, *, service="web", lease=60.0, hold=False, timeout=10.0):
    """A call that closes the instance on that port."""
    return GateCall(
        service=service,
        host="h1",
        zone="",
        root=Path("/srv/web"),
        timeout=timeout,
        instance=Instance(service=service, name=f"{service}@{port}", port=port),
        until=time.time() + lease,
        owner="h1/4711/12.34",
        hold=hold,
    )


def sh(command, **options):
    """Run a command line; what it says."""
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True, **options).stdout


def fill(count=1000):
    """Other people's rules: `count` in either family, of many kinds, the same in every run."""
    dice = random.Random(3)
    for program, source in (("iptables", "10.{}.{}.0/24"), ("ip6tables", "fd00:{}:{}::/64")):
        rules = []
        for number in range(count):
            match, target = dice.choice(MATCHES).format(number=number), dice.choice(TARGETS).format(number=number)
            chain = dice.choice(("INPUT", "FORWARD", "foreign2")) if target == "foreign" else dice.choice(("INPUT", "foreign"))
            rules.append(f"-A {chain} -s {source.format(number // 250, number % 250)} -p tcp {match} -j {target}")
        head = ["*filter", ":INPUT ACCEPT [7:420]", ":FORWARD DROP [0:0]", ":foreign - [0:0]", ":foreign2 - [0:0]"]
        nat = ["*nat", "-A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 8080", "-A OUTPUT -p udp -j ACCEPT", "COMMIT", ""]
        sh(f"{program}-legacy-restore", input="\n".join([*head, *rules, "COMMIT", *nat]))


def without_ours(rules):
    """Rules but for those of the gate."""
    ours = (":deployd ", "-j deployd\n", "deployd:v1:")
    return {
        command: "".join(line for line in text.splitlines(keepends=True) if not any(mark in line for mark in ours))
        for command, text in rules.items()
    }


def refused(port=8001, host="127.0.0.1"):
    """Whether new clients are turned away."""
    return not Client(host, port, timeout=1.0).served()


@pytest.mark.parametrize("mode", ["reject", "redirect"])
@isolated
def test_rules_of_others_are_byte_identical(mode):
    """A thousand rules of all kinds, with their counters, are the same while gates are closed and after they are opened."""
    fill()
    before = firewall(counters=True)
    closing = gate(mode=mode)

    for port in range(8001, 8006):
        closing.close(call(port))
        closing.close(call(port))
    during = firewall(counters=True)
    for port in range(8001, 8006):
        closing.open(call(port))

    assert [5, 5] == [during[f"{program}-legacy-save"].count("deployd:v1:") for program in ("iptables", "ip6tables")]
    assert before == without_ours(during)
    assert before == firewall(counters=True)


@isolated
def test_a_rule_is_what_was_previewed():
    """The kernel has the rule, as iptables prints it, that a preview announced."""
    for options in ({}, {"mode": "redirect"}, {"address": "{address}"}):
        closing = gate(**options)
        announced = closing.preview(call())

        closing.close(call())

        rules = firewall()
        text = rules["iptables-legacy-save"] + rules["ip6tables-legacy-save"]
        for line in announced:
            rule = line.partition(" -A ")[2]
            assert rule.replace(" -d 127.0.0.1 ", " -d 127.0.0.1/32 ") in text
        closing.clear()


@isolated
def test_nothing_is_lost_among_other_programs():
    """Forty instances, closed and opened by threads beside loops of iptables and iptables-restore: all arrives on either side."""
    fill(50)
    before = without_ours(firewall())
    stop, done = threading.Event(), []
    add, drop = (f"iptables-legacy -w -{letter} foreign -s 10.99.0.1 -j ACCEPT" for letter in "AD")
    restore = "printf '*filter\\n-{} foreign2 -s 10.98.0.1 -j DROP\\nCOMMIT\\n' | iptables-legacy-restore -w --noflush"

    def toggle(name, command):
        while not stop.is_set():
            sh(command)
            done.append(name)

    def work(ports):
        closing = gate()
        for port in [*ports] * 3:
            closing.close(call(port, service=("api", "web")[port % 2]))
            closing.open(call(port, service=("api", "web")[port % 2]))
        for port in ports:
            closing.close(call(port, service=("api", "web")[port % 2]))

    others = [
        threading.Thread(target=toggle, args=("iptables", f"{add}; {drop}")),
        threading.Thread(target=toggle, args=("restore", f"{restore.format('A')}; {restore.format('D')}")),
    ]
    ours = [threading.Thread(target=work, args=(range(8000 + first, 8000 + first + 10),)) for first in (0, 10, 20, 30)]
    for thread in (*others, *ours):
        thread.start()
    for thread in ours:
        thread.join()
    stop.set()
    for thread in others:
        thread.join()

    assert {"iptables", "restore"} == set(done)
    assert set(range(8000, 8040)) == {int(found.instance[-4:]) for found in gate().closed_everywhere()}
    assert [20, 20] == [len(gate().closed(call(service=service))) for service in ("web", "api")]
    assert before == without_ours(firewall())


@isolated
def test_a_table_that_changed_is_read_again():
    """When a program changes the table between our reading and our commit, the commit is refused, and made again afterwards."""
    import iptc

    from deployd_plugins.gates import xtables

    gate().close(call(8001))
    table = xtables.Table(iptc, 4, "filter")
    table.edit(lambda lease: True, None)

    sh("XTABLES_LOCKFILE=/run/other.lock iptables-legacy -A INPUT -s 10.1.2.3 -j DROP")

    assert table.commit() is False
    gate().close(call(8002))
    assert 2 == len(gate().closed_everywhere())
    assert "-A INPUT -s 10.1.2.3/32 -j DROP" in firewall()["iptables-legacy-save"]


@isolated
def test_a_process_killed_while_it_holds_the_lock_leaves_everything_as_it_was():
    """Killed between lock and commit, nothing has changed, and the lock is free."""
    fill(10)
    gate().close(call(8001))
    before = firewall()

    def die():
        import iptc

        from deployd_plugins.gates import xtables, xtables_lock

        with xtables_lock.held(LOCK, 1.0):
            xtables.Table(iptc, 4, "filter").edit(lambda lease: True, None)
            os.kill(os.getpid(), signal.SIGKILL)

    forked(die)

    assert before == firewall()
    gate().close(call(8002, timeout=1.0))


def forked(function):
    """Run a function in a child; returns its status."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(KeyboardInterrupt):
            function()
        os._exit(0)
    return os.waitpid(pid, 0)[1]


@isolated
def test_a_lease_ends_with_no_process_alive():
    """A gate whose closer was killed opens by itself when its lease ends."""
    server = Server(8001)
    forked(lambda: (gate().close(call(lease=2.5)), os.kill(os.getpid(), signal.SIGKILL)))
    assert refused()
    assert refused(host="::1")

    assert eventually(lambda: not refused() and not refused(host="::1"))

    assert () == gate().closed(call())
    server.server_close()


@isolated
def test_leases_that_have_run_out_are_swept_up():
    """A rule whose lease is over is not listed as closed, goes with the next change, and can be reaped."""
    closing = gate()
    closing.close(call(8001, lease=3.2))
    closing.close(call(8002, lease=3.2))
    assert eventually(lambda: closing.closed(call()) == ())
    assert 2 == len(closing.closed_everywhere())

    assert ["web@8001"] == [found.instance for found in closing.clear("web", "web@8001", expired_only=True)]
    closing.close(call(8003))

    assert ["web@8003"] == [found.instance for found in closing.closed_everywhere()]
    assert () == closing.clear(expired_only=True)


@pytest.mark.parametrize("flush", ["-F INPUT", "-F deployd", "-F"])
@isolated
def test_rules_flushed_by_others_are_noticed_and_repaired(flush):
    """A gate whose rule or jump somebody flushed is not said to be closed; closing it again closes it."""
    server = Server(8001)
    closing = gate()
    closing.close(call())
    for program in ("iptables", "ip6tables"):
        sh(f"{program}-legacy {flush}")

    assert () == closing.closed(call())
    assert not refused()
    closing.close(call())

    assert 1 == len(closing.closed(call()))
    assert refused()
    server.server_close()


@pytest.mark.parametrize("accident", ["ip6tables-legacy -F INPUT", "iptables-legacy -I INPUT -p tcp -j ACCEPT"])
@isolated
def test_a_gate_that_holds_by_half_is_about_to_end(accident):
    """Flushed in one family, or overtaken by another rule, a gate is said to end now: it is then closed again, and holds."""
    server = Server(8001)
    closing = gate()
    closing.close(call())
    sh(accident)

    (found,) = closing.closed(call())
    assert found.until <= time.time()
    closing.close(call())

    (found,) = closing.closed(call())
    assert found.until > time.time()
    assert [True, True] == [refused(host=host) for host in ("127.0.0.1", "::1")]
    assert "-j deployd" in firewall()["iptables-legacy-save"].partition("-A INPUT")[2].splitlines()[0]
    server.server_close()


@isolated
def test_another_mode_replaces_the_first():
    """An instance that was closed by redirection and is closed by rejection has one rule, and opens at once."""
    server = Server(8001)
    gate(mode="redirect").close(call())
    gate(mode="reject").close(call())

    rules = firewall()["iptables-legacy-save"]
    assert 1 == rules.count("deployd:v1:")
    assert "REDIRECT" not in rules
    gate().open(call())
    assert not refused()
    server.server_close()


@isolated
def test_a_port_in_use_takes_nobody():
    """Clients are not redirected to a port where something listens."""
    with socket.create_server(("127.0.0.1", 9999)), pytest.raises(ConfigError, match="unused_port = 9999 is in use"):
        gate(mode="redirect", unused_port=9999).close(call())


@isolated
def test_only_root_may():
    """For anyone but root, every call says so."""
    gate().close(call())
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)

    closing = gate()
    for act in (
        lambda: closing.close(call()),
        lambda: closing.open(call()),
        lambda: closing.closed(call()),
        lambda: closing.connections(call()),
        closing.clear,
    ):
        with pytest.raises(ConfigError, match="only root may|may not be used") as told:
            act()
        assert "root" in told.value.hint


@isolated
def test_without_python_iptables_the_error_says_so():
    """A missing module is named, with what brings it."""
    sys.modules["iptc"] = None

    with pytest.raises(ConfigError, match="python-iptables does not work here") as told:
        gate().close(call())

    assert "apt install iptables" in told.value.hint


@isolated
def test_without_the_libraries_the_error_says_so():
    """Libraries that cannot be loaded are named."""
    hide("libxtables.so.12")

    with pytest.raises(ConfigError, match="libxtables") as told:
        gate().close(call())

    assert "apt install iptables" in told.value.hint


def hide(name):
    """Have a shared library be an empty file, for this process's own file system."""
    for line in sh("/sbin/ldconfig -p").splitlines():
        if name in line:
            sh(f"mount --bind /dev/null {Path(line.rpartition('=> ')[2]).resolve()}")


@isolated
def test_without_a_place_for_the_lock_the_error_says_so():
    """A lock that cannot be made is named, and nothing is changed."""
    before = firewall()

    with pytest.raises(ConfigError, match=r"/run/nowhere/xtables\.lock, cannot be opened: No such file"):
        gate(lock="/run/nowhere/xtables.lock").close(call())

    assert before == firewall()


@isolated
def test_a_lock_that_is_held_is_waited_for_no_longer_than_the_call_may_take():
    """When another program sits on the lock, the gate gives up in time, and says on what it waited."""
    with Path(LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        with pytest.raises(Unavailable, match=f"another program has held {LOCK} for 0.2 s") as told:
            gate().close(call(timeout=0.2))

    assert "fuser" in told.value.hint
    gate().close(call(timeout=5.0))


@isolated
def test_a_host_that_cannot_reject_redirects():
    """Without the extension REJECT, `auto` redirects, and `reject` says what is missing."""
    hidden = Path("/run/xtables")
    hidden.mkdir()
    for library in Path("/usr/lib/x86_64-linux-gnu/xtables").iterdir():
        if "REJECT" not in library.name:
            (hidden / library.name).symlink_to(library)
    os.environ["XTABLES_LIBDIR"] = str(hidden)
    server = Server(8001)

    with pytest.raises(ConfigError, match="REJECT"):
        gate(mode="reject").close(call())
    gate(mode="auto").close(call())

    assert refused()
    assert "REDIRECT" in firewall()["iptables-legacy-save"]
    server.server_close()


@isolated
def test_a_host_without_ipv6_is_closed_in_ipv4():
    """Where no interface has an IPv6 address, the tables of IPv6 are left alone."""
    sh("ip link set lo down; sysctl -qw net.ipv6.conf.all.disable_ipv6=1; ip link set lo up")

    gate().close(call())

    assert "deployd" not in firewall()["ip6tables-legacy-save"]
    assert 1 == len(gate().closed(call()))


@isolated
def test_a_closed_gate_says_how_it_works():
    """An explanation names tables, families and who passes."""
    assert "iptables, legacy tables, IPv4 and IPv6: new connections are reset" in gate().explain(call())
    assert "redirected to port 1" in gate(mode="redirect", ipv6="off").explain(call())
    assert "127.0.0.2 and mark 0xdeb pass" in gate().explain(call())
