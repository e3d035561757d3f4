"""Time as a parameter: the machine's clock here, a virtual one in tests and the simulator."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What the agent knows of time."""

    def monotonic(self) -> float:
        """Seconds that only ever grow: for every wait and deadline."""
        ...

    def time(self) -> float:
        """Seconds since the epoch: only to be shown and stored."""
        ...


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        """Seconds that only ever grow."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time()


def until(text: str, now: float) -> float:
    """Seconds from `now` (since the epoch) to a moment that was stored; 0 when it cannot be read."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now


def to_the_second(moment: datetime) -> str:
    """A moment as people are told it: UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339(seconds: float) -> str:
    """A moment as it is stored: UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
