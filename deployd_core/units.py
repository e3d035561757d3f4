"""Durations, sizes and shares: values that are written with a unit and never without one by accident.

>>> Duration("1m30s")
Duration('1m30s')
>>> float(Duration("250ms"))
0.25
>>> int(Size("64MB"))
64000000
>>> Share("10%").at_most(25)
2
"""

from __future__ import annotations

import re
from typing import Any

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_LONGEST = 3650 * 86_400.0
_SIZE_UNITS = {
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("kMGT", start=1)},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", start=1)},
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|[kMGT]B|[KMGT]iB)")
_SHARE = re.compile(r"(\d+)(%?)")


class Duration(float):
    """A length of time in seconds, written ``"30s"``, ``"1m30s"``, ``"250ms"``, ``"2h"`` or ``"1d"``.

    Raises:
        ValueError: The text has no unit, is no duration at all, or one of more than ten years.
    """

    def __new__(cls, value: str | float) -> Duration:
        """Read a duration."""
        if isinstance(value, str):
            if not _DURATION.fullmatch(value):
                raise ValueError(f"{value!r} is not a duration: write it with a unit, such as 500ms, 30s, 1m30s, 2h")
            value = sum(float(number) * _DURATION_UNITS[unit] for number, unit in _DURATION_PART.findall(value))
        if not 0 <= value < float("inf"):
            raise ValueError(f"{value!r} is not a duration: it must be finite and not negative")
        if value > _LONGEST:  # no date could be told by it
            raise ValueError(f"{value:.0f} seconds are no duration: it must be at most ten years, 3650d")
        return super().__new__(cls, value)

    def __str__(self) -> str:
        left = round(self * 1000)  # rounded first, or 59.9999 would be "60s"
        if left < 1000:
            return f"{left}ms" if left else "0s"
        text = ""
        for unit, milliseconds in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000)):
            count, left = divmod(left, milliseconds)
            text += f"{count}{unit}" if count else ""
        return text + (f"{left / 1000:g}s" if left else "")

    def __repr__(self) -> str:
        return f"Duration({str(self)!r})"


class Size(int):
    """A number of bytes, written ``"500MB"``, ``"2GiB"`` or ``"10B"``.

    Raises:
        ValueError: The text has no unit, or is no size at all.
    """

    def __new__(cls, value: str | int) -> Size:
        """Read a size."""
        if isinstance(value, str):
            match = _SIZE.fullmatch(value)
            if match is None:
                raise ValueError(f"{value!r} is not a size: write it with a unit, such as 500MB, 2GiB")
            whole, _, decimals = match[1].partition(".")  # by integers: a float would lose bytes above 8 PiB, and of "2.3kB" one
            value = int(int(whole + decimals) * _SIZE_UNITS[match[2]] // 10 ** len(decimals))
        if value < 0:
            raise ValueError(f"{value!r} is not a size: it must not be negative")
        return super().__new__(cls, value)

    def __str__(self) -> str:
        for unit, factor in sorted(_SIZE_UNITS.items(), key=lambda item: -item[1]):
            if self and self % factor == 0:
                return f"{self // factor}{unit}"
        return f"{int(self)}B"

    def __repr__(self) -> str:
        return f"Size({str(self)!r})"


class Share(str):
    """A part of a whole: a count (``3``) or a percentage (``"10%"``).

    Rounding is by integers and always to the safe side: a limit rounds down (but is at least 1), a floor rounds up, a budget
    rounds down to 0.

    Raises:
        ValueError: Neither a whole number nor a whole percentage up to 100.
    """

    __slots__ = ("_number", "is_percentage")

    _number: int

    is_percentage: bool
    """True for ``"10%"``, false for ``3``."""

    def __new__(cls, value: str | int) -> Share:
        """Read a share."""
        text = str(value)
        match = _SHARE.fullmatch(text)
        if match is None or isinstance(value, bool) or (match[2] and int(match[1]) > 100):
            raise ValueError(f"{value!r} is neither a count such as 3 nor a percentage such as '10%'")
        share = super().__new__(cls, text)
        share._number, share.is_percentage = int(match[1]), match[2] == "%"
        return share

    def at_most(self, total: int) -> int:
        """How many of `total` this allows, as a limit: rounds down, at least 1."""
        return max(1, self.part_of(total))

    def at_least(self, total: int) -> int:
        """How many of `total` this demands, as a floor: rounds up."""
        return -(-self._number * total // 100) if self.is_percentage else self._number

    def part_of(self, total: int) -> int:
        """How many of `total` this is, rounded down, possibly 0."""
        return self._number * total // 100 if self.is_percentage else self._number

    def of(self, what: str) -> str:
        """In words, of things whose plural has an s: ``1 host``, ``3 hosts``, ``10% of the hosts``."""
        return f"{self} of the {what}s" if self.is_percentage else f"{self} {what}" if self == "1" else f"{self} {what}s"

    def __repr__(self) -> str:
        return f"Share({str(self)!r})"


def decode_unit(kind: type, value: Any) -> Any:
    """Build a unit from what a file or a znode holds; the `dec_hook` of every decoder in deployd.

    Raises:
        ValueError: The value is not written as that unit is.
    """
    if kind is Duration and isinstance(value, str):
        return Duration(value)
    if kind is Size and isinstance(value, str):
        return Size(value)
    if kind is Share and isinstance(value, str | int):
        return Share(value)
    if kind in (Duration, Size, Share):
        raise ValueError(f"{value!r} needs a unit, as text: such as {_EXAMPLES[kind]}")
    raise NotImplementedError(f"no decoder for {kind!r}")


def encode_unit(value: Any) -> str:
    """Write a unit (or a path) as text; the `enc_hook` of every encoder in deployd."""
    return str(value)


_EXAMPLES: dict[type, str] = {Duration: '"30s"', Size: '"500MB"', Share: '3 or "10%"'}
