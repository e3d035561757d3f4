"""Virtual time: a clock that jumps from one event to the next."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from heapq import heappop, heappush
from typing import Any

_PAST = 3600.0


class VirtualClock:
    """A `Clock` that is moved by hand, over a world that has been as it is for an hour."""

    def __init__(self, began: float) -> None:
        self.now = _PAST
        """Seconds on the monotonic clock."""
        self.began = _PAST
        """When everything began."""
        self._offset = began - _PAST

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self.now - self.began

    def monotonic(self) -> float:
        """Seconds that only ever grow."""
        return self.now

    def time(self) -> float:
        """Seconds since the epoch."""
        return self._offset + self.now

    def date(self) -> datetime:
        """The same, as coordination reads it."""
        return datetime.fromtimestamp(self.time(), UTC)


class Agenda:
    """What will happen, and when. Of two events at one moment the one that was entered first comes first."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._entered = 0

    def at(self, when: float, do: Callable[..., None], *arguments: Any) -> None:
        """Have something happen at a moment; one that has passed is now."""
        self._entered += 1
        heappush(self._heap, (max(when, self.clock.now), self._entered, do, arguments))

    def after(self, seconds: float, do: Callable[..., None], *arguments: Any) -> None:
        """Have something happen after a while."""
        self._entered += 1
        heappush(self._heap, (self.clock.now + seconds, self._entered, do, arguments))

    def next_at(self) -> float:
        """When the next event happens; never when nothing does any more."""
        return self._heap[0][0] if self._heap else math.inf

    def step(self) -> None:
        """Let the next event happen."""
        self.clock.now, _, do, arguments = heappop(self._heap)
        do(*arguments)


class Alarm:
    """Rings once, at the moment for which it was last set; what is moved to later costs no event for each move."""

    def __init__(self, agenda: Agenda, ring: Callable[[], None]) -> None:
        self._agenda = agenda
        self._ring = ring
        self._due = math.inf
        self._looks_at = math.inf
        """When it looks whether it is due."""

    def set(self, when: float) -> None:
        """Have it ring at a moment, and at no other; never is one, too."""
        self._due = when
        if when < self._looks_at or self._looks_at <= self._agenda.clock.now:
            self._look_at(when)

    def _look_at(self, when: float) -> None:
        self._looks_at = when
        if when < math.inf:
            self._agenda.at(when, self._look, when)

    def _look(self, when: float) -> None:
        if when != self._looks_at:
            return
        if when >= self._due:
            self._ring()
        else:
            self._look_at(self._due)
