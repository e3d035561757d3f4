"""A virtual environment as whoever writes a plugin has one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest


class Environment:
    """A fresh virtual environment with deployd and pytest, and a directory to work in."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "home"
        self.home.mkdir(parents=True)
        self.bin = directory / "venv" / "bin"
        venv.create(directory / "venv", with_pip=True)
        (site,) = (directory / "venv" / "lib").glob("python*/site-packages")
        # What is installed where these tests run, without downloading it again: its own .pth files are read, too.
        (site / "tests.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        for name, module in (("deployd", "deployd_core"), ("pytest", "pytest")):
            (self.bin / name).write_text(f'#!/bin/sh\nexec "{self.bin}/python" -P -m {module} "$@"\n')
            (self.bin / name).chmod(0o755)

    def run(self, script: str, *, expect: int = 0) -> str:
        """What a shell script prints, run as in an activated environment."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "DEPLOYD_", "PYTEST"))
        }
        environment = {
            **kept,
            "PATH": f"{self.bin}:{kept['PATH']}",
            "VIRTUAL_ENV": str(self.bin.parent),
            "DEPLOYD_PLUGINS_DIR": str(self.home / "plugins.d"),
            "PIP_QUIET": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
        }
        done = subprocess.run(
            ["/bin/sh", "-euc", script],
            cwd=self.home,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        assert expect == done.returncode, f"{script}: {done.stdout}"
        return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """One for the tests of a module."""
    return Environment(tmp_path_factory.mktemp("author"))


@pytest.fixture
def run_pytest() -> Callable[[Path], str]:
    """Run the tests of a package that is not installed, and say how they went: ``7 passed``."""

    def run(package: Path) -> str:
        environment = {**{key: value for key, value in os.environ.items() if "PYTEST" not in key}, "PYTHONPATH": str(package)}
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", package],
            cwd=package,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        found = re.search(r"^(\d+ .*) in [\d.]+s", done.stdout, re.MULTILINE)
        assert found, done.stdout + done.stderr
        return found[1]

    return run
