"""`deployd strategies`: what decides when instances restart, and what it would decide now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deployd_core.cli.checking import facts_option, option_option, seed_options
from deployd_core.cli.exits import Exit
from deployd_core.cli.groups import Group
from deployd_core.cli.here import spec_option
from deployd_core.cli.settings import (
    Settings,
    complete_plugins,
    config_options,
    duration,
    json_option,
    moment,
    pass_settings,
    zookeeper_options,
)
from deployd_core.errors import NotFound
from deployd_core.units import Duration


@click.group(
    "strategies",
    cls=Group,
    examples=[
        "deployd strategies list",
        "deployd strategies show concurrency",
        "deployd strategies plan web",
        "deployd strategies simulate concurrency",
    ],
)
def command() -> None:
    """List, describe, preview, check and simulate strategies."""


@command.command("list", examples=["deployd strategies list", "deployd strategies list --json"])
@json_option
@config_options
@pass_settings
def list_strategies(settings: Settings, *, as_json: bool) -> None:
    """List the strategies that a spec can name.

    A plugin that cannot be used is a row with the reason; one that broke before it could say its kind is listed too.
    """
    from deployd_core.cli.listing import print_rows
    from deployd_core.plugins import Kind

    print_rows(settings.plugins(), Kind.STRATEGY, as_json=as_json, group="strategies")


@command.command("show", examples=["deployd strategies show concurrency"])
@click.argument("name", shell_complete=complete_plugins)
@json_option
@config_options
@pass_settings
def show_strategy(settings: Settings, *, name: str, as_json: bool) -> None:
    """Describe a strategy and its options."""
    from deployd_core.cli.listing import print_plugin
    from deployd_core.plugins import Kind

    print_plugin(settings.plugins(), Kind.STRATEGY, name, as_json=as_json, group="strategies")


@command.command(
    "plan",
    examples=[
        "deployd strategies plan web",
        "deployd strategies plan web --build 2026.11.23-1",
        "deployd strategies plan web --spec web.toml --build v2",
    ],
)
@click.argument("service")
@click.option("--build", metavar="ID", default="", help="As if this build were enabled. [default: the one that is]")
@spec_option
@click.option(
    "--start",
    type=duration,
    metavar="DURATION",
    default="1s",
    help="Assume that an instance takes so long to get healthy. [default: 1s]",
)
@json_option
@zookeeper_options
@pass_settings
def plan(settings: Settings, *, service: str, build: str, spec_file: Path | None, start: Duration, as_json: bool) -> int:
    """Say what the agent would do on this host now, move by move. Touches nothing.

    The real planner and strategy run over a copy of what is seen here, in virtual time, taking it that everything goes well: which
    instances, in which order, which rules, with which deadlines. See as much as the agent does: run it as the agent's user.
    """
    from deployd_core.cli.here import find_service
    from deployd_core.cli.story import print_story
    from deployd_core.dry_run import Assumptions, tell
    from deployd_core.planner import HostStep
    from deployd_core.survey import look

    here = find_service(settings, service, spec_file=spec_file, build=build)
    if here.snapshot.enabled is None:
        raise NotFound(f"nothing is enabled for {service}", hint=f"deployd strategies plan {service} --build BUILD")
    seen = look(here)
    story = tell(seen, here.plan, Assumptions(start=float(start)))
    print_story(here, seen, story, as_json=as_json)
    return Exit.DONE if story.ended is HostStep.CONVERGED else Exit.FAILED


@command.command(
    "check",
    examples=[
        "deployd strategies check concurrency",
        "deployd strategies check concurrency --option instances_at_once=1",
        "deployd strategies check by-night --seed 17 --seeds 1",
    ],
)
@click.argument("name", shell_complete=complete_plugins)
@option_option
@facts_option
@seed_options
@json_option
@config_options
@pass_settings
def check_strategy(
    settings: Settings, *, name: str, options: tuple[str, ...], facts: str, seed: int, seeds: int, as_json: bool
) -> int:
    """Try a strategy on hundreds of modelled hosts before a real one. Touches nothing.

    The real planner runs it, in virtual time, with failures, crashes at every act, and views as no host should show them: is it
    pure, does it bring every host to an end, do its plans keep to its own limits? Exits with 1 when a check fails.
    """
    from deployd_core.cli.checking import Wish, check
    from deployd_core.plugins import Kind

    wish = Wish(
        kind=Kind.STRATEGY, name=name, options=options, facts=facts, seed=seed, seeds=seeds, where=settings.flags(zookeeper=False)
    )
    return check(settings.plugins(), wish, as_json=as_json)


@command.command(
    "simulate",
    examples=[
        "deployd strategies simulate concurrency --hosts 200 --zones 3 -o limit=10%",
        "deployd strategies simulate iptables-drain --spec web.toml --faults crash:2,reboot:1,bad-build:5% --seeds 100",
        "deployd strategies simulate concurrency --service web --svg web.svg",
    ],
)
@click.argument("name", shell_complete=complete_plugins)
@click.option("--hosts", type=click.IntRange(1, 100_000), default=200, show_default=True, metavar="N", help="Hosts of the fleet.")
@click.option(
    "--zones", type=click.IntRange(1, 1000), metavar="N", help="Zones they are spread over. [default: 3, or as many as hosts]"
)
@click.option(
    "--instances", type=click.IntRange(1, 1000), default=4, show_default=True, metavar="N", help="Instances of the service on each."
)
@click.option(
    "--spec", "spec_file", metavar="FILE", type=click.Path(path_type=Path), help="Take instances, probe and timeouts from a spec."
)
@click.option("--service", metavar="SERVICE", default="", help="Take spec and hosts from ZooKeeper, which is only read.")
@click.option("--build", metavar="ID", default="", help="What the build that is enabled is called.")
@click.option("-o", "--option", "options", metavar="KEY=VALUE", multiple=True, help="An option of the strategy: limit=10%.")
@click.option(
    "--facts",
    metavar="[HOST=]JSON",
    multiple=True,
    help="What the strategy's own look finds at HOST, or at every host that is not named.",
)
@click.option("--faults", metavar="LIST", default="", help="What goes wrong: NAME[:HOSTS][@WHEN], joined by commas; see below.")
@click.option(
    "--start", type=duration, metavar="DURATION", default="20s", help="Typical time until an instance is healthy. [default: 20s]"
)
@click.option(
    "--at", type=moment, metavar="TIME", help="When it is enabled, for windows. [default: of a service now, else 2026-01-01T00:00Z]"
)
@click.option("--seeds", type=click.IntRange(1, 1_000_000), default=1, show_default=True, metavar="N", help="How many runs.")
@click.option("--seed", type=int, default=1, show_default=True, metavar="S", help="The seed of the first run.")
@click.option("--jobs", type=click.IntRange(1, 1000), metavar="N", help="Processes for more than one run. [default: one a core]")
@click.option("--svg", metavar="FILE", type=click.Path(path_type=Path), help="Write the picture to a file.")
@click.option("--trace", metavar="FILE", type=click.Path(path_type=Path), help="Write every act of that run to a file.")
@json_option
@zookeeper_options
@pass_settings
def simulate(
    settings: Settings, /, *, name: str, as_json: bool, svg: Path | None, trace: Path | None, spec_file: Path | None, **wishes: Any
) -> int:
    """Run a strategy over a virtual fleet, in virtual time.

    Says how long a rollout takes, how much capacity stays, and which rules break. Planner, strategy and admission are the real
    ones; hosts, instances and time are imagined, and everything comes from the seed.

    Faults of hosts (2, or 5% of them) are crash, reboot, dead, session, lost-answer, late-watch, double-watch, failed-start,
    bad-build, slow-start, slow-probe, slow-drain, flap, disk-full, join and leave; of the service newer-build, new-spec, pause,
    freeze and promote. WHEN is a time (10m), a part of the hosts that have got a permit (50%), or rand. The exit code is 1 when a
    rule was broken.
    """
    from deployd_core.cli.simulated import print_summary
    from deployd_core.cli.simulation import Wish, make_scenario, refuse_contradictions, run, zones_of

    refuse_contradictions(click.get_current_context())
    wishes["zones"] = zones_of(wishes["zones"], wishes["hosts"])
    wish = Wish(strategy=name, spec_file=spec_file, where=settings.flags(zookeeper=bool(wishes["service"])), **wishes)
    asked = make_scenario(settings, wish)
    summary, shown = run(settings, wish, asked.scenario)
    print_summary(wish, asked, summary, shown, as_json=as_json, svg=svg, trace=trace)
    if len(summary.runs) < wish.seeds:
        return Exit.INTERRUPTED
    return Exit.FAILED if summary.broken else Exit.DONE
