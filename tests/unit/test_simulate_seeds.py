"""`deployd strategies simulate --seeds`: many runs in many processes, and how they end."""

import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from deployd_core.cli.main import run

OWN = '''
from deployd_core.api import FleetLimit, FleetOptions, HostView, Plan, Share, Strategy, hookimpl


class Own(Strategy[FleetOptions]):
    """Take one host more than the limit."""

    name = "own"

    def plan(self, view: HostView) -> Plan:
        most = self.options.limit.at_most(view.fleet.hosts) + 1
        return Plan(cycle=view.stale, limit=FleetLimit(hosts=Share(most)), priority=1, why="one more cannot hurt")


@hookimpl
def deployd_strategies():
    return [Own]
'''
SMALL = ["strategies", "simulate", "concurrency", "--hosts", "6", "--zones", "2", "--instances", "2", "-o", "limit=2"]


def _rest(descriptor):
    """What a terminal still holds; nothing when its other end is gone."""
    try:
        return os.read(descriptor, 10_000)
    except OSError:
        return b""


class Watched:
    """A simulation on a terminal, in a session of its own, with what it says there."""

    def __init__(self, *arguments):
        self._ours, theirs = os.openpty()
        command = [sys.executable, "-P", "-m", "deployd_core", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True, start_new_session=True)
        os.close(theirs)
        self.said = b""

    def read_until(self, text):
        """Read what it says up to a text; the processes that it has begun by then."""
        while text not in self.said:
            self.said += os.read(self._ours, 1000)
        return psutil.Process(self.process.pid).children()

    def interrupt(self):
        """Type Ctrl-C, of which all its processes hear; its exit code and output."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.end()

    def end(self):
        """Wait for its end; its exit code and output."""
        try:
            text, _ = self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        while chunk := _rest(self._ours):
            self.said += chunk
        os.close(self._ours)
        return self.process.returncode, text


def left_of(processes):
    """Those that do not end."""
    return [one for one in psutil.wait_procs(processes, timeout=30)[1] if one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_progress_is_shown_on_a_terminal_and_ctrl_c_ends_it(jobs):
    """A long run says how far it is; an interrupt of all its processes ends it with what came of the seeds until then."""
    watched = Watched(*SMALL, "--seeds", "100000", "--jobs", jobs, "--debug")
    begun = watched.read_until(b"2 of 100000 seeds")
    code, text = watched.interrupt()

    (done,) = re.findall(r"seeds 1 to (\d+) alone, interrupted before the other (\d+)$", text.splitlines()[0])
    assert (130, 100_000) == (code, sum(map(int, done)))
    assert f"{done[0]} converged" in text
    assert b"Traceback" not in watched.said
    assert (jobs == "2") == (len(begun) >= 2)
    assert [] == left_of(begun)


def test_a_run_that_never_ends_is_ended_by_ctrl_c(tmp_path):
    """There is no result then; the exit code is that of Ctrl-C, and nobody waits for the run."""
    begun = tmp_path / "begun"
    for_ever = f"open({str(begun)!r}, 'w').close()\n        while True: pass\n        most ="
    (tmp_path / "own.py").write_text(OWN.replace("most =", for_ever, 1))
    watched = Watched("strategies", "simulate", "own", "--plugins-dir", str(tmp_path), "--seeds", "2", "--jobs", "2")
    while not begun.exists():
        time.sleep(0.05)
    processes = watched.read_until(b"0 of 2 seeds")

    assert (130, "") == watched.interrupt()
    assert b"Traceback" not in watched.said
    assert [] == left_of(processes)


def test_whoever_is_killed_leaves_no_process_behind():
    """Processes that work for one that is not there any more end by themselves."""
    watched = Watched(*SMALL, "--seeds", "100000", "--jobs", "2")
    begun = watched.read_until(b"2 of 100000 seeds")
    watched.process.kill()
    watched.end()

    assert len(begun) >= 2
    assert [] == left_of(begun)


def test_the_number_of_processes_changes_nothing(tmp_path, capsys):
    """A strategy in a single file, some faults, one process or three: the same output, byte for byte."""
    (tmp_path / "own.py").write_text(OWN)
    own = ["strategies", "simulate", "own", "--plugins-dir", str(tmp_path), "--hosts", "6", "--faults", "crash:2,reboot:1"]
    told = []
    for jobs in ("1", "3"):
        for flags in ([], ["--json"]):
            code = run([*own, "--seeds", "5", "--jobs", jobs, *flags])
            told.append((code, capsys.readouterr().out))

    assert told[:2] == told[2:]
    assert "limit: never more hosts" in told[0][1]


def test_what_is_wrong_in_a_process_is_wrong_here(tmp_path, capsys):
    """A strategy that raises in another process ends in the same message as in ours."""
    (tmp_path / "own.py").write_text(OWN.replace("priority=1", "priority=1 / 0"))
    own = ["strategies", "simulate", "own", "--plugins-dir", str(tmp_path), "--hosts", "2", "--seeds", "2"]
    told = [(run([*own, "--jobs", jobs]), capsys.readouterr()) for jobs in ("1", "2")]

    assert told[0] == told[1]
