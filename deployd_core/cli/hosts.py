"""`deployd hosts`: who is registered for a service, and in which role."""

from __future__ import annotations

import click

from deployd_core.cli.exits import Exit
from deployd_core.cli.groups import Group
from deployd_core.cli.output import message, print_json, print_table
from deployd_core.cli.settings import Settings, json_option, pass_settings, zookeeper_options


@click.group("hosts", cls=Group, examples=["deployd hosts list web", "deployd hosts role web web-17 canary"])
def command() -> None:
    """List the hosts of a service and choose its canaries."""


@command.command("list", examples=["deployd hosts list web", "deployd hosts list web --json"])
@click.argument("service")
@json_option
@zookeeper_options
@pass_settings
def list_hosts(settings: Settings, *, service: str, as_json: bool) -> int:
    """List the hosts of a service: role, zone, agent.

    A host registers itself when its agent starts, and stays until it is taken out.
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
            }
            for entry in hosts
        ]
        print_json("deployd.hosts.list/1", {"service": service, "hosts": rows})
        return Exit.DONE
    cells = [
        (
            entry.host,
            entry.role.value,
            entry.zone,
            "running" if entry.alive else "dead",
            entry.status.agent if entry.status is not None else "",
            (entry.status.served or "") if entry.status is not None else "",
        )
        for entry in hosts
    ]
    print_table(("HOST", "ROLE", "ZONE", "AGENT", "VERSION", "SERVES"), cells, colours={"running": "green", "dead": "red"})
    return Exit.DONE


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
