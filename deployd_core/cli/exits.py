"""The exit codes of every command."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """What a command ends with; its value is the exit code."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    LATE = 3
    """Not every host serves the build in time; the rollout goes on."""
    HELD = 4
    """The rollout is halted, paused or frozen, was taken back, waits for somebody to promote it, or another build was enabled."""
    INTERRUPTED = 130
    """Ctrl-C."""
