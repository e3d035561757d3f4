"""Following a rollout: bars that are redrawn on a terminal, one line per change in a pipe."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

import click

from deployd_core.cli.output import is_terminal, use_colour
from deployd_core.model import Role
from deployd_core.picture import (
    HostState,
    Verdict,
    ago,
    count,
    entries_of,
    in_words,
    ready_of,
    reason_of,
    state_of,
    step_of,
    stopped,
    verdict_of,
)

if TYPE_CHECKING:
    from deployd_core.zookeeper.status import FleetStatus, HostEntry

STATE_COLOURS = {
    HostState.CONVERGED: "green",
    HostState.RESTARTING: "cyan",
    HostState.CHECKING: "cyan",
    HostState.WAITING: "blue",
    HostState.STAGING: "blue",
    HostState.DEGRADED: "yellow",
    HostState.BLOCKED: "red",
    HostState.FAILED: "red",
    HostState.DEAD: "red",
}
_BAR_WIDTH = 40
_SHOWN_HOSTS = 8
_STUCK_FOR = 3.0
"""Seconds in which a host that cannot get further may still change its mind: a report may be on its way."""


class View(Protocol):
    """What shows how things stand."""

    def show(self, fleet: FleetStatus, entries: Sequence[HostEntry]) -> None:
        """Show it, once more."""
        ...


class Screen:
    """Lines that take the place of those before them."""

    def __init__(self) -> None:
        self._height = 0

    def draw(self, lines: Sequence[str]) -> None:
        """Replace what was drawn last; lines and columns beyond the terminal's are left out."""
        size = shutil.get_terminal_size()
        kept = [_cut(line, size.columns - 1) for line in lines[: size.lines - 1]]
        back = f"\x1b[{self._height}F\x1b[J" if self._height else ""
        click.echo(back + "\n".join(kept))
        self._height = len(kept)


class Bars:
    """A bar per state, and the hosts that are busy or in trouble."""

    def __init__(self, build: str) -> None:
        self._build = build
        self._began = time.monotonic()
        self._screen = Screen()

    def show(self, fleet: FleetStatus, entries: Sequence[HostEntry]) -> None:
        """Draw it in the place of the last one."""
        self._screen.draw(list(self._lines(fleet, entries)))

    def _lines(self, fleet: FleetStatus, entries: Sequence[HostEntry]) -> Iterator[str]:
        counts, stop = count(entries), stopped(fleet.record)
        done = counts.get(HostState.CONVERGED, 0)
        yield f"{fleet.record.service} {self._build}  {done} of {len(entries)} hosts  {in_words(time.monotonic() - self._began)}"
        if stop:
            yield _paint(f"  {stop}", "red")
        for state, number in counts.items():
            length = max(1, number * _BAR_WIDTH // len(entries))
            yield f"  {state.value:10}  {_paint('█' * length, STATE_COLOURS.get(state))} {number}"
        busy = [(state_of(entry), entry) for entry in entries if state_of(entry) not in (HostState.CONVERGED, HostState.IDLE)]
        busy.sort(key=lambda found: (not found[0].trouble, found[0] is not HostState.RESTARTING, found[1].host))
        for state, entry in busy[:_SHOWN_HOSTS]:
            since = ago(entry.status.since) if entry.status is not None and state is not HostState.UNAWARE else ""
            ready = f"{able} ready" if (able := ready_of(entry)) else ""
            words = (entry.host, _paint(step_of(entry), STATE_COLOURS.get(state)), since, ready, reason_of(entry))
            yield "  " + "  ".join(word for word in words if word)
        if len(busy) > _SHOWN_HOSTS:
            yield f"  and {len(busy) - _SHOWN_HOSTS} more"


class Lines:
    """A line for every change: ``12:01:03 web h2 restarting: web@8001 is starting``."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._stopped = ""

    def show(self, fleet: FleetStatus, entries: Sequence[HostEntry]) -> None:
        """Print what has changed since the last time."""
        now = datetime.now().astimezone().strftime("%H:%M:%S")
        service, stop = fleet.record.service, stopped(fleet.record)
        if stop != self._stopped:
            self._stopped = stop
            click.echo(f"{now} {service} {stop or 'goes on'}")
        for entry in entries:
            step, reason = step_of(entry), reason_of(entry)
            if self._known.get(entry.host) != step:
                self._known[entry.host] = step
                click.echo(f"{now} {service} {entry.host} {step}" + (f": {reason}" if reason else ""))


def make_view(build: str) -> View:
    """Bars for a person, lines for everything else."""
    return Bars(build) if is_terminal() and use_colour() else Lines()


def follow(fleets: Iterable[FleetStatus], view: View, *, rollout: str, role: Role) -> tuple[Verdict, FleetStatus | None]:
    """Show a rollout until it is over.

    Args:
        fleets: How things stand, again and again, every second at least; when they end, time is up.
        view: Where to show it.
        rollout: Its id.
        role: Whose `enabled` began it.

    Returns:
        How it stands (GOING when time was up), and what was seen last.
    """
    stuck_since: float | None = None
    seen: FleetStatus | None = None
    for seen in fleets:
        view.show(seen, entries_of(seen, rollout))
        verdict = verdict_of(seen, rollout, role)
        now = time.monotonic()
        stuck_since = (stuck_since or now) if verdict is Verdict.STUCK else None
        if verdict in (Verdict.DONE, Verdict.HELD) or (stuck_since is not None and now - stuck_since >= _STUCK_FOR):
            return verdict, seen
    return Verdict.GOING, seen


def _paint(text: str, colour: str | None) -> str:
    return click.style(text, fg=colour) if colour and use_colour() else text


def _cut(line: str, width: int) -> str:
    """The line without what would wrap; its colours end with it."""
    if len(click.unstyle(line)) <= width:
        return line
    return click.unstyle(line)[: width - 1] + "…"
