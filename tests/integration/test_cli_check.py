"""`deployd strategies check` and `deployd plugins check`: what they print, and what they end with."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from deployd_core.cli.main import run
from deployd_core.conformance.looking import FACTS
from deployd_core.conformance.strategies import PROPERTIES

BAD = ["--plugins-dir", str(Path(__file__).parent / "plugins.d")]
PRIMARY = '''
from deployd_core.api import HostView, Options, Plan, Strategy, hookimpl


class PrimaryLast(Strategy[Options]):
    """Restart the primary last."""

    name = "primary-last"

    def plan(self, view: HostView) -> Plan:
        primary = view.facts.get("primary")
        if primary is None:
            return Plan(cycle=(), why="nobody knows the primary", impossible="nobody knows the primary")
        return Plan(cycle=view.cycling or tuple(sorted(view.stale, key=lambda name: name == primary))[:1], why="the primary last")


@hookimpl
def deployd_strategies():
    return [PrimaryLast]
'''


def test_what_passes_ends_with_0_and_says_what_was_tried(capsys: pytest.CaptureFixture[str]) -> None:
    """Each property has its line."""
    code = run(["strategies", "check", "concurrency", "--seeds", "5", "--option", "instances_at_once=2", "--option", "limit=50%"])

    lines = capsys.readouterr().out.splitlines()
    assert 0 == code
    assert [name for name in PROPERTIES if name != FACTS] == [line.split()[0] for line in lines[1:10]]
    assert {"ok"} == {line.split()[1] for line in lines[1:10]}
    assert "strategy concurrency passes all 9 checks" == lines[-1]


def test_a_strategy_without_a_fleet_limit_passes_and_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    """It may want that; nobody should want it unknowingly."""
    code = run(["strategies", "check", "all-at-once", "--seeds", "1"])

    assert 0 == code
    assert ["strategy all-at-once passes all 9 checks", "It sets no fleet limit: all hosts at once"] == (
        capsys.readouterr().out.splitlines()[-2:]
    )


def test_what_fails_ends_with_1_and_the_seed_that_shows_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    """The problem comes with the command that reproduces it."""
    code = run([*BAD, "strategies", "check", "falls-over-a-rare-host", "--seeds", "60"])
    printed = capsys.readouterr().out
    (again,) = [line for line in printed.splitlines() if line.startswith("Again: deployd ")]

    repeated = run(shlex.split(again.removeprefix("Again: deployd ")))

    assert (1, 1) == (code, repeated)
    assert "plans: plugin bad (" in printed
    assert "ZeroDivisionError" in capsys.readouterr().out


RARE = '''
from deployd_core.api import FleetOptions, HostView, Plan, Strategy, hookimpl


class Rare(Strategy[FleetOptions]):
    """Count on it that no host has six instances of which as many are down as the facts say."""

    name = "rare"

    def plan(self, view: HostView) -> Plan:
        down = sum(found.serves is None for found in view.instances)
        share = 100 // (abs(len(view.instances) - 6) + abs(down - view.facts.get("down", 9)))
        return Plan(cycle=view.cycling or view.stale[:1], limit=self.options.fleet_limit, why=f"one by one {share}")


@hookimpl
def deployd_strategies():
    return [Rare]
'''


def test_what_shows_it_again_repeats_every_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Options, facts and the plugin directory, quoted for a shell: pasted, it finds the same."""
    directory = tmp_path / "a plugin's directory"
    directory.mkdir()
    (directory / "rare.py").write_text(RARE)
    facts = '{"down": 1, "why": "it\'s so"}'
    given = ["-o", "limit=4", "-o", "limit_per_zone=2", "--facts", facts]

    assert 1 == run(["strategies", "check", "rare", *given, "--seeds", "60", "--plugins-dir", str(directory)])
    again = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Again: "))
    words = shlex.split(again.removeprefix("Again: deployd "))
    seed = words[words.index("--seed") + 1]

    assert ["strategies", "check", "rare", *given, "--seed", seed, "--seeds", "1", "--plugins-dir", str(directory)] == words
    assert 1 == run(words)
    assert again in capsys.readouterr().out.splitlines()


def test_the_json_holds_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """For a machine: each check with its promise, its problem and its seed."""
    code = run([*BAD, "strategies", "check", "sleeps", "--seeds", "0", "--json"])

    found = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in found["checks"]}
    assert (1, "deployd.plugins.check/1", False) == (code, found["schema"], found["passed"])
    assert "plan sleeps at " in checks["pure"]["problem"]
    assert {"name", "promise", "passed", "cases", "problem", "seed"} == set(checks["pure"])


