"""`deployd permits`: who may be restarting."""

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
    "permits", cls=Group, examples=["deployd permits list web", "deployd permits release web web-17 --why 'reinstalled by hand'"]
)
def command() -> None:
    """List the permits of a service, and take one away."""


@command.command("list", examples=["deployd permits list", "deployd permits list web", "deployd permits list web --json"])
@click.argument("service", required=False)
@json_option
@zookeeper_options
@pass_settings
def list_permits(settings: Settings, *, service: str | None, as_json: bool) -> int:
    """List the permits that are held, of one service or of all.

    A permit outlives the agent, the session and the machine: a host that died with one keeps it until it is healthy again or a
    person decides.
    """
    from deployd_core import rollouts
    from deployd_core.cli.store import connected
    from deployd_core.picture import ago, step_of

    now = datetime.now(UTC)
    with connected(settings) as session:
        names = [service] if service is not None else [record.service for record in rollouts.list_services(session)]
        fleets = [rollouts.fleet_status(session, name) for name in names]
    held = [
        (fleet.record.service, permit, next((entry for entry in fleet.hosts if entry.host == permit.host), None))
        for fleet in fleets
        for permit in fleet.permits
    ]
    if as_json:
        rows = [
            {
                "service": name,
                "host": permit.host,
                "zone": permit.zone,
                "rollout": permit.rollout,
                "since": permit.since,
                "alive": entry is not None and entry.alive,
                "step": step_of(entry) if entry is not None else None,
            }
            for name, permit, entry in held
        ]
        print_json("deployd.permits.list/1", {"permits": rows})
        return Exit.DONE
    if not held:
        click.echo(f"No host of {service} holds a permit." if service is not None else "No host holds a permit.")
        return Exit.DONE
    cells = [
        (name, permit.host, permit.zone, ago(permit.since, now), _agent(entry), step_of(entry) if entry else "", permit.rollout)
        for name, permit, entry in held
    ]
    header = ("SERVICE", "HOST", "ZONE", "HELD", "AGENT", "STEP", "ROLLOUT")
    print_table(header, cells, colours={"running": "green", "dead": "red", "unregistered": "red"})
    return Exit.DONE


def _agent(entry: HostEntry | None) -> str:
    if entry is None:
        return "unregistered"
    return "running" if entry.alive else "dead"


@command.command("release", examples=["deployd permits release web web-17 --why 'reinstalled by hand'"])
@click.argument("service")
@click.argument("host")
@reason_option
@by_option
@zookeeper_options
@pass_settings
def release(settings: Settings, *, service: str, host: str, why: str, by: str | None) -> int:
    """Take a host's permit away, so that another may restart.

    The host still counts as down while it is. When it is gone for good, `deployd hosts lost` is the word.
    """
    from deployd_core import rollouts

    held, entry = decide(settings, rollouts.release_permit, service, host, by=by, why=why)
    click.echo(f"took the permit of {host} away" if held else f"{host} holds no permit of {service}")
    if held and entry is not None and not entry.alive and entry.excused is None:
        message(
            f"its agent is not running, so it counts as down; to go on without it: deployd hosts lost {service} {host} --why TEXT"
        )
    elif held and entry is not None and not entry.converged:
        message(f"it asks for one again when it wants to restart: deployd why {service} {host}")
    return Exit.DONE
