"""`deployd enable`: say which build a service should serve, and watch it happen."""

from __future__ import annotations

import getpass
import os
import socket
import threading
from typing import TYPE_CHECKING

import click

from deployd_core.cli.exits import Exit
from deployd_core.cli.groups import Command
from deployd_core.cli.output import message
from deployd_core.cli.settings import Settings, duration, pass_settings, zookeeper_options
from deployd_core.errors import ConfigError
from deployd_core.units import Duration

if TYPE_CHECKING:
    from deployd_core.cli.picture import Verdict
    from deployd_core.model import Role
    from deployd_core.zookeeper.services import ServiceRecord
    from deployd_core.zookeeper.session import Session
    from deployd_core.zookeeper.status import FleetStatus

_SHOWN = 10
"""Hosts that are named at the end."""


@click.command(
    "enable",
    cls=Command,
    examples=[
        "deployd enable web 2026.11.23-1",
        "deployd enable web 2026.11.23-1 --canary --wait",
        "deployd enable web 2026.11.22-4 --wait --timeout 30m --by ann",
    ],
)
@click.argument("service")
@click.argument("build")
@click.option("--canary", is_flag=True, help="For the canary hosts only.")
@click.option("--digest", metavar="sha256:HEX", help="The digest to pin. [default: what the source publishes]")
@click.option("--no-check", is_flag=True, help="Do not ask the source for the build; needs --digest.")
@click.option("--wait", is_flag=True, help="Show the rollout until every host serves the build.")
@click.option(
    "--timeout",
    type=duration,
    metavar="DURATION",
    default="10m",
    show_default=True,
    help="How long --wait waits; the rollout goes on after it.",
)
@click.option("--by", metavar="NAME", help="Who does it, for the history. [default: you]")
@zookeeper_options
@pass_settings
def command(
    settings: Settings,
    *,
    service: str,
    build: str,
    canary: bool,
    digest: str | None,
    no_check: bool,
    wait: bool,
    timeout: Duration,
    by: str | None,
) -> int:
    """Enable a build of a service, for the fleet or its canary hosts.

    Checks that the build exists and pins its digest, so that every host gets the same bytes. Canary hosts follow the fleet until
    they are given a build of their own. Enabling opens a rollout that was paused or halted.
    """
    from deployd_core import rollouts
    from deployd_core.cli.pinning import check_history
    from deployd_core.cli.store import connected
    from deployd_core.model import Role, check_build_id, check_digest

    check_build_id(build)
    if digest is not None:
        check_digest(digest)
    elif no_check:
        raise click.UsageError("--no-check needs --digest: somebody has to say what the build is.")
    role = Role.CANARY if canary else Role.FLEET
    with connected(settings) as session:
        before = rollouts.fleet_status(session, service)
        digest = digest if no_check and digest else _pinned(settings, before.record, build, digest)
        check_history(rollouts.history(session, service), build, digest)
        rollout = rollouts.enable(session, service, build, digest, role=role, by=by or person())
        _say_what_changed(before, build, digest, role)
        return _wait(session, service, build, rollout=rollout, role=role, timeout=timeout) if wait else Exit.DONE


def person() -> str:
    """Who types this: for the history, and for whoever finds a build enabled and wonders."""
    try:
        name = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container may run us under a number that has no name
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"


def _pinned(settings: Settings, record: ServiceRecord, build: str, digest: str | None) -> str:
    from deployd_core.cli.pinning import pin
    from deployd_core.config import set_up

    if record.spec is None:
        raise ConfigError(f"the spec of {record.service} cannot be read: {record.problem}", hint="deployd services apply FILE")
    source = set_up(record.spec, record.service, settings.plugins()).source
    return pin(source, record.service, build, digest, message)


def _say_what_changed(before: FleetStatus, build: str, digest: str, role: Role) -> None:
    from deployd_core.cli.picture import stopped
    from deployd_core.coordination import RolloutState
    from deployd_core.model import Role

    record = before.record
    previous = record.enabled_for(role)
    follow = record.canary is None or role is Role.CANARY
    hosts = [entry for entry in before.hosts if entry.role is role or (follow and role is Role.FLEET)]
    was = f" (was {previous.build})" if previous is not None and previous.build != build else ""
    whom = "the fleet" if role is Role.FLEET else "the canary hosts"
    click.echo(f"enabled {build} for {whom} of {record.service}{was}, {digest}")
    if not hosts and role is Role.CANARY:
        message(
            f"deployd: warning: {record.service} has no canary host. Choose one: deployd hosts role {record.service} HOST canary"
        )
    elif not hosts:
        message(f"deployd: warning: {record.service} has no host: one registers itself when its agent starts")
    if role is Role.FLEET and record.canary is not None and record.canary.build != build:
        message(f"its canary hosts stay on {record.canary.build}")
    if record.rollout.state is not RolloutState.OPEN:
        message(f"the rollout was {record.rollout.state.value}, and is open again")
    elif stopped(record):
        message(f"deployd: warning: nothing restarts for now: {stopped(record)}")
    message(f"watch it: deployd status {record.service} --watch" + (f"; go back: {_go_back(record, role)}" if was else ""))


def _go_back(record: ServiceRecord, role: Role) -> str:
    previous = record.enabled_for(role)
    canary = " --canary" if role.value == "canary" else ""
    return f"deployd enable {record.service} {previous.build if previous else 'BUILD'}{canary}"


def _wait(session: Session, service: str, build: str, *, rollout: str, role: Role, timeout: Duration) -> int:
    from deployd_core import rollouts
    from deployd_core.cli.progress import follow, make_view

    stop = threading.Event()
    timer = threading.Timer(timeout, stop.set)
    timer.daemon = True
    timer.start()
    try:
        fleets = rollouts.watch_statuses(session, service, stop, every=1.0)
        verdict, seen = follow(fleets, make_view(build), rollout=rollout, role=role)
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
    from deployd_core.cli.picture import HostState, Verdict, entries_of, reason_of, state_of, step_of, stopped

    entries = entries_of(seen, rollout) if seen else []
    if verdict is Verdict.DONE:
        click.echo(f"{len(entries)} of {len(entries)} hosts of {service} serve {build}")
        return Exit.DONE
    lacking = [entry for entry in entries if state_of(entry) is not HostState.CONVERGED]
    for entry in lacking[:_SHOWN]:
        message(f"  {entry.host} {step_of(entry)}: {reason_of(entry)}")
    if len(lacking) > _SHOWN:
        message(f"  and {len(lacking) - _SHOWN} more")
    number = f"{len(entries) - len(lacking)} of {len(entries)} hosts serve {build}"
    if verdict is Verdict.HELD and seen is not None:
        why = stopped(seen.record) if seen.record.rollout_for(role) == rollout else _superseded(seen.record, role)
        message(f"deployd: error: {number}: {why}. Try: deployd why {service}")
        return Exit.HELD
    if verdict is Verdict.STUCK:
        message(f"deployd: error: {number}, and no other gets further by itself. Try: deployd why {service}")
        return Exit.FAILED
    known = number if seen is not None and entries else "no host has registered for it" if seen else "ZooKeeper has not answered"
    message(f"deployd: error: {known} after {timeout}; the rollout goes on. Try: deployd why {service}")
    return Exit.LATE


def _superseded(record: ServiceRecord, role: Role) -> str:
    enabled = record.enabled_for(role)
    return f"{enabled.build} was enabled by {enabled.by or 'somebody'} meanwhile" if enabled else "it is no longer enabled"
