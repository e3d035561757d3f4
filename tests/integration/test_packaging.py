"""What is built is whole: the wheel, installed where the tree is not."""

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENTRY_POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]["deployd"]


def run(*command, cwd):
    """What a command prints; its errors are the test's."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "DEPLOYD_"))}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the tree."""
    directory = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", directory, ROOT, cwd=directory)
    (found,) = directory.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The directory of programs of a fresh virtual environment with the wheel."""
    directory = tmp_path_factory.mktemp("venv")
    venv.create(directory, with_pip=True)
    run(directory / "bin/python", "-m", "pip", "install", "--quiet", wheel, cwd=directory)
    return directory / "bin"


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    """Three packages with their types and the demo's service; no tests, and no bare `plugins` that could collide."""
    names = zipfile.ZipFile(wheel).namelist()

    tops = {name.partition("/")[0] for name in names}
    assert {"deployd_core", "deployd_strategies", "deployd_plugins"} == {top for top in tops if not top.endswith(".dist-info")}
    assert {"deployd_core/py.typed", "deployd_strategies/py.typed", "deployd_plugins/py.typed"} <= set(names)
    assert "deployd_core/demo_app/server.py" in names
    assert [] == [name for name in names if "__pycache__" in name or "/test_" in name]


def test_the_installed_program_lists_what_ships(installed, tmp_path):
    """`deployd strategies list` finds the built-ins through their entry points, away from the tree."""
    listed = run(installed / "deployd", "strategies", "list", cwd=tmp_path)

    assert [["all-at-once", "ok"], ["concurrency", "ok"], ["iptables-drain", "ok"]] == [
        [line.split()[0], line.split()[-1]] for line in listed.splitlines() if "strategy" in line and "KIND" not in line
    ]


def test_every_built_in_works_installed(installed, tmp_path):
    """Each entry point of the wheel loads."""
    code = """if True:
        from deployd_core.plugins import Plugins
        print(*(f"{row.provider.entry}={row.state.value}" for row in Plugins.load().rows))
    """

    listed = run(installed / "python", "-P", "-c", code, cwd=tmp_path)

    assert {f"{name}=ok" for name in ENTRY_POINTS} == set(listed.split())


def test_a_plugin_of_another_distribution_is_found(installed, tmp_path):
    """A package that somebody else installs is listed under its own name and version."""
    (tmp_path / "pyproject.toml").write_text(
        """
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"
        [project]
        name = "acme-deployd"
        version = "0.3"
        [project.entry-points.deployd]
        night = "acme_night"
        [tool.hatch.build.targets.wheel]
        include = ["acme_night.py"]
        """
    )
    (tmp_path / "acme_night.py").write_text(
        "from deployd_core.api import *\n"
        "class Night(Strategy[Options]):\n"
        "    'Restart by night.'\n"
        "    name = 'by-night'\n"
        "    def plan(self, view):\n"
        "        return Plan(cycle=view.stale, why='night')\n"
        "@hookimpl\n"
        "def deployd_strategies():\n"
        "    return [Night]\n"
    )
    run(installed / "python", "-m", "pip", "install", "--quiet", "--no-deps", tmp_path, cwd=tmp_path)

    (line,) = [line for line in run(installed / "deployd", "strategies", "list", cwd=ROOT).splitlines() if "by-night" in line]

    assert "acme-deployd 0.3" in line
    assert line.endswith("ok")


def test_the_tree_does_not_shadow_what_is_installed(installed):
    """In the root of the tree, an isolated Python takes the core and the strategies from one place."""
    code = "import deployd_core, deployd_strategies; print(deployd_core.__file__, deployd_strategies.__file__)"

    places = run(installed / "python", "-P", "-c", code, cwd=ROOT).split()

    assert 1 == len({Path(place).parents[1] for place in places})


def test_this_run_tests_one_copy():
    """The tests run on the tree, or on an installed wheel, but never on a mixture, as `python -m pytest` would make it."""
    import deployd_core
    import deployd_plugins
    import deployd_strategies

    core, *others = (Path(package.__file__).parents[1] for package in (deployd_core, deployd_strategies, deployd_plugins))

    assert others in ([core, core], [core / "strategies", core / "plugins"])


@pytest.mark.root  # only for root's tests does `make test` see to it that systemd is there
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("deployd-agent.service", "/opt/deployd/bin/deployd agent --config /etc/deployd/agent.toml"),
        ("deployd-reap.service", "/opt/deployd/bin/deployd drains reap"),
    ],
)
def test_systemd_accepts_the_units(name, command, tmp_path):
    """systemd finds nothing to complain about in the units that ship; the agent starts with the default configuration."""
    text = (ROOT / "packaging" / name).read_text(encoding="utf-8")
    unit, timer = tmp_path / name, tmp_path / "deployd-reap.timer"
    unit.write_text(text.replace(command, "/bin/true"))
    if name == "deployd-reap.service":
        timer.write_text((ROOT / "packaging/deployd-reap.timer").read_text(encoding="utf-8"))
    units = [path for path in (unit, timer) if path.exists()]

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=60, check=False
    )

    assert f"ExecStart={command}\n" in text
    assert (0, "") == (done.returncode, done.stderr)
