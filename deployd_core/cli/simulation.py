"""A strategy over a virtual fleet, printed: the output of `deployd strategies simulate`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec import Struct

from deployd_core.cli.output import columns_of, folded, is_terminal, message, print_json, use_colour
from deployd_core.errors import ConfigError, NotFound
from deployd_core.simulate.invariants import RULES
from deployd_core.simulate.picture import draw
from deployd_core.simulate.runner import Outcome, Run, Summary, simulate, simulate_seeds
from deployd_core.simulate.svg import draw_svg
from deployd_core.units import Duration

if TYPE_CHECKING:
    from deployd_core.cli.settings import Settings
    from deployd_core.simulate.invariants import Broken
    from deployd_core.simulate.record import Record
    from deployd_core.simulate.scenario import HostSetup, Scenario
    from deployd_core.spec import ServiceSpec

_COLOURS = {
    "converged": "green",
    "restarting": "cyan",
    "waiting": "blue",
    "staging": "blue",
    "failed": "red",
    "down": "red",
}
_PIPE_WIDTH = 100
_ZONES = 3
_MOST_ORDER = 10
_ACTS_BEFORE = 12
"""Lines of the trace that lead up to a broken rule."""


class Wish(Struct, frozen=True, kw_only=True):
    """What was asked for."""

    strategy: str
    hosts: int
    zones: int
    instances: int
    spec_file: Path | None
    service: str
    build: str
    options: tuple[str, ...]
    faults: str
    start: Duration
    seeds: int
    seed: int
    where: tuple[str, ...] = ()
    """Flags that say where plugins and ZooKeeper are, as they were given."""

    def again(self, seed: int) -> str:
        """The command that runs one seed again."""
        words = ["deployd", "strategies", "simulate", self.strategy]
        if self.service:
            words += ["--service", self.service]
        else:
            words += ["--hosts", str(self.hosts), "--zones", str(self.zones)]
        if self.spec_file is not None:
            words += ["--spec", str(self.spec_file)]
        elif not self.service:
            words += ["--instances", str(self.instances)]
        words += ["--build", self.build] if self.build else []
        for option in self.options:
            words += ["-o", option]
        words += ["--faults", self.faults] if self.faults else []
        return shlex.join([*words, "--start", str(self.start), "--seed", str(seed), *self.where])


def zones_of(zones: int | None, hosts: int) -> int:
    """How many zones a fleet is spread over, by default few enough for its hosts.

    Raises:
        click.UsageError: There are more zones than hosts.
    """
    if zones is not None and zones > hosts:
        raise click.UsageError(f"--zones {zones} is more than --hosts {hosts}, and a zone without a host is none.")
    return zones or min(_ZONES, hosts)


def make_scenario(settings: Settings, wish: Wish) -> Scenario:
    """The scenario that was asked for.

    Raises:
        DeploydError: A file, an option or a fault is wrong; there is no such service, or ZooKeeper does not answer.
    """
    from deployd_core.config import load_spec
    from deployd_core.simulate.faults import parse_faults
    from deployd_core.simulate.scenario import Behaviour, Scenario, roster, set_up_virtual, spec_for, with_strategy

    plugins, options = settings.plugins(), _options(wish.options)
    before, hosts = "v1", roster(wish.hosts, wish.zones)
    if wish.service:
        spec, hosts, before = _read_service(settings, wish.service, wish.strategy)
    elif wish.spec_file is not None:
        spec = load_spec(wish.spec_file, plugins, "web")
    else:
        spec = spec_for(wish.strategy, options, wish.instances)
    scenario = Scenario(
        service=wish.service or "web",
        spec=with_strategy(spec, wish.strategy, options),
        hosts=hosts,
        behaviour=Behaviour(start=float(wish.start)),
        faults=parse_faults(wish.faults),
        before=before,
        build=wish.build or ("v2" if before != "v2" else "v3"),
    )
    set_up_virtual(scenario.spec, scenario.service, plugins)
    if scenario.build == scenario.before:
        raise ConfigError(f"every host serves {before} already: nothing would happen", hint="name another build: --build ID")
    return scenario


def run(settings: Settings, wish: Wish, scenario: Scenario) -> tuple[Summary, tuple[Run, Record]]:
    """Run every seed, and say how far it is on a terminal.

    Returns:
        What came of it, and in full the worst run: the first that broke a rule, else the first.
    """
    if wish.seeds == 1:
        alone = simulate(scenario, settings.plugins(), wish.seed, full=True)
        return Summary(runs=(alone[0],)), alone
    seeds = range(wish.seed, wish.seed + wish.seeds)
    shown = is_terminal(sys.stderr)
    runs: list[Run] = []
    try:
        for done in simulate_seeds(scenario, settings.plugins(), seeds):
            runs.append(done)
            if shown:
                click.echo(f"\r\x1b[K{len(runs)} of {len(seeds)} seeds", err=True, nl=False)
    finally:
        if shown:
            click.echo("\r\x1b[K", err=True, nl=False)
    worst = next((run for run in runs if run.broken), runs[0])
    again = simulate(scenario, settings.plugins(), worst.seed, full=True)
    assert again[0].trace == worst.trace, f"seed {worst.seed} gave two different runs"
    return Summary(runs=tuple(runs)), again


def print_summary(
    wish: Wish,
    scenario: Scenario,
    summary: Summary,
    shown: tuple[Run, Record],
    *,
    as_json: bool,
    svg: Path | None,
    trace: Path | None,
) -> None:
    """Print what came of it, with a picture of one run."""
    again, record = shown
    hosts = [*again.order, *sorted({host.name for host in scenario.hosts} - set(again.order))]
    if svg is not None:
        title = f"{wish.strategy}, {again.hosts} hosts, seed {again.seed}: {again.outcome.value} after {_time(again.seconds)}"
        _write(svg, draw_svg(record, hosts=hosts, seconds=again.seconds, title=title))
    if trace is not None:
        _write(trace, record.trace)
    if as_json:
        print_json("deployd.strategies.simulate/1", _as_object(wish, scenario, summary, again, record))
        return
    lines = [_head(wish, scenario, summary), "", *_facts(wish, summary), "", *_picture(again, record, hosts)]
    if again.broken:
        lines += ["", *_before(again.broken[0], record)]
    click.echo("\n".join(lines))


def _read_service(settings: Settings, service: str, strategy: str) -> tuple[ServiceSpec, tuple[HostSetup, ...], str]:
    """Spec, roster and enabled build of a service, as ZooKeeper has them."""
    from deployd_core import rollouts
    from deployd_core.cli.store import connected, require_spec
    from deployd_core.simulate.scenario import HostSetup

    with connected(settings) as session:
        fleet = rollouts.fleet_status(session, service)
    spec, enabled = require_spec(fleet.record), fleet.record.enabled
    if not fleet.hosts:
        raise NotFound(
            f"{service} has no hosts", hint=f"deployd strategies simulate {strategy} --spec {service}.toml (without its roster)"
        )
    hosts = tuple(HostSetup(name=entry.host, zone=entry.zone, role=entry.role) for entry in fleet.hosts)
    return spec, hosts, enabled.build if enabled is not None else "v1"


def _options(texts: Sequence[str]) -> dict[str, Any]:
    """``limit=10%`` and the like, each value as TOML would have it where that is a number or a truth."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"option {text!r} has no value", hint="write -o KEY=VALUE: -o limit=10%")
        found[key] = int(value) if value.isdecimal() else {"true": True, "false": False}.get(value, value)
    return found


