"""What `deployd strategies simulate` is asked for: the fleet, real or imagined, and what happens to it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from msgspec import Struct

from deployd_core.cli.checking import facts_by_host
from deployd_core.cli.output import is_terminal, message
from deployd_core.errors import ConfigError, DeploydError, NotFound
from deployd_core.simulate.faults import parse_faults
from deployd_core.simulate.runner import Run, Summary, simulate
from deployd_core.simulate.scenario import BEGAN, Behaviour, HostSetup, Scenario, roster, set_up_virtual, spec_for, with_strategy
from deployd_core.simulate.seeds import cores, simulate_seeds
from deployd_core.units import Duration

if TYPE_CHECKING:
    from deployd_core.cli.settings import Settings
    from deployd_core.plugins import Plugins
    from deployd_core.simulate.record import Record
    from deployd_core.zookeeper.status import FleetStatus

_ZONES = 3


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
    facts: tuple[str, ...]
    faults: str
    start: Duration
    at: datetime | None = None
    """When the build is enabled; None: now for a service, else when `Scenario` says."""
    seeds: int
    seed: int
    jobs: int | None = None
    """Processes; None: one for each core."""
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
        for facts in self.facts:
            words += ["--facts", facts]
        words += ["--faults", self.faults] if self.faults else []
        words += ["--at", self.at.isoformat()] if self.at is not None else []
        return shlex.join([*words, "--start", str(self.start), "--seed", str(seed), *self.where])


def refuse_contradictions(context: click.Context) -> None:
    """See that no option was given that another one leaves without effect.

    Raises:
        click.UsageError: One was.
    """
    typed = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if {"spec_file", "service"} <= typed:
        raise click.UsageError("--spec and --service both say where the spec comes from: give one of them")
    for place, whence, settled in (
        ("service", "--service takes hosts, zones and instances from ZooKeeper", ("hosts", "zones", "instances")),
        ("spec_file", "--spec says which instances there are", ("instances",)),
    ):
        vain = [f"--{name}" for name in settled if name in typed]
        if place in typed and vain:
            raise click.UsageError(f"{whence}: leave {' and '.join(vain)} out")


def zones_of(zones: int | None, hosts: int) -> int:
    """How many zones a fleet is spread over, by default few enough for its hosts.

    Raises:
        click.UsageError: There are more zones than hosts.
    """
    if zones is not None and zones > hosts:
        raise click.UsageError(f"--zones {zones} is more than --hosts {hosts}, and a zone without a host is none.")
    return zones or min(_ZONES, hosts)


class Asked(Struct, frozen=True, kw_only=True):
    """A scenario, and what is to be known of where it comes from."""

    scenario: Scenario
    found: tuple[str, ...] = ()
    """What was found in ZooKeeper, a line each."""


def make_scenario(settings: Settings, wish: Wish) -> Asked:
    """The scenario that was asked for.

    Raises:
        DeploydError: A file, an option or a fault is wrong; there is no such service, or ZooKeeper does not answer.
    """
    from deployd_core.config import load_spec

    if wish.service:
        return _as_found(settings, wish)
    plugins, options = settings.plugins(), _options(wish.options)
    if wish.spec_file is not None:
        spec = load_spec(wish.spec_file, plugins, "web")
    else:
        spec = spec_for(wish.strategy, options, wish.instances)
    hosts = roster(wish.hosts, wish.zones)
    scenario = Scenario(
        spec=with_strategy(spec, wish.strategy, options),
        hosts=hosts,
        behaviour=Behaviour(start=float(wish.start)),
        facts=facts_by_host(wish.facts, [host.name for host in hosts]),
        faults=parse_faults(wish.faults),
        build=wish.build or "v2",
        began=wish.at.timestamp() if wish.at is not None else BEGAN,
    )
    _check_strategy(wish, scenario, plugins)
    if scenario.build == scenario.before:
        raise _nothing_to_do(scenario.build)
    return Asked(scenario=scenario)


def _as_found(settings: Settings, wish: Wish) -> Asked:
    """A service of ZooKeeper's, as it stands and as an order to enable the build would find it."""
    from deployd_core import rollouts
    from deployd_core.admission import impossible
    from deployd_core.cli.found import found_in, hosts_in, in_words, most_served, serve_already
    from deployd_core.cli.store import connected, require_spec

    service, now = wish.service, wish.at or datetime.now(UTC)
    with connected(settings) as session:
        fleet = rollouts.fleet_status(session, service)
    spec = with_strategy(require_spec(fleet.record), wish.strategy, _options(wish.options))
    if not fleet.hosts:
        without = f"deployd strategies simulate {wish.strategy} --spec {service}.toml (without its roster)"
        raise NotFound(f"{service} has no hosts", hint=without)
    obstacle = impossible(spec.rollout, len(fleet.hosts)) or spec.obstacle(service)
    if obstacle:
        raise ConfigError(f"{service}: {obstacle}", hint=f"deployd services show {service} --toml (apply it with other limits)")
    hosts = hosts_in(fleet, [instance.name for instance in spec.instances_of(service)])
    before = most_served(hosts)
    scenario = Scenario(
        service=service,
        spec=spec,
        hosts=hosts,
        behaviour=Behaviour(start=float(wish.start)),
        facts=facts_by_host(wish.facts, [host.name for host in hosts]),
        faults=parse_faults(wish.faults),
        before=before,
        build=wish.build or _unheard_of(fleet, hosts),
        found=found_in(fleet),
        began=now.timestamp(),
    )
    _check_strategy(wish, scenario, settings.plugins())
    if serve_already(hosts, scenario.build):
        raise _nothing_to_do(scenario.build)
    return Asked(scenario=scenario, found=tuple(in_words(fleet, hosts, now)))


