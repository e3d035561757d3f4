"""Durations, sizes and shares."""

import doctest
import math
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployd_core import units
from deployd_core.units import Duration, Share, Size, decode_unit, encode_unit


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("1m30s", 90), ("2h", 7200), ("1d", 86400), ("1.5h", 5400), ("0s", 0), ("1h1m1s1ms", 3661.001)],
)
def test_a_duration_is_read_in_seconds(text, seconds):
    """Each unit of a duration means what it says, and parts add up."""
    assert seconds == pytest.approx(float(Duration(text)))


@pytest.mark.parametrize("text", ["", "30", "s", "30 s", "-1s", "30S", "1s,", "ten seconds", "1e3s", "inf", "nan"])
def test_a_duration_without_a_unit_is_refused(text):
    """What is not a number with a unit is no duration."""
    with pytest.raises(ValueError, match="not a duration"):
        Duration(text)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_a_duration_is_finite_and_not_negative(value):
    """No number makes a duration that a wait could not end at."""
    with pytest.raises(ValueError, match="finite and not negative"):
        Duration(value)


@pytest.mark.parametrize("value", ["3651d", "999999d", 1e12])
def test_a_duration_ends_within_ten_years(value):
    """Whatever is computed with a duration, such as the date until which somebody waits, exists."""
    assert 3650 * 86_400 == Duration("3650d")
    with pytest.raises(ValueError, match="at most ten years, 3650d"):
        Duration(value)


@given(st.floats(min_value=0.0005, max_value=1e8))
def test_a_duration_survives_being_written(seconds):
    """Text made of a duration reads back as the same length, to the millisecond."""
    assert math.isclose(seconds, Duration(str(Duration(seconds))), abs_tol=0.0011)


@given(st.floats(min_value=0.0005, max_value=1e8))
def test_the_text_of_a_duration_is_stable(seconds):
    """Writing what was read gives the same text."""
    text = str(Duration(seconds))

    assert text == str(Duration(text))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10B", 10),
        ("64kB", 64_000),
        ("500MB", 500_000_000),
        ("2GiB", 2 << 30),
        ("1.5 GB", 1_500_000_000),
        ("1TiB", 1 << 40),
        ("2.3kB", 2300),
    ],
)
def test_a_size_is_read_in_bytes(text, size):
    """Powers of 1000 and of 1024 are told apart."""
    assert size == Size(text)


@pytest.mark.parametrize("text", ["", "10", "MB", "1KB", "-1B", "1 mb", "1e3B"])
def test_a_size_without_a_unit_is_refused(text):
    """What is not a number with a unit is no size."""
    with pytest.raises(ValueError, match="not a size"):
        Size(text)


@given(st.integers(min_value=0, max_value=1 << 60))
def test_a_size_survives_being_written(size):
    """Text made of a size reads back as the same number of bytes."""
    assert size == Size(str(Size(size)))


@pytest.mark.parametrize("value", ["", "10 %", "-1", "101%", "1.5", "half", True, -3])
def test_a_share_is_a_count_or_a_percentage(value):
    """Anything but a whole count or a whole percentage up to 100 is refused."""
    with pytest.raises(ValueError, match="neither a count"):
        Share(value)


@given(st.integers(0, 100), st.integers(0, 100_000))
def test_a_percentage_rounds_to_the_safe_side(percent, total):
    """A limit rounds down but is at least 1, a floor rounds up, and they are never more than one apart."""
    share = Share(f"{percent}%")

    assert share.at_most(total) == max(1, math.floor(share.part_of(total)))
    assert 100 * share.part_of(total) <= percent * total <= 100 * share.at_least(total)
    assert 0 <= share.at_least(total) - share.part_of(total) <= 1


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_count_does_not_depend_on_the_total(count, total):
    """A count is itself, whatever it is a part of."""
    share = Share(count)

    assert (max(1, count), count, count) == (share.at_most(total), share.at_least(total), share.part_of(total))


@pytest.mark.parametrize(
    ("share", "words"), [(0, "0 hosts"), (1, "1 host"), (12, "12 hosts"), ("1%", "1% of the hosts"), ("100%", "100% of the hosts")]
)
def test_a_share_is_told_in_words(share, words):
    """A count is of so many, a percentage of all."""
    assert words == Share(share).of("host")


class Units(msgspec.Struct, frozen=True):
    """One field of each unit."""

    wait: Duration
    space: Size
    part: Share


@given(st.integers(0, 10**9), st.integers(0, 1 << 50), st.one_of(st.integers(0, 10**6), st.integers(0, 100).map(lambda n: f"{n}%")))
def test_units_survive_json(milliseconds, size, share):
    """A value with units reads back from the JSON that it was stored as."""
    units_ = Units(wait=Duration(milliseconds / 1000), space=Size(size), part=Share(share))
    stored = msgspec.json.encode(units_, enc_hook=encode_unit)

    read = msgspec.json.decode(stored, type=Units, dec_hook=decode_unit)

    assert (units_.space, units_.part) == (read.space, read.part)
    assert read.wait == pytest.approx(units_.wait, abs=0.0011)


@pytest.mark.parametrize(
    ("key", "value", "example"), [("wait", 30, '"30s"'), ("space", 5, '"500MB"'), ("part", 1.5, '"10%"'), ("wait", True, '"30s"')]
)
def test_a_bare_number_is_no_unit(key, value, example):
    """A number where a unit belongs is refused, with an example of how to write it."""
    table = {"wait": "1s", "space": "1B", "part": 1} | {key: value}

    with pytest.raises(msgspec.ValidationError, match=f"needs a unit.*{example}.*{key}"):
        msgspec.convert(table, Units, dec_hook=decode_unit)


def test_an_unknown_type_is_a_programming_error():
    """The decoder hook does not guess at types that are not units."""
    with pytest.raises(NotImplementedError):
        decode_unit(complex, 1)


@pytest.mark.parametrize(
    ("unit", "text"), [(Duration("90s"), "Duration('1m30s')"), (Size("1kB"), "Size('1kB')"), (Share("5%"), "Share('5%')")]
)
def test_a_unit_shows_as_it_is_written(unit, text):
    """The representation of a unit is its constructor call."""
    assert text == repr(unit)


def test_the_examples_of_the_module_run():
    """The docstring's examples are true."""
    results = doctest.testmod(units)

    assert results.attempted
    assert results.failed == 0


_MANY_THREADS = """
import enum, sys, threading
import msgspec
from deployd_core.decoding import convert

sys.setswitchinterval(1e-6)
for number in range(60):
    kind = enum.Enum("Kind", {f"member{value}": str(value) for value in range(60)})
    struct = msgspec.defstruct("Struct", [(f"field{place}", kind, kind("0")) for place in range(20)])
    together = threading.Barrier(8)

    def read():
        together.wait()
        assert convert({"field3": "7"}, struct).field3 is kind("7")

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print("well")
"""


def test_a_type_may_be_needed_by_many_threads_at_once() -> None:
    """What a library finds out about a type when it is first needed is found out by one thread: two at once crashed Python."""
    done = subprocess.run([sys.executable, "-P", "-c", _MANY_THREADS], capture_output=True, text=True, timeout=120, check=False)

    assert (0, "well\n") == (done.returncode, done.stdout), done.stderr
