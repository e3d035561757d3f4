"""`deployd why`: what the hosts that are not done wait for, and what to type next."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from deployd_core.cli.exits import Exit
from deployd_core.cli.groups import Command
from deployd_core.cli.output import folded, print_json, use_colour
from deployd_core.cli.settings import Settings, json_option, pass_settings, zookeeper_options
from deployd_core.errors import DeploydError, some_of

if TYPE_CHECKING:
    from deployd_core.explaining import Explanation
    from deployd_core.model import FleetLimit
    from deployd_core.noticing import Blocker, Notice
    from deployd_core.zookeeper.status import FleetStatus


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
        click.echo("\n".join(map(_shown, _lines(fleet, told, found, now))))
    return Exit.DONE


def _check_host(fleet: FleetStatus, host: str | None) -> None:
    from deployd_core.zookeeper.members import no_such_host

    names = [entry.host for entry in fleet.hosts]
    if host is not None and host not in names:
        raise no_such_host(fleet.record.service, host, names)


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
        yield from _notice_lines(record.service, notice, now)
    if fleet.problem:
        yield f"ZooKeeper holds what cannot be read: {fleet.problem}"
    if record.enabled is None and record.canary is None:
        yield f"Nothing is enabled for {record.service}. Enable a build: deployd enable {record.service} BUILD"
    elif not fleet.hosts:
        yield f"{record.service} has no host: one registers itself when its agent starts."
    elif not found:
        yield f"All {len(fleet.hosts)} hosts of {record.service} serve what they should."
    explained = {notice.code for notice in told}
    for alike in _grouped(found):
        yield from _host_lines(alike, now, explained)


def _grouped(found: Sequence[Explanation]) -> Iterator[list[Explanation]]:
    """Hosts that wait for the same thing are told together; each of the others for itself."""
    groups: dict[tuple[object, ...], list[Explanation]] = {}
    for one in found:
        same = (one.step, one.wanted, one.code, one.reason, one.until, one.next, one.last_error, one.probes)
        key = same if one.permit_since is None else (one.host,)
        groups.setdefault(key, []).append(one)
    for alike in groups.values():
        yield sorted(alike, key=lambda one: (one.place is None, one.zone if one.place else "", one.place or 0))


def _notice_lines(service: str, notice: Notice, now: datetime) -> Iterator[str]:
    yield f"{service}: {notice.text}"
    yield from _rows([*_blockers(notice.blockers, notice.text, now), ("until", _until(notice.until, now)), *_next(notice.next)])


def _host_lines(alike: Sequence[Explanation], now: datetime, explained: Collection[str]) -> Iterator[str]:
    """Hosts that wait for the same thing; what the service as a whole waits for has been said already."""
    one = min(alike, key=lambda explanation: explanation.since or "~")
    names = some_of([explanation.host for explanation in alike])
    since = f" since {_moment(one.since, now)}" if one.since else ""
    code = f" ({one.code.value})" if one.code is not None else ""
    yield f"{names}:{f' {one.wanted}' if one.wanted else ''} {one.step}{code}{since}"
    said = one.waits and one.code is not None and one.code.value in explained
    if not said:
        yield from _rows([("reason", one.reason), *_blockers(one.blockers, one.reason, now), ("until", _until(one.until, now))])
    yield from _rows(
        [
            ("queue", _places(alike)),
            ("error", one.last_error),
            *(("probe", probe.text) for probe in one.probes if probe.reason not in one.reason),
            ("permit", f"held since {_moment(one.permit_since, now)}" if one.permit_since is not None else ""),
            *_next("" if said else one.next),
        ]
    )


def _next(text: str) -> Iterator[tuple[str, str]]:
    """What to type, and what else there is: each in a row, to be copied."""
    for number, part in enumerate(text.split("; ")):
        yield "" if number else "next", part


def _places(alike: Sequence[Explanation]) -> str:
    """Where hosts stand in the queues of their zones: they are named in that order."""
    by_zone: dict[str, list[Explanation]] = {}
    for one in alike:
        if one.place is not None:
            by_zone.setdefault(one.zone, []).append(one)
    return ", ".join(
        f"place{f's {placed[0].place} to' if len(placed) > 1 else ''} {placed[-1].place} of {placed[-1].queue} in zone {zone}"
        for zone, placed in by_zone.items()
    )


def _blockers(blockers: Sequence[Blocker], said: str, now: datetime) -> Iterator[tuple[str, str]]:
    """Who is in the way, but for what has been said already."""
    from deployd_core.picture import ago

    for blocker in blockers:
        if blocker.how == "failed" and blocker.why in said:
            continue
        long = f" {ago(blocker.since, now)} ago" if blocker.how == "failed" else f" for {ago(blocker.since, now)}"
        yield "", f"{blocker.host} {blocker.how}{long if blocker.since else ''}{f': {blocker.why}' if blocker.why else ''}"


def _rows(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    for name, text in rows:
        if text:
            yield f"  {name:6} {' '.join(text.split())}"


def _shown(line: str) -> str:
    """As a terminal shows it best, with what a paragraph is about in bold."""
    text = folded(line, indent=9)
    if line.startswith(" ") or not use_colour():
        return text
    head, colon, rest = text.partition(":")
    return click.style(head, bold=True) + colon + rest


def _until(text: str | None, now: datetime) -> str:
    from deployd_core.picture import in_words

    moment = _parsed(text or "")
    if moment is None:
        return text or ""
    left = (moment - now).total_seconds()
    return f"{_utc(moment)} ({f'in {in_words(left)}' if left > 0 else 'has passed'})"


def _moment(text: str, now: datetime) -> str:
    from deployd_core.picture import ago

    moment = _parsed(text)
    return text if moment is None else f"{_utc(moment)} ({ago(text, now)})"


def _parsed(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
