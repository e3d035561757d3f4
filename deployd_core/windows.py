"""PURE: at which times a rollout may begin to restart hosts.

A window is written ``Mon-Fri 09:00-16:00``, ``Sat,Sun 00:00-24:00``, ``22:00-06:00`` (every day, over midnight) or, for one
stretch of the calendar, ``2026-12-24 00:00/2027-01-02 00:00``. Windows are half open: at the end of one nothing begins any more.
What is begun must be able to finish: a host begins only when the time that it may take fits before the end. Both ideas are those
of database operators' maintenance windows, whose edges were what their users stumbled over.

When the clocks change: a time that is skipped is the moment of the change, and a window that lies in what is skipped is none that
day. Of a time that comes twice the first counts, but a denied window goes on until its end has come for the second time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from msgspec import Struct

from deployd_core.errors import ConfigError
from deployd_core.spec import WindowsTable

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WEEKLY = re.compile(r"(?:([A-Za-z,-]+)\s+)?(\d\d):(\d\d)\s*-\s*(\d\d):(\d\d)")
_ONCE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d)\s*/\s*(\d{4}-\d\d-\d\d \d\d:\d\d)")
_A_MONDAY = date(2026, 1, 5)
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
_HORIZON = 15
"""Days that are looked ahead: two weeks show every weekly window twice."""
_HINT = 'such as "Mon-Fri 09:00-16:00", "22:00-06:00" or "2026-12-24 00:00/2027-01-02 00:00"'

Stretch = tuple[datetime, datetime]


class Closed(Struct, frozen=True):
    """Nothing may begin now."""

    reason: str
    until: datetime | None
    """When it may again, in UTC; None when no weekly window opens within two weeks, and no stretch of the calendar is to come."""


def check_windows(table: WindowsTable, where: str) -> None:
    """Read every window, and see that one is long enough.

    Raises:
        ConfigError: One cannot be read, the time zone is unknown, or no window is as long as a host may take.
    """
    zone = _zone(table, where)
    # Windows that meet are one: two weeks show every such stretch whole.
    days = [_A_MONDAY + timedelta(days=number) for number in range(14)]
    stretches = {
        text: {stretch for day in days for stretch in _stretches(text, day, zone, where)} for text in (*table.allow, *table.deny)
    }
    allowed = _merged({stretch for text in table.allow for stretch in stretches[text]})
    longest = max((end - start for start, end in allowed), default=None)
    if longest is not None and longest < timedelta(seconds=float(table.takes)):
        raise ConfigError(f"{where} takes is {table.takes}, but the longest allowed window is {longest}: no host could ever begin")


def closed(table: WindowsTable, now: datetime) -> Closed | None:
    """Why nothing may begin at `now` (which must know its time zone); None while a window is open and long enough.

    Raises:
        ConfigError: A window cannot be read, or the time zone is unknown.
    """
    takes = timedelta(seconds=float(table.takes))
    stretches = _open(table, now)
    for start, end in stretches:
        if start <= now < end and now + takes <= end:
            return None
    until = next((max(start, now) for start, end in stretches if start > now and end - start >= takes), None)
    ending = next((end for start, end in stretches if start <= now < end), None)
    zone = _zone(table, "windows")
    if ending is not None:
        reason = f"the window ends at {_clock(ending, zone)}, and a host may take {table.takes}"
    else:
        reason = "outside the allowed windows" if table.allow else "inside a denied window"
    return Closed(reason=f"{reason}; the next one opens {_clock(until, zone)}" if until else reason, until=until)


def _open(table: WindowsTable, now: datetime) -> list[Stretch]:
    """The stretches of time in which something may begin, sorted and merged, from yesterday to the horizon."""
    zone = _zone(table, "windows")
    first = now.astimezone(zone).date() - timedelta(days=1)
    begin, end = _instant(_at(first, 0), zone), _instant(_at(first + timedelta(days=_HORIZON + 1), 0), zone)

    def all_of(texts: Iterable[str], *, denied: bool) -> list[Stretch]:
        days = [first + timedelta(days=number) for number in range(-1, _HORIZON + 2)]
        found = {stretch for text in texts for day in days for stretch in _stretches(text, day, zone, "windows", denied=denied)}
        return _merged(found)

    allowed = all_of(table.allow, denied=False) if table.allow else [(begin, end)]
    for bad_start, bad_end in all_of(table.deny, denied=True):
        allowed = [
            (start, stop)
            for low, high in allowed
            for start, stop in ((low, min(high, bad_start)), (max(low, bad_end), high))
            if start < stop
        ]
    return sorted(set(allowed))


def _merged(stretches: Iterable[Stretch]) -> list[Stretch]:
    merged: list[Stretch] = []
    for start, end in sorted(stretches):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _zone(table: WindowsTable, where: str) -> ZoneInfo:
    try:
        return ZoneInfo(table.timezone)
    except (KeyError, ValueError, OSError) as error:
        raise ConfigError(
            f"{where} timezone {table.timezone!r} is not known here", hint='such as "Europe/Berlin" or "UTC"'
        ) from error


def _stretches(text: str, day: date, zone: ZoneInfo, where: str, *, denied: bool = False) -> list[Stretch]:
    """What a window makes of the day on which it begins; one of the calendar is the same on each."""
    once, weekly = _ONCE.fullmatch(text.strip()), _WEEKLY.fullmatch(text.strip())
    try:
        if once is not None:
            first, last = (datetime.fromisoformat(part) for part in once.groups())
            found = [(_instant(first, zone), _instant(last, zone, second=denied))]
        elif weekly is not None:
            found = _of_the_day(weekly, day, zone, denied=denied)
        else:
            found = [(_NEVER, _NEVER)]
    except ValueError as error:
        raise ConfigError(f"{where}: window {text!r} cannot be read: {error}", hint=_HINT) from error
    if any(start >= end for start, end in found):
        raise ConfigError(f"{where}: window {text!r} is none, or ends before it begins", hint=_HINT)
    return found


def _of_the_day(weekly: re.Match[str], day: date, zone: ZoneInfo, *, denied: bool) -> list[Stretch]:
    begin, finish = _minutes(weekly[2], weekly[3]), _minutes(weekly[4], weekly[5])
    if day.weekday() not in _weekdays(weekly[1]):
        return []
    # The same time twice is a whole day, from then on.
    last = day + timedelta(days=1) if finish <= begin else day
    start, end = _instant(_at(day, begin), zone), _instant(_at(last, finish), zone, second=denied)
    return [(start, end)] if start < end else []


def _weekdays(text: str | None) -> set[int]:
    if text is None:
        return set(range(7))
    found: set[int] = set()
    for part in text.lower().split(","):
        first, dash, last = part.partition("-")
        if first not in _DAYS or (dash and last not in _DAYS):
            raise ValueError(f"{part!r} is no day of the week")
        start, end = _DAYS.index(first), _DAYS.index(last or first)
        found |= {number % 7 for number in range(start, end + (7 if end < start else 0) + 1)}
    return found


def _minutes(hours: str, minutes: str) -> int:
    found = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or found > 24 * 60:
        raise ValueError(f"{hours}:{minutes} is no time of day")
    return found


def _at(day: date, minutes: int) -> datetime:
    """A time of day as the clock on the wall shows it; ``24:00`` is the next midnight."""
    return datetime.combine(day, time(0)) + timedelta(minutes=minutes)


def _instant(shown: datetime, zone: ZoneInfo, *, second: bool = False) -> datetime:
    """The moment at which the clock shows a time: for the first or the second time, if it comes twice."""
    moment = shown.replace(tzinfo=zone, fold=int(second)).astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None) == shown:
        return moment
    # Skipped: read with the offset of after the change it lies before the change, by less than what is skipped.
    moment = shown.replace(tzinfo=zone, fold=1).astimezone(UTC)
    while moment.astimezone(zone).replace(tzinfo=None) < shown:
        moment += timedelta(minutes=1)
    return moment


def _clock(moment: datetime, zone: ZoneInfo) -> str:
    return moment.astimezone(zone).strftime("%a %Y-%m-%d %H:%M %Z")