def test_a_strategy_with_facts_is_checked_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without its facts it can bring no host to an end, and says so; with them it passes."""
    (tmp_path / "primary.py").write_text(PRIMARY)
    check = ["--plugins-dir", str(tmp_path), "strategies", "check", "primary-last", "--seeds", "10"]

    assert 1 == run(check)
    assert "nobody knows the primary" in capsys.readouterr().out
    assert 0 == run([*check, "--facts", '{"primary": "web@8001"}'])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["strategies", "check", "concurency"], 1, "Did you mean 'concurrency'?"),
        (["strategies", "check", "concurrency", "--option", "limt=3"], 1, "unknown key 'limt', did you mean 'limit'?"),
        (["strategies", "check", "concurrency", "--option", "limit"], 2, "'limit' is not KEY=VALUE"),
        (["strategies", "check", "concurrency", "--facts", "{"], 2, "not JSON"),
        (["strategies", "check", "concurrency", "--facts", "[]"], 2, "must be an object"),
        (["plugins", "check", "step", "pip"], 2, "have its tests inherit StepContract"),
        (["plugins", "check", "reporter", "jsonl"], 2, "have its tests inherit ReporterContract"),  # whatever options it wants
        (["plugins", "check", "reporter", "jsonll"], 1, "Did you mean 'jsonl'?"),
        (["plugins", "check", "gat", "nftables"], 2, "did you mean 'gate'?"),
    ],
)
def test_what_cannot_be_checked_is_refused_with_the_reason(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name, an option or a kind that will not do is said to be so."""
    assert code == run(arguments)
    assert words in capsys.readouterr().err


PROBE = '''
import socket
from deployd_core.api import Probe, ProbeOptions, Verdict, hookimpl

class Mine(Probe[ProbeOptions]):
    """Look at an instance."""
    name = "mine"
    found = None
    def check(self, call):
        BODY

@hookimpl
def deployd_probes(): return [Mine]
'''
BAD_PROBES = {
    "it-passes-a-closed-gate: AssertionError: it connects from 127.0.0.1, as any client": (
        "try: socket.create_connection((call.address, call.instance.port), call.timeout).close()\n"
        "        except OSError as error: return Verdict.unhealthy(str(error))\n"
        "        return Verdict.healthy()"
    ),
    "a-verdict-is-of-now: AssertionError: the instance has gone, and the probe still calls it healthy": (
        "if self.found: return self.found\n"
        "        try: call.connect(call.address, call.instance.port, call.timeout).close()\n"
        "        except OSError as error: return Verdict.unhealthy(str(error))\n"
        "        self.found = Verdict.healthy()\n"
        "        return self.found"
    ),
    "a-check-ends-in-time: AssertionError: call.timeout was 0.5 s": (
        "try:\n"
        "            with call.connect(call.address, call.instance.port, 60) as it:\n"
        "                it.settimeout(60)\n"
        "                it.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n"
        "                said = it.recv(1)\n"
        "        except OSError as error: return Verdict.unhealthy(str(error))\n"
        "        return Verdict.healthy() if said else Verdict.unhealthy('silent')"
    ),
}


def test_a_probe_is_asked_about_what_is_not_there_and_what_ends(capsys: pytest.CaptureFixture[str]) -> None:
    """And about what does not answer."""
    assert 0 == run(["plugins", "check", "probe", "tcp"])
    assert "probe tcp passes all 6 checks" in capsys.readouterr().out


@pytest.mark.parametrize("problem", BAD_PROBES)
def test_a_bad_probe_is_caught(problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the name of its fault, and with what to do about it."""
    (tmp_path / "mine.py").write_text(PROBE.replace("BODY", BAD_PROBES[problem]))

    assert 1 == run(["--plugins-dir", str(tmp_path), "plugins", "check", "probe", "mine"])
    assert problem in " ".join(capsys.readouterr().out.split())


def test_a_probe_that_calls_nothing_healthy_is_not_said_to_have_passed_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What could not be tried is said, and who can."""
    (tmp_path / "mine.py").write_text(PROBE.replace("BODY", "return Verdict.unhealthy('never')"))

    assert 0 == run(["--plugins-dir", str(tmp_path), "plugins", "check", "probe", "mine"])
    printed = capsys.readouterr().out
    assert "probe mine passes the 3 of 6 checks that could be tried" in printed
    assert "have its tests inherit ProbeContract" in printed


@pytest.mark.root
def test_a_gate_is_tried_in_a_network_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A firewall's gate passes; one that lets everybody through fails, with the line that shows it."""
    (tmp_path / "ajar.py").write_text(
        "from deployd_core.api import Connections, Gate, Options, hookimpl\n"
        "class Ajar(Gate[Options]):\n"
        "    '''Close nothing.'''\n"
        "    name = 'ajar'\n"
        "    def close(self, call): pass\n"
        "    def open(self, call): pass\n"
        "    def closed(self, call): return ()\n"
        "    def connections(self, call): return Connections(busy=0)\n"
        "@hookimpl\n"
        "def deployd_gates(): return [Ajar]\n"
    )

    assert 0 == run(["plugins", "check", "gate", "nftables"])
    assert "gate nftables passes all 9 checks" in capsys.readouterr().out
    assert 1 == run(["--plugins-dir", str(tmp_path), "plugins", "check", "gate", "ajar"])
    assert "\na-closed-gate-turns-new-clients-away: " in capsys.readouterr().out


@pytest.mark.root
def test_a_gate_that_cannot_work_there_is_refused_with_its_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    """A gate whose balancer is not there is not said to have failed."""
    assert 2 == run(["plugins", "check", "gate", "haproxy", "--option", "socket=/nonexistent"])
    assert "it cannot work in an empty network: HAProxy at /nonexistent does not answer" in capsys.readouterr().err
