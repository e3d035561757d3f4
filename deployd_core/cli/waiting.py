"""`--wait`: showing a rollout until it is over, and saying how it ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deployd_core.cli.exits import Exit
from deployd_core.cli.output import complain, message
from deployd_core.cli.settings import duration
from deployd_core.units import Duration

if TYPE_CHECKING:
    from deployd_core.model import Role
    from deployd_core.picture import Verdict
    from deployd_core.zookeeper.session import Session
    from deployd_core.zookeeper.status import FleetStatus, HostEntry

_SHOWN = 10
"""Hosts that are named at the end."""

F = TypeVar("F", bound=Callable[..., Any])


def wait_options(command: F) -> F:
    """``--wait`` and ``--timeout``."""
    for option in (
        click.option(
            "--timeout",
            type=duration,
            metavar="DURATION",
            default="10m",
            show_default=True,
            help="How long --wait waits; the rollout goes on after it.",
        ),
        click.option("--wait", is_flag=True, help="Show the rollout until every host serves the build."),
    ):
        command = option(command)
    return command


def wait_for(session: Session, service: str, build: str, *, rollout: str, role: Role, timeout: Duration) -> int:
    """Show a rollout until it is over, and say how it ended; returns the exit code."""
    from deployd_core import rollouts
    from deployd_core.cli.progress import follow, make_view
    from deployd_core.picture import Verdict

    stop = threading.Event()
    timer = threading.Timer(timeout, stop.set)
    timer.daemon = True
    timer.start()
    try:
        fleets = rollouts.watch_statuses(session, service, stop, every=1.0)
        verdict, seen = follow(fleets, make_view(build), rollout=rollout, role=role)
        if verdict in (Verdict.HELD, Verdict.STUCK):
            seen = rollouts.fleet_status(session, service)  # what ended it may have been seen by halves
    except KeyboardInterrupt:
        message(f"\nthe rollout of {build} goes on without you. Watch it: deployd status {service} --watch")
        return Exit.INTERRUPTED
    finally:
        timer.cancel()
    return _conclude(verdict, seen, service, build, rollout=rollout, role=role, timeout=timeout)


def _conclude(
    verdict: Verdict, seen: FleetStatus | None, service: str, build: str, *, rollout: str, role: Role, timeout: Duration
) -> int:
    """Say how it ended, who lacks the build and why, and what to type."""
    from deployd_core.picture import HostState, Verdict, entries_of, state_of

    entries = entries_of(seen, rollout) if seen else []
    lacking = [entry for entry in entries if state_of(entry) is not HostState.CONVERGED]
    number, done = f"{len(entries) - len(lacking)} of {len(entries)} hosts", _done(seen, build, rollout, role)
    if verdict is Verdict.DONE:
        excused = f"; {', '.join(entry.host for entry in lacking)} excused" if lacking else ""
        click.echo(f"{number} of {service} serve {build}{excused}")
        return Exit.DONE
    for entry in lacking[:_SHOWN]:
        message(f"  {entry.host} {_in_words(entry, seen)}")
    if len(lacking) > _SHOWN:
        message(f"  and {len(lacking) - _SHOWN} more")
    if verdict is Verdict.HELD and seen is not None:
        why, then = _held(seen, build, rollout, role)
        # The hosts of a rollout that is over take part in the next one.
        counted = f"{number} {done}: " if entries else ""
        complain(f"{counted}{why}", then)
        return Exit.HELD
    if verdict is Verdict.STUCK:
        complain(f"{number} {done}, and no other gets further by itself", f"deployd why {service}")
        return Exit.FAILED
    known = (
        f"{number} {done}"
        if seen is not None and entries
        else "no host has registered for it"
        if seen
        else "ZooKeeper has not answered"
    )
    complain(f"{known} after {timeout}; the rollout goes on", f"deployd why {service}")
    return Exit.LATE


def _done(seen: FleetStatus | None, build: str, rollout: str, role: Role) -> str:
    """What hosts have done when they are done: those that have yet to restart serve the build all the same."""
    wanted = seen.record.enabled_for(role) if seen is not None and seen.record.rollout_for(role) == rollout else None
    return f"have restarted {build}" if wanted is not None and wanted.restart else f"serve {build}"


def _in_words(entry: HostEntry, seen: FleetStatus | None) -> str:
    """What a host does, and why it is not done."""
    from deployd_core.picture import reason_of, step_of

    failure = seen.record.rollout.failed_in(entry.rollout_id).get(entry.host) if seen is not None else None
    reason = reason_of(entry)
    if failure is not None and not reason:  # it is on record before the host reports it
        return f"failed: {' '.join(failure.reason.split())}"
    return f"{step_of(entry)}{f': {reason}' if reason else ''}"


def _held(seen: FleetStatus, build: str, rollout: str, role: Role) -> tuple[str, str]:
    """Who or what holds a rollout, and what to type."""
    from deployd_core.picture import stopped

    record = seen.record
    enabled, why = record.enabled_for(role), f"deployd why {record.service}"
    if record.rollout_for(role) == rollout:
        return (stopped(record), why) if stopped(record) else (f"{build} waits to be promoted", f"deployd promote {record.service}")
    if enabled is None:
        return "it is no longer enabled", why
    if record.rollout.rollback_of == rollout:
        by_itself = record.rollout.by in {entry.host for entry in seen.hosts}
        who = "by itself" if by_itself else f"by {enabled.by or 'somebody'}"
        return f"{build} was taken back {who}, and the fleet goes to {enabled.build}: {record.rollout.why}", why
    return f"{enabled.build} was enabled by {enabled.by or 'somebody'} meanwhile", why
