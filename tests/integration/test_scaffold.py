"""`deployd plugins new`: what it writes installs, is listed, and its tests pass as they stand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deployd_core.cli.main import run
from deployd_core.errors import ConfigError
from deployd_core.plugins import Kind, Plugins, PluginState
from deployd_core.scaffold.writing import module_of, write_package


@pytest.mark.parametrize("kind", ["strategy", "gate"])
def test_a_new_package_installs_and_its_tests_pass_untouched(environment: Any, kind: str) -> None:
    """In a fresh environment: written, installed, listed, tested."""
    name = f"acme-{kind}"

    environment.run(f"deployd plugins new {name} --kind {kind} && pip install --editable 'deployd-{name}[test]'")
    listed = json.loads(environment.run(f"deployd plugins list --kind {kind} --json"))["plugins"]
    tested = environment.run(f"cd deployd-{name} && pytest -q -W error")

    assert [("ok", f"deployd-{name}", "0.1.0")] == [
        (row["state"], row["source"]["distribution"], row["source"]["version"]) for row in listed if row["name"] == name
    ]
    assert " passed" in tested
    assert " failed" not in tested


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in (Kind.STRATEGY, Kind.GATE)], ids=lambda kind: kind.value)
def test_the_tests_of_every_kind_pass_untouched(kind: Kind, tmp_path: Path, run_pytest: Callable[[Path], str]) -> None:
    """Whatever the kind, its tests inherit the contract and pass."""
    write_package(kind, f"acme-{kind.value}", tmp_path / "package")

    outcome = run_pytest(tmp_path / "package")

    assert outcome.endswith(" passed")
    assert int(outcome.partition(" ")[0]) >= 3


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.value)
def test_a_single_file_is_a_plugin(kind: Kind, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file for the agent's plugin directory is listed as soon as it is written, and described."""
    assert run(["plugins", "new", "acme-thing", "--kind", kind.value, "--single-file", "--directory", str(tmp_path)]) == 0

    (row,) = [row for row in Plugins.load(directory=tmp_path).rows if row.name == "acme-thing"]
    assert (PluginState.OK, kind.value) == (row.state, row.kind)
    assert capsys.readouterr().out.startswith(f"{tmp_path}/acme_thing.py\n")
    assert run(["plugins", "show", kind.value, "acme-thing", "--plugins-dir", str(tmp_path)]) == 0  # its options can be read, too


@pytest.mark.parametrize(
    ("name", "kind", "owner"),
    [
        ("concurrency", "strategy", "concurrency (deployd "),
        ("http", "probe", "http-probe (deployd "),
        ("http-probe", "gate", "http-probe (deployd "),  # its entry point would take that of another plugin
        ("mine", "gate", "mine ("),
    ],
)
def test_a_name_that_is_taken_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str, owner: str
) -> None:
    """Who has it is named, be it ours or a file of the plugin directory; --force writes it all the same."""
    new = ["plugins", "new", name, "--kind", kind, "--directory", str(tmp_path / "package"), "--plugins-dir", str(tmp_path)]
    assert run(["plugins", "new", "mine", "--kind", "gate", "--single-file", "--directory", str(tmp_path)]) == 0

    refused, error = run(new), capsys.readouterr().err
    nothing = not (tmp_path / "package").exists()
    forced = run([*new, "--force"])

    assert (1, True, 0) == (refused, nothing, forced)
    assert f"the name {name!r} is taken: {owner}" in error
    assert error.endswith("has it. Choose another name, or --force\n")


@pytest.mark.parametrize(("name", "kind"), [("http", "gate"), ("concurrency-2", "strategy")])
def test_the_same_name_for_another_kind_is_free(tmp_path: Path, name: str, kind: str) -> None:
    """Each kind has names of its own."""
    assert run(["plugins", "new", name, "--kind", kind, "--directory", str(tmp_path / "package")]) == 0


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory with anything in it, or a file of that name, is left as it is, and the command fails."""
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "plugins.d").mkdir()
    (tmp_path / "plugins.d" / "acme.py").write_text("mine")

    package = run(["plugins", "new", "acme", "--kind", "gate", "--directory", str(tmp_path)])
    file = run(["plugins", "new", "acme", "--kind", "gate", "--single-file", "--directory", str(tmp_path / "plugins.d")])

    assert (1, 1) == (package, file)
    assert "is there already, and nothing is overwritten" in capsys.readouterr().err
    assert ["mine.txt", "plugins.d"] == sorted(path.name for path in tmp_path.iterdir())
    assert "mine" == (tmp_path / "plugins.d" / "acme.py").read_text()


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    """A package is written whole or not at all."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package").rmdir()
    (tmp_path / "package").symlink_to(tmp_path / "missing" / "deep")

    with pytest.raises(ConfigError):
        write_package(Kind.STEP, "acme", tmp_path / "package")

    assert ["package"] == [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["Acme", "acme_gate", "1st", "", "acme-", "a/b"])
def test_a_name_that_no_plugin_can_have_is_refused(name: str, tmp_path: Path) -> None:
    """What deployd would refuse to load is not written."""
    with pytest.raises(ConfigError, match="cannot be called"):
        write_package(Kind.STEP, name, tmp_path / "package")


@pytest.mark.parametrize(("name", "module"), [("by-night", "by_night"), ("json", "json_plugin"), ("class", "class_plugin")])
def test_the_module_hides_nothing(name: str, module: str) -> None:
    """A plugin that is called like a module of Python gets a module of another name."""
    assert module == module_of(name)
