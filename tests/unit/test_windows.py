"""When a rollout may begin to restart hosts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployd_core.errors import ConfigError
from deployd_core.spec import WindowsTable
from deployd_core.units import Duration
from deployd_core.windows import check_windows, closed

BERLIN = "Europe/Berlin"
AT_ONCE = Duration("0s")
FRIDAY = "2026-11-27"


def table(*allow: str, takes: str = "0s", timezone: str = "UTC", deny: tuple[str, ...] = ()) -> WindowsTable:
    """The windows of a spec."""
    return WindowsTable(allow=allow, deny=deny, takes=Duration(takes), timezone=timezone)


def utc(text: str) -> datetime:
    """A moment in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def opens(windows: WindowsTable, now: str) -> datetime | None:
    """When it opens next: now, if it is open."""
    moment = utc(now)
    found = closed(windows, moment)
    return moment if found is None else found.until


@pytest.mark.parametrize(
    ("window", "now", "is_open"),
    [
        ("Mon-Fri 09:00-16:00", f"{FRIDAY} 08:59:59", False),
        ("Mon-Fri 09:00-16:00", f"{FRIDAY} 09:00", True),
        ("Mon-Fri 09:00-16:00", f"{FRIDAY} 15:59:59", True),
        ("Mon-Fri 09:00-16:00", "2026-11-28 10:00", False),
        ("mon-fri 09:00 - 16:00", f"{FRIDAY} 10:00", True),
        ("Sat,Sun 00:00-24:00", "2026-11-28 00:00", True),
        ("Sat,Sun 00:00-24:00", f"{FRIDAY} 23:59:59", False),
        ("Sat,Sun 00:00-24:00", "2026-11-30 00:00", False),
        ("Fri-Mon 10:00-11:00", "2026-11-29 10:30", True),
        ("Fri-Mon 10:00-11:00", "2026-12-01 10:30", False),
        ("22:00-06:00", f"{FRIDAY} 05:59", True),
        ("22:00-06:00", f"{FRIDAY} 06:00", False),
        ("22:00-06:00", f"{FRIDAY} 22:00", True),
        ("Thu 22:00-06:00", f"{FRIDAY} 03:00", True),
        ("Fri 22:00-06:00", f"{FRIDAY} 03:00", False),
        ("2026-11-27 10:00/2026-11-28 02:00", f"{FRIDAY} 09:59", False),
        ("2026-11-27 10:00/2026-11-28 02:00", "2026-11-28 01:59", True),
        ("2026-11-27 10:00/2026-11-28 02:00", "2026-11-28 02:00", False),
    ],
)
def test_a_window_is_half_open(window: str, now: str, is_open: bool) -> None:
    """A window holds its beginning and not its end, on its days, over midnight, or for one stretch of the calendar."""
    assert is_open is (closed(table(window), utc(now)) is None)


def test_the_end_belongs_to_nobody_even_for_what_takes_no_time() -> None:
    """At the end of a window nothing begins."""
    assert utc("2026-11-30 09:00") == opens(table("Mon-Fri 09:00-16:00"), f"{FRIDAY} 16:00")


@pytest.mark.parametrize(
    ("now", "found"),
    [
        (f"{FRIDAY} 15:30", None),
        (
            f"{FRIDAY} 15:31",
            "the window ends at Fri 2026-11-27 16:00 UTC, and a host may take 30m; the next one opens Mon 2026-11-30 09:00 UTC",
        ),
        (f"{FRIDAY} 17:00", "outside the allowed windows; the next one opens Mon 2026-11-30 09:00 UTC"),
    ],
)
def test_what_begins_must_be_able_to_finish(now: str, found: str | None) -> None:
    """The latest start is the end without what a host may take; the reason says when the next window opens."""
    answer = closed(table("Mon-Fri 09:00-16:00", takes="30m"), utc(now))

    assert found == (answer and answer.reason)


def test_a_window_that_is_too_short_is_passed_over() -> None:
    """The next opening is that of a window that is long enough."""
    windows = table("Mon 09:00-09:10", "Tue 09:00-12:00", takes="1h")

    assert utc("2026-12-01 09:00") == opens(windows, "2026-11-30 09:00")


