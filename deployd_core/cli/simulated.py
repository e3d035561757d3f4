"""What came of a simulation, printed: the facts, and a picture of one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deployd_core.cli.output import columns_of, folded, message, print_json, use_colour
from deployd_core.errors import ConfigError
from deployd_core.simulate.invariants import RULES
from deployd_core.simulate.picture import draw
from deployd_core.simulate.runner import Outcome, Run, Summary
from deployd_core.simulate.svg import draw_svg
from deployd_core.units import Duration

if TYPE_CHECKING:
    from deployd_core.cli.simulation import Asked, Wish
    from deployd_core.simulate.invariants import Broken
    from deployd_core.simulate.record import Record
    from deployd_core.simulate.scenario import Scenario

_COLOURS = {
    "converged": "green",
    "restarting": "cyan",
    "waiting": "blue",
    "staging": "blue",
    "failed": "red",
    "down": "red",
}
_PIPE_WIDTH = 100
_MOST_ORDER = 10
_MOST_ZONES = 8
_ACTS_BEFORE = 12
"""Lines of the trace that lead up to a broken rule."""


def print_summary(
    wish: Wish,
    asked: Asked,
    summary: Summary,
    shown: tuple[Run, Record],
    *,
    as_json: bool,
    svg: Path | None,
    trace: Path | None,
) -> None:
    """Print what came of it, with a picture of one run."""
    scenario, (again, record) = asked.scenario, shown
    hosts = [*again.order, *sorted({host.name for host in scenario.hosts} - set(again.order))]
    if svg is not None:
        title = f"{wish.strategy}, {again.hosts} hosts, seed {again.seed}: {again.outcome.value} after {_time(again.seconds)}"
        _write(svg, draw_svg(record, hosts=hosts, seconds=again.seconds, title=title))
    if trace is not None:
        _write(trace, record.trace)
    if as_json:
        print_json("deployd.strategies.simulate/1", _as_object(wish, asked, summary, again, record))
        return
    lines = [_head(wish, scenario, summary), "", *_facts(wish, asked, summary), "", *_picture(again, record, hosts)]
    if again.broken:
        lines += ["", *_before(again.broken[0], record)]
    click.echo("\n".join(lines))


def _head(wish: Wish, scenario: Scenario, summary: Summary) -> str:
    zones = len({host.zone for host in scenario.hosts})
    each = len(scenario.spec.instances_of(scenario.service))
    done = len(summary.runs)
    seeds = f"seed {wish.seed}" if wish.seeds == 1 else f"seeds {wish.seed} to {wish.seed + done - 1}"
    seeds += f" alone, interrupted before the other {wish.seeds - done}" if done < wish.seeds else ""
    fleet = f"{_count(len(scenario.hosts), 'host')} in {_count(zones, 'zone')}, {_count(each, 'instance')} each"
    builds = f"{scenario.before or 'nothing'} to {scenario.build}"
    faults = f", with {', '.join(map(str, scenario.faults))}" if scenario.faults else ""
    at = f", at {_moment(scenario)}" if wish.at is not None or wish.service else ""
    text = folded(f"{wish.strategy}: {fleet}, {builds}{at}{faults}; {seeds}")
    return click.style(wish.strategy, bold=use_colour()) + text.removeprefix(wish.strategy)


def _facts(wish: Wish, asked: Asked, summary: Summary) -> Iterator[str]:
    for number, line in enumerate(asked.found):
        yield folded(f"  {'' if number else 'found':13} {line}", indent=18)
    if asked.found:
        yield ""
    for name, text in measured(summary):
        yield folded(f"  {name:13} {text}", indent=16)
    for rule, runs in summary.broken.items():
        first = next(broken for broken in runs[0].broken if broken.rule == rule)
        yield _red(folded(f"  BROKEN        {rule}: {RULES[rule]}", indent=16))
        yield folded(f"{'':16}in {len(runs)} of {len(summary.runs)} runs; seed {runs[0].seed}, {_where(first)}", indent=16)
        yield f"{'':16}again: {wish.again(runs[0].seed)}"  # to be copied, however long


def measured(summary: Summary) -> Iterator[tuple[str, str]]:
    """The numbers of all runs: what each is called, and it in words."""
    yield "ended", ", ".join(f"{number} {outcome.value}" for outcome, number in summary.outcomes.items())
    yield "duration", "; ".join(_durations(summary))
    if summary.missed:
        runs = len(summary.runs)
        whom = "(the run was over)" if runs == 1 else "(they were over)"
        missed = [fault if runs == 1 else f"{fault} in {number} of {runs} runs" for fault, number in summary.missed.items()]
        yield "faults", f"did not happen: {', '.join(missed)} {whom}"
    yield "capacity", f"never below {_percent(summary.lowest)} of the instances; by zone: {by_zone(summary.lowest_by_zone)}"
    hosts = _count(summary.most_permits, "host")
    yield "blast radius", f"at most {_count(summary.most_out, 'instance')} out at a moment, {hosts} with a permit"
    in_a_run = "" if len(summary.runs) == 1 else " in a run"
    yield "requests", f"at most {summary.most_cut} cut by restarts{in_a_run}" if summary.most_cut else "none cut by restarts"
    if not summary.broken:
        yield "rules", f"{len(RULES)} held at every moment of every run"


def _durations(summary: Summary) -> Iterator[str]:
    """How long it took those that converged, and when the others got no further."""
    median, most = summary.duration(50), summary.duration(95)
    converged = summary.outcomes.get(Outcome.CONVERGED, 0)
    if median is not None and most is not None:
        of = f" of the {converged} that converged" if converged < len(summary.runs) else ""
        yield f"p50 {_time(median)}, p95 {_time(most)}{of}"
    for outcome, (first, last) in summary.other_ends.items():
        until = f" to {_time(last)}" if _time(last) != _time(first) else ""
        yield f"{outcome.value} after {_time(first)}{until}"


def by_zone(lowest: Mapping[str, float]) -> str:
    """The worst moment of each zone; of many zones those with the worst ones."""
    zones = list(lowest.items())
    if len(zones) > _MOST_ZONES:
        zones = sorted(zones, key=lambda zone: zone[1])[:_MOST_ZONES]
    more = f" and {len(lowest) - _MOST_ZONES} more, none of them lower" if len(lowest) > _MOST_ZONES else ""
    return ", ".join(f"{zone} {_percent(part)}" for zone, part in zones) + more


def _picture(run: Run, record: Record, hosts: Sequence[str]) -> Iterator[str]:
    width = columns_of() or _PIPE_WIDTH
    reason = f": {run.reason}" if run.reason else ""
    yield folded(f"Seed {run.seed}: {run.outcome.value} after {_time(run.seconds)}, {run.converged} of {run.hosts} hosts{reason}")
    yield ""
    yield from draw(record, hosts=hosts, seconds=run.seconds, width=width - 1, paint=_paint)
    yield ""
    more = f" and {len(run.order) - _MOST_ORDER} more" if len(run.order) > _MOST_ORDER else ""
    yield folded(f"Order: {', '.join(run.order[:_MOST_ORDER]) or 'nobody got a permit'}{more}", indent=7)


def _before(broken: Broken, record: Record) -> Iterator[str]:
    """The acts that lead up to a broken rule, those of its host and of the service."""
    lines = record.trace.splitlines()
    at = next(number for number, line in enumerate(lines) if f" BREAKS {broken.rule}:" in line)
    yield f"What {broken.host} did before:"
    mine = [line for line in lines[: at + 1] if line.split(" ", 2)[1] in (broken.host, "-")]
    yield from (folded(f"  {line}", indent=4) for line in mine[-_ACTS_BEFORE:])


def _as_object(wish: Wish, asked: Asked, summary: Summary, shown: Run, record: Record) -> Mapping[str, Any]:
    scenario = asked.scenario
    return {
        "strategy": wish.strategy,
        "service": wish.service or None,
        "hosts": len(scenario.hosts),
        "instances": summary.runs[0].instances,
        "found": asked.found,
        "at": _moment(scenario),
        "before": scenario.before,
        "build": scenario.build,
        "faults": [str(fault) for fault in scenario.faults],
        "seeds": [run.seed for run in summary.runs],
        "outcomes": {outcome.value: summary.outcomes.get(outcome, 0) for outcome in Outcome},
        "seconds": {f"p{percent}": _rounded(summary.duration(percent)) for percent in (50, 95)},
        "other_ends": {outcome.value: [_rounded(first), _rounded(last)] for outcome, (first, last) in summary.other_ends.items()},
        "missed": summary.missed,
        "lowest": round(summary.lowest, 4),
        "lowest_by_zone": {zone: round(lowest, 4) for zone, lowest in summary.lowest_by_zone.items()},
        "most_out": summary.most_out,
        "most_permits": summary.most_permits,
        "most_cut": summary.most_cut,
        "broken": [
            {"rule": broken.rule, "seed": run.seed, "at": round(broken.at, 3), "host": broken.host, "what": broken.what}
            for run in summary.runs
            for broken in run.broken
        ],
        "again": {rule: wish.again(runs[0].seed) for rule, runs in summary.broken.items()},
        "shown": {
            "seed": shown.seed,
            "outcome": shown.outcome.value,
            "reason": shown.reason,
            "seconds": round(shown.seconds, 3),
            "missed": shown.missed,
            "order": shown.order,
            "permits": _steps(record.permits),
            "capacity": _steps(record.capacity),
            "capacity_by_zone": {zone: _steps(curve) for zone, curve in sorted(record.capacity_by_zone.items())},
            "hosts": {host: _steps(states) for host, states in sorted(record.timeline.items())},
            "trace": shown.trace,
        },
    }


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    message(f"deployd: wrote {path}")


def _where(broken: Broken) -> str:
    return f"{broken.host} after {_time(broken.at)}: {broken.what}"


def _steps(curve: Sequence[tuple[float, int | str]]) -> list[tuple[float, int | str]]:
    return [(round(at, 3), value) for at, value in curve]


def _moment(scenario: Scenario) -> str:
    """When the build is enabled."""
    return datetime.fromtimestamp(int(scenario.began), UTC).isoformat().replace("+00:00", "Z")


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _percent(part: float) -> str:
    return f"{int(part * 100)} %"  # rounded down: 99.7 is not all of them


def _time(seconds: float) -> str:
    return str(Duration(round(seconds, 1) if seconds < 10 else round(seconds)))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _red(text: str) -> str:
    return click.style(text, fg="red") if use_colour() else text


def _paint(text: str, group: str) -> str:
    return click.style(text, fg=_COLOURS[group]) if use_colour() else text