def _head(wish: Wish, scenario: Scenario, summary: Summary) -> str:
    zones = len({host.zone for host in scenario.hosts})
    each = summary.runs[0].instances // summary.runs[0].hosts
    seeds = f"seeds {wish.seed} to {wish.seed + wish.seeds - 1}" if wish.seeds > 1 else f"seed {wish.seed}"
    fleet = f"{_count(len(scenario.hosts), 'host')} in {_count(zones, 'zone')}, {_count(each, 'instance')} each"
    faults = f", with {', '.join(map(str, scenario.faults))}" if scenario.faults else ""
    text = folded(f"{wish.strategy}: {fleet}, {scenario.before} to {scenario.build}{faults}; {seeds}")
    return click.style(wish.strategy, bold=use_colour()) + text.removeprefix(wish.strategy)


def _facts(wish: Wish, summary: Summary) -> Iterator[str]:
    for name, text in _measured(summary):
        yield folded(f"  {name:13} {text}", indent=16)
    for rule, runs in summary.broken.items():
        first = next(broken for broken in runs[0].broken if broken.rule == rule)
        yield _red(folded(f"  BROKEN        {rule}: {RULES[rule]}", indent=16))
        yield folded(f"{'':16}in {len(runs)} of {len(summary.runs)} runs; seed {runs[0].seed}, {_where(first)}", indent=16)
        yield f"{'':16}again: {wish.again(runs[0].seed)}"  # to be copied, however long


def _measured(summary: Summary) -> Iterator[tuple[str, str]]:
    outcomes = ", ".join(f"{number} {outcome.value}" for outcome, number in summary.outcomes.items())
    yield "ended", outcomes
    yield "duration", f"p50 {_time(summary.duration(50))}, p95 {_time(summary.duration(95))}"
    zones = ", ".join(f"{zone} {_percent(lowest)}" for zone, lowest in list(summary.lowest_by_zone.items())[:8])
    yield "capacity", f"never below {_percent(summary.lowest)} of the instances; by zone: {zones}"
    hosts = _count(summary.most_permits, "host")
    yield "blast radius", f"at most {_count(summary.most_out, 'instance')} out at a moment, {hosts} with a permit"
    if not summary.broken:
        yield "rules", f"{len(RULES)} held at every moment of every run"


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


def _as_object(wish: Wish, scenario: Scenario, summary: Summary, shown: Run, record: Record) -> Mapping[str, Any]:
    return {
        "strategy": wish.strategy,
        "service": wish.service or None,
        "hosts": len(scenario.hosts),
        "instances": summary.runs[0].instances,
        "before": scenario.before,
        "build": scenario.build,
        "faults": [str(fault) for fault in scenario.faults],
        "seeds": [run.seed for run in summary.runs],
        "outcomes": {outcome.value: summary.outcomes.get(outcome, 0) for outcome in Outcome},
        "seconds": {"p50": round(summary.duration(50), 3), "p95": round(summary.duration(95), 3)},
        "lowest": round(summary.lowest, 4),
        "lowest_by_zone": {zone: round(lowest, 4) for zone, lowest in summary.lowest_by_zone.items()},
        "most_out": summary.most_out,
        "most_permits": summary.most_permits,
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
            "order": shown.order,
            "permits": [[round(at, 3), count] for at, count in record.permits],
            "capacity": [[round(at, 3), count] for at, count in record.capacity],
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
