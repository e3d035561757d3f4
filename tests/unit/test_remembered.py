"""Gates on record: found again with their options, whatever has become of the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployd_core.errors import ConfigError
from deployd_core.plugins import Plugins
from deployd_core.remembered import recall, remember


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins.load()


def test_every_way_of_using_a_gate_is_found_once(tmp_path: Path, plugins: Plugins) -> None:
    """Two services that share one count once; what a spec said before it was changed stays."""
    remember(tmp_path, "web", {"use": "haproxy", "leases": "/a"})
    remember(tmp_path, "api", {"leases": "/a", "use": "haproxy"})
    remember(tmp_path, "web", {"use": "haproxy", "leases": "/b"})
    remember(tmp_path, "web", {"use": "haproxy", "leases": "/b"})

    gates, problems = recall(tmp_path, plugins)

    assert ["/a", "/b"] == sorted(gate.plugin.options.leases for gate in gates)
    assert [] == list(problems)


def test_two_instances_may_put_their_gate_on_record_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are closed on threads of their own: neither takes away what the other has written."""
    inner = Path.replace

    def replace(path: Path, target: Path) -> Path:
        monkeypatch.undo()
        remember(tmp_path, "web", {"use": "haproxy", "leases": "/a"})
        return inner(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    remember(tmp_path, "web", {"use": "haproxy", "leases": "/a"})

    assert [".json"] == [path.suffix for path in (tmp_path / "gates").iterdir()]


@pytest.mark.parametrize("gate", [None, {"use": "iptables"}])
def test_a_gate_that_is_used_as_it_comes_needs_no_record(gate: dict[str, object] | None, tmp_path: Path) -> None:
    """It is asked anyway."""
    remember(tmp_path, "web", gate)

    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        (json.dumps({"service": "web", "gate": {"use": "no-such"}}), "no-such"),
        (json.dumps({"service": "web", "gate": {"use": "haproxy", "server": "@"}}), "server"),
    ],
    ids=["torn", "gone", "wrong"],
)
def test_a_record_that_is_no_use_hides_no_other(text: str, words: str, tmp_path: Path, plugins: Plugins) -> None:
    """It is a problem that names its file."""
    remember(tmp_path, "web", {"use": "haproxy", "leases": "/a"})
    bad = tmp_path / "gates" / "bad.json"
    bad.write_text(text)

    gates, [problem] = recall(tmp_path, plugins)

    assert ["/a"] == [gate.plugin.options.leases for gate in gates]
    assert str(bad) in problem
    assert words in problem


def test_a_gate_that_cannot_be_put_on_record_is_not_closed(tmp_path: Path) -> None:
    """Nobody could find it again."""
    (tmp_path / "gates").write_text("")

    with pytest.raises(ConfigError, match="cannot be written: "):
        remember(tmp_path, "web", {"use": "haproxy", "leases": "/a"})