def test_windows_that_meet_are_one() -> None:
    """What takes longer than either of two windows that follow each other without a gap fits into both together."""
    windows = table("Mon 22:00-24:00", "Tue 00:00-02:00", takes="3h")

    check_windows(windows, "web")
    assert None is closed(windows, utc("2026-11-30 22:30"))
    assert utc("2026-12-07 22:00") == opens(windows, "2026-11-30 23:01")


def test_denied_is_stronger_than_allowed() -> None:
    """A denied window cuts an allowed one in two, and what is left of it must be long enough."""
    windows = table("Mon-Fri 09:00-17:00", deny=("12:00-13:00", "2026-11-27 15:00/2026-11-30 10:00"), takes="30m")

    assert utc(f"{FRIDAY} 11:30") == opens(windows, f"{FRIDAY} 11:30")
    assert utc(f"{FRIDAY} 13:00") == opens(windows, f"{FRIDAY} 11:31")
    assert utc("2026-11-30 10:00") == opens(windows, f"{FRIDAY} 14:31")


def test_without_an_allowed_window_always_is() -> None:
    """Denied windows alone leave the rest of the time open."""
    windows = table(deny=("Fri 09:00-17:00",))
    found = closed(windows, utc(f"{FRIDAY} 10:00"))

    assert None is closed(windows, utc(f"{FRIDAY} 08:00"))
    assert found is not None
    assert "inside a denied window; the next one opens Fri 2026-11-27 17:00 UTC" == found.reason


@pytest.mark.parametrize(
    ("window", "until"),
    [("2027-06-01 00:00/2027-06-02 00:00", utc("2027-06-01 00:00")), ("2026-06-01 00:00/2026-06-02 00:00", None)],
)
def test_a_stretch_of_the_calendar_is_told_however_far_away(window: str, until: datetime | None) -> None:
    """One that is over opens never again."""
    found = closed(table(window), utc(f"{FRIDAY} 10:00"))

    assert found is not None
    assert until == found.until


def test_a_window_that_is_denied_for_weeks_has_no_time() -> None:
    """What opens later than in two weeks is not looked for among the weekly windows."""
    found = closed(table("09:00-10:00", deny=("2026-11-01 00:00/2027-02-01 00:00",)), utc(f"{FRIDAY} 10:00"))

    assert found is not None
    assert ("outside the allowed windows", None) == (found.reason, found.until)


@pytest.mark.parametrize(
    ("timezone", "now"),
    [("Europe/Berlin", "08:00"), ("America/New_York", "14:00"), ("Asia/Kolkata", "03:30"), ("Pacific/Auckland", "20:00")],
)
def test_a_window_is_on_the_clock_of_its_zone(timezone: str, now: str) -> None:
    """09:00 is when the clock on the wall there says so."""
    windows = table("09:00-10:00", timezone=timezone)
    moment = utc(f"{FRIDAY} {now}")

    assert None is closed(windows, moment)
    assert None is not closed(windows, moment - timedelta(seconds=1))
    assert None is closed(windows, moment.astimezone(ZoneInfo("Asia/Tokyo")))


# The days on which the clocks change in Berlin: 2026-03-29 at 02:00 to 03:00 (01:00 UTC), 2026-10-25 at 03:00 to 02:00 (01:00 UTC)


@pytest.mark.parametrize(
    ("window", "first", "last"),
    [
        ("01:00-04:00", "2026-03-29 00:00", "2026-03-29 02:00"),
        ("02:00-04:00", "2026-03-29 01:00", "2026-03-29 02:00"),
        ("02:30-03:30", "2026-03-29 01:00", "2026-03-29 01:30"),
        ("01:30-02:30", "2026-03-29 00:30", "2026-03-29 01:00"),
        ("Sun 22:00-06:00", "2026-03-29 20:00", "2026-03-30 04:00"),
        ("Sat 22:00-06:00", "2026-03-28 21:00", "2026-03-29 04:00"),
        ("2026-03-29 02:10/2026-03-29 05:00", "2026-03-29 01:00", "2026-03-29 03:00"),
        ("00:30-04:00", "2026-10-24 22:30", "2026-10-25 03:00"),
        ("02:15-02:45", "2026-10-25 00:15", "2026-10-25 00:45"),
        ("01:00-02:30", "2026-10-24 23:00", "2026-10-25 00:30"),
        ("02:30-03:30", "2026-10-25 00:30", "2026-10-25 02:30"),
    ],
)
def test_windows_on_days_on_which_the_clocks_change(window: str, first: str, last: str) -> None:
    """A skipped time is the moment of the change; of a time that comes twice the first counts."""
    windows = table(window, timezone=BERLIN)
    begin, end = utc(first), utc(last)

    assert None is closed(windows, begin)
    assert None is not closed(windows, begin - timedelta(seconds=1))
    assert None is closed(windows, end - timedelta(seconds=1))
    assert None is not closed(windows, end)