def _check_strategy(wish: Wish, scenario: Scenario, plugins: Plugins) -> None:
    """See that it is there and accepts its options, and say so when it is shown less than it would see."""
    if set_up_virtual(scenario.spec, scenario.service, plugins).looks_at_the_world and not wish.facts:
        message(f"deployd: warning: {wish.strategy} looks at hosts, and is shown nothing: say what it finds, with --facts JSON")


def _nothing_to_do(build: str) -> ConfigError:
    return ConfigError(f"every host serves {build} already: nothing would happen", hint="name another build: --build ID")


def _unheard_of(fleet: FleetStatus, hosts: Iterable[HostSetup]) -> str:
    """The name of a build that nobody serves and that is not enabled."""
    known = {enabled.build for enabled in (fleet.record.enabled, fleet.record.canary) if enabled is not None}
    for host in hosts:
        if host.found is not None:
            known |= {build for build in (host.found.current, *host.found.serves.values()) if build}
    return next(name for number in count(2) if (name := f"v{number}") not in known)


def run(settings: Settings, wish: Wish, scenario: Scenario) -> tuple[Summary, tuple[Run, Record]]:
    """Run every seed, and say how far it is on a terminal. After a Ctrl-C there are fewer runs than seeds.

    Returns:
        What came of it, and in full the worst run: the first that broke a rule, else the first.

    Raises:
        KeyboardInterrupt: Not one run was over.
    """
    if wish.seeds == 1:
        alone = simulate(scenario, settings.plugins(), wish.seed, full=True)
        return Summary(runs=(alone[0],)), alone
    runs = tuple(_all(settings, wish, scenario))
    worst = next((run for run in runs if run.broken), runs[0])
    again = simulate(scenario, settings.plugins(), worst.seed, full=True)
    assert again[0].trace == worst.trace, f"seed {worst.seed} gave two different runs"
    return Summary(runs=runs), again


def _all(settings: Settings, wish: Wish, scenario: Scenario) -> Iterator[Run]:
    """The runs of all seeds, or those that were over at a Ctrl-C."""
    done, say = 0, _progress if is_terminal(sys.stderr) else str
    seeds = range(wish.seed, wish.seed + wish.seeds)
    try:
        say(f"0 of {wish.seeds} seeds")
        with closing(simulate_seeds(scenario, settings.plugin_loader(), seeds, jobs=wish.jobs or cores())) as results:
            for done, result in enumerate(results, start=1):
                yield result
                say(f"{done} of {wish.seeds} seeds")
    except KeyboardInterrupt:
        if not done:
            raise
    except BrokenProcessPool as error:
        what = "a process of the simulation was killed, perhaps because memory ran out"
        raise DeploydError(what, hint="try fewer at a time: --jobs 1") from error
    finally:
        say("")


def _progress(text: str) -> None:
    click.echo(f"\r\x1b[K{text}", err=True, nl=False)


def _options(texts: Sequence[str]) -> dict[str, Any]:
    """``limit=10%`` and the like, each value as TOML would have it where that is a number or a truth."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"option {text!r} has no value", hint="write -o KEY=VALUE: -o limit=10%")
        found[key] = int(value) if value.isdecimal() else {"true": True, "false": False}.get(value, value)
    return found
