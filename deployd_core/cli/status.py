"""`deployd status`: which build every host serves, and what it is doing."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from deployd_core.cli.exits import Exit
from deployd_core.cli.groups import Command
from deployd_core.cli.output import NO_SERVICE, folded, format_table, is_terminal, print_json, use_colour
from deployd_core.cli.settings import Settings, json_option, pass_settings, zookeeper_options

if TYPE_CHECKING:
    from deployd_core.coordination import Enabled
    from deployd_core.zookeeper.session import Session
    from deployd_core.zookeeper.status import FleetStatus, HostEntry

HEADER = ("HOST", "ROLE", "ZONE", "STEP", "SINCE", "SERVES", "READY", "REASON")


@click.command(
    "status",
    cls=Command,
    examples=["deployd status", "deployd status web", "deployd status web --watch", "deployd status web --json"],
)
@click.argument("service", required=False)
@click.option("--watch", is_flag=True, help="Show every change until Ctrl-C.")
@json_option
@zookeeper_options
@pass_settings
def command(settings: Settings, *, service: str | None, watch: bool, as_json: bool) -> int:
    """Show which build every host serves, and what it is doing.

    Of one service, or of all. A host whose agent is not running is marked: what it last said may be out of date.
    """
    from deployd_core import rollouts
    from deployd_core.cli.store import connected

    if watch and (as_json or service is None):
        raise click.UsageError("--watch needs a SERVICE, and cannot be combined with --json.")
    with connected(settings) as session:
        if watch and service is not None:
            return _watch(session, service)
        names = [service] if service is not None else [record.service for record in rollouts.list_services(session)]
        fleets = [rollouts.fleet_status(session, name) for name in names]
        reasons = {} if as_json else {fleet.record.service: _reasons(session, fleet) for fleet in fleets}
    if as_json:
        print_json("deployd.status/1", {"services": [as_object(fleet) for fleet in fleets]})
    elif not fleets:
        click.echo(NO_SERVICE)
    else:
        click.echo("\n\n".join("\n".join(lines_of(fleet, reasons[fleet.record.service])) for fleet in fleets))
    return Exit.DONE


def _watch(session: Session, service: str) -> int:
    from deployd_core import rollouts
    from deployd_core.cli.progress import Lines, Screen

    screen = Screen() if is_terminal() and use_colour() else None
    changes = Lines()
    try:
        for fleet in rollouts.watch_statuses(session, service, threading.Event(), every=1.0):
            if screen is not None:
                screen.draw(list(lines_of(fleet, fold=False)))
            else:
                changes.show(fleet, fleet.hosts)
    except KeyboardInterrupt:
        pass  # how one leaves
    return Exit.DONE


def _reasons(session: Session, fleet: FleetStatus) -> dict[str, str]:
    """Why hosts that stand in the queue wait, as of now: what they last said of it themselves may be old."""
    from deployd_core import rollouts
    from deployd_core.explaining import explain
    from deployd_core.noticing import notices
    from deployd_core.picture import HostState, state_of

    if not any(state_of(entry) is HostState.WAITING for entry in fleet.hosts):
        return {}
    found = explain(fleet, datetime.now(UTC), queue=rollouts.read_queue(session, fleet.record.service))
    told = {notice.code for notice in notices(fleet, datetime.now(UTC))}  # above the table: not in every row of it
    denied = [(one, one.code.value) for one in found if one.waits and one.code is not None]
    return {one.host: code if code in told else one.reason for one, code in denied}


def lines_of(fleet: FleetStatus, reasons: Mapping[str, str] = MappingProxyType({}), *, fold: bool = True) -> Iterator[str]:
    """A service as a person reads it: what is enabled, how far it is, and a row per host.

    Args:
        fleet: How things stand.
        reasons: By host, what is better known than from its own report.
        fold: Whether to fold what is too long for the terminal; whoever draws a screen cuts it, so that every host has its line.
    """
    from deployd_core.cli.progress import STATE_COLOURS
    from deployd_core.coordination import Denial
    from deployd_core.noticing import notices
    from deployd_core.picture import ago, count, excuse_of, ready_of, reason_of, state_of, step_of

    record = fleet.record
    yield f"{click.style(record.service, bold=True)}: {_enabled(record.enabled)}"
    if record.canary is not None:
        yield f"  canary hosts: {_enabled(record.canary)}"
    for notice in notices(fleet, datetime.now(UTC)):
        colour = "yellow" if notice.code == Denial.PROMOTION.value else "red"
        text = f"  {notice.text}" + (f" ({notice.until})" if notice.until and colour == "yellow" else "")
        yield click.style(folded(text, indent=4) if fold else text, fg=colour)
    if fleet.problem:
        yield click.style(folded(f"  {fleet.problem}", indent=4) if fold else f"  {fleet.problem}", fg="red")
    if not fleet.hosts:
        yield "  no host yet: one registers itself when its agent starts"
        return
    yield "  " + ", ".join(f"{number} {state.value}" for state, number in count(fleet.hosts).items())
    colours = {step_of(entry).split(",")[0]: STATE_COLOURS.get(state_of(entry), "") for entry in fleet.hosts}
    rows = [
        (
            entry.host,
            entry.role.value,
            entry.zone,
            step_of(entry),
            ago(entry.status.since) if entry.status is not None else "",
            (entry.status.served or "") if entry.status is not None else "",
            ready_of(entry),
            "; ".join(filter(None, (reasons.get(entry.host, reason_of(entry)), excuse_of(entry)))),
        )
        for entry in fleet.hosts
    ]
    yield from format_table(HEADER, rows, fold=(-1,) if fold else (), colours=colours)


def _enabled(enabled: Enabled | None) -> str:
    from deployd_core.picture import ago

    if enabled is None:
        return "nothing is enabled"
    by = f" by {enabled.by}" if enabled.by else ""
    return f"{enabled.build} enabled{by}" + (f" {ago(enabled.at)} ago" if enabled.at else "")


def as_object(fleet: FleetStatus) -> dict[str, Any]:
    """A service for machines: ``deployd.status/1``."""
    from deployd_core.picture import count, stopped

    record = fleet.record
    return {
        "service": record.service,
        "enabled": record.enabled,
        "canary": record.canary,
        "rollout": record.rollout.state.value,
        "stopped": stopped(record),
        "problem": fleet.problem,
        "counts": {state.value: number for state, number in count(fleet.hosts).items()},
        "hosts": [host_as_object(entry) for entry in fleet.hosts],
        "at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }


def host_as_object(entry: HostEntry) -> dict[str, Any]:
    """A host for machines."""
    from deployd_core.picture import reason_of, state_of

    status = entry.status
    return {
        "host": entry.host,
        "role": entry.role.value,
        "zone": entry.zone,
        "alive": entry.alive,
        "state": state_of(entry).value,
        "reason": reason_of(entry),
        "excused": entry.excused,
        "permit_since": entry.permit.since if entry.permit is not None else None,
        "wanted": entry.wanted.build if entry.wanted is not None else None,
        "served": status.served if status is not None else None,
        "step": status.step if status is not None else None,
        "since": status.since if status is not None else None,
        "deadline": status.deadline if status is not None else None,
        "last_error": status.last_error if status is not None else "",
        "agent": status.agent if status is not None else None,
        "instances": status.instances if status is not None else [],
    }