def test_a_window_in_what_is_skipped_is_none_that_day() -> None:
    """A window whose whole time does not come opens on the next day."""
    assert utc("2026-03-30 00:15") == opens(table("02:15-02:45", timezone=BERLIN), "2026-03-29 00:00")


@pytest.mark.parametrize("now", ["2026-10-25 00:20", "2026-10-25 01:20"])
def test_a_denied_time_that_comes_twice_is_denied_twice(now: str) -> None:
    """Nothing begins at 02:20 of a night that has it twice, if 02:15-02:45 is denied."""
    assert None is not closed(table(deny=("02:15-02:45",), timezone=BERLIN), utc(now))


@settings(deadline=None)
@given(
    st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC)),
    st.integers(0, 23 * 60 + 59),
    st.integers(0, 24 * 60),
    st.sampled_from([BERLIN, "America/New_York", "Australia/Lord_Howe", "UTC"]),
    st.integers(0, 240),
)
def test_every_window_can_be_asked_about_at_every_time(now: datetime, begin: int, end: int, timezone: str, takes: int) -> None:
    """Whatever the clocks do: there is an answer, and what it says opens is open then."""
    windows = table(
        f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}",
        timezone=timezone,
        takes=f"{takes}s",
        deny=("Sun 01:00-03:30",),
    )
    found = closed(windows, now)

    assert found is None or found.until is None or (now < found.until and closed(windows, found.until) is None)


# Bad input


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ("always", "web: window 'always' is none, or ends before it begins"),
        ("Mon-Fry 09:00-16:00", "web: window 'Mon-Fry 09:00-16:00' cannot be read: 'mon-fry' is no day of the week"),
        ("Mon- 09:00-16:00", "web: window 'Mon- 09:00-16:00' cannot be read: 'mon-' is no day of the week"),
        ("25:00-26:00", "web: window '25:00-26:00' cannot be read: 25:00 is no time of day"),
        ("09:60-10:00", "web: window '09:60-10:00' cannot be read: 09:60 is no time of day"),
        ("9:00-10:00", "web: window '9:00-10:00' is none, or ends before it begins"),
        (
            "2026-12-24 00:00/2026-12-24 00:00",
            "web: window '2026-12-24 00:00/2026-12-24 00:00' is none, or ends before it begins",
        ),
        (
            "2026-02-30 00:00/2026-12-24 00:00",
            "web: window '2026-02-30 00:00/2026-12-24 00:00' cannot be read: day is out of range for month",
        ),
    ],
)
@pytest.mark.parametrize("field", ["allow", "deny"])
def test_a_window_that_cannot_be_read_is_told(window: str, message: str, field: str) -> None:
    """The message names the window and what is wrong with it, and the hint shows how one is written."""
    windows: dict[str, Any] = {field: (window,), "takes": AT_ONCE}

    with pytest.raises(ConfigError) as caught:
        check_windows(WindowsTable(**windows), "web")

    assert message == caught.value.message
    assert 'such as "Mon-Fri 09:00-16:00", "22:00-06:00" or "2026-12-24 00:00/2027-01-02 00:00"' == caught.value.hint


def test_a_window_that_no_host_fits_into_is_refused() -> None:
    """A spec under which nothing could ever begin is told with both lengths."""
    with pytest.raises(ConfigError, match=r"web takes is 2h, but the longest allowed window is 1:00:00: no host could ever begin"):
        check_windows(table("09:00-10:00", "12:00-12:30", takes="2h"), "web")


@pytest.mark.parametrize("timezone", ["Europe/Berlinn", "", "../etc"])
def test_a_time_zone_that_is_not_known_is_told(timezone: str) -> None:
    """Both when a spec is applied and when a host asks, which may know fewer zones."""
    with pytest.raises(ConfigError, match="is not known here"):
        check_windows(table("09:00-10:00", timezone=timezone), "web")
    with pytest.raises(ConfigError, match="is not known here"):
        closed(table("09:00-10:00", timezone=timezone), utc(f"{FRIDAY} 10:00"))
