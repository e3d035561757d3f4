"""`deployd pause`, `resume`, `freeze` and `unfreeze`: a person's stop, and its end. What is in flight finishes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from deployd_core.cli.exits import Exit
from deployd_core.cli.groups import Command
from deployd_core.cli.output import message
from deployd_core.cli.people import by_option, person, why_option
from deployd_core.cli.settings import Settings, pass_settings, zookeeper_options
from deployd_core.clock import to_the_second
from deployd_core.units import Duration

if TYPE_CHECKING:
    from deployd_core.zookeeper.session import Session


@click.command("pause", cls=Command, examples=["deployd pause web", "deployd pause web --why 'the database is being moved'"])
@click.argument("service")
@why_option
@by_option
@zookeeper_options
@pass_settings
def pause(settings: Settings, *, service: str, why: str, by: str | None) -> int:
    """Stop handing out permits for a service.

    Hosts that hold one finish: nobody is stopped half-way, and nobody stays drained. Enabling another build ends a pause.
    """
    from deployd_core import rollouts
    from deployd_core.cli.store import connected
    from deployd_core.coordination import RolloutState
    from deployd_core.picture import stopped

    with connected(settings) as session:
        before = rollouts.read_service(session, service)
        rollout = rollouts.pause(session, service, by=by or person(), why=why)
        if before.rollout.state is not RolloutState.OPEN:
            click.echo(f"{service} is stopped already: {stopped(before)}")
        else:
            click.echo(f"paused {service}")
        _say_who_finishes(session, service)
    if rollout.state is RolloutState.HALTED:
        message(f"go on: deployd retry {service}; go back: deployd rollback {service}")
    else:
        message(f"go on: deployd resume {service}")
    return Exit.DONE


@click.command("resume", cls=Command, examples=["deployd resume web"])
@click.argument("service")
@why_option
@by_option
@zookeeper_options
@pass_settings
def resume(settings: Settings, *, service: str, why: str, by: str | None) -> int:
    """Hand out permits again after a pause.

    A rollout that has halted is not resumed: retry and rollback are the two ways on.
    """
    from deployd_core import rollouts
    from deployd_core.cli.orders import warn_of_stop
    from deployd_core.cli.store import connected
    from deployd_core.coordination import RolloutState

    with connected(settings) as session:
        before = rollouts.read_service(session, service)
        rollouts.resume(session, service, by=by or person(), why=why)
        record = rollouts.read_service(session, service)
    paused = before.rollout.state is RolloutState.PAUSED
    click.echo(f"resumed {service}" if paused else f"{service} was not paused")
    warn_of_stop(record)
    message(f"watch it: deployd status {service} --watch")
    return Exit.DONE


@click.command(
    "freeze",
    cls=Command,
    examples=["deployd freeze --why outage", "deployd freeze --until 2h", "deployd freeze --until 2026-12-27T08:00 --why holidays"],
)
@click.option("--until", metavar="TIME|DURATION", help="When it ends by itself. [default: with deployd unfreeze]")
@why_option
@by_option
@zookeeper_options
@pass_settings
def freeze(settings: Settings, *, until: str | None, why: str, by: str | None) -> int:
    """Stop handing out permits for every service.

    Hosts that hold one finish, and what serves goes on serving. TIME is RFC 3339; without a time zone it is this machine's.
    """
    from deployd_core import rollouts
    from deployd_core.cli.store import connected
    from deployd_core.picture import in_force

    end = _moment(until, datetime.now(UTC)) if until is not None else None
    with connected(settings) as session:
        services = rollouts.list_services(session)
        before = rollouts.freeze(session, by=by or person(), why=why, until=end)
        count = "1 service" if len(services) == 1 else f"all {len(services)} services"
        click.echo(f"froze {count}" + (f" until {to_the_second(end)}" if end is not None else ""))
        if before is not None and before.active(datetime.now(UTC)):
            message(f"this takes the place of another freeze: it was {in_force(before)}")
        for record in services:
            _say_who_finishes(session, record.service)
    message("lift it: deployd unfreeze")
    return Exit.DONE


@click.command("unfreeze", cls=Command, examples=["deployd unfreeze"])
@zookeeper_options
@pass_settings
def unfreeze(settings: Settings) -> int:
    """Lift the freeze of every service."""
    from deployd_core import rollouts
    from deployd_core.cli.store import connected

    with connected(settings) as session:
        before = rollouts.unfreeze(session)
    if before is None:
        click.echo("nothing was frozen")
        return Exit.DONE
    by = f" by {before.by}" if before.by else ""
    click.echo(f"lifted the freeze{by}: {before.why or 'no reason given'}")
    message("watch it: deployd status")
    return Exit.DONE


def _moment(text: str, now: datetime) -> datetime:
    """When something ends: after a duration, or at a time.

    Raises:
        click.BadParameter: It is neither, or has passed.
    """
    try:
        moment = now + timedelta(seconds=float(Duration(text)))
    except ValueError as no_duration:
        try:
            moment = datetime.fromisoformat(text).astimezone(UTC)  # without a zone it is taken for local time
        except ValueError as error:
            raise click.BadParameter(f"--until {text!r} is no time such as 2026-12-27T08:00, and {no_duration}") from error
        except OverflowError as error:
            raise click.BadParameter(f"--until {text!r} is beyond all calendars") from error
    if moment <= now:
        raise click.BadParameter(f"--until {text!r} has passed")
    return moment


def _say_who_finishes(session: Session, service: str) -> None:
    from deployd_core import rollouts

    holders = [permit.host for permit in rollouts.list_permits(session, service)]
    if holders:
        more = f" and {len(holders) - 10} more" if len(holders) > 10 else ""
        verb = "finishes: it holds a permit" if len(holders) == 1 else "finish: they hold permits"
        message(f"{service}: {', '.join(holders[:10])}{more} {verb}")
