"""`deployd why`: what the hosts that are not done wait for, and what to type next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from deployd_core.cli.exits import Exit
from deployd_core.cli.groups import Command, did_you_mean
from deployd_core.cli.output import print_json
from deployd_core.cli.settings import Settings, json_option, pass_settings, zookeeper_options
from deployd_core.errors import DeploydError, NotFound

if TYPE_CHECKING:
    from deployd_core.explaining import Explanation
    from deployd_core.model import FleetLimit
    from deployd_core.noticing import Blocker, Notice
    from deployd_core.zookeeper.status import FleetStatus

_NAMED = 5
"""Hosts that share one reason and are named."""


@click.command("why", cls=Command, examples=["deployd why web", "deployd why web web-17", "deployd why web --json"])
@click.argument("service")
@click.argument("host", required=False)
@json_option
@zookeeper_options
@pass_settings
def command(settings: Settings, *, service: str, host: str | None, as_json: bool) -> int:
    """Say why hosts wait or have failed, and what to type next.

    Of every host that does not serve what it should, or of one HOST: the reason, since when, until when, who is in the way, the
    last words of its probes. The reason of one that waits comes from the function that grants permits.
    """
    from deployd_core import rollouts
    from deployd_core.chronicle import last_completed
    from deployd_core.cli.status import host_as_object
    from deployd_core.cli.store import connected
    from deployd_core.explaining import explain
    from deployd_core.noticing import notices
    from deployd_core.picture import stopped

    now = datetime.now(UTC)
    with connected(settings) as session:
        fleet = rollouts.fleet_status(session, service)
        queue = rollouts.read_queue(session, service)
        current = fleet.record.enabled.build if fleet.record.enabled is not None else ""
        previous = last_completed(rollouts.history(session, service), current, fleet.record.rollout.completed)
    _check_host(fleet, host)
    limit = _limit(settings, fleet)
    told = notices(fleet, now, previous=previous)
    found = explain(fleet, now, queue=queue, limit=limit, previous=previous, host=host)
    if as_json:
        entries = {entry.host: entry for entry in fleet.hosts}
        hosts = [host_as_object(entries[one.host]) | _as_object(one) for one in found]
        body = {"service": service, "stopped": stopped(fleet.record), "problem": fleet.problem, "notices": told, "hosts": hosts}
        print_json("deployd.why/1", body)
    else:
        click.echo("\n".join(_lines(fleet, told, found, now)))
    return Exit.DONE


def _check_host(fleet: FleetStatus, host: str | None) -> None:
    names = [entry.host for entry in fleet.hosts]
    if host is not None and host not in names:
        raise NotFound(f"{fleet.record.service} has no host {host!r}", hint=did_you_mean(host, names))


def _limit(settings: Settings, fleet: FleetStatus) -> FleetLimit | None:
    """How many hosts may restart at a time, as the options of the service's strategy say; None when they cannot be read here."""
    from deployd_core.contracts import FleetOptions
    from deployd_core.model import FleetLimit
    from deployd_core.picture import HostState, state_of
    from deployd_core.plugins import Kind

    spec = fleet.record.spec
    if spec is None or not any(state_of(entry) is HostState.WAITING for entry in fleet.hosts):
        return None
    try:
        strategy = settings.plugins().make(Kind.STRATEGY, spec.restart.strategy, spec.restart.options, where="[restart.options]")
    except DeploydError:
        return None
    options = strategy.plugin.options
    return options.fleet_limit if isinstance(options, FleetOptions) else FleetLimit()


def _as_object(one: Explanation) -> dict[str, object]:
    return {
        "code": one.code.value if one.code is not None else None,
        "reason": one.reason,
        "blockers": one.blockers,
        "until": one.until,
        "place": one.place,
        "queue": one.queue,
        "next": one.next,
    }


