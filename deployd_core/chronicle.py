"""PURE: the history of a service as people ask for it: which rollouts there were, who began each, how it ended, how long it took.

The history itself is a list of what was done. What became of a rollout is told by what was done after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import Enum

from msgspec import Struct

from deployd_core.coordination import Enabled, HistoryEntry, Verb
from deployd_core.model import Role


class Outcome(Enum):
    """How a rollout ended."""

    GOING = "going on"
    PAUSED = "paused"
    COMPLETED = "completed"
    HALTED = "halted"
    ROLLED_BACK = "rolled back"
    SUPERSEDED = "superseded"


class Chapter(Struct, frozen=True, kw_only=True):
    """One thing that was done, and what came of it when it began a rollout."""

    entry: HistoryEntry
    outcome: Outcome | None = None
    """None of what begins no rollout."""
    ended: str = ""
    """RFC 3339; empty while it goes on."""
    seconds: float | None = None
    """How long it took; None while it goes on, or when a time cannot be read."""


def chronicle(entries: Sequence[HistoryEntry]) -> tuple[Chapter, ...]:
    """Tell what became of everything in a history, the oldest first; a completion is the end of its rollout and no chapter.

    A rollout ends when all its hosts have completed it, or when the next one of its role begins: it is then superseded, or rolled
    back when that was the purpose. One that halted and was not tried again before that ended by halting.
    """
    return tuple(
        _chapter(entry, entries[number + 1 :]) if _begins(entry) else Chapter(entry=entry)
        for number, entry in enumerate(entries)
        if entry.verb is not Verb.COMPLETE
    )


def last_completed(entries: Sequence[HistoryEntry], current: str, known: Enabled | None) -> str:
    """The build that the fleet completed last, other than one; empty when there is none.

    One that a rollback left is passed over until the fleet has completed it again: two rollbacks never lead back and forth.

    Args:
        entries: The history, which is bounded.
        current: The build that is not looked for; empty looks for any.
        known: What the rollout says was completed last, which is not.
    """
    unwanted = {current, *_left_behind(entries)}
    if known is not None and known.build not in unwanted:
        return known.build
    completed = [entry.build for entry in entries if entry.verb is Verb.COMPLETE and entry.role is Role.FLEET]
    return next((build for build in reversed(completed) if build not in unwanted), "")


def _left_behind(entries: Sequence[HistoryEntry]) -> set[str]:
    """The builds that a rollback took the fleet away from, and that it has not completed since."""
    left: set[str] = set()
    enabled = ""
    for entry in entries:
        if entry.role is not Role.FLEET:
            continue
        if entry.verb is Verb.COMPLETE:
            left.discard(entry.build)
        elif entry.verb.begins:
            if entry.verb is Verb.ROLLBACK and enabled not in ("", entry.build):
                left.add(enabled)
            enabled = entry.build
    return left


def _begins(entry: HistoryEntry) -> bool:
    # A promotion within a rollout names it: the fleet was told its build before, and waited.
    return entry.verb.begins and not (entry.verb is Verb.PROMOTE and entry.rollout)


def _chapter(begun: HistoryEntry, later: Sequence[HistoryEntry]) -> Chapter:
    outcome, ended = Outcome.GOING, ""
    for entry in later:
        if entry.verb is Verb.COMPLETE and entry.role is begun.role and entry.build == begun.build:
            return _ended(begun, Outcome.COMPLETED, entry.at)
        if _begins(entry) and _follows(begun, entry):
            if entry.verb is Verb.ROLLBACK:
                return _ended(begun, Outcome.ROLLED_BACK, entry.at)
            return (
                _ended(begun, Outcome.HALTED, ended) if outcome is Outcome.HALTED else _ended(begun, Outcome.SUPERSEDED, entry.at)
            )
        if entry.verb is Verb.HALT and entry.role is begun.role:
            outcome, ended = Outcome.HALTED, entry.at
        elif entry.verb is Verb.PAUSE and outcome is Outcome.GOING:
            outcome = Outcome.PAUSED
        elif entry.verb is Verb.RETRY or (entry.verb is Verb.RESUME and outcome is Outcome.PAUSED):
            outcome, ended = Outcome.GOING, ""
    return _ended(begun, outcome, ended) if ended else Chapter(entry=begun, outcome=outcome)


def _follows(before: HistoryEntry, after: HistoryEntry) -> bool:
    """Whether a rollout takes the place of another: of the same role, or when the fleet gets the build of its canary hosts."""
    return after.role is before.role or (before.role is Role.CANARY and after.verb is Verb.PROMOTE)


def _ended(begun: HistoryEntry, outcome: Outcome, at: str) -> Chapter:
    try:
        seconds = (datetime.fromisoformat(at) - datetime.fromisoformat(begun.at)).total_seconds()
    except (ValueError, TypeError):
        return Chapter(entry=begun, outcome=outcome, ended=at)
    return Chapter(entry=begun, outcome=outcome, ended=at, seconds=max(0.0, seconds))
