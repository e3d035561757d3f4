"""`deployd drains` and `deployd doctor` on real firewalls; each test in a network of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deployd_core.api import GateCall, Instance
from deployd_core.cli.main import run
from deployd_core.processes import owner_here
from deployd_core.testing.instances import Client, Server, eventually
from deployd_core.testing.netns import isolated
from deployd_plugins.gates.iptables import IptablesGate, IptablesOptions
from deployd_plugins.gates.nftables import NftablesGate, NftablesOptions

pytestmark = pytest.mark.root

GATES = {"iptables": lambda: IptablesGate(IptablesOptions()), "nftables": lambda: NftablesGate(NftablesOptions())}
DEAD = "h1/1/0.01"
"""An owner whose process is gone: pid 1 was started at another time."""

SPEC = """
[service]
root = "{root}/web"
[source]
url = "file:///nowhere/{{build}}.tar.gz"
[instances]
names = ["web@8001", "web@8002"]
manager = {{ use = "command", start = ["true"], stop = ["true"], status = ["true"] }}
[restart]
strategy = "iptables-drain"
options = {{ gate = "{gate}", drain_timeout = "{timeout}", traffic_timeout = "6s" }}
"""


def deployd(capsys, *arguments):
    """Run a command; its exit code, output and messages."""
    code = run([*arguments, "--plugins-dir", "/nonexistent"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def listed(capsys):
    """What is closed: instance, gate, state."""
    code, out, _ = deployd(capsys, "drains", "list", "--json")
    assert 0 == code
    body = json.loads(out)
    assert "deployd.drains.list/1" == body["schema"]
    return [(row["instance"], row["gate"], row["state"]) for row in body["closed"]]


def close(gate, name, *, owner, seconds=60.0, service="web"):
    """Close an instance as an agent would."""
    gate.close(
        GateCall(
            service=service,
            host="h1",
            zone="",
            root=Path("/srv/web"),
            timeout=10.0,
            instance=Instance.parse(service, name),
            until=time.time() + seconds,
            owner=owner,
        )
    )


def spec(directory, gate="nftables", timeout="10s"):
    """A spec file."""
    path = directory / "web.toml"
    path.write_text(SPEC.format(root=directory, gate=gate, timeout=timeout))
    return str(path)


@pytest.mark.parametrize("gate", GATES)
@isolated
def test_what_is_closed_is_listed_with_who_holds_it(gate, capsys):
    """A living owner holds a lease, one that is gone leaves an orphan; named is the gate that holds it, not one that hands on."""
    close(GATES[gate](), "web@8001", owner=owner_here("h1"))
    close(GATES[gate](), "web@8002", owner=DEAD)

    assert [("web@8001", gate, "held"), ("web@8002", gate, "orphaned")] == listed(capsys)


@isolated
def test_that_nothing_is_closed_is_said(capsys):
    """No empty table."""
    assert (0, "Nothing is closed on this host.\n") == deployd(capsys, "drains", "list")[:2]


@pytest.mark.parametrize("gate", GATES)
@isolated
def test_reaping_opens_what_no_process_stands_for(gate, capsys):
    """The orphan goes, the lease of a living process stays."""
    close(GATES[gate](), "web@8001", owner=DEAD)
    close(GATES[gate](), "api@9001", owner=owner_here("h1"), service="api")

    code, out, _ = deployd(capsys, "drains", "reap", "--grace", "100ms")

    assert (0, f"web@8001 of web opened ({gate}, orphaned)\n") == (code, out)
    assert [("api@9001", gate, "held")] == listed(capsys)


@isolated
def test_an_agent_that_comes_back_keeps_its_gates(capsys):
    """What is taken over within the grace is not reaped."""
    gate = GATES["nftables"]()
    close(gate, "web@8001", owner=DEAD)
    timer = threading.Timer(0.3, lambda: close(gate, "web@8001", owner=owner_here("h1")))
    timer.start()

    code, out, _ = deployd(capsys, "drains", "reap", "--grace", "1s")

    timer.join()
    assert (0, "") == (code, out)
    assert [("web@8001", "nftables", "held")] == listed(capsys)


@isolated
def test_expired_leases_are_reaped_at_once(capsys):
    """A rule of iptables whose time is up holds nobody back, and is removed."""
    gate = GATES["iptables"]()
    close(gate, "web@8001", owner=owner_here("h1"))  # whatever takes its time once
    close(gate, "web@8001", owner=owner_here("h1"), seconds=4.0)
    assert eventually(lambda: [("web@8001", "iptables", "expired")] == listed(capsys))

    code, out, _ = deployd(capsys, "drains", "reap", "--grace", "1h")

    assert (0, "web@8001 of web opened (iptables, expired)\n") == (code, out)
    assert [] == listed(capsys)


@isolated
def test_clearing_opens_what_is_meant_and_asks_first(capsys):
    """One instance, one service, or everything; in a pipe only with --yes."""
    gate = GATES["nftables"]()
    for name in ("web@8001", "web@8002"):
        close(gate, name, owner=owner_here("h1"))

    code, _, err = deployd(capsys, "drains", "clear", "web", "web@8001")
    assert 2 == code
    assert "nothing was opened: --yes says that web@8001 of web is meant" in err

    assert 0 == deployd(capsys, "drains", "clear", "web", "web@8001", "--yes")[0]
    assert [("web@8002", "nftables", "held")] == listed(capsys)
    assert 0 == deployd(capsys, "drains", "clear", "--yes")[0]
    assert [] == listed(capsys)
    assert (0, "nothing is closed\n") == deployd(capsys, "drains", "clear", "--yes")[::2]


def traffic(port, stop):
    """A client that asks now and then on a connection that it keeps, and comes again when it was turned away."""
    client = Client("127.0.0.1", port)
    while not stop.is_set():
        client.served(0.05)  # the kernel's clock ticks: request and answer do not fall together
        stop.wait(2.2)
    client.close()


@pytest.mark.parametrize("gate", GATES)
@isolated
def test_a_rehearsal_closes_and_opens_each_gate_in_turn(gate, capsys, tmp_path):
    """A request in flight is waited for, an idle connection is closed, and clients are seen to be back."""
    servers = [Server(port) for port in (8001, 8002)]
    stop = threading.Event()
    threads = [
        threading.Thread(target=traffic, args=(8001, stop)),
        threading.Thread(target=lambda: Client("127.0.0.1", 8001).served(1)),
    ]
    for thread in threads:
        thread.start()
    idle = Client("127.0.0.1", 8002)
    assert idle.served()
    assert servers[0].asked.wait(10)

    code, out, err = deployd(capsys, "drains", "rehearse", "web", "--spec", spec(tmp_path, gate), "--json")

    stop.set()
    for thread in threads:
        thread.join()
    assert (0, "") == (code, err), out
    body = json.loads(out)
    assert ["web@8001", "web@8002"] == [row["instance"] for row in body["instances"]]
    first, second = body["instances"]
    assert 1 <= first["at_close"]["busy"] + first["at_close"]["idle"]
    assert 0 == first["left"]["busy"] + first["left"]["idle"]
    assert first["clients_back_after"] is not None
    assert 1 == second["idle_closed"]
    assert second["clients_back_after"] is None
    assert [] == listed(capsys)


@isolated
def test_a_rehearsal_that_does_not_drain_says_what_would_be_lost(capsys, tmp_path):
    """A request that outlasts the deadline is one that a restart would cut."""
    assert [] == listed(capsys)  # whatever takes its time once
    servers = [Server(port) for port in (8001, 8002)]
    thread = threading.Thread(target=lambda: Client("127.0.0.1", 8001).served(8))
    thread.start()
    assert servers[0].asked.wait(10)

    code, out, _ = deployd(capsys, "drains", "rehearse", "web", "--spec", spec(tmp_path, timeout="1s"), "--instance", "web@8001")

    thread.join()
    assert 1 == code
    assert "lost           1 connections in flight, had it been restarted (at_deadline = proceed)" in out
    assert [] == listed(capsys)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@isolated
def test_a_rehearsal_that_is_interrupted_opens_what_it_closed(number, capsys, tmp_path):
    """Ctrl-C in the middle of a drain: the gate is open, the exit code says so."""
    server = Server(8001)
    threading.Thread(target=lambda: Client("127.0.0.1", 8001).served(60), daemon=True).start()
    assert server.asked.wait(10)
    command = [sys.executable, "-P", "-m", "deployd_core", "drains", "rehearse", "web", "--spec", spec(tmp_path, timeout="1m")]
    rehearsal = subprocess.Popen([*command, "--plugins-dir", "/nonexistent"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert eventually(lambda: [("web@8001", "nftables", "held")] == listed(capsys))

    rehearsal.send_signal(number)

    rehearsal.communicate(timeout=20)
    assert 130 == rehearsal.returncode
    assert [] == listed(capsys)


@isolated
def test_what_is_closed_already_is_not_rehearsed(capsys, tmp_path):
    """An agent may be at work: nothing is touched."""
    close(GATES["nftables"](), "web@8002", owner=owner_here("h1"))

    code, _, err = deployd(capsys, "drains", "rehearse", "web", "--spec", spec(tmp_path))

    assert 1 == code
    assert "web@8002 is closed already, by h1/" in err
    assert [("web@8002", "nftables", "held")] == listed(capsys)


@isolated
def test_the_doctor_names_what_is_wrong(capsys, tmp_path):
    """No ZooKeeper and an orphaned gate: exit code 1, each with what to do; the clock, the firewall and the agent are looked at."""
    close(GATES["nftables"](), "web@8001", owner=DEAD)
    (tmp_path / "agent.toml").write_text(f'host = "h1"\nservices = ["web"]\nstate_directory = "{tmp_path}"\n')

    code, out, _ = deployd(
        capsys,
        "doctor",
        "--config",
        str(tmp_path / "agent.toml"),
        "--zookeeper",
        "127.0.0.1:1/x",
        "--connect-timeout",
        "200ms",
        "--json",
    )

    assert 1 == code
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert {"agent.toml", "plugins", "privileges", "clock", "firewall", "agent", "closed gates", "zookeeper"} <= set(checks)
    assert "fail" == checks["zookeeper"]["verdict"]
    assert ("warn", "deployd drains reap") == (checks["closed gates"]["verdict"], checks["closed gates"]["hint"])
    assert "no agent runs for host h1" == checks["agent"]["says"]


@isolated
def test_a_broken_agent_toml_is_what_the_doctor_says(capsys, tmp_path):
    """Nothing else can be checked then."""
    (tmp_path / "agent.toml").write_text("hots = 1")

    code, out, _ = deployd(capsys, "doctor", "--config", str(tmp_path / "agent.toml"))

    assert 1 == code
    assert out.startswith("fail  agent.toml: ")
    assert 1 == len([line for line in out.splitlines() if not line.startswith(" ")])


def become_nobody():
    """Lose every right, for good; what is imported by then is there to be used."""
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


@pytest.mark.parametrize("words", [("list",), ("list", "--json"), ("reap", "--grace", "0s")])
@isolated
def test_who_may_not_look_is_told_so_and_not_that_nothing_is_closed(words, capfd):
    """For anyone but root it ends with 1 and one line for each firewall, whatever a library would like to say beside it."""
    close(GATES["nftables"](), "web@8001", owner=owner_here("h1"))
    deployd(capfd, "drains", *words)
    become_nobody()

    code, out, err = deployd(capfd, "drains", *words)

    assert 1 == code
    said = json.loads(out)["problems"] if "--json" in words else err.splitlines()
    assert 2 == len(said)
    assert all("only root may" in line for line in said)


@isolated
def test_the_doctor_does_not_say_that_nothing_is_closed_when_it_may_not_look(capfd):
    """What is hidden from it is a warning."""
    words = ("doctor", "--zookeeper", "127.0.0.1:1", "--connect-timeout", "100ms", "--json")
    deployd(capfd, *words)
    become_nobody()

    _, out, _ = deployd(capfd, *words)

    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert "warn" == checks["closed gates"]["verdict"]
    assert "only root may" in checks["closed gates"]["says"]
    assert "legacy tables: IPv4 hidden from this user" in checks["firewall"]["says"]