def _lines(fleet: FleetStatus, told: Sequence[Notice], found: Sequence[Explanation], now: datetime) -> Iterator[str]:
    record = fleet.record
    for notice in told:
        yield from _notice_lines(notice, now)
    if fleet.problem:
        yield f"ZooKeeper holds what cannot be read: {fleet.problem}"
    if record.enabled is None and record.canary is None:
        yield f"Nothing is enabled for {record.service}. Enable a build: deployd enable {record.service} BUILD"
    elif not fleet.hosts:
        yield f"{record.service} has no host: one registers itself when its agent starts."
    elif not found:
        yield f"All {len(fleet.hosts)} hosts of {record.service} serve what they should."
    for alike in _grouped(found):
        yield from _host_lines(alike, now)


def _grouped(found: Sequence[Explanation]) -> Iterator[list[Explanation]]:
    """Hosts that wait for the same thing are told together; each of the others for itself."""
    groups: dict[tuple[object, ...], list[Explanation]] = {}
    for one in found:
        waits = one.permit_since is None and not one.last_error and not one.probes
        key = (one.step, one.wanted, one.code, one.reason, one.until, one.next) if waits else (one.host,)
        groups.setdefault(key, []).append(one)
    for alike in groups.values():
        yield sorted(alike, key=lambda one: (one.place is None, one.zone if one.place else "", one.place or 0))


def _notice_lines(notice: Notice, now: datetime) -> Iterator[str]:
    yield click.style(f"{notice.text[0].upper()}{notice.text[1:]}", bold=True)
    yield from _rows([*(("", _blocker(blocker, now)) for blocker in notice.blockers), ("until", _until(notice.until, now))])
    yield from _rows([("next", notice.next)])


def _host_lines(alike: Sequence[Explanation], now: datetime) -> Iterator[str]:
    from deployd_core.picture import ago

    one = min(alike, key=lambda explanation: explanation.since or "~")
    names = ", ".join(explanation.host for explanation in alike[:_NAMED])
    names += f" and {len(alike) - _NAMED} more" if len(alike) > _NAMED else ""
    since = f" since {one.since} ({ago(one.since, now)})" if one.since else ""
    code = f" ({one.code.value})" if one.code is not None else ""
    yield f"{click.style(names, bold=True)}:{f' {one.wanted}' if one.wanted else ''} {one.step}{code}{since}"
    permit = f"held since {one.permit_since} ({ago(one.permit_since, now)})" if one.permit_since is not None else ""
    yield from _rows(
        [
            ("reason", one.reason),
            *(("", _blocker(blocker, now)) for blocker in one.blockers),
            ("until", _until(one.until, now)),
            ("queue", _places(alike)),
            ("error", one.last_error),
            *(("probe", probe) for probe in one.probes),
            ("permit", permit),
            ("next", one.next),
        ]
    )


def _places(alike: Sequence[Explanation]) -> str:
    """Where hosts stand in the queues of their zones."""
    placed = [one for one in alike if one.place is not None]
    if not placed:
        return ""
    if len(placed) == 1:
        return f"place {placed[0].place} of {placed[0].queue} in zone {placed[0].zone}"
    shown = ", ".join(f"{one.host} {one.place} of {one.queue} in zone {one.zone}" for one in placed[:_NAMED])
    return shown + (", …" if len(placed) > _NAMED else "")


def _blocker(blocker: Blocker, now: datetime) -> str:
    from deployd_core.picture import ago

    long = f" for {ago(blocker.since, now)}" if blocker.since else ""
    if blocker.how == "failed":
        long = f" {ago(blocker.since, now)} ago"
    return f"{blocker.host} {blocker.how}{long}" + (f": {blocker.why}" if blocker.why else "")


def _rows(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    for name, text in rows:
        if text:
            yield f"  {name:6} {' '.join(text.split())}"


def _until(moment: str | None, now: datetime) -> str:
    from deployd_core.picture import in_words

    if moment is None:
        return ""
    try:
        left = (datetime.fromisoformat(moment) - now).total_seconds()
    except (ValueError, TypeError):
        return moment
    return f"{moment} (in {in_words(left)})" if left > 0 else f"{moment} (has passed)"
