"""The scripts behind the Makefile, on machines that lack things: a PATH with nothing but what is put there."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"
SHELL = ["sh", "dirname", "mktemp", "rm", "env", "cat", "test", "tar"]


class Machine:
    """A directory of programs, some real and some of our own."""

    def __init__(self, directory):
        self.programs = directory / "bin"
        self.log = directory / "log"
        self.policy = directory / "policy-rc.d"
        self.programs.mkdir()
        for name in SHELL:
            (self.programs / name).symlink_to(shutil.which(name))

    def add(self, name, script):
        """Put a program there."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(self, tool, *arguments, root=False):
        """Run a script; what lies at fixed places of this machine is out of its sight."""
        self.add("id", f"echo {0 if root else 1000}")
        script = (TOOLS / tool).read_text().replace("/usr/share/java/", "/nonexistent/").replace("PATH=$PATH:", "NOT_SEEN=")
        script = script.replace("/usr/sbin/policy-rc.d", str(self.policy))
        copy = self.programs.parent / tool
        copy.write_text(script)
        copy.chmod(0o755)
        return subprocess.run(
            [str(copy), *arguments], env={"PATH": str(self.programs)}, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture
def machine(tmp_path):
    """A machine with a shell and nothing else."""
    return Machine(tmp_path)


def test_what_is_there_is_not_installed(machine):
    """With everything present nothing is said and nothing is done."""
    for name in ("curl", "zstd", "xz"):
        machine.add(name, "")

    done = machine.run("install-system-packages", "bench")

    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


def test_without_rights_one_line_says_what_to_type(machine):
    """Who may not install is told the command, in one line."""
    machine.add("apt-get", "exit 1")

    done = machine.run("install-system-packages", "demo")

    assert 1 == done.returncode
    command = "apt-get install -y --no-install-recommends default-jre-headless libzookeeper-java"
    assert f"please run this as root, then try again: {command}\n" == done.stderr


def test_without_apt_one_line_says_what_is_missing(machine):
    """A machine without apt is told what to look for, in one line."""
    done = machine.run("install-system-packages", "demo", root=True)

    assert 1 == done.returncode
    assert (
        "please install what these Debian packages bring, then try again: default-jre-headless libzookeeper-java\n" == done.stderr
    )


def test_balancers_are_installed_and_not_started(machine):
    """While nginx and HAProxy are installed Debian is told to start no service, and afterwards not to at the next boot."""
    (machine.programs / "chmod").symlink_to(shutil.which("chmod"))
    machine.add("apt-get", f"{machine.policy} nginx start; echo policy says $? >>{machine.log}")
    machine.add("systemctl", f"echo $* >>{machine.log}")

    done = machine.run("install-system-packages", "test", root=True)

    assert 0 == done.returncode, done.stderr
    assert ["policy says 101", "--quiet disable nginx haproxy"] == machine.log.read_text().splitlines()
    assert not machine.policy.exists()


def test_root_has_it_installed(machine):
    """Root gets what is missing, without questions, and apt's lists are fetched when the first try fails."""
    fetched = machine.log.with_name("fetched")
    machine.add("apt-get", f'echo "$DEBIAN_FRONTEND $*" >>{machine.log}; [ "$1" != update ] || : >{fetched}; [ -e {fetched} ]')

    done = machine.run("install-system-packages", "demo", root=True)

    calls = machine.log.read_text().splitlines()
    assert 0 == done.returncode, done.stderr
    assert "installing system packages: default-jre-headless libzookeeper-java\n" == done.stderr
    assert 3 == len(calls)
    assert calls[0] == calls[2]
    assert calls[0].startswith("noninteractive ")
    assert "update" in calls[1]


def test_sudo_is_used_only_when_it_asks_nothing(machine):
    """Where sudo wants a password, the one line is printed instead of a prompt."""
    machine.add("apt-get", "exit 1")
    machine.add("sudo", f'printf "%s\\n" "$*" >>{machine.log}; exit 1')

    done = machine.run("install-system-packages", "demo")

    assert 1 == done.returncode
    assert done.stderr.startswith("please run this as root")
    assert "-n true\n" == machine.log.read_text()


def test_the_first_suitable_python_is_chosen(machine):
    """An old python3 is passed over for a python3.X that will do."""
    machine.add("python3", "exit 1")
    machine.add("python3.12", "exit 0")

    assert f"{machine.programs}/python3.12\n" == machine.run("find-python").stdout


def test_without_a_python_one_line_says_so(machine):
    """Where no Python will do, one line names what to install."""
    machine.add("python3", "exit 1")

    done = machine.run("find-python")

    assert 1 == done.returncode
    assert 1 == done.stderr.count("\n")
    assert "Python 3.11 or newer" in done.stderr
