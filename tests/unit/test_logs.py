"""What the agent writes to its log, and how often."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable

import pytest

from deployd_core import logs

LOG = logging.getLogger("deployd.test")


def written(monkeypatch: pytest.MonkeyPatch, say: Callable[[int], None], *, seconds: int) -> list[str]:
    """What is in the log when something is said each second."""
    root, output, now = logging.getLogger(), io.StringIO(), 0.0
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(logs, "monotonic", lambda: now)
    monkeypatch.setattr(sys, "stderr", output)
    logs.set_up_logging(host="h1", journal=False)
    try:
        for second in range(seconds):
            now = float(second)
            say(second)
    finally:
        root.handlers[:], root.level = handlers, level
    return [json.loads(line)["event"] for line in output.getvalue().splitlines()]


def test_a_warning_that_comes_again_and_again_is_written_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage of hours is not a line for each second and service; whoever reads the end of the log still sees that it goes on."""

    def say(_: int) -> None:
        LOG.warning("%s: ZooKeeper is not connected", "web")
        LOG.error("%s: ZooKeeper is not connected", "api")

    lines = written(monkeypatch, say, seconds=121)

    assert lines == ["web: ZooKeeper is not connected", "api: ZooKeeper is not connected"] * 3


def test_what_is_no_warning_or_another_is_written_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the agent does is on record, however often it does it."""

    def say(second: int) -> None:
        LOG.info("web: restarting web@1")
        LOG.warning("web: look %d failed", second)

    lines = written(monkeypatch, say, seconds=2)

    assert lines == ["web: restarting web@1", "web: look 0 failed", "web: restarting web@1", "web: look 1 failed"]
