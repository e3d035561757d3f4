"""What only the `iptables` gate does; what every firewall does is in tests/contract. Each test in a network of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deployd_core.api import ConfigError, GateCall, Instance, Unavailable
from deployd_core.testing.instances import Client, Server, eventually
from deployd_core.testing.netns import firewall, isolated
from deployd_plugins.gates.iptables import IptablesGate, IptablesOptions

pytestmark = pytest.mark.root

LOCK = "/run/xtables.lock"


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


def refused(port=8001, host="127.0.0.1"):
    """Whether new clients are turned away."""
    return not Client(host, port, timeout=1.0).served()


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
def test_closing_leaves_the_time_zone_alone():
    """Neither this process nor a command that it starts is put into another time zone."""
    os.environ["TZ"] = "America/New_York"
    time.tzset()

    gate().close(call())

    time.tzset()
    assert "EST" in time.tzname


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
    sh("iptables-legacy -A INPUT -s 10.1.2.3 -j DROP")
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
