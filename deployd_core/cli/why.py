"""`deployd why`: what the hosts that are not done wait for, and what to type next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from deployd_core.cli.exits import Exit
from deployd_core.cli.groups import Command, did_you_mean
from deployd_core.cli.output import print_json
from deployd_core.cli.settings import Settings, json_option, pass_settings, zookeeper_options
from deployd_core.errors import NotFound
from deployd_core.model import Role

if TYPE_CHECKING:
    from deployd_core.zookeeper.status import FleetStatus, HostEntry


@click.command("why", cls=Command, examples=["deployd why web", "deployd why web web-17", "deployd why web --json"])
@click.argument("service")
@click.argument("host", required=False)
@json_option
@zookeeper_options
@pass_settings
def command(settings: Settings, *, service: str, host: str | None, as_json: bool) -> int:
    """Say why hosts wait or have failed, and what to type next.

    Of every host that does not serve what it should, or of one HOST: the reason, since when, until when, the last error.
    """
    from deployd_core import rollouts
    from deployd_core.cli.picture import HostState, advice, previous_build, state_of, stopped
    from deployd_core.cli.status import host_as_object
    from deployd_core.cli.store import connected

    with connected(settings) as session:
        fleet = rollouts.fleet_status(session, service)
        history = rollouts.history(session, service)
    before = {role: previous_build(history, fleet.record, role) for role in Role}
    if host is not None:
        entries = [_host(fleet, host)]
    else:
        entries = [entry for entry in fleet.hosts if state_of(entry) not in (HostState.CONVERGED, HostState.IDLE)]
    if as_json:
        hosts = [host_as_object(entry) | {"next": advice(service, entry, before[entry.role])} for entry in entries]
        print_json(
            "deployd.why/1", {"service": service, "stopped": stopped(fleet.record), "problem": fleet.problem, "hosts": hosts}
        )
    else:
        click.echo("\n".join(_lines(fleet, entries, before)))
    return Exit.DONE


def _host(fleet: FleetStatus, host: str) -> HostEntry:
    found = next((entry for entry in fleet.hosts if entry.host == host), None)
    if found is None:
        names = [entry.host for entry in fleet.hosts]
        raise NotFound(f"{fleet.record.service} has no host {host!r}", hint=did_you_mean(host, names))
    return found


def _lines(fleet: FleetStatus, entries: list[HostEntry], before: Mapping[Role, str]) -> Iterator[str]:
    from deployd_core.cli.picture import stop_advice, stopped

    record = fleet.record
    if stopped(record):
        yield f"No host begins to restart: {stopped(record)}"
        yield f"  next   {stop_advice(record, before[Role.FLEET])}"
    if fleet.problem:
        yield f"ZooKeeper holds what cannot be read: {fleet.problem}"
    if record.enabled is None and record.canary is None:
        yield f"Nothing is enabled for {record.service}. Enable a build: deployd enable {record.service} BUILD"
    elif not fleet.hosts:
        yield f"{record.service} has no host: one registers itself when its agent starts."
    elif not entries:
        yield f"All {len(fleet.hosts)} hosts of {record.service} serve what they should."
    for entry in entries:
        yield from _host_lines(record.service, entry, before[entry.role])


def _host_lines(service: str, entry: HostEntry, previous: str) -> Iterator[str]:
    from deployd_core.cli.picture import advice, ago, reason_of, step_of

    status = entry.status
    since = f" since {status.since} ({ago(status.since)})" if status is not None else ""
    wanted = f" {entry.wanted.build}" if entry.wanted is not None else ""
    yield f"{click.style(entry.host, bold=True)}:{wanted} {step_of(entry)}{since}"
    sick = [instance for instance in status.instances if instance.reason] if status is not None else []
    for name, text in (
        ("reason", reason_of(entry)),
        ("until", _until(status.deadline) if status is not None and status.deadline else ""),
        ("error", status.last_error if status is not None and status.last_error != status.reason else ""),
        *((instance.name, f"{instance.phase}: {instance.reason}") for instance in sick),
        ("permit", f"held since {entry.permit.since}" if entry.permit is not None else ""),
        ("next", advice(service, entry, previous)),
    ):
        if text:
            yield f"  {name:6} {' '.join(text.split())}"


def _until(deadline: str) -> str:
    from deployd_core.cli.picture import in_words

    try:
        left = (datetime.fromisoformat(deadline) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return deadline
    return f"{deadline} (in {in_words(left)})" if left > 0 else f"{deadline} (has passed)"
