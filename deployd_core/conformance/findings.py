"""What was checked of a plugin, and what came of it."""

from __future__ import annotations

from msgspec import Struct


class Fault(BaseException):
    """The plugin did what it may not do. No `Exception`: neither a plugin nor the core may take it for an error of their own."""

    def __init__(self, check: str, message: str) -> None:
        super().__init__(message)
        self.check = check
        """The check that it fails."""
        self.message = message


class Check(Struct, frozen=True, kw_only=True):
    """One property, and whether it held."""

    name: str
    promise: str
    """In a sentence."""
    cases: int = 0
    """How often it was tried."""
    problem: str = ""
    """Empty when it held every time."""
    seed: int | None = None
    """What shows the problem again; None when no chance is involved."""

    @property
    def passed(self) -> bool:
        """Whether it held."""
        return not self.problem


class Findings(Struct, frozen=True, kw_only=True):
    """Everything that was checked of one plugin."""

    checks: tuple[Check, ...]
    refused: str = ""
    """Why nothing could be checked here; empty when it was."""
    unlimited: bool = False
    """Of a strategy: whether its plans set no fleet limit, so that all hosts restart at once."""

    @property
    def passed(self) -> bool:
        """Whether every property held, and there was one."""
        return not self.refused and bool(self.checks) and all(check.passed for check in self.checks)
