"""Every package in examples/ installs, is listed as a plugin that works, and its tests pass."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = sorted(path.parent for path in (Path(__file__).parents[2] / "examples").glob("*/pyproject.toml"))


@pytest.mark.parametrize("package", EXAMPLES, ids=lambda path: path.name)
def test_the_tests_of_an_example_pass(package: Path, run_pytest: Callable[[Path], str]) -> None:
    """As its author would run them."""
    outcome = run_pytest(package)

    assert outcome.endswith(" passed")
    assert int(outcome.partition(" ")[0]) >= 5


def test_every_example_installs_as_a_plugin_that_works(environment: Any, tmp_path: Path) -> None:
    """In a fresh environment, each is listed under its own distribution, and has nothing to be sorry for."""
    expected = {}
    for package in EXAMPLES:
        project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        expected |= dict.fromkeys(project["entry-points"]["deployd"], (project["name"], "ok"))
    environment.run(f"pip install {shlex.join(map(str, EXAMPLES))}")

    rows = json.loads(environment.run("deployd plugins list --json"))["plugins"]

    assert expected == {
        row["source"]["entry"]: (row["source"]["distribution"], row["state"]) for row in rows if row["source"]["entry"] in expected
    }


@pytest.mark.parametrize("package", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_explained(package: Path) -> None:
    """Its README and its module begin with what it is for, and it knows of deployd what a plugin may know."""
    (module,) = [path for path in package.glob("*.py") if path.name != "server.py"]
    text = module.read_text(encoding="utf-8")

    assert (package / "README.md").read_text(encoding="utf-8").startswith("# ")
    assert text.startswith('"""')
    assert [] == [
        line
        for line in text.splitlines()
        if line.startswith(("from deployd_core", "import deployd_core")) and ".api import" not in line
    ]
