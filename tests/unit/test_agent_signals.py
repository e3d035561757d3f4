"""What the agent makes of signals, whenever they come."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deployd_core import agent

Lives = list[Callable[[threading.Event], None]]
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def sends(number: signal.Signals) -> Callable[[threading.Event], None]:
    """A life in which a signal comes while the agent waits."""

    def live(ended: threading.Event) -> None:
        os.kill(os.getpid(), number)
        assert ended.wait(10), "nobody has heard of it"

    return live


def told(ended: threading.Event) -> None:
    """A life that is ended by a signal that has come before it."""
    assert ended.wait(10), "the signal is lost"


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lives]:
    """What happens in each life of the agent; none is left when it has ended as it should."""
    lives: Lives = []

    class Life:
        def __init__(self, *_: Any) -> None:
            pass

        def live(self, ended: threading.Event) -> None:
            lives.pop(0)(ended)

    monkeypatch.setattr(agent, "Agent", Life)
    monkeypatch.setattr(agent, "set_up_logging", lambda **_: None)
    monkeypatch.setattr(agent, "_load_plugins", lambda *_: None)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield lives
    for number, handler in before.items():
        signal.signal(number, handler)
    assert lives == []


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(f'host = "h1"\nstate_directory = "{tmp_path}"\n')
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_agent_ends_and_begins_again_as_it_is_told(lives: Lives, config: Path, number: signal.Signals) -> None:
    """SIGHUP begins another life, SIGTERM and SIGINT end the last one."""
    lives += [sends(signal.SIGHUP), sends(signal.SIGHUP), sends(number)]

    assert agent.run(config) == 0


def test_a_signal_may_come_while_the_lock_is_held_that_it_needs(lives: Lives, config: Path) -> None:
    """The main thread waits for the very event that the signal sets, and at moments holds its lock."""

    def live(ended: threading.Event) -> None:
        with ended._cond:  # type: ignore[attr-defined]  # as `Event.wait` does
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.wait(10)

    lives.append(live)

    assert agent.run(config) == 0


def test_a_reload_that_is_asked_for_during_a_reload_is_not_lost(
    lives: Lives, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file may have changed after it was read: it is read once more."""
    reads = []

    def reread(_path: Path, old: Any, _directory: Any) -> Any:
        reads.append(old)
        if len(reads) == 1:
            os.kill(os.getpid(), signal.SIGHUP)
        return old

    monkeypatch.setattr(agent, "_reread", reread)
    lives += [sends(signal.SIGHUP), told, sends(signal.SIGTERM)]

    assert agent.run(config) == 0
    assert len(reads) == 2


def test_an_end_that_comes_during_a_reload_is_not_lost(lives: Lives, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins no other life, or one that ends at once."""

    def reread(_path: Path, old: Any, _directory: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return old

    monkeypatch.setattr(agent, "_reread", reread)
    lives += [sends(signal.SIGHUP), told]

    assert agent.run(config) == 0
    lives.clear()
