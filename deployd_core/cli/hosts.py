"""`deployd hosts`: who is registered for a service, in which role, and what becomes of those that are gone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from deployd_core.cli.exits import Exit
from deployd_core.cli.groups import Group
from deployd_core.cli.output import message, print_json, print_table
from deployd_core.cli.people import by_option, decide, reason_option
from deployd_core.cli.settings import Settings, json_option, pass_settings, zookeeper_options

if TYPE_CHECKING:
    from deployd_core.zookeeper.status import HostEntry


@click.group(
    "hosts",
    cls=Group,
    examples=[
        "deployd hosts list web",
        "deployd hosts role web web-17 canary",
        "deployd hosts lost web web-17 --why 'its disk is dead'",
    ],
)
def command() -> None:
    """List the hosts of a service, choose its canaries, and decide about lost ones."""


@command.command("list", examples=["deployd hosts list web", "deployd hosts list web --json"])
@click.argument("service")
@json_option
@zookeeper_options
@pass_settings
def list_hosts(settings: Settings, *, service: str, as_json: bool) -> int:
    """List the hosts of a service: role, zone, agent.

    A host registers itself when its agent starts, and stays until it is retired.
    """
    from deployd_core import rollouts
    from deployd_core.cli.store import connected

    with connected(settings) as session:
        hosts = rollouts.statuses(session, service)
    if as_json:
        rows = [
            {
                "host": entry.host,
                "role": entry.role.value,
                "zone": entry.zone,
                "alive": entry.alive,
                "agent": entry.status.agent if entry.status is not None else None,
                "served": entry.status.served if entry.status is not None else None,
                "down": entry.down,
                "excused": entry.excused,
                "permit_since": entry.permit.since if entry.permit is not None else None,
            }
            for entry in hosts
        ]
        print_json("deployd.hosts.list/1", {"service": service, "hosts": rows})
        return Exit.DONE
    if not hosts:
        click.echo(f"{service} has no host: one registers itself when its agent starts.")
        return Exit.DONE
    cells = [
        (
            entry.host,
            entry.role.value,
            entry.zone,
            "running" if entry.alive else "dead",
            entry.status.agent if entry.status is not None else "",
            (entry.status.served or "") if entry.status is not None else "",
            _note(entry),
        )
        for entry in hosts
    ]
    header = ("HOST", "ROLE", "ZONE", "AGENT", "VERSION", "SERVES", "NOTE")
    print_table(header, cells, colours={"running": "green", "dead": "red"})
    return Exit.DONE


def _note(entry: HostEntry) -> str:
    """What matters to the others about a host."""
    from deployd_core.picture import ago, excuse_of

    notes = [excuse_of(entry) or ("down" if entry.down else "")]
    if entry.permit is not None:
        notes.append(f"holds a permit for {ago(entry.permit.since, datetime.now(UTC))}")
    return "; ".join(filter(None, notes))


@command.command("role", examples=["deployd hosts role web web-17 canary", "deployd hosts role web web-17 fleet"])
@click.argument("service")
@click.argument("host")
@click.argument("role", type=click.Choice(("fleet", "canary")))
@zookeeper_options
@pass_settings
def set_role(settings: Settings, *, service: str, host: str, role: str) -> int:
    """Make a host a canary of a service, or one of the fleet again.

    From then on it serves what is enabled for that role.
    """
    from deployd_core import rollouts
    from deployd_core.cli.store import connected
    from deployd_core.model import Role

    with connected(settings) as session:
        changed = rollouts.set_role(session, service, host, Role(role))
        record = rollouts.read_service(session, service)
    click.echo(f"{host} is {'now' if changed else 'already'} a {role} host of {service}")
    wanted = record.enabled_for(Role(role))
    if changed and wanted is not None:
        message(f"it goes to {wanted.build}: deployd status {service}")
    return Exit.DONE


@command.command("excuse", examples=["deployd hosts excuse web web-17 --why 'in repair until Monday'"])
@click.argument("service")
@click.argument("host")
@reason_option
@by_option
@zookeeper_options
@pass_settings
def excuse(settings: Settings, *, service: str, host: str, why: str, by: str | None) -> int:
    """Stop counting a host as down, and waiting for it, until its agent comes back or it serves again.

    Refused while it is well: its agent runs, and does not say that the host is down. A permit that it holds stays: `deployd hosts
    lost` takes that away, too.
    """
    from deployd_core import rollouts

    news, entry = decide(settings, rollouts.excuse, service, host, by=by, why=why)
    click.echo(f"excused {host} from {service} until it is back" if news else f"{host} is excused from {service} already")
    if entry is not None and entry.permit is not None:
        message(f"it keeps its permit; to take that away: deployd hosts lost {service} {host} --why TEXT")
    return Exit.DONE


@command.command("lost", examples=["deployd hosts lost web web-17 --why 'its disk is dead'"])
@click.argument("service")
@click.argument("host")
@reason_option
@by_option
@zookeeper_options
@pass_settings
def lose(settings: Settings, *, service: str, host: str, why: str, by: str | None) -> int:
    """Give a host up whose agent is gone: take its permit away, and excuse it.

    Refused while its agent runs. Should it come back, it takes part again.
    """
    from deployd_core import rollouts

    news, _ = decide(settings, rollouts.lose, service, host, by=by, why=why)
    click.echo(f"gave {host} up: {service} goes on without it" if news else f"{host} was given up already")
    message(f"it takes part again when its agent comes back; if that is never: deployd hosts retire {service} {host} --why TEXT")
    return Exit.DONE


@command.command("retire", examples=["deployd hosts retire web web-17 --why 'sold'"])
@click.argument("service")
@click.argument("host")
@reason_option
@by_option
@zookeeper_options
@pass_settings
def retire(settings: Settings, *, service: str, host: str, why: str, by: str | None) -> int:
    """Take a host out of a service for good, with its permit and its report.

    Refused while its agent runs: take the service out of its agent.toml first.
    """
    from deployd_core import rollouts

    decide(settings, rollouts.retire, service, host, by=by, why=why)
    click.echo(f"took {host} out of {service}")
    message(f"its limits and budget count one host less: deployd status {service}")
    return Exit.DONE
