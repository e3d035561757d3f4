"""PURE: a run as a picture of characters: hosts over time, and how much could serve."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from deployd_core.simulate.record import Curve, Record
from deployd_core.units import Duration

Paint = Callable[[str, str], str]
"""Colours a text: the text, and the name of a state."""

_ROWS = 16
_BARS = " ▁▂▃▄▅▆▇█"
_CURVE_ROWS = 4
_LABEL = 22

GROUPS = {
    "failed": ("failed", "reverting", "reverted", "broken", "blocked", "degraded"),
    "down": ("down",),
    "restarting": ("restarting", "flipping", "checking"),
    "waiting": ("waiting",),
    "staging": ("fetching", "unpacking", "preparing", "idle"),
    "converged": ("converged",),
}
"""What a picture tells apart, the most telling first: of hosts that share a line, or moments that share a column."""
_SIGNS = {"failed": "✗", "down": "x", "restarting": "█", "waiting": "·", "staging": "-", "converged": "─"}
_GROUP_OF = {state: group for group, states in GROUPS.items() for state in states}
_RANK = {group: rank for rank, group in enumerate(GROUPS)}


def draw(record: Record, *, hosts: Sequence[str], seconds: float, width: int, paint: Paint) -> Iterator[str]:
    """The picture, line by line.

    Args:
        record: A full one.
        hosts: All hosts, in the order in which they are to be shown.
        seconds: How long the run took.
        width: Columns there are.
        paint: How to colour.
    """
    columns = max(20, width - _LABEL)
    edges = [seconds * column / columns for column in range(columns + 1)]
    per_line = -(-len(hosts) // _ROWS)
    for first in range(0, len(hosts), per_line):
        shared = hosts[first : first + per_line]
        label = shared[0] if len(shared) == 1 else f"{shared[0]} +{len(shared) - 1}"
        yield f"{_fit(label)} {_cells([record.timeline.get(host, []) for host in shared], edges, paint)}"
    yield from _curve("can serve", record.capacity, record.fleet.total, edges)
    yield f"{_fit(f'permits, at most {record.most_permits}')} {_line(record.permits, edges)}"
    end = str(Duration(round(seconds)))
    yield f"{'':{_LABEL - 1}} 0s{end:>{columns - 2}}"
    if per_line > 1:
        yield f"A line with +{per_line - 1} stands for {per_line} hosts, and shows the worst state among them"
    signs = [f"{paint(sign, group)} {group}" for group, sign in _SIGNS.items()]
    yield "  ".join(signs)  # from the edge on: it is wider than what is beside the labels


def group_of(state: str) -> str:
    """What a picture calls a state."""
    return _GROUP_OF.get(state, "failed")


def values_at(curve: Curve, edges: Sequence[float], before: int) -> list[tuple[int, int]]:
    """The least and the greatest value of a curve in each column."""
    times = [moment for moment, _ in curve]
    found = []
    for start, end in pairwise(edges):
        first, last = bisect_right(times, start), bisect_right(times, end)
        values = [curve[first - 1][1] if first else before, *(value for _, value in curve[first:last])]
        found.append((min(values), max(values)))
    return found


def _cells(timelines: Sequence[Sequence[tuple[float, str]]], edges: Sequence[float], paint: Paint) -> str:
    """One character for each column; runs of the same are coloured at once."""
    groups = []
    for start, end in pairwise(edges):
        seen = [group_of(state) for timeline in timelines for state in _during(timeline, start, end)]
        groups.append(min(seen, key=_RANK.__getitem__, default="converged"))
    text, first = "", 0
    for column in range(1, len(groups) + 1):
        if column == len(groups) or groups[column] != groups[first]:
            text += paint(_SIGNS[groups[first]] * (column - first), groups[first])
            first = column
    return text


def _during(timeline: Sequence[tuple[float, str]], start: float, end: float) -> Iterator[str]:
    """The states of one host in a column: the one it began with, and what came."""
    begun = bisect_right(timeline, start, key=lambda entry: entry[0])
    if begun:
        yield timeline[begun - 1][1]
    for moment, state in timeline[begun:]:
        if moment > end:
            return
        yield state


def _curve(title: str, curve: Curve, total: int, edges: Sequence[float]) -> Iterator[str]:
    """The worst value of each column, between the floor of the picture and everything."""
    worst = [low for low, _ in values_at(curve, edges, total)]
    floor = min(9, min(worst) * 10 // max(1, total)) / 10
    span = max(1e-9, 1 - floor)
    heights = [round((value / max(1, total) - floor) / span * _CURVE_ROWS * 8) for value in worst]
    for row in reversed(range(_CURVE_ROWS)):
        label = f"{title} 100 %" if row == _CURVE_ROWS - 1 else f"{floor * 100:.0f} %" if row == 0 else ""
        yield f"{label:>{_LABEL - 1}} " + "".join(_BARS[min(8, max(0, height - row * 8))] for height in heights).rstrip()


def _line(curve: Curve, edges: Sequence[float]) -> str:
    """A curve on one line, from nothing to its highest value."""
    highest = [high for _, high in values_at(curve, edges, 0)]
    top = max(1, *highest)
    return "".join(_BARS[-(-value * 8 // top)] for value in highest)


def _fit(label: str) -> str:
    width = _LABEL - 1
    return label.ljust(width) if len(label) <= width else label[: width - 1] + "…"
