"""`deployd strategies plan`: a real service on this host, looked at and left alone; in a network of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
import urllib.request

import pytest

from deployd_core.api import GateCall
from deployd_core.cli.main import run
from deployd_core.model import Build, Instance
from deployd_core.packing import pack
from deployd_core.plugins import Kind, Plugins
from deployd_core.processes import owner_here
from deployd_core.releases import ReleaseStore
from deployd_core.testing.instances import eventually
from deployd_core.testing.netns import firewall, isolated
from deployd_core.testing.sample import SampleService

pytestmark = pytest.mark.root

SPEC = """
[service]
root = "{root}"
[source]
url = "file://{root}/{{build}}.tar.gz"
[instances]
names = ["web@8001", "web@8002"]
manager = {{ use = "command", start = ["true"], stop = ["true"], status = ["true"] }}
probe = {{ use = "http", url = "http://127.0.0.1:{{port}}/" }}
warmup = ["/"]
[restart]
strategy = "iptables-drain"
options = {{ gate = "{gate}", min_available = {floor} }}
"""


@contextlib.contextmanager
def serving(root):
    """Two instances of build v1, deployed as the agent would."""
    store = stage(root, "v1")
    store.flip("v1")
    sample = SampleService(root.parent / "other")
    processes = [subprocess.Popen(sample.command(port), cwd=root / "current") for port in (8001, 8002)]
    try:
        assert eventually(lambda: [b"v1", b"v1"] == [ask(port) for port in (8001, 8002)])
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def stage(root, name):
    """Bring a build onto the disk, as the agent would; the store."""
    content = SampleService(root.parent / f"content-{name}").add(name)
    archive = root.parent / f"{name}.tar.gz"
    build = Build(name, pack(content, archive).digest)
    source = Plugins.load().make(Kind.SOURCE, "file", {"url": f"file://{root.parent}/{{build}}.tar.gz"}, where="test").plugin
    store, stop = ReleaseStore("web", root), threading.Event()
    store.prepare()
    store.fetch(build, source, timeout=10, stop=stop, progress=lambda done, total: None)
    store.unpack(build, stop=stop)
    return store


def ask(port):
    """What an instance answers."""
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as response:
        return response.read()
    return None


def tree(root):
    """Every path below a directory."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if "__pycache__" not in str(path))


def planned(capsys, root, *arguments, gate="iptables", floor=1, build="v2"):
    """Plan; the exit code and what is printed."""
    spec = root.parent / "web.toml"
    spec.write_text(SPEC.format(root=root, gate=gate, floor=floor))
    command = ["strategies", "plan", "web", "--spec", str(spec), "--build", build, "--plugins-dir", "/nonexistent"]
    code = run([*command, *arguments])
    captured = capsys.readouterr()
    assert "" == captured.err
    return code, captured.out


@isolated
def test_the_sequence_of_a_roll_is_printed_and_nothing_is_touched(capsys, tmp_path):
    """One instance after the other, each with the rule that would close it; the firewall, the disk and the processes stay."""
    root = tmp_path / "web"
    with serving(root):
        for command in ("iptables-legacy", "ip6tables-legacy"):
            subprocess.run([command, "-L"], check=True, capture_output=True)  # a look at empty tables has the kernel make them
        before = firewall(), tree(root)

        code, out = planned(capsys, root, "--json")

        assert before == (firewall(), tree(root))
        assert [b"v1", b"v1"] == [ask(port) for port in (8001, 8002)]
    body = json.loads(out)
    assert (0, "converged", 1) == (code, body["ended"], body["fewest_available"])
    cycle = ["closegate", "restart", "warmup", "opengate"]
    expected = [(act, name) for name in ("web@8001", "web@8002") for act in cycle]
    moves = [(move["act"], move["instance"]) for move in body["moves"]]
    assert [("resolve", None), ("fetch", None), ("unpack", None), ("takepermit", None), ("flip", None), *expected] == moves[:-1]
    rules = next(move["rules"] for move in body["moves"] if move["act"] == "closegate")
    assert any(rule.startswith("iptables-legacy -") and "8001" in rule for rule in rules)


