"""PURE: a run as an SVG: a line for each host over time, and below it how much could serve and how many permits were held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from deployd_core.simulate.picture import group_of
from deployd_core.simulate.record import Curve, Record
from deployd_core.units import Duration

_WIDTH, _LEFT, _CHART = 1000, 110, 90
_MOST_LINES = 400
"""Of a larger fleet every so many hosts are shown."""
_COLOURS = {
    "converged": "#2e9e5b",
    "restarting": "#2b7fd4",
    "waiting": "#c9d3df",
    "staging": "#e4e0f0",
    "failed": "#d33c3c",
    "down": "#3a3a3a",
}


def draw_svg(record: Record, *, hosts: Sequence[str], seconds: float, title: str) -> str:
    """The picture as a document.

    Args:
        record: A full one.
        hosts: All hosts, in the order in which they are to be shown.
        seconds: How long the run took.
        title: What it says at the top.
    """
    every = -(-len(hosts) // _MOST_LINES)
    shown = hosts[::every]
    line = max(2, min(14, 800 // len(shown)))
    total = record.fleet.total
    bottom = 50 + line * len(shown)
    height = bottom + 2 * (_CHART + 30) + 20
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="10" y="18" font-size="14">{escape(title)}</text>',
        *_legend(every),
        *_hosts(record, shown, seconds, line),
        *_chart("can serve", record.capacity, before=total, most=total, seconds=seconds, top=bottom + 20),
        *_chart("permits", record.permits, before=0, most=max(1, record.most_permits), seconds=seconds, top=bottom + _CHART + 50),
        f'<text x="{_LEFT}" y="{height - 6}">0s</text>',
        f'<text x="{_WIDTH - 10}" y="{height - 6}" text-anchor="end">{Duration(round(seconds))}</text>',
        "</svg>",
    ]
    return "\n".join(body) + "\n"


def _legend(every: int) -> Iterator[str]:
    for number, (group, colour) in enumerate(_COLOURS.items()):
        x = _LEFT + number * 95
        yield f'<rect x="{x}" y="27" width="10" height="10" fill="{colour}"/><text x="{x + 14}" y="36">{group}</text>'
    if every > 1:
        yield f'<text x="10" y="36">1 of {every} hosts</text>'


def _hosts(record: Record, hosts: Sequence[str], seconds: float, line: int) -> Iterator[str]:
    for number, host in enumerate(hosts):
        y = 45 + number * line
        if line >= 10:
            yield f'<text x="10" y="{y + line - 3}" font-size="{line - 3}">{escape(host)}</text>'
        states = record.timeline.get(host, [])
        for (start, state), (end, _) in zip(states, [*states[1:], (seconds, "")], strict=True):
            width = _x(max(start, end), seconds) - _x(start, seconds)
            if width <= 0:
                continue
            words = escape(f"{host}: {state} from {start:.1f} s")
            yield (
                f'<rect x="{_x(start, seconds):.1f}" y="{y}" width="{width:.1f}" height="{max(1, line - 1)}" '
                f'fill="{_COLOURS[group_of(state)]}"><title>{words}</title></rect>'
            )


def _chart(title: str, curve: Curve, *, before: int, most: int, seconds: float, top: int) -> Iterator[str]:
    """Steps over time, from nothing to the most there can be."""
    points = []
    value = before
    for moment, following in [(0.0, before), *curve, (seconds, -1)]:
        x = _x(min(moment, seconds), seconds)
        points.append(f"{x:.1f},{top + _CHART * (1 - value / max(1, most)):.1f}")
        value = following if following >= 0 else value
        points.append(f"{x:.1f},{top + _CHART * (1 - value / max(1, most)):.1f}")
    yield f'<text x="10" y="{top + 10}">{title}</text><text x="{_LEFT - 8}" y="{top + 10}" text-anchor="end">{most}</text>'
    yield f'<text x="{_LEFT - 8}" y="{top + _CHART}" text-anchor="end">0</text>'
    yield f'<line x1="{_LEFT}" y1="{top + _CHART}" x2="{_WIDTH - 10}" y2="{top + _CHART}" stroke="#999999"/>'
    yield f'<polyline fill="none" stroke="#2b7fd4" stroke-width="1.5" points="{" ".join(points)}"/>'


def _x(moment: float, seconds: float) -> float:
    return _LEFT + (_WIDTH - 10 - _LEFT) * min(1.0, moment / max(seconds, 1e-9))
