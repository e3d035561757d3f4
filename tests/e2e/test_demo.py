"""`deployd demo` as a newcomer sees it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.zookeeper

V2 = re.compile(r"\$ curl http://127\S+ http://127\S+   v2  v2$", re.MULTILINE)


class Demo:
    """A `deployd demo` under way, with its temporary directory in one of ours."""

    def __init__(self, tmp, *arguments, **environment):
        self.tmp = tmp
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "deployd_core", "demo", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp), **environment},
            start_new_session=True,
        )
        self.output = ""

    def read_until(self, text):
        """Read the story up to a line with this text."""
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return line
        raise AssertionError(f"{text!r} never came: {self.output}")

    def end(self, number=None):
        """Wait for the end, which a signal may hasten; the exit code."""
        if number is not None:
            self.process.send_signal(number)
        self.output += self.process.communicate(timeout=90)[0]
        return self.process.returncode

    def family(self):
        """Everything it has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def left(self):
        """What lies about: files, and processes that know of the directory."""
        known = [
            process.info
            for process in psutil.process_iter(["pid", "cmdline"])
            if str(self.tmp) in " ".join(process.info["cmdline"] or ())
        ]
        return [*self.tmp.iterdir(), *known]


@pytest.fixture
def demo(tmp_path_factory):
    """Start demos, which end with the test."""
    started = []

    def start(*arguments, **environment):
        # A short name: the sockets of supervisors lie below it.
        tmp = Path("/tmp") / f"dd-{os.getpid()}-{time.monotonic_ns() % 10**9}"
        tmp.mkdir()
        started.append(Demo(tmp, *arguments, **environment))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.terminate()
        one.process.communicate(timeout=90)
        for path in one.tmp.iterdir():
            raise AssertionError(f"{path} was left")
        one.tmp.rmdir()


def test_the_demo_ends_with_every_instance_on_the_new_build(demo):
    """A fleet of three goes from v1 to v2 one host at a time, in fewer than 40 lines, and nothing of it is left."""
    run = demo()

    code = run.end()

    assert (0, 3) == (code, len(V2.findall(run.output))), run.output
    assert run.output.count("\n") < 40
    assert "All 3 hosts serve v2" in run.output
    assert [] == run.left()


def test_one_host_at_a_time_restarts(demo):
    """What the demo says of limit = 1 is what it shows: between a host's restart and its end no other begins."""
    run = demo()
    run.end()
    story = run.output.partition("Enable v2")[2]

    moves = re.findall(r"^ +[\d.]+ s  (h\d)  (restarts|serves)", story, re.MULTILINE)

    hosts = [host for host, move in moves if move == "serves"]
    assert 3 == len(set(hosts))
    assert [(host, move) for host in hosts for move in ("restarts", "serves")] == moves


def test_a_demo_that_is_kept_can_be_talked_to(demo):
    """With --keep the fleet goes on, the printed commands work, and a SIGTERM takes everything down."""
    run = demo("--hosts", "1", "--keep")
    address = run.read_until("DEPLOYD_ZOOKEEPER=").strip().partition("=")[2]
    run.read_until(" why web")

    status = subprocess.run(
        [sys.executable, "-P", "-m", "deployd_core", "status", "web", "--zookeeper", address],
        capture_output=True,
        text=True,
        check=False,
    )
    family = run.family()
    code = run.end(signal.SIGTERM)

    assert 0 == status.returncode, status.stderr
    assert "v2" in status.stdout
    assert 143 == code
    assert [] == [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert [] == run.left()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_in_the_middle_takes_everything_down(demo, number, code):
    """Wherever Ctrl-C or a kill meets it, the demo leaves no process and no file."""
    run = demo("--hosts", "2")
    run.read_until("Enable v1")
    family = run.family()

    ended = run.end(number)

    assert code == ended, run.output
    assert len(family) >= 5
    assert [] == [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert [] == run.left()


def test_an_agent_that_is_killed_is_started_again(demo):
    """Whoever tries `kill -9` on the agent of a demo that is kept sees it come back and go on; nothing else ends."""
    run = demo("--hosts", "1", "--keep")
    address = run.read_until("DEPLOYD_ZOOKEEPER=").strip().partition("=")[2]
    family = run.family()
    pid = int(re.search(r"kill -9 (\d+) ", run.read_until("kill -9 "))[1])
    assert [pid] == [process.pid for process in family if "deployd_core agent" in " ".join(process.cmdline())]

    os.kill(pid, signal.SIGKILL)
    run.read_until("The agent of h1 was killed by signal 9. It is started again")
    again = int(run.read_until("The agent of h1 runs again, with pid ").rsplit(maxsplit=1)[1])
    restarted = subprocess.run(
        [sys.executable, "-P", "-m", "deployd_core", "restart", "web", "--wait", "--timeout", "60s", "--zookeeper", address],
        capture_output=True,
        text=True,
        check=False,
    )
    family = run.family()

    assert 0 == restarted.returncode, restarted.stdout + restarted.stderr
    assert again != pid
    assert again in [process.pid for process in family]
    assert 143 == run.end(signal.SIGTERM)
    assert [] == [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert [] == run.left()


def test_a_dead_zookeeper_ends_the_demo(demo):
    """When the server that everything needs dies, the demo says so and takes the rest down."""
    run = demo("--hosts", "1", "--keep")
    run.read_until(" why web")
    family = run.family()

    (victim,) = [process for process in family if "QuorumPeerMain" in " ".join(process.cmdline())]
    victim.kill()

    assert 1 == run.end(), run.output
    assert "the demo's ZooKeeper has ended" in run.output
    assert [] == [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert [] == run.left()


def test_a_missing_server_is_one_line(demo, tmp_path):
    """Without ZooKeeper's jars the demo says in one line what to do, before it starts anything."""
    run = demo(ZOOKEEPER_HOME=str(tmp_path))

    assert 1 == run.end()
    assert 1 == run.output.count("\n")
    assert f"ZOOKEEPER_HOME {tmp_path} has no zookeeper*.jar" in run.output


def test_a_missing_java_is_one_line(demo, tmp_path):
    """Without java the demo says in one line what to install, before it starts anything."""
    run = demo(PATH=str(tmp_path))

    assert 1 == run.end()
    assert 1 == run.output.count("\n")
    assert "apt-get install default-jre-headless" in run.output