@isolated
def test_for_people_it_is_a_table(capsys, tmp_path):
    """The gate and why, the limits, the instances as they are, the moves with their deadlines, and the worst moment."""
    root = tmp_path / "web"
    with serving(root):
        code, out = planned(capsys, root, gate="auto")

    assert 0 == code
    assert f"web on {subprocess.check_output(['hostname'], text=True).strip()}: from v1 to v2, by iptables-drain" in out
    assert "  gate      nftables, because " in out
    assert "  web@8001  running, healthy, serves v1" in out
    assert "drain 30s, then proceed; restart 1m; healthy 5m; clients back 15s; lease 2m" in out
    assert "at the worst moment 1 of 2 instances are available" in out


@isolated
def test_an_instance_that_is_being_drained_is_seen_past_its_gate(capsys, tmp_path):
    """Its health shows though the agent, which lives, has closed it; what is wrong with one that is not healthy is said."""
    root = tmp_path / "web"
    with serving(root):
        call = GateCall(
            service="web",
            host="h1",
            zone="",
            root=root,
            timeout=10.0,
            instance=Instance.parse("web", "web@8001"),
            until=time.time() + 60.0,
            owner=owner_here("h1"),
        )
        Plugins.load().make(Kind.GATE, "iptables", {}, where="test").plugin.close(call)
        _, out = planned(capsys, root)
    _, later = planned(capsys, root)

    assert "web@8001  running, healthy, serves v1, gate closed, 0 connections busy and 0 idle\n" in out
    assert "web@8002  running, unknown, serves nothing that can be told; manager command says that it runs, but" in later


@isolated
def test_a_release_that_is_staged_is_not_fetched(capsys, tmp_path):
    """What is on the disk already is no move."""
    root = tmp_path / "web"
    with serving(root):
        stage(root, "v2")

        _, out = planned(capsys, root, "--json")

    assert "takepermit" == json.loads(out)["moves"][0]["act"]


@isolated
def test_what_cannot_be_is_said_with_its_arithmetic(capsys, tmp_path):
    """A floor that leaves nothing to restart: exit code 1, and no move that disturbs anything."""
    root = tmp_path / "web"
    with serving(root):
        code, out = planned(capsys, root, floor=2)

    assert 1 == code
    assert "blocked" in out
    assert "min_available keeps 2" in out
    assert "close web@8001" not in out


@isolated
def test_a_host_that_is_right_has_nothing_to_do(capsys, tmp_path):
    """The build that is served already: it is only put on record."""
    root = tmp_path / "web"
    with serving(root):
        code, out = planned(capsys, root, "--json", build="v1")

    body = json.loads(out)
    assert (0, ["settle"]) == (code, [move["act"] for move in body["moves"]])


@pytest.mark.zookeeper
def test_the_spec_and_the_build_come_from_zookeeper(capsys, tmp_path, zookeeper):
    """What is enabled is planned; that nothing is enabled is said, with what to type."""
    (tmp_path / "web.toml").write_text(
        f"""
        [service]
        root = "{tmp_path}/web"
        [source]
        url = "file://{tmp_path}/{{build}}.tar.gz"
        """
    )
    (tmp_path / "agent.toml").write_text('host = "h1"\nservices = ["web"]\n')
    place = ["--zookeeper", zookeeper, "--plugins-dir", "/nonexistent"]
    assert 0 == run(["services", "apply", str(tmp_path / "web.toml"), *place])
    there = [*place, "--config", str(tmp_path / "agent.toml")]

    assert 1 == run(["strategies", "plan", "web", *there])
    assert "nothing is enabled for web. Try: deployd strategies plan web --build BUILD" in capsys.readouterr().err

    pack(SampleService(tmp_path / "content").add("v2"), tmp_path / "v2.tar.gz")
    assert 0 == run(["enable", "web", "v2", *place])
    capsys.readouterr()
    assert 0 == run(["strategies", "plan", "web", "--json", *there])
    body = json.loads(capsys.readouterr().out)
    assert ("h1", "v2", "converged") == (body["host"], body["build"], body["ended"])
    assert ["fetch", "unpack", "takepermit", "flip", "settle"] == [move["act"] for move in body["moves"]]

    assert 1 == run(["strategies", "plan", "wbe", *there])
    assert "web" in capsys.readouterr().err
