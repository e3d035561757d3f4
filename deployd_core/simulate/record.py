"""What happened in a run: how many hosts and instances were out when, in which order, and, if wanted, every act."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from msgspec import Struct

Curve = list[tuple[float, int]]
"""A number over time: its steps."""


class Count(Struct, kw_only=True):
    """Instances that can serve, of those there are."""

    total: int = 0
    available: int = 0
    most_out: int = 0
    """Of those that could not, the most at a moment."""
    lowest: float = 1.0
    """The part of them that was available at the worst moment."""

    def change(self, by: int) -> None:
        """So many more can serve, or fewer; where no instance is left, none is missing."""
        self.available += by
        self.most_out = max(self.most_out, self.total - self.available)
        self.lowest = min(self.lowest, self.available / self.total) if self.total else self.lowest


class Record:
    """Filled in while a run goes on. Linear in hosts: a few numbers for each, and with `full` a few lines."""

    def __init__(self, *, full: bool) -> None:
        self.full = full
        self.order: list[str] = []
        """Hosts, as they got their first permits."""
        self.fleet = Count()
        self.zones: dict[str, Count] = {}
        self.most_permits = 0
        self.cut = 0
        """Requests that were in flight on instances as these were restarted."""
        self.permits: Curve = []
        self.capacity: Curve = []
        self.capacity_by_zone: dict[str, Curve] = {}
        self.timeline: dict[str, list[tuple[float, str]]] = {}
        """By host: since when it was in which state."""
        self._lines: list[str] = []
        self._digest = hashlib.sha256()

    def say(self, now: float, who: str, what: str) -> None:
        """One line of the trace."""
        line = f"{now:.3f} {who} {what}\n"
        self._digest.update(line.encode())
        if self.full:
            self._lines.append(line)

    @property
    def trace(self) -> str:
        """Every act of every host; empty without `full`."""
        return "".join(self._lines)

    @property
    def digest(self) -> str:
        """Names the trace: equal traces have equal ones."""
        return f"sha256:{self._digest.hexdigest()}"

    def enter(self, zone: str, instances: int, available: int) -> None:
        """A host is there from now on."""
        for count in self._counts(zone):
            count.total += instances
            count.available += available

    def begin(self) -> None:
        """Everybody is there who is there at the beginning."""
        for count in (self.fleet, *self.zones.values()):
            count.change(0)
        for zone in self.zones:
            self._curves(0.0, zone)

    def changed(self, now: float, zone: str, by: int) -> None:
        """An instance can serve, or cannot any more."""
        for count in self._counts(zone):
            count.change(by)
        self._curves(now, zone)

    def hold(self, now: float, permits: int) -> None:
        """So many permits are held."""
        self.most_permits = max(self.most_permits, permits)
        if self.full:
            _step(self.permits, now, permits)

    def state(self, now: float, host: str, state: str) -> None:
        """A host is in another state."""
        if self.full:
            states = self.timeline.setdefault(host, [])
            if not states or states[-1][1] != state:
                states.append((now, state))

    def _curves(self, now: float, zone: str) -> None:
        if self.full:
            _step(self.capacity, now, self.fleet.available)
            _step(self.capacity_by_zone.setdefault(zone, []), now, self.zones[zone].available)

    def _counts(self, zone: str) -> Iterable[Count]:
        found = self.zones.get(zone)
        if found is None:
            found = self.zones[zone] = Count()
        return (self.fleet, found)


def _step(curve: Curve, now: float, value: int) -> None:
    """The last value of a moment is the one that counts."""
    if curve and curve[-1][0] == now:
        curve.pop()
    curve.append((now, value))
